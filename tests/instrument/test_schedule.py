import pytest

from covshift.exceptions import InvalidArgumentError
from covshift.instrument.schedule import as_schedule, at_steps, every, first, logarithmic


def due(schedule, stop):
    return [step for step in range(stop) if schedule(step)]


def test_every_counts_from_zero():
    assert due(every(3), 10) == [0, 3, 6, 9]


def test_a_union_is_due_when_either_part_is():
    assert due(first(3) | at_steps(7) | every(5), 11) == [0, 1, 2, 5, 7, 10]


def test_a_schedule_prints_as_the_expression_that_made_it():
    assert str(first(20) | every(2)) == "first(20) | every(2)"


def test_logarithmic_has_the_same_number_of_steps_in_every_decade_once_they_are_distinct():
    steps = due(logarithmic(4), 10_000)
    assert [sum(10**k <= step < 10 ** (k + 1) for step in steps) for k in (1, 2, 3)] == [4, 4, 4]
    assert steps[:2] == [0, 1]


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "10"])
def test_a_bad_number_is_named_with_the_argument_and_what_would_do(bad):
    with pytest.raises(InvalidArgumentError, match=r"every=.*expected a whole number from 1, or a schedule"):
        as_schedule(bad, name="every")


@pytest.mark.parametrize(("make", "bad"), [(every, 0), (first, True), (logarithmic, -2)])
def test_rules_refuse_what_is_no_positive_whole_number(make, bad):
    with pytest.raises(InvalidArgumentError, match="expected a whole number from 1"):
        make(bad)


def test_at_steps_needs_steps():
    with pytest.raises(InvalidArgumentError, match="at least one whole step number"):
        at_steps()
    with pytest.raises(InvalidArgumentError, match="none below 0"):
        at_steps(-3)
