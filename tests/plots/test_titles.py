"""Titles of figures of a recording against the recorded series themselves, and the same however the figure is asked."""

from __future__ import annotations

import re

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from covshift.diagnosis import diagnose
from covshift.plots.registry import FIGURES
from covshift.schema import Layer

STEPS = range(0, 200, 10)
PAIRS, UNITS, EXAMPLES = 3, 4, 800


def titles(drawn: Figure) -> str:
    said = [drawn.get_suptitle(), *(ax.get_title(loc="left") for ax in drawn.axes)]
    return " ".join(". ".join(text for text in said if text).split())


def network() -> list[Layer]:
    rectifier = {"activation": "ReLU", "structural_measured": True}
    return [
        layer
        for at in range(PAIRS)
        for layer in (
            Layer(f"conv{at}", "Conv2d", 2 * at, 1, 0, UNITS),
            Layer(f"act{at}", "ReLU", 2 * at + 1, 1, 0, UNITS, preactivation_of=f"conv{at}", **rectifier),
        )
    ]


@pytest.fixture(scope="module")
def sick(make_recording) -> xr.DataTree:
    """Units of act1 die one by one until nothing reaches conv0, whose updates fade before; conv2 is masked by unit."""
    rng, steps, parameters = np.random.default_rng(0), {}, {}
    for step in STEPS:
        alive = np.array([True, step < 30, step < 60, step < 90]) & (step < 120)
        tensors: dict[str, dict[str, np.ndarray]] = {}
        for at in range(PAIRS):
            z, upstream = rng.normal(size=(2, EXAMPLES, UNITS))
            if at == 1:
                z = np.where(alive, z, -np.abs(z))
            upstream *= at > 0 or alive.any()
            passes = (z > 0) & (at < 2 or np.array([step < 30, step < 60, step < 90, True]))
            tensors[f"conv{at}"] = {"activation": z, "activation_grad": upstream * passes}
            tensors[f"act{at}"] = {"activation": np.maximum(z, 0), "activation_grad": upstream}
        steps[step] = tensors
        ratio = {"conv0": 1e-3 if step < 40 else 5e-5 if step < 120 else 0.0}
        parameters[step] = {
            f"conv{at}.weight": {
                "weight_norm": 1.0,
                "update_norm": ratio.get(f"conv{at}", 1e-3),
                "gradient_norm": 1.0,
                "gradient_measured": 1,
            }
            for at in range(PAIRS)
        }
    flat = {f"act{at}": lambda z: z <= 0 for at in range(PAIRS)}
    return make_recording(steps, layers=network(), flat=flat, parameters=parameters)


@pytest.mark.parametrize("name", [name for name, kind in FIGURES.items() if not kind.several_runs and name != "ics"])
def test_a_figure_says_the_same_whether_or_not_the_diagnosis_is_at_hand(name, sick):
    asked, given = FIGURES[name].figure(sick), FIGURES[name].figure(sick, diagnosis=diagnose(sick))
    assert titles(asked) == titles(given)


def test_the_title_over_zeros_tells_of_each_step_the_share_that_was_recorded_then(sick):
    said = " ".join(FIGURES["zeros"].figure(sick).get_suptitle().split())
    told = re.fullmatch(
        r"Layer 'conv2': share of units that no longer receive a gradient is 75 %; above 10 % since step (\d+), 75 % "
        r"since step (\d+) \(and 3 more layers\)",
        said,
    )
    assert told
    begun, reached = map(int, told.groups())
    units = sick["units"].to_dataset().sel(signal="activation_grad")
    fires = (units["unit_active_examples"].values > 0)[:, units["layer_index"].values == 4]
    idle = 1 - fires.mean(axis=1)
    steps = units["step"].values
    assert (idle[steps >= reached] == 0.75).all()
    assert idle[steps < reached].max() < 0.75
    assert idle[steps < begun].max() <= 0.1 < idle[steps >= begun].min()


def test_one_layer_that_stops_receiving_gradient_does_so_at_the_step_after_the_last_arrival(sick):
    said = " ".join(FIGURES["zeros"].figure(sick, layer="act0").get_suptitle().split())
    found = re.match(r"Layer 'conv0' stops receiving gradient at step (\d+); follows from units in act1", said)
    assert found
    rows = sick["layers"].to_dataset().sel(layer="conv0", signal="activation_grad")
    arrived = (rows["zero_count"] < rows["count"]).to_series()
    assert not arrived.loc[int(found[1]) :].any()
    assert arrived.loc[: int(found[1]) - 1].all()


def test_the_title_over_updates_does_not_call_nothing_what_was_little(sick):
    said = " ".join(FIGURES["update-ratio"].figure(sick).axes[0].get_title(loc="left").split())
    told = re.match(
        r"Layer 'conv0': updates no longer move a weight; mostly outside 0\.0001 to 0\.01 since step (\d+), exactly 0 "
        r"since step (\d+)",
        said,
    )
    assert told
    begun, reached = map(int, told.groups())
    sizes = sick["parameters"].to_dataset()["update_norm"].sel(parameter="conv0.weight").to_series()
    assert (sizes.loc[reached:] == 0).all()
    assert sizes.loc[: reached - 1].min() > 0
    assert (sizes.loc[begun:] < 1e-4).all()
