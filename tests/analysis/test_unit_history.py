"""Units through time, against following each unit by hand."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from covshift.analysis.dead_units import dead_units
from covshift.analysis.unit_history import FATES, unit_history
from covshift.exceptions import InvalidArgumentError
from covshift.schema import Layer


def layer_of(units, name="act", depth=0):
    return Layer(name, "ReLU", depth, 1, 0, units, activation="ReLU")


@pytest.fixture(scope="module")
def silences(make_recording):
    """Makes recordings of layers with these silences (unit, record); None for a record without a finite element."""

    def made(*patterns, examples=4000, every=1):
        names = [f"act{number or ''}" for number in range(len(patterns))]
        layers = [
            layer_of(len(pattern), name, at) for at, (name, pattern) in enumerate(zip(names, patterns, strict=True))
        ]
        steps = {}
        for row in range(len(patterns[0][0])):
            numbers = [[{0: 1.0, 1: 0.0, None: np.nan}[unit[row]] for unit in pattern] for pattern in patterns]
            outputs = [np.tile(np.array(one, dtype=np.float32), (examples, 1)) for one in numbers]
            steps[10 * row] = {name: {"activation": one} for name, one in zip(names, outputs, strict=True)}
        return make_recording(steps, layers=layers, unit_steps=list(steps)[::every])

    return made


def fates(history, unit_count=1):
    assert (history["count"].sum("fate") == unit_count).all()
    return [FATES[int(row.argmax())] for row in history["count"].values]


def test_a_unit_dies_when_three_records_bound_its_rate(silences):
    assert fates(unit_history(silences([[0, 0, 1, 1, 1, 1]]))) == ["alive", "alive", "silent", "silent", "died", "died"]


def test_a_unit_that_never_fired_is_born_dead(silences):
    assert fates(unit_history(silences([[1, 1, 1, 1]]))) == ["silent", "silent", "born dead", "born dead"]


def test_a_unit_that_fires_after_a_death_is_revived_for_good(silences):
    history = unit_history(silences([[0, 1, 1, 1, 0, 0]]))
    assert fates(history) == ["alive", "silent", "silent", "died", "revived", "revived"]


def test_few_examples_are_never_a_death_and_a_short_silence_no_revival(silences):
    assert fates(unit_history(silences([[0, 1, 1, 1, 1]], examples=10)))[1:] == ["silent"] * 4
    assert fates(unit_history(silences([[0, 1, 1, 0]])))[-1] == "alive"


def test_further_passes_over_a_small_set_are_no_further_evidence(silences):
    assert "died" not in fates(unit_history(silences([[0, 1, 1, 1, 1]]), distinct_examples=500))


def test_a_record_without_examples_is_not_recorded(make_recording):
    run, other = {"activation": np.ones((5, 1))}, {"activation": np.ones((5, 1))}
    steps = {0: {"act": run, "act1": other}, 10: {"act1": other}, 20: {"act": run, "act1": other}}
    recording = make_recording(steps, layers=[layer_of(1), layer_of(1, "act1", 1)])
    assert fates(unit_history(recording, layers=["act"])) == ["alive", "not recorded", "alive"]


def test_a_record_without_a_finite_element_is_no_sign_of_life(silences):
    history = unit_history(silences([[0, 0, None, None]]))
    assert fates(history) == ["alive", "alive", "not finite", "not finite"]
    assert history.attrs["finite_until"] == 10
    assert unit_history(silences([[0, None, 0]])).attrs["finite_until"] == -1


def test_silence_and_nan_after_the_last_record_of_units_are_told_of_a_last_step(silences):
    history = unit_history(silences([[0, 1, 1, 1]], every=4))
    assert history["step"].values.tolist() == [0, 30]
    assert fates(history) == ["alive", "died"]
    assert fates(unit_history(silences([[0, 1, None, 0]], every=4))) == ["alive", "not finite"]


def test_what_is_dead_at_the_end_is_what_dead_units_says(make_recording):
    rng = np.random.default_rng(0)
    layers = [Layer("act", "ReLU", 0, 1, 0, 12, activation="ReLU")]
    gone = rng.integers(0, 9, 12)
    steps = {
        step: {"act": {"activation": np.where(step >= gone, 0.0, np.abs(rng.normal(size=(3000, 12))))}}
        for step in range(8)
    }
    recording = make_recording(steps, layers=layers)
    dead = dead_units(recording)
    last = unit_history(recording)["count"].isel(step=-1)
    state, born = dead["state"].values, dead["born_dead"].values
    assert int(last.sel(fate="died")) == int(((state == "dead") & ~born).sum()) > 0
    assert int(last.sel(fate="born dead")) == int(((state == "dead") & born).sum())
    assert int(last.sel(fate="silent")) == int((state == "silent").sum())


KINDS = st.sampled_from([0, 0, 1, 1, 1, None])


@given(
    patterns=st.integers(1, 9).flatmap(
        lambda records: st.lists(
            st.lists(st.lists(KINDS, min_size=records, max_size=records), min_size=2, max_size=2),
            min_size=2,
            max_size=2,
        )
    ),
    every=st.integers(1, 5),
    examples=st.sampled_from([10, 900]),
    distinct=st.sampled_from([None, 2000]),
)
@settings(max_examples=25)
@example(patterns=[[[1] * 6] * 2, [[0] * 6] * 2], every=5, examples=2000, distinct=None)
def test_at_the_last_step_the_history_says_what_dead_units_says(silences, patterns, every, examples, distinct):
    """Also of records of units far apart, between which layers are silent or give NaN, and after the last of them."""
    recording = silences(*patterns, every=every, examples=examples)
    dead = dead_units(recording, distinct_examples=distinct)
    for layer in ("act", "act1"):
        last = unit_history(recording, layers=[layer], distinct_examples=distinct)["count"].isel(step=-1)
        of_layer = dead.isel(unit=np.flatnonzero(dead["layer"].values == layer))
        state, born = of_layer["state"].values, of_layer["born_dead"].values
        assert int(last.sel(fate="died")) == int(((state == "dead") & ~born).sum())
        assert int(last.sel(fate="born dead")) == int(((state == "dead") & born).sum())
        for name in ("silent", "not finite"):
            assert int(last.sel(fate=name)) == int((state == name).sum()), name
        assert int(last.sel(fate=["alive", "revived"]).sum()) == int(np.isin(state, ["alive", "rare"]).sum())
        revived = np.isin(state, ["alive", "rare"]) & (of_layer["revivals"].values > 0)
        assert int(last.sel(fate="revived")) == int(revived.sum())


def test_layers_are_counted_apart_and_unknown_ones_refused(silences):
    both = silences([[0, 1], [0, 0]], [[0, 0]])
    assert unit_history(both, layers=["act"]).attrs["units"] == 2
    assert unit_history(both).attrs["units"] == 3
    with pytest.raises(InvalidArgumentError, match=r"layers=\['c'\]: \['c'\] have no units"):
        unit_history(both, layers=["c"])


def test_no_unit_is_counted_as_none(make_recording):
    dense = Layer("fc", "Linear", 0, 1, 0, 4)
    history = unit_history(make_recording({0: {"fc": {"activation": np.ones((5, 4))}}}, layers=[dense]))
    assert history.attrs["units"] == 0
    assert history["count"].values.tolist() == [[0] * len(FATES)]
