"""Numbers and quantities in the words of a finding: percentages, counts, rates, steps.

A rounded number never claims more than the exact one: 99.97 % does not become 100 %.
"""

from __future__ import annotations

import math

MOST_DIGITS = 5
"""Most significant digits that the ends of an interval get to be told apart."""


def percent(share: float, *, digits: int = 2) -> str:
    """A share as a percentage of ``digits`` significant digits, of more above 99 %.

    Examples
    --------
    >>> percent(0.3097), percent(1.0), percent(0.99998), percent(0.0), percent(2e-5), percent(0.9996)
    ('31 %', '100 %', '> 99.99 %', '0 %', '< 0.01 %', '99.96 %')
    """
    if math.isnan(share):
        return "unknown"
    value = 100 * share
    if value in (0.0, 100.0):
        return f"{value:.0f} %"
    if 0 < value < 0.01:
        return "< 0.01 %"
    if 99.99 < value < 100:
        return "> 99.99 %"
    return f"{value:.4g} %" if value > 99 else f"{value:.{digits}g} %"


def number(value: float, *, digits: int = 2) -> str:
    """A number with ``digits`` significant digits, plain between 0.001 and 10,000.

    Examples
    --------
    >>> number(0.1204), number(2.3e-4), number(1234.0), number(12.6), number(0.0), number(4.2e7)
    ('0.12', '2.3e-4', '1,200', '13', '0', '4.2e7')
    >>> number(0.1204, digits=3), number(1234.0, digits=5), number(12.64, digits=3)
    ('0.12', '1,234', '12.6')
    """
    if not math.isfinite(value):
        return "unknown" if math.isnan(value) else "infinite" if value > 0 else "-infinite"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:,.{digits}g}"


def quoted(layer: str) -> str:
    """A layer in quotes, since ``9`` and ``cell.2`` would read as numbers; the whole run as it is.

    Examples
    --------
    >>> quoted("features.9"), quoted("whole run")
    ("'features.9'", 'whole run')
    """
    return layer if " " in layer else f"'{layer}'"


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    Examples
    --------
    >>> plural(1, "record"), plural(12800, "example")
    ('1 record', '12,800 examples')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def between(interval: tuple[float, float]) -> str:
    """A 90 % interval in brackets.

    Examples
    --------
    >>> between((0.09, 0.16))
    '(90 % interval 0.09 to 0.16)'
    """
    return f"(90 % interval {span(*interval)})"


def span(low: float, high: float) -> str:
    """The ends of an interval, with as many digits as tell them apart, up to :data:`MOST_DIGITS`.

    Examples
    --------
    >>> span(0.09, 0.16), span(0.3312, 0.3349), span(1234.0, 1241.0)
    ('0.09 to 0.16', '0.331 to 0.335', '1,230 to 1,240')
    >>> span(0.5, 0.5), span(-1 / 3, -1 / 3 + 1e-9)
    ('within rounding of 0.5', 'within rounding of -0.33')
    """
    for digits in range(2, MOST_DIGITS + 1):
        if f"{low:.{digits - 1}e}" != f"{high:.{digits - 1}e}":
            return f"{number(low, digits=digits)} to {number(high, digits=digits)}"
    return f"within rounding of {number(low)}" if math.isfinite(low) else number(low)
