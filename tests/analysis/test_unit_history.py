"""Units through time, against following each unit by hand."""

import numpy as np
import pytest
import xarray as xr

from covshift.analysis.dead_units import dead_units
from covshift.analysis.unit_history import FATES, unit_history
from covshift.exceptions import InvalidArgumentError
from covshift.schema import Layer


def silences(pattern, *, examples=4000, layer="act"):
    """A result of dead_units with these silences (step, unit), every record of so many examples."""
    silent = np.array(pattern, dtype=bool).T
    return xr.Dataset(
        {"silent": (("step", "unit"), silent), "examples": (("step", "unit"), np.full(silent.shape, examples))},
        coords={"step": np.arange(len(silent)) * 10, "layer": ("unit", np.array([layer] * silent.shape[1]))},
    )


def fates(history, unit_count=1):
    assert (history["count"].sum("fate") == unit_count).all()
    return [FATES[int(row.argmax())] for row in history["count"].values]


def test_a_unit_dies_when_three_records_bound_its_rate():
    assert fates(unit_history(silences([[0, 0, 1, 1, 1, 1]]))) == ["alive", "alive", "silent", "silent", "died", "died"]


def test_a_unit_that_never_fired_is_born_dead():
    assert fates(unit_history(silences([[1, 1, 1, 1]]))) == ["silent", "silent", "born dead", "born dead"]


def test_a_unit_that_fires_after_a_death_is_revived_for_good():
    history = unit_history(silences([[0, 1, 1, 1, 0, 0]]))
    assert fates(history) == ["alive", "silent", "silent", "died", "revived", "revived"]


def test_few_examples_are_never_a_death_and_a_short_silence_no_revival():
    assert fates(unit_history(silences([[0, 1, 1, 1, 1]], examples=10)))[1:] == ["silent"] * 4
    assert fates(unit_history(silences([[0, 1, 1, 0]])))[-1] == "alive"


def test_further_passes_over_a_small_set_are_no_further_evidence():
    assert "died" not in fates(unit_history(silences([[0, 1, 1, 1, 1]]), distinct_examples=500))


def test_a_record_without_examples_is_not_recorded():
    dead = silences([[0, 0, 0]])
    dead["examples"][1] = 0
    dead["silent"][1] = False
    assert fates(unit_history(dead)) == ["alive", "not recorded", "alive"]


def test_what_is_dead_at_the_end_is_what_dead_units_says(make_recording):
    rng = np.random.default_rng(0)
    layers = [Layer("act", "ReLU", 0, 1, 0, 12, activation="ReLU")]
    gone = rng.integers(0, 9, 12)
    steps = {
        step: {"act": {"activation": np.where(step >= gone, 0.0, np.abs(rng.normal(size=(3000, 12))))}}
        for step in range(8)
    }
    dead = dead_units(make_recording(steps, layers=layers))
    last = unit_history(dead)["count"].isel(step=-1)
    state, born = dead["state"].values, dead["born_dead"].values
    assert int(last.sel(fate="died")) == int(((state == "dead") & ~born).sum()) > 0
    assert int(last.sel(fate="born dead")) == int(((state == "dead") & born).sum())
    assert int(last.sel(fate="silent")) == int((state == "silent").sum())


def test_layers_are_counted_apart_and_unknown_ones_refused():
    both = xr.concat([silences([[0, 1], [0, 0]], layer="a"), silences([[0, 0]], layer="b")], "unit")
    assert unit_history(both, layers=["a"]).attrs["units"] == 2
    assert unit_history(both).attrs["units"] == 3
    with pytest.raises(InvalidArgumentError, match=r"layers=\['c'\]: \['c'\] have no units"):
        unit_history(both, layers=["c"])


def test_no_unit_and_no_step_are_counted_as_none():
    assert unit_history(silences(np.zeros((0, 0)))).attrs["units"] == 0
    assert unit_history(silences(np.zeros((2, 0)))).sizes["step"] == 0
