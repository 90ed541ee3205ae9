"""Differences between groups of runs are those of the stored numbers, at steps and layers that stand side by side."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from covshift.analysis import differences
from covshift.analysis.differences import group_differences, nearest_records
from covshift.exceptions import InvalidArgumentError
from covshift.schema import Layer


def run(make_recording, seed, *, steps=(0, 10, 20), scale=1.0, names=("fc", "act"), shift=0.0):
    rng = np.random.default_rng(seed)
    renamed = [
        Layer(names[0], "Linear", 0, 1, 0, 4),
        Layer(names[1], "ReLU", 1, 1, 0, 4, activation="ReLU", preactivation_of=names[0], structural_measured=True),
    ]
    tensors = {}
    for step in steps:
        z = rng.normal(shift, scale, (64, 4)).astype(np.float32)
        outputs = {names[0]: z, names[1]: np.maximum(z, 0)}
        tensors[step] = {
            name: {"activation": x, "activation_grad": rng.normal(0, scale, x.shape)} for name, x in outputs.items()
        }
    return make_recording(tensors, layers=renamed, flat={names[1]: lambda z: z <= 0})


def stored(recording, measure, step, layer):
    """One number by hand from the stored sums."""
    table = recording["layers"].to_dataset()
    names = table["layer"].values.astype(str).tolist()
    if measure == "structural_rate":
        z = table.sel(step=step, signal="activation").isel(layer=names.index("fc"))
        zeros = float(table["structural_zero_count"].sel(step=step, signal="preactivation")[names.index(layer)])
        return zeros / float(z["count"])
    signal = "activation_grad" if measure == "gradient_rms" else "activation"
    row = table.sel(step=step, signal=signal).isel(layer=names.index(layer))
    n, total, m2 = (float(row[part]) for part in ("count", "sum", "m2"))
    size = np.sqrt(m2 / n + (total / n) ** 2) if measure == "gradient_rms" else np.sqrt(m2 / n)
    return np.log10(size)


@pytest.fixture(scope="module")
def runs(make_recording):
    made = {f"plain seed {seed}": run(make_recording, seed) for seed in range(3)}
    return made | {f"linked seed {seed}": run(make_recording, 10 + seed, scale=3.0, shift=0.5) for seed in range(2)}


@pytest.mark.parametrize(
    ("measure", "layers"),
    [("structural_rate", ["act"]), ("gradient_rms", ["fc", "act"]), ("activation_sd", ["fc", "act"])],
)
def test_every_cell_is_welchs_difference_of_the_stored_numbers(runs, measure, layers):
    found = group_differences(runs)
    for step in (0, 10, 20):
        for layer in layers:
            sides = [
                [stored(recording, measure, step, layer) for name, recording in runs.items() if group in name]
                for group in ("linked", "plain")
            ]
            cell = found.sel(group="linked", step=step, layer=layer)
            assert float(cell[measure]) == pytest.approx(np.mean(sides[0]) - np.mean(sides[1]))
            ends = scipy.stats.ttest_ind(*sides, equal_var=False).confidence_interval(0.9)
            assert (float(cell[f"{measure}_low"]), float(cell[f"{measure}_high"])) == pytest.approx((*ends,))


def test_the_reference_is_the_first_runs_group_and_seeds_are_counted(runs):
    found = group_differences(runs)
    assert (found.attrs["reference"], found.attrs["reference_seeds"]) == ("plain", 3)
    assert dict(zip(found["group"].values.tolist(), found["seeds"].values.tolist(), strict=True)) == {"linked": 2}
    assert np.isnan(found["structural_rate"].sel(layer="fc")).all()


def test_one_seed_in_either_group_leaves_no_interval(runs):
    few = {name: runs[name] for name in ("plain seed 0", "plain seed 1", "linked seed 0")}
    found = group_differences(few)
    assert np.isfinite(found["gradient_rms"]).all()
    assert np.isnan(found["gradient_rms_low"]).all()
    assert np.isnan(found["gradient_rms_high"]).all()


def test_equal_runs_differ_by_zero_with_an_interval_of_no_width(runs):
    same = runs["plain seed 0"]
    found = group_differences(dict.fromkeys(("a seed 0", "a seed 1", "b seed 0", "b seed 1"), same))
    for name in ("gradient_rms", "gradient_rms_low", "gradient_rms_high"):
        np.testing.assert_array_equal(found[name], 0.0)


def test_layers_are_matched_by_depth_where_names_have_nothing_in_common(make_recording, runs):
    renamed = run(make_recording, 10, scale=3.0, shift=0.5, names=("trunk.0", "trunk.1"))
    pair = {"plain": runs["plain seed 0"], "linked": renamed}
    by_name = group_differences({"plain": runs["plain seed 0"], "linked": runs["linked seed 0"]})
    found = group_differences(pair)
    assert found["layer"].values.tolist() == ["fc", "act"]
    np.testing.assert_array_equal(found["gradient_rms"], by_name["gradient_rms"])


def test_layers_without_a_counterpart_are_left_out_and_counted(make_recording, runs):
    other = run(make_recording, 3, names=("fc", "gelu"))
    found = group_differences({"a": runs["plain seed 0"], "b": other})
    assert found["layer"].values.tolist() == ["fc"]
    assert found.attrs["layers_left_out"] == 2


def test_steps_without_a_near_record_are_left_out_and_counted(make_recording):
    first = run(make_recording, 0, steps=(0, 10, 20, 30, 40))
    other = run(make_recording, 1, steps=(2, 17, 40, 90))
    found = group_differences({"a": first, "b": other})
    assert found["step"].values.tolist() == [0, 20, 40]
    assert found["steps_left_out"].values.tolist() == [2]
    for step, taken in ((0, 2), (20, 17), (40, 40)):
        apart = stored(other, "gradient_rms", taken, "fc") - stored(first, "gradient_rms", step, "fc")
        assert float(found["gradient_rms"].sel(group="b", step=step, layer="fc")) == pytest.approx(apart)


def test_a_step_that_one_group_lacks_is_nan_there_alone(make_recording):
    first, whole = (run(make_recording, seed, steps=(0, 10, 20)) for seed in (0, 1))
    short = run(make_recording, 2, steps=(0, 10))
    found = group_differences({"a": first, "b": whole, "c": short})
    assert found["step"].values.tolist() == [0, 10, 20]
    known = np.isfinite(found["activation_sd"].sel(layer="fc"))
    assert known.values.tolist() == [[True, True, True], [True, True, False]]
    assert found["steps_left_out"].values.tolist() == [0, 1]


def test_runs_without_a_shared_step_have_no_cell(make_recording):
    found = group_differences(
        {"a": run(make_recording, 0, steps=(0, 10)), "b": run(make_recording, 1, steps=(100, 110))}
    )
    assert found.sizes["step"] == 0
    assert found["steps_left_out"].values.tolist() == [2]


def test_an_exact_zero_of_one_side_is_infinitely_far_and_of_both_no_number(make_recording):
    def with_gradient(size):
        return make_recording({0: {"fc": {"activation": np.ones((4, 4)), "activation_grad": np.full((4, 4), size)}}})

    runs = {"zero": with_gradient(0.0), "one": with_gradient(1.0), "other": with_gradient(0.0)}
    found = group_differences(runs)
    assert found["gradient_rms"].sel(layer="fc", step=0).values.tolist() == [np.inf, pytest.approx(np.nan, nan_ok=True)]
    assert found["gradient_rms"].attrs["exact_zeros"] == 2
    back = group_differences({name: runs[name] for name in ("one", "zero")})
    assert back["gradient_rms"].values.tolist() == [[[-np.inf]]]


def test_a_group_with_one_run_at_zero_is_at_zero_without_an_interval(make_recording):
    def with_gradient(size):
        return make_recording({0: {"fc": {"activation": np.ones((4, 4)), "activation_grad": np.full((4, 4), size)}}})

    sizes = {"a seed 0": 1.0, "a seed 1": 0.0, "a seed 2": 2.0, "b seed 0": 1.0, "b seed 1": 3.0}
    found = group_differences({name: with_gradient(size) for name, size in sizes.items()})
    assert found["gradient_rms"].item() == np.inf
    assert np.isnan(found["gradient_rms_low"].item())
    assert np.isnan(found["gradient_rms_high"].item())


def test_a_record_stands_for_the_only_step_it_is_nearest_to():
    rng = np.random.default_rng(0)
    for _ in range(50):
        grid = np.unique(rng.integers(0, 60, 8))
        steps = np.unique(rng.integers(-5, 70, 12))
        found = nearest_records(grid, steps)
        taken = found[found >= 0]
        assert len(set(taken.tolist())) == taken.size
        for position, at in enumerate(found):
            gaps = np.abs(np.delete(grid, position) - grid[position])
            reach = gaps.min() / 2 if gaps.size else 0
            away = np.abs(steps - grid[position])
            if at >= 0:
                assert away[at] == away.min()
                assert away[at] <= reach
            else:
                assert away.min() >= reach


@pytest.mark.parametrize(("grid", "steps"), [([], [1]), ([1], []), ([], [])])
def test_no_step_has_no_record(grid, steps):
    found = nearest_records(np.array(grid, dtype=np.int64), np.array(steps, dtype=np.int64))
    assert found.tolist() == [-1] * len(grid)


def test_one_group_alone_is_refused(runs):
    with pytest.raises(InvalidArgumentError, match="3 of one group .plain.; a difference needs two groups"):
        group_differences({name: one for name, one in runs.items() if "plain" in name})
    with pytest.raises(InvalidArgumentError, match="of one group .none."):
        differences.group_differences({})


@pytest.mark.parametrize(("groups", "level"), [({}, 0.9), (None, 1.0)])
def test_a_run_without_a_group_or_a_level_out_of_range_is_refused(runs, groups, level):
    with pytest.raises(InvalidArgumentError, match="expected all runs, 0 < level < 1"):
        group_differences(runs, groups=groups, level=level)
