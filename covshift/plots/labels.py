"""Words for numbers and names: shares, amounts, counts, durations, and layer names that fit where they stand.

Findings are worded by :mod:`covshift.diagnosis.wording`; figures and report speak the same way, and shorten names as
:mod:`covshift.diagnosis.names` does. What is missing is an en dash, never an empty place or a ``nan``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from covshift.diagnosis.names import elide as elide
from covshift.diagnosis.names import short_names as short_names
from covshift.diagnosis.wording import percent

MISSING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def amount(value: float | None, *, digits: int = 2) -> str:
    """``value`` with ``digits`` significant digits, zeros included, plain between 0.001 and 10,000.

    Examples
    --------
    >>> amount(0.4), amount(0.91273, digits=3), amount(-3.0), amount(1234.0), amount(2.04e-7), amount(0.0)
    ('0.40', '0.913', '-3.0', '1,200', '2.0e-7', '0')
    >>> amount(None) == MISSING, amount(math.inf)
    (True, 'infinite')
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if not -3 <= power < 4:
        return f"{mantissa}e{power}"
    return f"{float(f'{value:.{digits - 1}e}'):,.{max(digits - 1 - power, 0)}f}"


def tick_amount(value: float, *, power: bool | None = None) -> str:
    """:func:`amount` for a tick of a logarithmic axis: as a power of ten, or plain.

    By default the former where :func:`amount` is not plain either.

    Examples
    --------
    >>> tick_amount(1e-6), tick_amount(2e6), tick_amount(100.0), tick_amount(0.01)
    ('10⁻⁶', '2·10⁶', '100', '0.01')
    """
    sign, size = _MINUS if value < 0 else "", abs(value)
    if not 0 < size < math.inf:
        return sign + f"{size:g}"
    mantissa, exponent = f"{size:.1e}".split("e")
    if not (_has_power(value) if power is None else power) or int(exponent) in (0, 1):
        return sign + f"{float(f'{size:.2g}'):.6g}"
    ten = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return sign + (ten if mantissa == "1.0" else f"{float(mantissa):g}·{ten}")


def tick_amounts(values: Iterable[float]) -> list[str]:
    """:func:`tick_amount` of all ticks of an axis, as powers of ten where one of them is: one notation for all.

    Examples
    --------
    >>> tick_amounts([2e-4, 5e-4, 1e-3, 2e-3]), tick_amounts([0.001, 0.01, 1.0])
    (['2·10⁻⁴', '5·10⁻⁴', '10⁻³', '2·10⁻³'], ['0.001', '0.01', '1'])
    """
    ticks = list(values)
    power = any(_has_power(value) for value in ticks)
    return [tick_amount(value, power=power) for value in ticks]


def _has_power(value: float) -> bool:
    return 0 < abs(value) < math.inf and not 0.000999 < abs(value) < 9999


def share(value: float | None) -> str:
    """A share as a percentage; see :func:`covshift.diagnosis.wording.percent`.

    Examples
    --------
    >>> share(0.3097), share(None) == MISSING
    ('31 %', True)
    """
    return MISSING if value is None or math.isnan(value) else percent(value)


def count(value: float | None) -> str:
    """A whole number with commas between thousands.

    Examples
    --------
    >>> count(1400), count(None) == MISSING
    ('1,400', True)
    """
    return MISSING if value is None or math.isnan(value) else f"{int(value):,}"


def duration(seconds: float | None) -> str:
    """A span of time in the two largest units that apply.

    Examples
    --------
    >>> duration(41.2), duration(200), duration(7400), duration(0.25), duration(None) == MISSING
    ('41 s', '3 min 20 s', '2 h 3 min', '0.25 s', True)
    """
    if seconds is None or math.isnan(seconds):
        return MISSING
    if seconds < 10:
        return f"{amount(seconds)} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
