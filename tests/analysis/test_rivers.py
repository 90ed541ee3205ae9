"""All layers' rivers at once are what one layer's river is, read from the same histograms."""

import numpy as np
import pytest
import xarray as xr

from covshift.analysis.distributions import river
from covshift.analysis.rivers import rivers
from covshift.exceptions import InvalidArgumentError, SignalNotRecorded
from covshift.schema import Layer

LAYERS = [
    Layer("(input)", "input", 0, 1, 0, 3),
    Layer("conv", "Conv2d", 1, 1, 0, 3),
    Layer("act", "ReLU", 2, 1, 0, 3, activation="ReLU", preactivation_of="conv"),
    Layer("own", "Tanh", 3, 1, 0, 3, activation="Tanh"),
    Layer("never", "Linear", 4, 1, 0, 3),
]


@pytest.fixture(scope="module")
def recording(make_recording):
    rng = np.random.default_rng(3)

    def at(step):
        draw = lambda scale: rng.normal(0.1 * step, scale, (8, 3, 5)).astype(np.float32)  # noqa: E731
        tensors = {
            "(input)": {"input": draw(1.0)},
            "conv": {"activation": draw(1.0 + step)},
            "act": {"activation": draw(1.0)},
        }
        return tensors | ({"own": {"preactivation": draw(0.5), "activation": draw(0.1)}} if step else {})

    return make_recording({step: at(step) for step in range(20)}, layers=LAYERS)


COORDINATES = ["layer", "signal", "scale", "linear_within", "lower", "upper"]
SIGNALS = {"(input)": "input", "conv": "activation", "act": "preactivation", "own": "preactivation"}


@pytest.mark.parametrize("records", [None, [0, 7, 18]])
def test_each_is_the_river_of_its_layer(recording, records):
    found = rivers(recording, records=records, cells=16)
    assert found["layer"].values.tolist() == list(SIGNALS)
    for layer, signal in SIGNALS.items():
        alone, here = river(recording, layer=layer, signal=signal, cells=16), found.sel(layer=layer)
        assert here["signal"] == signal
        if records is None:
            of_layer = here.sel(step=alone["step"]).reset_coords(COORDINATES, drop=True)
            xr.testing.assert_equal(of_layer, alone.drop_vars(["lower", "upper"]))
            assert {name: here[name].item() for name in ("scale", "linear_within")}.items() <= alone.attrs.items()
            np.testing.assert_array_equal(here["lower"], alone["lower"])
            np.testing.assert_array_equal(here["upper"], alone["upper"])
        else:
            assert here["step"].values.tolist() == records
            np.testing.assert_array_equal(here["quantile"], alone["quantile"].reindex(step=records))


def test_a_layer_without_a_count_at_a_step_is_blank_there(recording):
    own = rivers(recording).sel(layer="own", step=0)
    assert np.isnan(own["quantile"]).all()
    assert not any(own[name].any() for name in ("count", "finite", "nan", "infinite"))


def test_a_layer_without_a_count_at_the_chosen_records_is_left_out(recording):
    assert "never" not in rivers(recording)["layer"]
    assert rivers(recording, records=[]).sizes["layer"] == 0


def test_what_cannot_be_is_refused(recording, make_recording):
    with pytest.raises(InvalidArgumentError, match="cells=1"):
        rivers(recording, cells=1)
    with pytest.raises(SignalNotRecorded, match="no group 'histograms'"):
        rivers(make_recording({0: {"a": {"activation": np.ones((2, 2), np.float32)}}}, without=["histograms"]))
