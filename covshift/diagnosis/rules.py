"""Every check by name, in the order a report shows them: one function each, from a recording to its findings.

A rule raises :class:`~covshift.exceptions.SignalNotRecorded` where the recording lacks what it needs as a whole;
:func:`covshift.diagnosis.diagnose` turns that into a finding ``not measured``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import xarray as xr

from covshift.diagnosis.direction_rules import gradient_noise, gradient_turn
from covshift.diagnosis.finding import Finding
from covshift.diagnosis.gradient_rules import gradient_arrives, gradient_zeros
from covshift.diagnosis.operating_rules import operating_points, saturation
from covshift.diagnosis.parameter_rules import update_ratio
from covshift.diagnosis.scale_rules import clipping, precision, scale_over_depth, scale_over_time, trust_spread
from covshift.diagnosis.shift_rules import distribution_shift
from covshift.diagnosis.unit_rules import dead_share
from covshift.diagnosis.value_rules import linkage_holds, non_finite

Rule = Callable[[xr.DataTree], list[Finding]]

RULES: Mapping[str, Rule] = {
    "gradient arrives": gradient_arrives,
    "gradient zeros": gradient_zeros,
    "units": dead_share,
    "saturation": saturation,
    "scale over depth": scale_over_depth,
    "scale over time": scale_over_time,
    "update ratio": update_ratio,
    "trust ratio": trust_spread,
    "clipping": clipping,
    "gradient turn": gradient_turn,
    "gradient noise": gradient_noise,
    "shift": distribution_shift,
    "operating point": operating_points,
    "precision": precision,
    "non-finite": non_finite,
    "linkage": linkage_holds,
}
