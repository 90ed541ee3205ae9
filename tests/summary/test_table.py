"""Oracle: :func:`covshift.summary.summarize`, which is tested against exact arithmetic, merged tensor by tensor."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from covshift.grid import GRADIENTS, VALUES
from covshift.summary import Summary, device, summarize, table
from covshift.summary.table import NOBODY, Reading, Table

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
]


def reading(**changes):
    return Reading(**({"unit_axis": 1, "example_axis": 0, "unit_count": 3, "grid": VALUES, "groups": 4} | changes))


def tensors(device_name="cpu", count=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 3, 4, generator=generator).relu().to(device_name) for _ in range(count)]


def check_equal(found, expected):
    for name in ("count", "example_count", "zero_count", "negative_count", "subnormal_count", "min", "max"):
        assert getattr(found, name) == getattr(expected, name)
    np.testing.assert_allclose(
        [found.moments.mean, found.moments.m2, found.moments.m3, found.moments.m4],
        [expected.moments.mean, expected.moments.m2, expected.moments.m3, expected.moments.m4],
        rtol=1e-11,
        atol=1e-12,
    )
    assert (found.histogram is None) == (expected.histogram is None)
    if expected.histogram is not None:
        np.testing.assert_array_equal(found.histogram.counts, expected.histogram.counts)
    assert (found.units is None) == (expected.units is None)
    if expected.units is not None:
        np.testing.assert_array_equal(found.units.active_examples, expected.units.active_examples)
        np.testing.assert_allclose(found.units.m2, expected.units.m2, rtol=1e-11)


@pytest.mark.parametrize("device_name", DEVICES)
@pytest.mark.parametrize("by_torch", [False, True])
@pytest.mark.parametrize("slow_cadence", [False, True])
def test_a_tables_row_is_the_summary_of_all_tensors_of_its_key(monkeypatch, device_name, by_torch, slow_cadence):
    if by_torch:
        monkeypatch.setattr(table, "can_walk", lambda tensor: False)
    whole = {7: Summary(), 11: Summary()}
    filled, read = Table(histograms=slow_cadence, units=slow_cadence), reading()
    for index, tensor in enumerate(tensors(device_name, 6)):
        key = 7 if index % 2 else 11
        filled.add(key, tensor, read)
        grid = VALUES if slow_cadence else None
        whole[key] = whole[key].merge(summarize(tensor.cpu(), unit_axis=1, grid=grid, units=slow_cadence))
    pooled = filled.read()
    assert pooled.keys.tolist() == [7, 11]
    for key, expected in whole.items():
        check_equal(pooled.summary(key), expected)
    assert pooled.summary(8) == Summary()


def test_pooling_in_between_changes_no_number(monkeypatch):
    monkeypatch.setattr(table, "MANY", 1)
    monkeypatch.setattr(table, "CHUNK", 2)
    once, often, read = Table(histograms=True, units=True), Table(histograms=True, units=True), reading()
    for index, tensor in enumerate(tensors(count=9)):
        often.pool()
        for filled in (once, often):
            filled.add(index % 4, tensor, read)
    for key in range(4):
        check_equal(often.read().summary(key), once.read().summary(key))


def test_a_row_can_be_asked_for_before_it_is_pooled():
    filled = Table(histograms=False, units=False)
    first, second = (filled.add(NOBODY, tensor, reading()) for tensor in tensors(count=2))
    values = tensors(count=2)[1]
    assert filled.row(second)[2] == (values == 0).sum()
    assert first != second
    assert filled.read().keys.size == 0


def test_units_of_a_tensor_with_another_number_of_them_are_left_out_and_taint_the_key():
    filled = Table(histograms=True, units=True)
    for shape in ((5, 3), (5, 4)):
        filled.add(0, torch.ones(shape), reading())
    summary = filled.read().summary(0)
    assert summary.count == 35
    assert summary.units is None
    assert summary.histogram.counts.sum() == 35


def test_of_an_empty_tensor_nothing_is_added():
    filled = Table(histograms=True, units=True)
    filled.add(0, torch.empty(0, 3), reading())
    assert filled.read().summary(0) == Summary()


class Operations(TorchDispatchMode):
    """Lists what torch is asked to compute."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


def test_what_is_packed_on_a_device_is_never_read_back_in_between():
    tensor = tensors(count=1)[0]
    with Operations() as operations:
        device.packed(tensor, unit_axis=1, example_axis=0, grid=GRADIENTS, groups=4, units=True)
    reads_back = {"_local_scalar_dense.default", "item.default", "nonzero.default", "bincount.default", "equal.default"}
    assert not reads_back & set(operations.names)


def test_all_that_waits_on_a_device_is_copied_in_one_transfer(monkeypatch):
    """CPU tensors play the device: they say they are not on the CPU, and their copies to it are counted."""
    copies, real = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda tensor: False))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: (copies.append(tensor.numel()), real(tensor))[1])
    filled = Table(histograms=True, units=True)
    for key, tensor in enumerate(tensors(count=5)):
        filled.add(key, tensor, reading())
    assert copies == []
    pooled = filled.read()
    assert len(copies) == 1
    monkeypatch.undo()
    for key, tensor in enumerate(tensors(count=5)):
        check_equal(pooled.summary(key), summarize(tensor, unit_axis=1))
