"""What a threshold is: where a quantity stops being ok, how a value is compared with it, and how it is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from covshift.diagnosis.wording import MOST_DIGITS, number, percent

Verdict = Literal["ok", "watch", "bad", "not measured"]

Limit = float | tuple[float, float] | None


@dataclass(frozen=True)
class Threshold:
    """Where a quantity stops being ok.

    Attributes
    ----------
    check : str
        The check it belongs to.
    quantity : str
        What is compared, in words.
    watch, bad : float, (float, float) or None
        A number is exceeded from above; a pair is a band to stay inside. None: never given by this quantity.
    unit : str
        Of the quantity; "share" is written as a percentage.
    source : str
        Who proposed it; "ours" if we did.
    note : str
        What it presumes, or why it has this value.
    """

    check: str
    quantity: str
    watch: Limit
    bad: Limit
    unit: str
    source: str
    note: str = ""

    def verdict(self, value: float) -> Verdict:
        """Verdict on one value; ``not measured`` for NaN.

        A value is compared as it can be shown, with up to five digits: what rounding adds to a limit is no excess.

        Examples
        --------
        >>> from covshift.diagnosis.thresholds import THRESHOLDS
        >>> THRESHOLDS["update_ratio"].verdict(1e-3), THRESHOLDS["update_ratio"].verdict(1e-7)
        ('ok', 'bad')
        >>> THRESHOLDS["update_ratio"].verdict(0.1000000038), THRESHOLDS["update_ratio"].verdict(0.10001)
        ('watch', 'bad')
        """
        value = _as_shown(value)
        if math.isnan(value):
            return "not measured"
        return "bad" if _exceeds(value, self.bad) else "watch" if _exceeds(value, self.watch) else "ok"

    def exceeded(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Where ``values`` are beyond the first limit there is; False for NaN."""
        limit = self.bad if self.watch is None else self.watch
        if isinstance(limit, tuple):
            return np.asarray((values < limit[0]) | (values > limit[1]))
        return np.asarray(values > (math.inf if limit is None else limit))

    @property
    def beyond(self) -> str:
        """What :meth:`exceeded` asks, in words.

        Examples
        --------
        >>> from covshift.diagnosis.thresholds import THRESHOLDS
        >>> THRESHOLDS["dead_units"].beyond, THRESHOLDS["update_ratio"].beyond, THRESHOLDS["shift"].beyond
        ('above 10 %', 'outside 0.0001 to 0.01', 'above 0.2 sd')
        """
        limit = self.bad if self.watch is None else self.watch
        return "exceeded" if limit is None else _words(limit, self.unit)

    def amount(self, value: float) -> str:
        """A value in the threshold's unit.

        Examples
        --------
        >>> from covshift.diagnosis.thresholds import THRESHOLDS
        >>> THRESHOLDS["dead_units"].amount(1.0), THRESHOLDS["update_ratio"].amount(0), THRESHOLDS["shift"].amount(0.31)
        ('100 %', 'exactly 0', '0.31 sd')

        Beside a limit it gets as many digits as tell the two apart, up to five:

        >>> THRESHOLDS["dead_units"].amount(0.1002), THRESHOLDS["update_ratio"].amount(0.01004)
        ('10.02 %', '0.01004')
        """
        if value == 0 and self.unit != "share":
            return "exactly 0"
        write = percent if self.unit == "share" else number
        digits = range(2, MOST_DIGITS + 1)
        limits = [limit for limit in self._limits if limit != value]
        told = (write(value, digits=more) for more in digits if all(_differ(value, one, more) for one in limits))
        words = next(told, write(value, digits=MOST_DIGITS))
        return words if self.unit in ("1", "share") else f"{words} {self.unit}"

    @property
    def _limits(self) -> list[float]:
        given = [limit for limit in (self.watch, self.bad) if limit is not None]
        return [end for limit in given for end in (limit if isinstance(limit, tuple) else (limit,))]

    def falls_short(self, value: float) -> bool:
        """Whether ``value`` lies below the band of ``watch``; False where that is no band, and for NaN."""
        return isinstance(self.watch, tuple) and _as_shown(value) < self.watch[0]

    def __str__(self) -> str:
        limits = {"watch": self.watch, "bad": self.bad}
        given = [f"{verdict} {_words(limit, self.unit)}" for verdict, limit in limits.items() if limit is not None]
        return f"{self.quantity}: {', '.join(given)}"


def _differ(one: float, other: float, digits: int) -> bool:
    return f"{one:.{digits}g}" != f"{other:.{digits}g}"


def _as_shown(value: float) -> float:
    return float(f"{value:.{MOST_DIGITS}g}")


def _exceeds(value: float, limit: Limit) -> bool:
    if limit is None:
        return False
    return not limit[0] <= value <= limit[1] if isinstance(limit, tuple) else value > limit


def _words(limit: float | tuple[float, float], unit: str) -> str:
    if isinstance(limit, tuple):
        return f"outside {limit[0]:g} to {limit[1]:g}"
    if unit == "share":
        return f"above {percent(limit)}"
    if unit == "1":
        return f"above {limit:g}"
    return f"above {limit:g} {unit.removesuffix('s') if limit == 1 else unit}"
