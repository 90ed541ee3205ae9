"""Results in, matplotlib Axes out: the figures of covshift.

Every function takes a computed result of :mod:`covshift.analysis` or :mod:`covshift.diagnosis`, draws into ``ax`` (or,
where a figure has several panels, into ``figure``), and returns it. Nothing here computes a statistic, shows a window,
saves a file or changes matplotlib's settings.
"""

from covshift.plots.comparison import plot_comparison
from covshift.plots.distributions import plot_activation_river
from covshift.plots.gradients import plot_gradient_zeros, plot_norm_profile
from covshift.plots.shift import plot_shift_map
from covshift.plots.verdicts import plot_verdict_grid

__all__ = [
    "plot_activation_river",
    "plot_comparison",
    "plot_gradient_zeros",
    "plot_norm_profile",
    "plot_shift_map",
    "plot_verdict_grid",
]
