"""No figure fails, warns or lies where there is little or nothing to draw, or where names are hostile."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Text

from covshift import plots
from covshift.exceptions import InvalidArgumentError
from covshift.plots import style


def figure_of(drawn) -> Figure:
    figure = drawn if isinstance(drawn, Figure | SubFigure) else drawn.get_figure()
    while isinstance(figure, SubFigure):
        figure = figure.figure
    return figure


def texts(drawn) -> str:
    return " | ".join(" ".join(text.get_text().split()) for text in figure_of(drawn).findobj(Text) if text.get_text())


@pytest.mark.parametrize(("steps", "layers"), [(1, 5), (6, 1), (1, 1), (2, 2), (30, 70)])
def test_any_number_of_steps_and_layers_can_be_drawn(subject, made, steps, layers):
    figure_of(subject(made(), steps, layers)).draw_without_rendering()


def test_nothing_but_nan_gives_a_message(subject, made):
    drawn = subject(made(fill=np.nan), 4, 5)
    figure_of(drawn).draw_without_rendering()
    assert "not measured" in texts(drawn) or "no finite values recorded" in texts(drawn) or "not logged" in texts(drawn)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_results_can_be_drawn(subject, made, value):
    figure_of(subject(made(fill=value), 4, 5)).draw_without_rendering()


def test_no_layer_and_no_step_give_a_message(made, new_figure):
    empty = made()
    drawings = [
        plots.plot_verdict_grid(empty.diagnosis(0), ax=new_figure().subplots()),
        plots.plot_activation_river(empty.river(0), ax=new_figure().subplots()),
        plots.plot_shift_map(empty.shift(0, 0), ax=new_figure().subplots()),
        plots.plot_shift_map(empty.shift(0, 3), ax=new_figure().subplots()),
        plots.plot_norm_profile(empty.profile(0, 3), ax=new_figure().subplots()),
        plots.plot_gradient_zeros(empty.share(0, 0), empty.share(0, 0), ax=new_figure()),
        plots.plot_comparison(empty.paired(0), ax=new_figure()),
        plots.plot_differences(empty.differences(0, 3), ax=new_figure()),
        plots.plot_differences(empty.differences(3, 0), ax=new_figure()),
        plots.plot_differences(empty.differences(3, 4, groups=()), ax=new_figure()),
        plots.plot_ridgeline(empty.ridges(0, 3), ax=new_figure()),
        plots.plot_ridgeline(empty.ridges(2, 0), ax=new_figure()),
        plots.plot_operating_track(empty.track(0), ax=new_figure()),
        plots.plot_stability(empty.stability(0), ax=new_figure()),
        plots.plot_dead_units(empty.unit_history(0), ax=new_figure()),
        plots.plot_dead_units(empty.unit_history(3, units=0), ax=new_figure()),
        plots.plot_update_ratio(empty.update_ratio(0, 3), ax=new_figure()),
        plots.plot_update_ratio(empty.update_ratio(3, 0), ax=new_figure()),
        plots.plot_gradient_ics(empty.ics(0), empty.attribution(0), ax=new_figure()),
    ]
    for drawn in drawings:
        figure_of(drawn).draw_without_rendering()
        said = texts(drawn)
        assert "not measured" in said or "recorded" in said or "nothing was measured" in said or "no layer" in said


def test_hostile_names_are_text(subject, made):
    names = ["$x^", "$\\frac{1}$ $", "<script>alert(1)", "a\nb\tc", "\x1b[31m", "layer " * 40]
    drawn = subject(made(names=names), 3, len(names))
    figure_of(drawn).draw_without_rendering()
    shown = ("$x^", "$\\frac{1}$ $", "<script>alert(1)", "a b c", "\ufffd[31m")
    assert not subject.names_layers or all(name in texts(drawn) for name in shown)


def test_every_figure_draws_where_it_is_told_and_returns_it(subject, made, new_figure):
    figure = new_figure()
    if subject.several:
        assert subject(made(), 3, 4, ax=figure) is figure
    else:
        ax = figure.subplots()
        assert subject(made(), 3, 4, ax=ax) is ax


def test_every_figure_makes_its_own_where_it_is_not_told(subject, made):
    drawn = subject(made(), 3, 4)
    assert isinstance(drawn, Figure) if subject.several else drawn.get_figure() is not None


def test_panels_can_fill_part_of_a_figure(made, new_figure):
    left, right = new_figure(figsize=(14, 6)).subfigures(1, 2)
    assert plots.plot_gradient_zeros(made().share(3, 4), ax=left) is left
    assert plots.plot_comparison(made().paired(4), made().curves(5), ax=right) is right
    figure_of(left).draw_without_rendering()


def test_every_axis_says_what_it_shows(subject, made):
    drawn = subject(made(), 5, 6)
    figure = figure_of(drawn)
    figure.draw_without_rendering()
    said = texts(drawn)
    rows = ("layer (n = 6)", "layer, input side on top (n = 6)")
    assert any(row in said for row in rows) if subject.names_layers else "step" in said


sizes = st.tuples(st.integers(0, 5), st.integers(0, 9), st.sampled_from([None, 0.0, np.nan, -1.0, 1e-30, 1e30]))


SAID = ("not measured", "not logged", "recorded", "nothing was measured", "no layer", "exactly 0", "window")
"""Words of which a figure without a number says at least one."""


def drawn_numbers(figure: Figure) -> np.ndarray:
    """Every number that an artist of ``figure`` holds: places, heights, cells, ends of segments, corners."""
    held: list[np.ndarray] = []
    for ax in figure.get_axes():
        held += [np.asarray(part, dtype=float) for line in ax.get_lines() for part in line.get_data()]
        for collection in ax.collections:
            cells = collection.get_array()
            held += [] if cells is None else [np.ma.asarray(cells, dtype=float).compressed()]
            held += [path.vertices.ravel() for path in collection.get_paths()]
        held += [
            np.array([patch.get_width(), patch.get_height()]) for patch in ax.patches if hasattr(patch, "get_width")
        ]
    return np.concatenate([np.ravel(part) for part in held]) if held else np.array([])


def check_drawn(subject, made, size):
    """A figure of any size and value holds its numbers, or says that there are none."""
    steps, layers, fill = size
    if subject.name == "stability of one" and not layers:
        return
    with style.detached():
        drawn = figure_of(subject(made(fill=fill), steps, layers))
    drawn.draw_without_rendering()
    if subject.numbers is None:
        assert drawn_numbers(drawn).size or any(word in texts(drawn) for word in SAID), texts(drawn)
        return
    expected = np.ravel(subject.numbers(made(fill=fill), steps, layers)).astype(float)
    expected = expected[np.isfinite(expected)]
    if expected.size:
        assert np.isin(expected, drawn_numbers(drawn)).all(), f"not drawn: {expected}"
    elif fill != -1.0:  # No norm, share or distance is negative: such results need only do no harm.
        assert any(word in texts(drawn) for word in SAID), texts(drawn)


@pytest.mark.slow
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes)
@example((1, 1, np.nan))
@example((0, 0, None))
@example((3, 4, None))
def test_a_figure_holds_its_numbers_or_says_that_there_are_none(subject, made, size):
    check_drawn(subject, made, size)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes)
def test_no_size_and_no_value_makes_a_figure_fail(subject, made, size):
    check_drawn(subject, made, size)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_text_stands_on_its_own_colour(subject, made, theme):
    with style.theme(theme) as palette, style.detached():
        drawn = figure_of(subject(made(), 4, 6))
    assert to_rgba(drawn.get_facecolor()) == to_rgba(palette.paper)
    for text in drawn.findobj(Text):
        assert not text.get_text() or to_rgba(text.get_color()) != to_rgba(palette.paper), text


def test_a_new_figure_is_unknown_to_pyplot_where_that_is_asked_for(subject, made):
    pyplot.close("all")
    with style.detached(width=5.5):
        drawn = figure_of(subject(made(), 3, 4))
    assert drawn.get_size_inches()[0] == 5.5
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(
    "layers", [pytest.param(5, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.slow), 200]
)
def test_long_names_fit_and_a_vector_file_stays_below_a_megabyte(subject, made, layers):
    names = [f"backbone.stages.{layer // 10}.blocks.{layer % 10}.attention.projection" for layer in range(layers)]
    with style.detached():
        drawn = figure_of(subject(made(names=names), 40, layers))
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="svg")
    assert buffer.tell() < 1_000_000
    for ax in drawn.axes:
        boxes = sorted((box.y0, box.y1) for box in (label.get_window_extent() for label in shown_rows(ax)))
        assert all(below[1] <= above[0] + 1.0 for below, above in itertools.pairwise(boxes)), ax
    width, height = drawn.bbox.width, drawn.bbox.height
    for text in words(drawn):
        box = text.get_window_extent()
        inside = min(box.x0, box.y0, width - box.x1, height - box.y1) >= -2
        assert inside or not text.get_text().strip(), text


def shown_rows(ax) -> list[Text]:
    low, high = sorted(ax.get_ylim())
    return [label for label in ax.get_yticklabels() if label.get_text() and low <= label.get_position()[1] <= high]


def words(figure) -> list[Text]:
    """Everything written but the ticks of values, some of which matplotlib keeps undrawn beyond the view."""
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.texts)]
    for ax in figure.axes:
        legend = ax.get_legend()
        titles = [child for child in ax.get_children() if isinstance(child, Text)]
        found += [*titles, ax.xaxis.label, ax.yaxis.label, *shown_rows(ax), *(legend.texts if legend else [])]
    return found


DRAWN_FROM = {
    plots.plot_activation_river: r"river: expected the Dataset that covshift\.analysis\.distributions\.river returns",
    plots.plot_comparison: r"paired: expected the Dataset that covshift\.analysis\.comparison\.paired_layers returns",
    plots.plot_dead_units: r"history: expected the Dataset that covshift\.analysis\.unit_history\.unit_history returns",
    plots.plot_differences: r"differences: expected the Dataset that .*\.group_differences returns",
    plots.plot_gradient_ics: r"ics: expected the Dataset that covshift\.probe\.gradient_ics returns",
    plots.plot_gradient_zeros: r"zero_rate: expected the DataArray that covshift\.gradient_health\.zero_rate returns",
    plots.plot_norm_profile: r"profile: expected the Dataset that covshift\.gradient_health\.norm_profile returns",
    plots.plot_operating_track: r"track: expected the Dataset that .*\.operating_track returns",
    plots.plot_ridgeline: r"ridges: expected the Dataset that covshift\.analysis\.ridges\.ridges returns",
    plots.plot_shift_map: r"shift: expected the Dataset that covshift\.shift\.between_steps returns",
    plots.plot_stability: r"stability: expected the Dataset that covshift\.operating_point\.stability returns",
    plots.plot_update_ratio: r"ratio: expected the DataArray that covshift\.gradient_health\.update_ratio returns",
    plots.plot_verdict_grid: r"diagnosis: expected the Diagnosis that covshift\.diagnose returns",
}


def test_every_plot_function_says_what_it_draws():
    assert {plot.__name__ for plot in DRAWN_FROM} == {name for name in plots.__all__ if name.startswith("plot_")}


@pytest.mark.parametrize("plot", DRAWN_FROM, ids=lambda plot: plot.__name__)
@pytest.mark.parametrize(
    ("given", "named"),
    [(xr.DataTree(), "a recording"), ("runs/a.zarr", "str"), ([], "list"), (None, "NoneType")],
    ids=["recording", "path", "list", "none"],
)
def test_what_is_no_result_is_named_with_the_function_that_gives_one(plot, given, named):
    with pytest.raises(InvalidArgumentError, match=rf"{DRAWN_FROM[plot]}, got {named}; call covshift\."):
        plot(given)
    assert not pyplot.get_fignums()


def test_the_result_of_another_function_is_named_by_what_it_lacks():
    other = xr.Dataset({"dead": ("unit", [True])})
    with pytest.raises(InvalidArgumentError, match=r"got one without fate, count \(it has dead\); call covshift\."):
        plots.plot_dead_units(other)
    with pytest.raises(
        InvalidArgumentError, match=r"got one without parameter \(it has step, layer\); call covshift\."
    ):
        plots.plot_update_ratio(xr.DataArray(np.zeros((1, 1)), dims=("step", "layer")))
