"""Runs side by side: medians of the last window, layers by name, and scalars on one axis."""

import numpy as np
import pytest

from covshift.analysis import comparison, shift
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded


def run(make_recording, layers, sd, records=10, seed=0, **options):
    rng = np.random.default_rng(seed)
    steps = {
        step: {
            name: {"activation": rng.normal(0, sd * (step + 1), size=(16, 3)), "activation_grad": np.zeros((16, 3))}
            for name in layers
        }
        for step in range(records)
    }
    return make_recording(steps, **options), steps


def test_numbers_are_medians_of_each_runs_last_window(make_recording):
    recording, steps = run(make_recording, ["fc"], 1.0)
    found = comparison.paired_layers({"plain": recording}).sel(run="plain", layer="fc")
    sds = [steps[step]["fc"]["activation"].std() for step in range(5, 10)]
    assert float(found["activation_sd"]) == pytest.approx(np.median(sds))
    assert float(found["gradient_zero_rate"]) == 1.0
    assert float(found["gradient_rms"]) == 0.0
    shifts = shift.between_steps(recording)["w1"].sel(layer="fc").values[5:]
    assert float(found["w1"]) == pytest.approx(np.median(shifts))


def test_layers_are_matched_by_name_and_missing_ones_are_nan(make_recording):
    first, _ = run(make_recording, ["a", "b"], 1.0)
    second, _ = run(make_recording, ["c", "b"], 2.0)
    found = comparison.paired_layers({"one": first, "two": second})
    assert found["layer"].values.tolist() == ["a", "c", "b"]
    assert found["run"].values.tolist() == ["one", "two"]
    known = np.isfinite(found["activation_sd"].values)
    assert known.tolist() == [[True, False, True], [False, True, True]]


def test_what_a_run_did_not_record_is_nan_there(make_recording):
    whole, _ = run(make_recording, ["a"], 1.0)
    bare, _ = run(make_recording, ["a"], 1.0, without=["histograms", "units"])
    found = comparison.paired_layers({"whole": whole, "bare": bare}).sel(layer="a")
    assert np.isfinite(found["w1"].sel(run="whole"))
    assert np.isnan(found["w1"].sel(run="bare"))
    assert np.isnan(found["structural_rate"]).all()
    assert np.isfinite(found["activation_sd"]).all()


def test_scalars_share_one_sorted_step_axis(make_recording):
    first = make_recording(scalars={0: {"loss": 2.0}, 10: {"loss": 1.0}})
    second = make_recording(scalars={5: {"loss": 3.0}, 10: {"accuracy": 0.5}})
    third = make_recording({0: {"fc": {"activation": np.ones((2, 2))}}})
    loss = comparison.scalars({"a": first, "b": second, "c": third}, "loss")
    assert loss.dims == ("run", "step")
    assert loss["step"].values.tolist() == [0, 5, 10]
    np.testing.assert_array_equal(loss.sel(run="a"), [2.0, np.nan, 1.0])
    np.testing.assert_array_equal(loss.sel(run="b"), [np.nan, 3.0, np.nan])
    assert np.isnan(loss.sel(run="c")).all()


def test_a_scalar_nobody_logged_is_named_with_those_logged(make_recording):
    recording = make_recording(scalars={0: {"loss": 2.0}})
    with pytest.raises(SignalNotRecorded, match="name='lr': no run logged it; logged: loss, wall_time"):
        comparison.scalars({"a": recording}, "lr")


@pytest.mark.parametrize("compare", [comparison.paired_layers, lambda runs: comparison.scalars(runs, "loss")])
def test_no_recordings_is_an_error(compare):
    with pytest.raises(InvalidArgumentError, match="expected at least one recording"):
        compare({})
