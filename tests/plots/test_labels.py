"""Numbers as words lose no more than their last digit; names stay within their width and apart."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covshift.plots import labels

finite = st.floats(min_value=1e-300, max_value=1e300).flatmap(lambda v: st.sampled_from([v, -v]))


@given(finite, st.integers(1, 5))
def test_an_amount_reads_back_within_half_a_digit(value, digits):
    read = float(labels.amount(value, digits=digits).replace(",", ""))
    assert read == pytest.approx(value, rel=0.51 * 10.0 ** (1 - digits))


def read(tick):
    """The number that a tick says."""
    superscripts = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    text = tick.replace("\N{MINUS SIGN}", "-")
    power = re.fullmatch(r"(-?)(?:([0-9.]+)·)?10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", text)
    return float(f"{power[1]}{power[2] or 1}e{power[3].translate(superscripts)}") if power else float(text)


@given(finite, st.sampled_from([None, True, False]))
def test_a_tick_reads_back_as_its_amount(value, power):
    assert read(labels.tick_amount(value, power=power)) == pytest.approx(value, rel=0.051)


@given(st.integers(-12, 12), st.integers(1, 6))
def test_ticks_of_one_axis_are_in_one_notation_and_in_plain_numbers_where_all_can_be(first, decades):
    values = [part * 10.0**power for power in range(first, first + decades) for part in (1, 2, 5)]
    ticks = labels.tick_amounts(values)
    assert [read(tick) for tick in ticks] == pytest.approx(values)
    assert not any("e" in tick for tick in ticks)
    powers = ["10" in tick and any(mark in tick for mark in "⁻⁰¹²³⁴⁵⁶⁷⁸⁹") for tick in ticks]
    inside = first >= -3 and first + decades <= 4
    assert powers == [not inside and not 1 <= value < 100 for value in values]


@pytest.mark.parametrize("words", [labels.amount, labels.share, labels.count, labels.duration])
def test_what_is_missing_is_a_dash_and_never_nan(words):
    assert words(None) == words(float("nan")) == labels.MISSING


@given(st.text(max_size=80), st.integers(4, 40))
def test_an_elided_name_fits_and_can_be_printed(name, width):
    short = labels.elide(name, width)
    assert len(short) <= width
    assert short.isprintable()


@given(st.lists(st.text(min_size=1, max_size=60), unique_by=lambda n: " ".join(n.split()), max_size=30))
def test_distinct_names_stay_distinct(names):
    short = labels.short_names(names, width=12)
    assert len(short) == len(names)
    if all(name.isprintable() and name == " ".join(name.split()) for name in names):
        assert len(set(short)) == len(names)


def test_long_names_lose_the_parents_they_share():
    names = [f"backbone.encoder.layers.{layer}.attention" for layer in range(3)]
    assert labels.short_names(names, width=20) == ["0.attention", "1.attention", "2.attention"]


def test_short_names_are_left_alone():
    assert labels.short_names(["a.conv", "a.act"], width=20) == ["a.conv", "a.act"]


def test_names_that_differ_in_their_middle_alone_are_told_apart_by_position():
    names = [f"block_with_a_long_name_{layer}_and_a_long_tail" for layer in range(12)]
    assert labels.short_names(names, width=16)[3].startswith("3·")
