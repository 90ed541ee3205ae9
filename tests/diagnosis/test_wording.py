"""Words of numbers: an interval never reads as a point, and a number is near the one it stands for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from covshift.diagnosis.thresholds import THRESHOLDS
from covshift.diagnosis.wording import between, number, span


def read(text: str) -> float:
    return float(text.replace(",", ""))


@pytest.mark.parametrize("width", [0.5, 1e-2, 1e-3, 1e-4])
def test_ends_that_differ_read_differently_and_are_near_the_exact_ones(width):
    rng = np.random.default_rng(0)
    for low in rng.normal(0, 1, 50) * 10.0 ** rng.integers(-5, 6, 50):
        high = low + width * abs(low)
        first, second = span(low, high).split(" to ")
        assert first != second
        assert read(first) == pytest.approx(low, rel=0.06)
        assert read(second) == pytest.approx(high, rel=0.06)
        assert read(first) < read(second)


@pytest.mark.parametrize("low", [0.33, -0.33, 0.0, 12345.0, 2e-7])
def test_equal_ends_are_said_to_be_equal_within_rounding(low):
    assert span(low, low) == f"within rounding of {number(low)}"
    assert between((low, low)) == f"(90 % interval within rounding of {number(low)})"


def test_ends_that_two_digits_tell_apart_get_no_more():
    assert between((0.3312, 0.4149)) == "(90 % interval 0.33 to 0.41)"
    assert between((0.3251, 0.3349)) == "(90 % interval 0.325 to 0.335)"


def test_unknown_and_infinite_ends_are_said():
    assert span(math.nan, math.nan) == "unknown"
    assert span(-math.inf, math.inf) == "-infinite to infinite"
    assert span(0.1, math.inf) == "0.1 to infinite"


def test_a_limit_of_one_has_its_unit_in_the_singular():
    assert THRESHOLDS["gradient_growth"].beyond == "above 1 decade"
    assert THRESHOLDS["non_finite_run"].beyond == "above 2 records"
