"""Seeds taken together, against scipy."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from covshift.analysis.seeds import over_seeds, seed_groups
from covshift.exceptions import InvalidArgumentError

GROUPS = {"a seed 0": "a", "a seed 1": "a", "a seed 2": "a", "b": "b"}


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    coords = {"run": list(GROUPS), "layer": ["x", "y"]}
    table = {name: (("run", "layer"), rng.uniform(0.1, 2.0, (4, 2))) for name in ("gradient_rms", "structural_rate")}
    return xr.Dataset(table, coords)


def test_means_and_intervals_are_students(values):
    found = over_seeds(values, GROUPS)
    raw = values["structural_rate"].values[:3]
    np.testing.assert_allclose(found["structural_rate"].sel(run="a"), raw.mean(axis=0))
    low, high = stats.t.interval(0.9, 2, raw.mean(axis=0), stats.sem(raw, axis=0))
    np.testing.assert_allclose(found["structural_rate_low"].sel(run="a"), low)
    np.testing.assert_allclose(found["structural_rate_high"].sel(run="a"), high)
    assert found["seeds"].values.tolist() == [3, 1]


def test_sizes_are_averaged_by_their_logarithms(values):
    found = over_seeds(values, GROUPS)
    raw = np.log(values["gradient_rms"].values[:3])
    np.testing.assert_allclose(found["gradient_rms"].sel(run="a"), np.exp(raw.mean(axis=0)))
    low, _ = stats.t.interval(0.9, 2, raw.mean(axis=0), stats.sem(raw, axis=0))
    np.testing.assert_allclose(found["gradient_rms_low"].sel(run="a"), np.exp(low))


def test_a_zero_among_sizes_makes_the_mean_arithmetic(values):
    values["gradient_rms"][0, 0] = 0.0
    found = over_seeds(values, GROUPS)["gradient_rms"].sel(run="a")
    np.testing.assert_allclose(found[0], values["gradient_rms"].values[:3, 0].mean())


def test_one_seed_has_no_interval_and_what_is_missing_is_left_out(values):
    values["structural_rate"][1, 0] = np.nan
    found = over_seeds(values, GROUPS)
    assert np.isnan(found["structural_rate_low"].sel(run="b")).all()
    np.testing.assert_allclose(
        found["structural_rate"].sel(run="a", layer="x"), values["structural_rate"].values[[0, 2], 0].mean()
    )


def test_a_run_without_group_and_a_bad_level_are_refused(values):
    with pytest.raises(InvalidArgumentError, match=r"groups lack \['b'\]"):
        over_seeds(values, {name: group for name, group in GROUPS.items() if name != "b"})
    with pytest.raises(InvalidArgumentError, match="level=1.5"):
        over_seeds(values, GROUPS, level=1.5)


def test_runs_are_grouped_by_variant_else_by_name_without_seed():
    tree = xr.DataTree()
    named = xr.DataTree(xr.Dataset(attrs={"variant": "relu"}))
    runs = {"whatever": named, "plain seed 1": tree, "plain-seed2": tree, "plain_seed=3": tree, "seed 4": tree}
    assert list(seed_groups(runs).values()) == ["relu", "plain", "plain", "plain", "seed 4"]


def test_runs_of_one_variant_that_differ_by_more_than_the_seed_are_no_seeds_of_one_group():
    def run(seed, parameters=10, variant="selu"):
        return xr.DataTree(xr.Dataset(attrs={"variant": variant, "seed": seed, "parameter_count": parameters}))

    together = {"keras-seed-0": run(0), "keras-seed-1": run(1)}
    assert list(seed_groups(together).values()) == ["selu", "selu"]
    starts = together | {"lsuv-seed-0": run(0), "relu-seed-0": run(0, variant="relu")}
    assert list(seed_groups(starts).values()) == ["keras", "keras", "lsuv", "relu"]
    depths = {"d10-seed-0": run(0), "d10-seed-1": run(1), "d50-seed-2": run(2, 50)}
    assert list(seed_groups(depths).values()) == ["d10", "d10", "d50"]
    again = {"d10-seed-0": run(0), "d10-seed-1": run(0)}
    assert list(seed_groups(again).values()) == ["d10-seed-0", "d10-seed-1"]
