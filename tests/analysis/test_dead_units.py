"""Dead units: the rate bound against its table, states of planted units, linkages, and what has no units."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from covshift.analysis.dead_units import dead_units, rate_upper_bound, survival
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.schema import Layer, Status

RELU = Layer("act", "ReLU", 0, 1, 0, 4, activation="ReLU")
LINKED = Layer("linked", "LinkedReLU", 1, 1, 0, 4, activation="LinkedReLU", linkage_members=2)


@pytest.mark.parametrize(
    ("rate", "tests", "alpha", "examples"),
    [
        (0.1, 1, 0.05, 29),
        (0.1, 1, 0.01, 44),
        (0.1, 64, 0.05, 68),
        (0.1, 1024, 0.05, 95),
        (0.01, 1, 0.05, 299),
        (0.01, 1, 0.01, 459),
        (0.01, 64, 0.05, 712),
        (0.001, 1, 0.05, 2995),
        (0.001, 1024, 0.05, 9923),
        (0.001, 100_000, 0.05, 14_502),
        (1e-4, 1, 0.05, 29_956),
        (1e-4, 64, 0.05, 71_543),
    ],
)
def test_the_bound_reaches_a_rate_at_the_tabulated_number_of_examples(rate, tests, alpha, examples):
    at, before = rate_upper_bound([examples, examples - 1], tests=tests, alpha=alpha)
    assert at <= rate < before


@given(examples=st.integers(1, 10**6), tests=st.integers(1, 10**5), alpha=st.floats(1e-4, 0.5))
def test_at_the_bound_silence_has_probability_alpha_over_tests(examples, tests, alpha):
    bound = float(rate_upper_bound(examples, tests=tests, alpha=alpha))
    assert 0 < bound <= 1
    assert stats.binom.logpmf(0, examples, bound) == pytest.approx(np.log(alpha / tests), rel=1e-6)


def test_no_examples_bound_nothing():
    assert rate_upper_bound(0) == 1


@pytest.mark.parametrize("wrong", [{"tests": 0}, {"alpha": 0.0}, {"alpha": 1.0}, {"silent_examples": -1}])
def test_a_bound_of_impossible_numbers_is_refused(wrong):
    arguments = {"silent_examples": 10} | wrong
    with pytest.raises(InvalidArgumentError, match="expected tests >= 1, 0 < alpha < 1 and silent_examples >= 0"):
        rate_upper_bound(arguments.pop("silent_examples"), **arguments)


def fires(examples, *active):
    """Output of shape (examples, units, 2): unit u is non-zero at one position of its first ``active[u]`` examples."""
    output = np.zeros((examples, len(active), 2))
    for unit, count in enumerate(active):
        output[:count, unit, 1] = 1.0
    return {"activation": output}


def recording_of(make_recording, *records, layer=RELU, **options):
    return make_recording({10 * i: {layer.name: record} for i, record in enumerate(records)}, layers=[layer], **options)


def test_planted_units_get_their_states(make_recording):
    records = [fires(2000, 900, 900, 15, 0)] * 2 + [fires(2000, 900, 0, 15, 0)] * 5
    units = dead_units(recording_of(make_recording, *records))
    assert units["state"].values.tolist() == ["alive", "dead", "rare", "dead"]
    assert units["since_step"].values.tolist() == [-1, 20, -1, 0]
    assert units["born_dead"].values.tolist() == [False, False, False, True]
    assert units["silent_examples"].values.tolist() == [0, 10_000, 0, 14_000]
    assert units["silent_records"].values.tolist() == [0, 5, 0, 7]
    np.testing.assert_allclose(units["firing_rate"], [0.45, 900 * 2 / 14_000, 0.0075, 0.0])
    np.testing.assert_allclose(units["rate_upper_bound"], rate_upper_bound([0, 10_000, 0, 14_000], tests=4))
    assert units["layer"].values.tolist() == ["act"] * 4
    assert units["unit_in_layer"].values.tolist() == [0, 1, 2, 3]


def test_one_batch_makes_units_silent_never_dead(make_recording):
    units = dead_units(recording_of(make_recording, fires(20_000, 1, 0, 20_000, 0)))
    assert units["rate_upper_bound"].values[1] < 1e-3
    assert units["state"].values.tolist() == ["rare", "silent", "alive", "silent"]


def test_few_examples_make_units_silent_never_dead(make_recording):
    units = dead_units(recording_of(make_recording, *[fires(128, 128, 0, 128, 128)] * 4))
    assert units["state"].values.tolist() == ["alive", "silent", "alive", "alive"]


def test_passes_over_the_same_examples_count_once(make_recording):
    recording = recording_of(make_recording, *[fires(4000, 0, 1, 1, 1)] * 5)
    assert dead_units(recording)["state"].values[0] == "dead"
    once = dead_units(recording, distinct_examples=1400)
    assert once["state"].values[0] == "silent"
    assert once["silent_examples"].values[0] == 1400


@pytest.mark.parametrize(("examples", "state", "since"), [(400, "rare", -1), (4000, "dead", 10)])
def test_silence_no_longer_than_a_units_own_rate_makes_likely_is_rare(make_recording, examples, state, since):
    # One example in a thousand before: 1,200 without are likely enough (0.30), 12,000 are not (6e-6).
    records = [fires(4000, 4, 1, 1, 1), *[fires(examples, 0, 1, 1, 1)] * 3]
    units = dead_units(recording_of(make_recording, *records))
    assert units["state"].values[0] == state
    assert units["since_step"].values[0] == since


def test_a_unit_that_fires_again_is_alive(make_recording):
    records = [fires(100, 50, 1, 1, 1), *[fires(100, 0, 1, 1, 1)] * 5, fires(100, 50, 1, 1, 1)]
    units = dead_units(recording_of(make_recording, *records))
    assert units["state"].values[0] == "alive"
    assert units["silent"].values[:, 0].tolist() == [False, True, True, True, True, True, False]


def test_on_an_evaluation_pass_silence_is_exact(make_recording):
    recording = make_recording(
        {0: {"act": fires(8, 8, 8, 8, 8)}},
        layers=[RELU],
        evaluation={4: {"act": fires(30, 1, 0, 30, 0)}, 9: {"act": fires(30, 0, 0, 30, 1)}},
    )
    units = dead_units(recording, stream="evaluation")
    assert units["state"].values.tolist() == ["dead", "dead", "alive", "alive"]
    assert units["since_step"].values.tolist() == [9, 4, -1, -1]
    assert units["born_dead"].values.tolist() == [False, True, False, False]


def test_passes_over_the_same_examples_are_the_evidence_of_one(make_recording):
    passes = {step: {"act": fires(500, 0, 0, 1, 500)} for step in range(4)}
    passes[4] = {"act": fires(300, 0, 1, 0, 300)}
    units = dead_units(make_recording({}, layers=[RELU], evaluation=passes), stream="evaluation")
    assert units["silent_examples"].values.tolist() == [300, 0, 300, 0]
    assert units["silent_records"].values.tolist() == [5, 0, 1, 0]
    bound = 1 - (0.05 / 4) ** (1 / 300)
    assert units["rate_upper_bound"].values[[0, 2]] == pytest.approx(bound)
    # Four passes of 500 would bound the rate of unit 1 by 0.22 %; one of 500 bounds it by 0.87 %, and one of 60 by 7 %.
    assert units["revivals"].values.tolist() == [0, 1, 0, 0]
    few = {step: {"act": fires(60, step == 9, 60, 60, 60)} for step in range(10)}
    revived = dead_units(make_recording({}, layers=[RELU], evaluation=few), stream="evaluation")["revivals"]
    assert revived.values.tolist() == [0, 0, 0, 0]


def test_members_of_a_linkage_are_one_unit_silent_only_together(make_recording):
    # Units 0 and 2 are linked, and 1 and 3: in each record one member of the first fires, none of the second.
    records = [fires(5000, 5000, 0, 0, 0), fires(5000, 0, 0, 5000, 0), fires(5000, 1, 0, 0, 0)]
    units = dead_units(recording_of(make_recording, *records, layer=LINKED))
    assert units["members"].values.tolist() == [2, 2]
    assert units["unit_in_layer"].values.tolist() == [0, 1]
    assert units["state"].values.tolist() == ["alive", "dead"]
    assert units["silent"].values.tolist() == [[False, True]] * 3


def test_idle_gradients_are_found_by_the_same_statement(make_recording):
    stuck = {"activation": np.full((5000, 4, 2), 6.0), "activation_grad": fires(5000, 5000, 0, 5000, 1)["activation"]}
    recording = recording_of(make_recording, *[stuck] * 3)
    assert set(dead_units(recording)["state"].values) == {"alive"}
    assert dead_units(recording, signal="activation_grad")["state"].values.tolist() == [
        "alive",
        "dead",
        "alive",
        "rare",
    ]


def test_records_without_units_say_nothing(make_recording):
    steps = {step: {"act": fires(4000, 0, 1, 1, 1)} for step in range(6)}
    units = dead_units(make_recording(steps, layers=[RELU], unit_steps=[0, 2, 4]))
    assert units["step"].values.tolist() == [0, 2, 4]
    assert units["silent_examples"].values[0] == 12_000


@given(
    alive=st.lists(st.sampled_from([(0, 0), (0, 3), (2, 0), (1, 5)]), min_size=1, max_size=12),
    every=st.integers(1, 4),
    distinct=st.sampled_from([None, 25]),
)
def test_records_between_those_of_units_count_where_the_whole_layer_was_silent(make_recording, alive, every, distinct):
    """Recounted record by record: what an onlooker knows who sees units now and then, and whether all was zero."""
    layer = Layer("act", "ReLU", 0, 1, 0, 2, activation="ReLU")
    steps = {10 * i: {"act": fires(10 + i, *active)} for i, active in enumerate(alive)}
    unit_steps = list(steps)[::every]
    units = dead_units(make_recording(steps, layers=[layer], unit_steps=unit_steps), distinct_examples=distinct)
    for unit in range(2):
        examples, records, since = 0, 0, -1
        for i, active in enumerate(alive):
            if 10 * i in unit_steps and active[unit]:
                examples, records, since = 0, 0, -1
            elif 10 * i in unit_steps or not any(active):
                examples, records, since = examples + 10 + i, records + 1, 10 * i if records == 0 else since
        assert units["silent_examples"].values[unit] == min(examples, distinct or examples)
        assert units["silent_records"].values[unit] == records
        if units["state"].values[unit] in ("silent", "dead"):
            assert units["since_step"].values[unit] == since
    assert units["step"].values.tolist() == unit_steps


def test_units_without_a_finite_element_are_neither_alive_nor_dead(make_recording):
    broken = {"activation": np.where([[[1.0], [1.0], [0.0], [np.nan]]], fires(500, 500, 500, 0, 500)["activation"], 0)}
    broken["activation"][:, 0] = np.nan  # a unit of NaN alone, beside one that fires, one silent and one of NaN in part
    broken["activation"][:250, 3] = np.nan
    units = dead_units(recording_of(make_recording, *[fires(500, 100, 500, 0, 500)] * 2, *[broken] * 8))
    assert units["state"].values.tolist() == ["not finite", "alive", "dead", "alive"]
    assert units["firing_rate"].values[0] == 0.2
    assert units["examples"].values[:, 0].tolist() == [500] * 2 + [0] * 8
    assert units["not_finite"].values[:, 0].tolist() == [False] * 2 + [True] * 8
    np.testing.assert_array_equal(survival(units).values[:, 0], [0.75] * 2 + [2 / 3] * 8)


def test_a_revival_counts_the_silence_between_records_of_units(make_recording):
    steps = {10 * i: {"act": fires(500, *([500] * 4 if i in (0, 5) else [0] * 4))} for i in range(6)}
    units = dead_units(make_recording(steps, layers=[RELU], unit_steps=[0, 50]))
    assert units["revivals"].values.tolist() == [1] * 4
    assert units["revived_step"].values.tolist() == [50] * 4


def test_a_layer_that_stops_running_keeps_what_is_known_of_it(make_recording):
    other = Layer("other", "ReLU", 1, 1, 0, 4, activation="ReLU")
    both = {"act": fires(10, 0, 1, 1, 1), "other": fires(10, 0, 1, 1, 1)}
    recording = make_recording({0: both, 1: {"act": fires(10, 0, 1, 1, 1)}}, layers=[RELU, other])
    units = dead_units(recording)
    assert units["silent_examples"].values.tolist() == [20, 0, 0, 0, 10, 0, 0, 0]
    alive = survival(units)
    assert alive.sel(layer="act").values.tolist() == [0.75, 0.75]
    assert alive.sel(step=0, layer="other") == 0.75
    assert np.isnan(alive.sel(step=1, layer="other"))


def test_only_nonlinearities_are_looked_at_unless_layers_are_named(make_recording):
    dense = Layer("fc", "Linear", 0, 1, 0, 4)
    recording = make_recording({0: {"fc": fires(5, 0, 1, 1, 1)}}, layers=[dense])
    assert dead_units(recording).sizes["unit"] == 0
    assert dead_units(recording, layers=["fc"])["state"].values.tolist() == ["silent", "alive", "alive", "alive"]


def test_survival_counts_units_that_are_not_silent(make_recording):
    records = [fires(10, 1, 1, 1, 1), fires(10, 0, 1, 1, 1), fires(10, 0, 0, 0, 0)]
    alive = survival(dead_units(recording_of(make_recording, *records)))
    assert alive.dims == ("step", "layer")
    assert alive.sel(layer="act").values.tolist() == [1.0, 0.75, 0.0]


def test_a_recording_whose_units_were_never_due_has_none(make_recording):
    recording = make_recording({0: {"act": fires(5, 1, 1, 1, 1)}}, layers=[RELU], unit_steps=[])
    units = dead_units(recording)
    assert dict(units.sizes) == {"step": 0, "unit": 0}
    assert survival(units).sizes["layer"] == 0


def test_a_layer_without_units_is_named(make_recording):
    recording = recording_of(make_recording, fires(5, 1, 1, 1, 1))
    with pytest.raises(SignalNotRecorded, match=r"layers=\['nope'\]: no units recorded; recorded for act"):
        dead_units(recording, layers=["act", "nope"])


def test_nan_is_not_silence(make_recording):
    output = fires(5, 0, 0, 0, 0)
    output["activation"][2, 1, 0] = np.nan
    units = dead_units(recording_of(make_recording, output))
    assert units["silent"].values.tolist() == [[True, False, True, True]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"distinct_examples": 0}, "distinct_examples=0: expected a number of examples >= 1"),
        ({"signal": "preactivation"}, "signal='preactivation': units are recorded for activation and activation_grad"),
        ({"alpha": 2.0}, "0 < alpha < 1"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(make_recording, wrong, message):
    with pytest.raises(InvalidArgumentError, match=message):
        dead_units(recording_of(make_recording, fires(5, 1, 1, 1, 1)), **wrong)


def test_units_under_an_unknown_example_axis_are_left_out(make_recording):
    unknown = Layer("act", "ReLU", 0, 1, -128, 4, activation="ReLU")
    statuses = {(0, "act", "activation"): Status.AXIS_UNKNOWN}
    recording = make_recording({0: {"act": fires(5, 0, 1, 1, 1)}}, layers=[unknown], statuses=statuses)
    assert dead_units(recording).sizes["unit"] == 0


def test_a_long_silence_that_ends_is_a_revival_and_a_short_one_is_not(make_recording):
    on, off = fires(300, 100, 100, 100, 100), fires(300, 0, 100, 100, 100)
    records = [on, off, off, off, on, off, off, on]
    units = dead_units(recording_of(make_recording, *records))
    assert units["revivals"].values.tolist() == [1, 0, 0, 0]
    assert units["revived_step"].values.tolist() == [40, -1, -1, -1]
    few = [{"activation": record["activation"][:20]} for record in records]
    assert dead_units(recording_of(make_recording, *few))["revivals"].values.tolist() == [0, 0, 0, 0]
