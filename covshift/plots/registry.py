"""The figures by name: what each asks, what it needs, and how it is drawn from a recording.

The command line and the report draw through this table, so a figure has one name, one question and one way to be made.
``figure(recording, layer=..., ax=...)`` computes by :mod:`covshift.analysis` and draws; whoever has the result already
calls :attr:`FigureKind.plot` with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from covshift.diagnosis import Diagnosis
from covshift.exceptions import InvalidArgumentError
from covshift.plots import asking, style
from covshift.plots.asking import Subject
from covshift.plots.comparison import plot_comparison
from covshift.plots.differences import plot_differences
from covshift.plots.distributions import plot_activation_river
from covshift.plots.ics import plot_gradient_ics
from covshift.plots.norms import plot_norm_profile
from covshift.plots.operating import plot_operating_track
from covshift.plots.parameters import plot_update_ratio
from covshift.plots.ridgeline import plot_ridgeline
from covshift.plots.selection import near
from covshift.plots.shift import plot_shift_map
from covshift.plots.stability import plot_stability
from covshift.plots.units import plot_dead_units
from covshift.plots.verdicts import plot_verdict_grid
from covshift.plots.zeros import plot_gradient_zeros

Drawn = Axes | Figure | SubFigure
Recordings = xr.DataTree | Mapping[str, xr.DataTree]


@dataclass(frozen=True)
class FigureKind:
    """One of the figures.

    Attributes
    ----------
    name : str
        What the command line calls it.
    title : str
        What a reader calls it.
    question : str
        What it answers.
    needs : str
        What must have been recorded, in words.
    ask : callable
        ``ask(subject, layer)``: arguments of ``plot``, all of them answers of :mod:`covshift.analysis` or
        :mod:`covshift.diagnosis`.
    plot : callable
        ``plot(*answers, ax=None)``: the function of :mod:`covshift.plots` that draws it.
    takes_layer : bool
        Whether ``layer=`` picks one layer.
    several_runs : bool
        Whether it sets several recordings side by side.
    """

    name: str
    title: str
    question: str
    needs: str
    ask: Callable[[Subject, str | None], tuple[tuple[Any, ...], dict[str, Any]]]
    plot: Callable[..., Drawn]
    takes_layer: bool = True
    several_runs: bool = False

    def __call__(
        self,
        recording: Recordings,
        *,
        layer: str | None = None,
        ax: style.Target = None,
        diagnosis: Diagnosis | None = None,
    ) -> Drawn:
        """Ask the analysis and draw.

        Parameters
        ----------
        recording : DataTree or mapping of str to DataTree
            One recording, or several by name for a comparison.
        layer : str, optional
            One layer. Figures of a single layer choose the worst one of ``diagnosis``, else the middle nonlinearity.
        ax : Axes, Figure or SubFigure, optional
            Where to draw; a new pyplot figure by default, a plain one inside :func:`covshift.plots.style.detached`.
        diagnosis : Diagnosis, optional
            Of the recording, where it is known already; its findings are marked.

        Returns
        -------
        Axes, or Figure or SubFigure
            What :attr:`plot` returns.

        Raises
        ------
        InvalidArgumentError
            If ``layer`` is not in the recording (near matches are named) or the figure takes none.
        SignalNotRecorded
            If the recording lacks what the figure needs.
        """
        if layer is not None and not self.takes_layer:
            takers = ", ".join(name for name, kind in FIGURES.items() if kind.takes_layer)
            raise InvalidArgumentError(
                f"layer={layer!r}: the figure '{self.name}' shows all layers; one layer is shown by {takers}"
            )
        subject = Subject.of(recording, diagnosis=diagnosis)
        answers, options = self.ask(subject, subject.layer(layer))
        return self.plot(*answers, **options, ax=ax)

    def figure(
        self,
        recording: Recordings,
        *,
        layer: str | None = None,
        diagnosis: Diagnosis | None = None,
        width: float | None = None,
        theme: str = "light",
    ) -> Figure:
        """The same on a new plain :class:`~matplotlib.figure.Figure` that pyplot knows nothing of.

        Parameters
        ----------
        recording, layer, diagnosis
            As above.
        width : float, optional
            In inches; the figure's own by default. The height follows from the number of layers.
        theme : {"light", "dark"}
            Colours.
        """
        with style.theme(theme), style.detached(width=width):
            return style.root(self(recording, layer=layer, diagnosis=diagnosis))


_ALL = (
    FigureKind(
        "verdicts",
        "Verdict grid",
        "Where do I look?",
        "any recording",
        asking.verdicts,
        plot_verdict_grid,
    ),
    FigureKind(
        "river",
        "Activation river",
        "How did this layer's distribution move?",
        "histograms",
        asking.river,
        plot_activation_river,
    ),
    FigureKind(
        "ridgeline",
        "Ridgeline of distributions",
        "Are layers alike?",
        "histograms",
        asking.ridgeline,
        plot_ridgeline,
    ),
    FigureKind(
        "shift",
        "Shift map",
        "Which layers shift, and when?",
        "histograms at two steps",
        asking.shift_map,
        plot_shift_map,
    ),
    FigureKind(
        "operating-point",
        "Operating-point track",
        "Where on its nonlinearity does a layer live?",
        "pre-activations of a nonlinearity",
        asking.track,
        plot_operating_track,
    ),
    FigureKind(
        "stability",
        "Stability evidence",
        "Has it settled, and since when?",
        "some 80 records",
        asking.settled,
        plot_stability,
    ),
    FigureKind(
        "zeros",
        "Gradient zeros and survival of units",
        "Who stops learning?",
        "gradients; units for the survival curves",
        asking.zeros,
        plot_gradient_zeros,
    ),
    FigureKind(
        "dead-units",
        "Dead units through time",
        "Which units were born dead, died or revived?",
        "units",
        asking.units,
        plot_dead_units,
    ),
    FigureKind(
        "update-ratio",
        "Update ratio",
        "Is the step size right, weight by weight?",
        "parameters",
        asking.update_ratio,
        plot_update_ratio,
    ),
    FigureKind(
        "norm",
        "Gradient norm over depth",
        "Do gradients vanish or explode?",
        "gradients; parameters for the norms before and after clipping",
        asking.norm,
        plot_norm_profile,
        takes_layer=False,
    ),
    FigureKind(
        "ics",
        "Gradient internal covariate shift",
        "Does what lies below change what a layer should do?",
        "a result of covshift.probe.gradient_ics in the group 'gradient_ics'",
        asking.ics,
        plot_gradient_ics,
        takes_layer=False,
    ),
    FigureKind(
        "comparison",
        "Comparison of runs",
        "What did the change change?",
        "two recordings or more",
        asking.compared,
        plot_comparison,
        several_runs=True,
    ),
    FigureKind(
        "differences",
        "Difference heatmaps",
        "Where and when do two groups of runs differ?",
        "recordings of two variants, best with several seeds of each",
        asking.differences,
        plot_differences,
        several_runs=True,
    ),
)

FIGURES: Mapping[str, FigureKind] = {kind.name: kind for kind in _ALL}
"""By name, in the order of a reader's questions."""


def figure_kind(name: str) -> FigureKind:
    """The figure called ``name``.

    Raises
    ------
    InvalidArgumentError
        If there is none; near matches and all names are listed.
    """
    if name in FIGURES:
        return FIGURES[name]
    raise InvalidArgumentError(f"figure={name!r}: no such figure{near(name, FIGURES)}; there are {', '.join(FIGURES)}")
