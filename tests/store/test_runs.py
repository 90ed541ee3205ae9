"""Ranks merged and runs side by side, against sums over the raw data."""

import warnings

import numpy as np
import pytest
import xarray as xr

import covshift
from covshift import schema
from covshift.exceptions import CovshiftWarning, InvalidArgumentError, RecordingError
from covshift.grid import GRADIENTS, VALUES
from covshift.schema import Layer, Parameter, Row, SparseCounts, Status
from covshift.store import Writer

STEPS, RANKS = 5, 4


def summary(values):
    """One row of layers by brute force."""
    finite = values[np.isfinite(values)]
    deviation = finite - finite.mean() if finite.size else finite
    powers = {f"m{k}": (deviation**k).sum() for k in (2, 3, 4)}
    counts = {"count": values.size, "nan_count": np.isnan(values).sum(), "posinf_count": np.isposinf(values).sum()}
    extremes = {"min": finite.min(), "max": finite.max()} if finite.size else {"min": np.nan, "max": np.nan}
    return {**counts, "zero_count": (values == 0).sum(), "sum": finite.sum(), **powers, **extremes}


def histogram(values, grid, groups):
    cells = np.zeros((groups, grid.size), "u4")
    for group in range(groups):
        ids, counts = np.unique(grid.ids(values[group::groups].ravel()), return_counts=True)
        cells[group, ids] = counts
    return cells


def rows(step, data):
    """Rows of a recording that saw ``data``: by layer, arrays (examples, units) of activations."""
    arrays = {v.name: np.full((len(data), 5), v.fill_value, v.dtype) for v in schema.LAYERS.variables}
    value = np.zeros((len(data), 3, 4, VALUES.size), "u4")
    gradient = np.zeros((len(data), 2, GRADIENTS.size), "u4")
    units = {v.name: [] for v in schema.UNITS.variables}
    for position, values in enumerate(data.values()):
        for name, number in summary(values).items():
            arrays[name][position, 2] = number
        arrays["status"][position, 2] = Status.OK
        value[position, 2] = histogram(values, VALUES, 4)
        gradient[position, 0] = histogram(values, GRADIENTS, 1)[0]
        for column in values.T:
            unit = column[np.isfinite(column)]
            own = dict.fromkeys(units, 0) | {
                "unit_count": column.size,
                "unit_zero_count": (unit == 0).sum(),
                "unit_mean": unit.mean(),
                "unit_m2": ((unit - unit.mean()) ** 2).sum() if unit.size == column.size else np.nan,
            }
            for name, number in own.items():
                units[name].append([number, np.nan if name in ("unit_mean", "unit_m2") else 0])
    kinds = {v.name: v.dtype for v in schema.UNITS.variables}
    flat = np.flatnonzero(value).astype("u4")
    sparse = SparseCounts(value.shape, flat, value.reshape(-1)[flat])
    return [
        Row("layers", step, arrays),
        Row("histograms", step, {"value_histogram": sparse, "gradient_histogram": gradient}),
        Row("units", step, {name: np.array(column).astype(kinds[name]) for name, column in units.items()}),
        Row("parameters", step, {"weight_norm": np.array([1.0 + step])}),
        Row("scalars", step, {"wall_time": np.float64(step), "loss": np.float64(step)}),
    ]


def record(path, batches, *, attrs=None):
    with Writer(path, attrs=attrs or {}) as writer:
        writer.declare_layers([Layer(n, "Linear", 0, unit_count=v.shape[1]) for n, v in batches[0].items()])
        writer.declare_parameters([Parameter("w", 3, 2)])
        for step, data in enumerate(batches):
            writer.append(rows(step, data))
    return writer.path


