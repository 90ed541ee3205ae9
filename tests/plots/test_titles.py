"""Titles of figures of a recording against the recorded series themselves, and the same however the figure is asked."""

from __future__ import annotations

import re

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from covshift.diagnosis import diagnose
from covshift.plots.headline import SINCE
from covshift.plots.registry import FIGURES
from covshift.plots.row_labels import RowLabels, as_one_artist
from covshift.plots.stability import plot_stability
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
        r"Layer 'conv2' \(row act2\): share of units that no longer receive a gradient is 75 %; "
        r"above 10 % since step (\d+), "
        r"75 % since step (\d+) \(and 3 more layers\)",
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


def test_what_follows_a_mark_on_zeros_is_beyond_the_lowest_limit_drawn(sick):
    figure = FIGURES["zeros"].figure(sick)
    ax = figure.axes[0]
    (mesh,) = [artist for artist in ax.collections if isinstance(artist, QuadMesh)]
    shares = np.ma.filled(mesh.get_array(), np.nan)
    (marks,) = [drawn for drawn in ax.get_lines() if drawn.get_label() == SINCE]
    assert list(marks.get_ydata())
    for step, row in zip(marks.get_xdata(), marks.get_ydata(), strict=True):
        after = shares[int(row), np.array(STEPS) >= step]
        assert np.mean(after > 0.95) > 0.5


def test_the_title_over_zeros_names_a_row_of_the_figure(sick):
    figure = FIGURES["zeros"].figure(sick)
    names = {label.get_text() for label in figure.axes[0].get_yticklabels()}
    said = " ".join(figure.get_suptitle().split()).split(";")[0]
    assert {word.strip("'():") for word in said.split()} & names


def test_what_drifts_by_its_distribution_alone_is_beyond_the_margin_there_and_said_to(made):
    found = made(fill=0.0).stability(4)
    found["shape_shift"][1], found["shape_low"][1], found["shape_high"][1] = 0.4, 0.3, 0.45
    found["drifts_by"] = ("layer", ["", "distribution", "", ""])
    figure = plot_stability(found)
    beyond = []
    for ax in figure.axes[:3]:
        (mark,) = [drawn for drawn in ax.get_lines() if drawn.get_label() == "_DRIFTING"]
        margin = max(drawn.get_xdata()[0] for drawn in ax.get_lines() if drawn.get_label() == "_margin")
        beyond.append(bool(abs(mark.get_xdata()[0]) > margin))
    assert beyond == [False, False, True]
    assert "1 drifting (distribution: 1)" in " ".join(figure.get_suptitle().split())


@pytest.mark.parametrize("missing", [["location"], ["location", "scale"]])
def test_rows_are_named_at_the_first_panel_that_has_any(made, missing):
    found = made().stability(4)
    for part in missing:
        found[f"{part}_drift"][:] = np.nan
    shown = [(ax.axison, ax.yaxis.get_tick_params().get("labelleft", True)) for ax in plot_stability(found).axes]
    assert [named for drawn, named in shown if drawn] == [True] + [False] * (3 - len(missing))


def test_a_report_names_no_rows_beside_panels_without_any(made):
    found = made(fill=np.nan).stability(4)
    found["settled_step"][:] = -1
    figure = plot_stability(found)
    as_one_artist(figure)
    assert not [artist for ax in figure.axes for artist in ax.get_children() if isinstance(artist, RowLabels)]


def test_one_layer_that_stops_receiving_gradient_does_so_at_the_step_after_the_last_arrival(sick):
    said = " ".join(FIGURES["zeros"].figure(sick, layer="act0").get_suptitle().split())
    found = re.match(
        r"Layer 'conv0' \(row act0\) stops receiving gradient at step (\d+); follows from units in act1", said
    )
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
