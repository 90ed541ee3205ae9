"""Differences of groups of runs: scipy's Welch interval, logarithms where sizes are compared."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from covshift.analysis.effects import effect_sizes
from covshift.exceptions import InvalidArgumentError

GROUPS = {f"{group}{seed}": group for group, seeds in (("plain", 3), ("linked", 4), ("bn", 1)) for seed in range(seeds)}


def values(seed=0, low=0.1):
    drawn = np.random.default_rng(seed).uniform(low, 1.0, (len(GROUPS), 5))
    coords = {"run": list(GROUPS), "layer": [f"conv{at}" for at in range(5)]}
    return xr.Dataset(dict.fromkeys(("structural_rate", "gradient_rms"), (("run", "layer"), drawn)), coords)


@pytest.mark.parametrize(("name", "scale"), [("structural_rate", lambda x: x), ("gradient_rms", np.log10)])
def test_every_effect_is_scipys_welch_difference(name, scale):
    paired = values()
    found = effect_sizes(paired, GROUPS)
    plain, linked = (scale(paired[name].values[place]) for place in (slice(0, 3), slice(3, 7)))
    expected = stats.ttest_ind(linked, plain, equal_var=False).confidence_interval(0.9)
    ours = found.sel(group="linked")
    np.testing.assert_allclose(ours[name], linked.mean(axis=0) - plain.mean(axis=0))
    np.testing.assert_allclose(ours[f"{name}_low"], expected.low)
    np.testing.assert_allclose(ours[f"{name}_high"], expected.high)
    assert found["group"].values.tolist() == ["linked", "bn"]
    assert found.attrs["reference"] == "plain"


def test_one_seed_a_side_has_a_difference_and_no_interval():
    paired = values()
    alone = effect_sizes(paired, GROUPS).sel(group="bn")
    expected = paired["structural_rate"].values[7] - paired["structural_rate"].values[:3].mean(axis=0)
    np.testing.assert_allclose(alone["structural_rate"], expected)
    assert alone["structural_rate_low"].isnull().all()


def test_a_size_of_zero_on_one_side_is_an_infinite_difference_and_missing_numbers_are_left_out():
    paired = values()
    paired["gradient_rms"][3, 0] = 0.0
    paired["structural_rate"][0:2, 1] = np.nan
    found = effect_sizes(paired, GROUPS).sel(group="linked")
    assert found["gradient_rms"].values[0] == -np.inf
    assert np.isnan(found["gradient_rms_low"].values[0])
    assert np.isfinite(found["structural_rate"].values[1])
    assert np.isnan(found["structural_rate_low"].values[1])


def test_a_run_without_a_group_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"groups lack \['plain0'\]"):
        effect_sizes(values(), {name: group for name, group in GROUPS.items() if name != "plain0"})
