"""The share of z with a usable derivative, against the derivative of the raw elements."""

import numpy as np
import pytest

from covshift.analysis.active_mass import active_mass
from covshift.exceptions import SignalNotRecorded
from covshift.schema import Layer

DERIVATIVES = {
    "Tanh": lambda z: 1 - np.tanh(z) ** 2,
    "Sigmoid": lambda z: 4 / (1 + np.exp(-z)) / (1 + np.exp(z)),
    "ReLU": lambda z: (z > 0).astype(float),
}


def recording_of(make_recording, kind, z, **options):
    layers = [
        Layer("fc", "Linear", 0, 1, 0, z.shape[1]),
        Layer("act", kind, 1, 1, 0, activation=kind, preactivation_of="fc", structural_measured=kind == "ReLU"),
    ]
    return make_recording({0: {"fc": {"activation": z}}}, layers=layers, flat={"act": lambda z: z <= 0}, **options)


@pytest.mark.parametrize("kind", DERIVATIVES)
@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
def test_it_is_the_share_of_elements_with_a_tenth_of_the_largest_derivative(make_recording, kind, scale):
    z = np.random.default_rng(0).normal(0.5, scale, (400, 8))
    found = active_mass(recording_of(make_recording, kind, z))
    assert found["layer"].values.tolist() == ["act"]
    assert float(found.squeeze()) == pytest.approx((DERIVATIVES[kind](z) >= 0.1).mean(), abs=0.01)


def test_what_has_no_known_derivative_or_no_histogram_is_nan(make_recording):
    z = np.random.default_rng(1).normal(size=(20, 2))
    assert np.isnan(active_mass(recording_of(make_recording, "GELU", z))).all()
    assert np.isnan(active_mass(recording_of(make_recording, "Tanh", z, without=["histograms"]))).all()


def test_a_net_without_nonlinearity_has_none(make_recording):
    layers = [Layer("fc", "Linear", 0, 1, 0, 2)]
    recording = make_recording({0: {"fc": {"preactivation": np.ones((4, 2))}}}, layers=layers)
    with pytest.raises(SignalNotRecorded, match="no layer is a nonlinearity"):
        active_mass(recording)