def batch(rng, *, names=("a", "b")):
    data = {name: rng.normal(3, 2, (8, 2 + k)) * (rng.random((8, 2 + k)) > 0.2) for k, name in enumerate(names)}
    return {name: values.astype("f4").astype("f8") for name, values in data.items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Four ranks of one run; the third was killed one record early. And one process that saw everything."""
    folder, rng = tmp_path_factory.mktemp("ranks"), np.random.default_rng(0)
    own = [[batch(rng) for _ in range(STEPS)] for _ in range(RANKS)]
    own[1][2]["a"][3, 1] = np.inf
    for rank, batches in enumerate(own):
        attrs = {"rank": rank, "world_size": RANKS}
        record(folder / f"run.rank{rank:05d}", batches[: STEPS - (rank == 2)], attrs=attrs)
    together = [{n: np.concatenate([r[step][n] for r in own]) for n in ("a", "b")} for step in range(STEPS)]
    record(folder / "whole", together)
    return folder


def merged(folder):
    with pytest.warns(CovshiftWarning, match="left out: 1 of layers, 1 of histograms, 1 of units"):
        return covshift.open(folder / "run.*.zarr")


def test_merged_ranks_equal_one_process_that_saw_everything(ranks):
    found, whole = merged(ranks), covshift.open(ranks / "whole")
    assert found["layers"].step.values.tolist() == list(range(STEPS - 1))
    for group in ("layers", "histograms", "units"):
        for variable in schema.GROUPS[group].variables:
            ours = found[group][variable.name].values
            expected = whole[group][variable.name].values[: STEPS - 1]
            if variable.dtype in ("u4", "u8"):
                assert ours.dtype == np.uint64
                np.testing.assert_array_equal(ours, expected, err_msg=variable.name)
            elif group == "layers" or variable.name not in ("unit_mean", "unit_m2"):
                np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9, err_msg=variable.name)
    all_finite = [0, 2, 3, 4]
    for name in ("unit_mean", "unit_m2"):
        ours, expected = (tree["units"][name].isel(unit=all_finite).values for tree in (found, whole))
        np.testing.assert_allclose(ours, expected[: STEPS - 1], rtol=1e-5)
    unknown = found["units"]["unit_m2"].isel(unit=1).isnull().sel(signal="activation")
    assert unknown.values.tolist() == [False, False, True, False]
    schema.check(found)


def test_a_merge_says_how_many_it_merged_and_dropped(ranks):
    assert merged(ranks).attrs["covshift_merge"] == {
        "recordings": RANKS,
        "dropped": {"layers": 1, "histograms": 1, "units": 1},
    }


def test_a_merge_of_too_few_ranks_says_so(ranks):
    two = [covshift.open(ranks / f"run.rank0000{rank}") for rank in (0, 1)]
    with pytest.warns(CovshiftWarning, match="2 recordings of 4 ranks"):
        covshift.merge(two)


def test_one_recording_merges_to_itself(ranks):
    whole = covshift.open(ranks / "whole")
    found = covshift.merge([whole])
    for name in ("count", "sum", "m4", "min", "status"):
        np.testing.assert_array_equal(found["layers"][name], whole["layers"][name])
    xr.testing.assert_identical(found["scalars"].to_dataset(), whole["scalars"].to_dataset())


@pytest.mark.parametrize("given", [[], ["run.zarr"]])
def test_what_cannot_be_merged_is_refused(given):
    with pytest.raises(InvalidArgumentError, match="expected at least one DataTree"):
        covshift.merge(given)


def test_recordings_with_other_weights_are_no_ranks_and_are_said_not_to_be(tmp_path):
    trees = []
    for k in range(2):
        with Writer(tmp_path / f"{k}", attrs={}) as writer:
            writer.declare_parameters([Parameter("w", 3, 2)])
            writer.append([Row("parameters", 0, {"weight_norm": np.array([1.0 + k])})])
        trees.append(covshift.open(writer.path))
    with pytest.warns(CovshiftWarning, match="no ranks of one run"):
        covshift.merge(trees)


def test_runs_stand_side_by_side_and_what_one_lacks_is_absent(tmp_path):
    rng = np.random.default_rng(1)
    batches = {"first": [batch(rng) for _ in range(3)], "second": [batch(rng, names=("b", "c")) for _ in range(2)]}
    single = {name: covshift.open(record(tmp_path / f"run.{name}", own)) for name, own in batches.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = covshift.open(tmp_path / "run.*")
    assert both["layers"].run.values.tolist() == ["run.first", "run.second"]
    assert both["layers"].layer.values.tolist() == ["a", "b", "c"]
    for run, own in single.items():
        for group in ("layers", "histograms"):
            for variable in schema.GROUPS[group].variables:
                ours = both[group][variable.name].sel(run=f"run.{run}")
                assert ours.dtype == np.dtype(variable.dtype)
                expected = own[group][variable.name]
                np.testing.assert_array_equal(ours.sel(layer=expected.layer, step=expected.step), expected)
                absent = ours.sel(layer="c" if run == "first" else "a")
                assert bool((absent.isnull() if np.dtype(variable.dtype).kind == "f" else absent == 0).all())
    assert (both["layers/status"].sel(run="run.second", step=2) == Status.ABSENT).all()
    units = both["units"].to_dataset()
    owner = both["layers"].layer.values[units.layer_index.values]
    assert list(zip(owner, units.unit_in_layer.values.tolist(), strict=True)) == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
        ("b", 2),
        ("c", 0),
        ("c", 1),
        ("c", 2),
    ]
    assert np.isnan(both["scalars/loss"].sel(run="run.second").values).tolist() == [False, False, True]


def test_a_pattern_that_matches_nothing_is_said_to(tmp_path):
    with pytest.raises(RecordingError, match="no recording matches"):
        covshift.open(tmp_path / "nothing.*.zarr")
