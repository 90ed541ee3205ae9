"""Distributions side by side, against counting raw values."""

import numpy as np
import pytest

from covshift.analysis.ridges import ridges
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.schema import Layer

LAYERS = [Layer("fc", "Linear", 0, 1, 0, 8), Layer("act", "ReLU", 1, 1, 0, 8, activation="ReLU", preactivation_of="fc")]


@pytest.fixture(scope="module")
def values():
    rng = np.random.default_rng(1)
    z = {step: rng.normal(0.1 * step, 1.0, (64, 8)).astype(np.float32) for step in (0, 5, 10)}
    z[10][0, :4] = [np.nan, np.inf, -np.inf, 0.0]
    return z


@pytest.fixture(scope="module")
def recording(make_recording, values):
    steps = {step: {"fc": {"activation": z}, "act": {"activation": np.maximum(z, 0)}} for step, z in values.items()}
    return make_recording(steps, layers=LAYERS)


def test_density_counts_the_nonzero_finite_elements_of_every_cell(recording, values):
    found = ridges(recording, layers=["fc"], steps=[0, 10], cells=20)
    edges = np.append(found["lower"].values, found["upper"].values[-1])
    for step in (0, 10):
        flat = values[step].ravel()
        kept = flat[np.isfinite(flat) & (flat != 0)]
        row = found.sel(step=step, layer="fc")
        # recorded bins are cut where a cell's edge crosses them, so a cell is off by at most the bins at its two edges
        inside = np.histogram(kept, edges)[0] / kept.size
        np.testing.assert_allclose(row["density"].values, inside, atol=0.03)
        np.testing.assert_allclose(
            row["density"].sum(), np.isin(np.digitize(kept, edges), range(1, 21)).mean(), atol=0.01
        )


def test_shares_are_of_all_elements(recording, values):
    found = ridges(recording).sel(step=10, layer="act")
    out = np.maximum(values[10], 0).ravel()
    assert found["zero_share"] == pytest.approx((out == 0).mean())
    assert found["non_finite_share"] == pytest.approx((~np.isfinite(out)).mean())
    assert found["elements"] == out.size
    finite = out[np.isfinite(out)]
    assert found["mean"] == pytest.approx(finite.mean(), rel=1e-6)
    assert found["sd"] == pytest.approx(finite.std(), rel=1e-6)
    low, high = float(found["lower"][0]), float(found["upper"][-1])
    assert found["below_share"] == pytest.approx((finite < low).mean(), abs=0.01)
    assert found["above_share"] == pytest.approx((finite > high).mean(), abs=0.01)


def test_nonlinearities_at_the_first_and_last_step_are_the_default(recording):
    found = ridges(recording)
    assert found["layer"].values.tolist() == ["act"]
    assert found["step"].values.tolist() == [0, 10]


def test_a_preactivation_is_read_under_its_producer(recording):
    z = ridges(recording, layers=["act"], signal="preactivation")
    own = ridges(recording, layers=["fc"])
    np.testing.assert_array_equal(z["density"].values, own["density"].values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": ["ac"]}, r"layers=\['ac'\]: \['ac'\]: no histogram of it; there are fc, act"),
        ({"steps": [7]}, r"steps=\[7\]: \[7\]: no histogram of it; there are 0, 5, 10"),
        ({"steps": []}, r"steps=\[\]: none asked for"),
        ({"cells": 1}, "cells=1: expected at least 2"),
        ({"signal": "activation_grad"}, "signal='activation_grad': expected 'activation'"),
    ],
)
def test_what_is_not_there_is_named(recording, arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        ridges(recording, **arguments)


def test_without_histograms_there_is_nothing_to_draw(make_recording, values):
    steps = {0: {"fc": {"activation": values[0]}}}
    with pytest.raises(SignalNotRecorded, match="no group 'histograms'"):
        ridges(make_recording(steps, layers=LAYERS, without=["histograms"]))
