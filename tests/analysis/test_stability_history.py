"""The history of a verdict is the verdict on what had been recorded by then."""

import numpy as np
import pytest
import xarray as xr

from covshift.analysis.operating_point import stability
from covshift.analysis.parameter_norms import parameter_norms
from covshift.analysis.stability_history import stability_history
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.schema import Layer

LAYERS = [Layer("act", "ReLU", 0, 1, 0, 4, activation="ReLU")]
GROUPS = ("layers", "units")


@pytest.fixture(scope="module")
def tensors():
    rng = np.random.default_rng(0)
    return {step: {"act": {"activation": rng.normal(min(step, 100) / 50, 1.0, (32, 4))}} for step in range(0, 200, 2)}


@pytest.fixture(scope="module")
def recording(make_recording, tensors):
    return make_recording(tensors, layers=LAYERS)


def test_every_end_is_the_stability_of_the_recording_up_to_there(recording, make_recording, tensors):
    history = stability_history(recording, points=5)
    assert history["end"].values.tolist() == [38, 78, 118, 158, 198]
    for end in (78, 198):
        until = make_recording({step: x for step, x in tensors.items() if step <= end}, layers=LAYERS)
        alone = stability(xr.DataTree.from_dict({name: until[name].to_dataset() for name in GROUPS}))
        for name in ("location_drift", "location_low", "scale_high"):
            np.testing.assert_array_equal(history[name].sel(end=end), alone[name])
        assert history["state"].sel(end=end).item() == alone["state"].item()
        assert history["window_start"].sel(end=end) == alone.attrs["window_start"]


def test_more_points_than_records_are_as_many_as_there_are(make_recording, tensors):
    few = make_recording({step: tensors[step] for step in (0, 2, 4)}, layers=LAYERS)
    assert stability_history(few, points=50)["end"].values.tolist() == [0, 2, 4]


def test_no_point_is_refused(recording):
    with pytest.raises(InvalidArgumentError, match="points=0: expected at least 1"):
        stability_history(recording, points=0)


def test_norms_before_and_after_clipping_are_those_recorded(make_recording):
    before = {"a.weight": 4.0, "a.bias": 1.0}
    rows = {name: {"gradient_norm": norm / 2, "gradient_norm_preclip": norm} for name, norm in before.items()}
    recording = make_recording({}, layers=[], parameters={0: rows}, parameter_ndim={"a.bias": 1})
    norms = parameter_norms(recording)
    assert norms["parameter"].values.tolist() == ["a.weight"]
    assert (norms["before"].item(), norms["after"].item()) == (4.0, 2.0)
    assert norms["clip_factor"].item() == pytest.approx(0.5)


def test_norms_need_parameters(recording):
    with pytest.raises(SignalNotRecorded, match="no group 'parameters'"):
        parameter_norms(recording)
