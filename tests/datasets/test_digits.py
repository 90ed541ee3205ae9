import dataclasses
import hashlib
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

import covshift.datasets
from covshift.datasets import ImageSplit, digits, stratified_split
from covshift.exceptions import CovshiftError, InvalidArgumentError


@pytest.fixture(scope="module")
def data() -> ImageSplit:
    return digits()


def sorted_rows(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    return sorted(
        image.astype(np.uint8).tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True)
    )


def test_both_parts_together_are_the_bundled_digits_each_once(data: ImageSplit) -> None:
    bundle = load_digits()
    images = torch.cat([data.train_images, data.test_images]).squeeze(1).mul(16).numpy()
    labels = torch.cat([data.train_labels, data.test_labels]).numpy()
    assert sorted_rows(images, labels) == sorted_rows(bundle.images, bundle.target)


def test_images_are_float32_nchw_between_zero_and_one(data: ImageSplit) -> None:
    for images, labels, examples in [
        (data.train_images, data.train_labels, 1400),
        (data.test_images, data.test_labels, 397),
    ]:
        assert images.dtype == torch.float32
        assert images.shape == (examples, 1, 8, 8)
        assert labels.dtype == torch.int64
        assert labels.shape == (examples,)
        assert (images.min().item(), images.max().item()) == (0.0, 1.0)


def test_every_class_keeps_its_share_within_one_example(data: ImageSplit) -> None:
    counts = np.bincount(load_digits().target)
    train = np.bincount(data.train_labels.numpy(), minlength=10)
    assert np.abs(train - counts * 1400 / 1797).max() < 1


def test_the_split_is_the_one_behind_every_published_number() -> None:
    train, test = stratified_split(load_digits().target, train_size=1400, seed=0)
    indices = np.concatenate([train, test]).astype("<i8")
    assert (
        hashlib.sha256(indices.tobytes()).hexdigest()
        == "03fb822738c150f42247d94e53063eb4e026ab8c4257ed94babbbcaaf933dcf6"
    )


def test_the_seed_decides_the_split() -> None:
    labels = load_digits().target
    first, same, other = (stratified_split(labels, train_size=1400, seed=seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert set(first.tolist()) != set(other.tolist())


def test_loading_leaves_the_global_random_states_alone() -> None:
    def numpy_state() -> bytes:
        return pickle.dumps(np.random.get_state())  # noqa: NPY002

    before = torch.get_rng_state(), numpy_state()
    digits()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert numpy_state() == before[1]


def test_the_data_say_what_they_are_and_cannot_be_rebound(data: ImageSplit) -> None:
    assert (data.name, data.classes, data.licence) == ("digits", 10, "CC BY 4.0")
    assert "Alpaydin" in data.source
    assert "divided by 16" in data.description
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.classes = 9  # type: ignore[misc]


def test_digits_stays_a_function_after_its_module_is_loaded() -> None:
    assert covshift.datasets.digits is digits
    assert callable(digits)


@pytest.mark.parametrize("train_size", [0, 9, 1788, 1797, -1, 1400.0, True, "1400", None])
def test_a_train_size_that_leaves_a_class_out_is_refused(train_size: int) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"train_size={train_size!r}; expected an integer from 10 to 1787"):
        digits(train_size=train_size)


@pytest.mark.parametrize("seed", [-1, 0.5, False])
def test_a_seed_that_is_no_natural_number_is_refused(seed: int) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"seed={seed!r}; expected an integer of at least 0"):
        digits(seed=seed)


def test_missing_scikit_learn_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(CovshiftError, match=r'pip install "covshift\[demo\]"'):
        digits()


def test_other_data_under_the_same_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_digits()
    changed = SimpleNamespace(images=bundle.images.copy(), target=bundle.target)
    changed.images[0, 0, 0] += 1
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: changed)
    with pytest.raises(CovshiftError, match=r"have SHA-256 \w{64}; expected 87ff0c9e"):
        digits()


@given(
    labels=st.lists(st.integers(-2, 4), min_size=1, max_size=60),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**64),
)
def test_a_split_is_a_partition_with_class_shares_within_one_example(
    labels: list[int], share: float, seed: int
) -> None:
    kinds = len(set(labels))
    labels = labels * 2  # so that both parts can hold each class
    train_size = kinds + round(share * (len(labels) - 2 * kinds))
    train, test = stratified_split(labels, train_size=train_size, seed=seed)
    assert train.size == train_size
    assert sorted(np.concatenate([train, test]).tolist()) == list(range(len(labels)))
    for kind in set(labels):
        exact = labels.count(kind) * train_size / len(labels)
        assert abs(sum(labels[index] == kind for index in train) - exact) < 1


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([[0, 1], [1, 0]], r"dtype int64 and shape \(2, 2\)"),
        ([0.0, 1.0, np.nan], "dtype float64"),
        ([], r"dtype float64 and shape \(0,\)"),
    ],
)
def test_labels_that_are_no_row_of_integers_are_refused(labels: list[float], found: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"labels have {found}.*expected integers of shape \(examples,\)"):
        stratified_split(labels, train_size=1)


def test_no_labels_cannot_be_split() -> None:
    with pytest.raises(InvalidArgumentError, match="train_size=1; expected an integer from 0 to 0"):
        stratified_split(np.zeros(0, dtype=int), train_size=1)


def test_the_split_carries_the_hash_of_its_data() -> None:
    bundle = load_digits()
    content = bundle.images.astype(np.uint8).tobytes() + bundle.target.astype(np.uint8).tobytes()
    assert digits().sha256 == hashlib.sha256(content).hexdigest()
