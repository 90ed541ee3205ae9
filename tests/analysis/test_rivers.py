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
            "own": {"preactivation": draw(0.5), "activation": draw(0.1)},
        }
        return tensors | ({"act": {"activation": draw(1.0)}} if step else {})

    return make_recording({step: at(step) for step in range(20)}, layers=LAYERS)


SIGNALS = {"(input)": "input", "conv": "activation", "act": "preactivation", "own": "preactivation"}


@pytest.mark.parametrize("records", [None, [0, 7, 18]])
def test_each_is_the_river_of_its_layer(recording, records):
    found = rivers(recording, records=records, cells=16)
    assert set(found) == set(SIGNALS)
    for layer, signal in SIGNALS.items():
        alone = river(recording, layer=layer, signal=signal, cells=16)
        assert found[layer].attrs["signal"] == signal
        if records is None:
            xr.testing.assert_identical(found[layer], alone)
        else:
            assert found[layer]["step"].values.tolist() == records
            np.testing.assert_array_equal(found[layer]["quantile"], alone["quantile"].sel(step=records))


def test_a_layer_without_a_count_at_the_chosen_records_is_left_out(recording):
    assert "never" not in rivers(recording)
    assert rivers(recording, records=[]) == {}


def test_what_cannot_be_is_refused(recording, make_recording):
    with pytest.raises(InvalidArgumentError, match="cells=1"):
        rivers(recording, cells=1)
    with pytest.raises(SignalNotRecorded, match="no group 'histograms'"):
        rivers(make_recording({0: {"a": {"activation": np.ones((2, 2), np.float32)}}}, without=["histograms"]))
