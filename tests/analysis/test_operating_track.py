"""Derivatives against autograd, and the path of z against raw values."""

import numpy as np
import pytest
import torch
from torch import nn

from covshift import linked
from covshift.analysis.derivatives import derivative, known_kinds
from covshift.analysis.operating_track import operating_track
from covshift.exceptions import SignalNotRecorded
from covshift.schema import Layer


def by_autograd(module, z):
    """|dg/dz| of every member of a module, the largest of them."""
    at = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    out = module(at[:, None]).reshape(len(z), -1)
    slopes = [torch.autograd.grad(out[:, member].sum(), at, retain_graph=True)[0] for member in range(out.shape[1])]
    return torch.stack(slopes).abs().amax(0).numpy()


@pytest.mark.parametrize("kind", known_kinds())
def test_every_derivative_is_that_of_torch(kind):
    module = (getattr(linked, kind) if kind.startswith("Linked") else getattr(nn, kind))()
    z = np.array([-200.0, -7.1, -3.3, -1.2, -0.4, 0.3, 0.9, 2.2, 3.4, 6.7, 200.0])
    np.testing.assert_allclose(derivative(kind, z), by_autograd(module.double(), z), rtol=1e-9, atol=1e-12)


def test_an_unknown_kind_has_no_derivative():
    assert np.isnan(derivative("MyOwn", [0.0, 1.0])).all()


LAYERS = [Layer("fc", "Linear", 0, 1, 0, 8), Layer("act", "Tanh", 1, 1, 0, 8, activation="Tanh", preactivation_of="fc")]


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(2)
    return {step: rng.normal(0.3 * step, 1.0 + 0.1 * step, (64, 8)) for step in range(6)}


@pytest.fixture(scope="module")
def recording(make_recording, values):
    steps = {step: {"fc": {"activation": z}, "act": {"activation": np.tanh(z)}} for step, z in values.items()}
    return make_recording(steps, layers=LAYERS)


def test_the_path_has_the_mean_and_sd_of_z(recording, values):
    track = operating_track(recording, layer="act")
    np.testing.assert_allclose(track["mean"], [z.mean() for z in values.values()])
    np.testing.assert_allclose(track["sd"], [z.std() for z in values.values()])
    np.testing.assert_allclose(track["derivative_at_mean"], [1 - np.tanh(z.mean()) ** 2 for z in values.values()])
    assert track.attrs == {"layer": "act", "activation": "Tanh"}


def test_the_axis_holds_three_sd_of_every_record_and_flat_is_below_a_tenth(recording, values):
    track = operating_track(recording, layer="act")
    assert float(track["z"][0]) <= min(z.mean() - 3 * z.std() for z in values.values())
    assert float(track["z"][-1]) >= max(z.mean() + 3 * z.std() for z in values.values())
    np.testing.assert_array_equal(track["flat"], 1 - np.tanh(track["z"]) ** 2 < 0.1 * track["derivative"].max())


def test_one_early_outlier_does_not_stretch_the_axis(make_recording):
    rng = np.random.default_rng(3)
    steps = {step: {"fc": {"activation": rng.normal(0, 1e6 if step == 0 else 1.0, (16, 8))}} for step in range(100)}
    track = operating_track(make_recording(steps, layers=LAYERS, histogram_steps=[], unit_steps=[]), layer="act")
    assert float(track["z"][-1]) < 10


def test_a_layer_that_is_no_nonlinearity_is_refused(recording):
    with pytest.raises(SignalNotRecorded, match="layer 'fc': not among the nonlinearities; there are act"):
        operating_track(recording, layer="fc")


def test_nan_everywhere_gives_an_axis_and_no_path(make_recording):
    steps = {0: {"fc": {"activation": np.full((4, 8), np.nan)}}}
    track = operating_track(make_recording(steps, layers=LAYERS), layer="act")
    assert np.isnan(track["mean"]).all()
    assert (float(track["z"][0]), float(track["z"][-1])) == (-1.0, 1.0)
