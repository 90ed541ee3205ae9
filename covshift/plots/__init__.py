"""Results in, matplotlib Axes out: the figures of covshift.

Every ``plot_`` function takes computed results of :mod:`covshift.analysis`, :mod:`covshift.diagnosis` or
:mod:`covshift.probe`, draws into ``ax`` (an Axes; a Figure or SubFigure where a figure has several panels), and returns
it. Nothing here computes a statistic, shows a window, saves a file or changes matplotlib's settings.

:data:`FIGURES` holds the figures by name, each with its question and a way from a recording to the drawing.
"""

from covshift.plots.comparison import plot_comparison
from covshift.plots.differences import plot_differences
from covshift.plots.distributions import plot_activation_river
from covshift.plots.ics import plot_gradient_ics
from covshift.plots.norms import plot_norm_profile
from covshift.plots.operating import plot_operating_track
from covshift.plots.parameters import plot_update_ratio
from covshift.plots.registry import FIGURES, FigureKind, figure_kind
from covshift.plots.ridgeline import plot_ridgeline
from covshift.plots.shift import plot_shift_map
from covshift.plots.stability import plot_stability
from covshift.plots.style import detached, theme
from covshift.plots.units import plot_dead_units
from covshift.plots.verdicts import plot_verdict_grid
from covshift.plots.zeros import plot_gradient_zeros

__all__ = [
    "FIGURES",
    "FigureKind",
    "detached",
    "figure_kind",
    "plot_activation_river",
    "plot_comparison",
    "plot_dead_units",
    "plot_differences",
    "plot_gradient_ics",
    "plot_gradient_zeros",
    "plot_norm_profile",
    "plot_operating_track",
    "plot_ridgeline",
    "plot_shift_map",
    "plot_stability",
    "plot_update_ratio",
    "plot_verdict_grid",
    "theme",
]
