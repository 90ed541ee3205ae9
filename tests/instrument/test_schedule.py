import pytest
from hypothesis import given
from hypothesis import strategies as st

from covshift.exceptions import InvalidArgumentError
from covshift.instrument.schedule import Schedule, as_schedule, at_steps, every, first, logarithmic


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
    with pytest.raises(InvalidArgumentError, match=r"at_steps\(\[0, 5\]\): .* of a list, at_steps\(\*steps\)"):
        at_steps([0, 5])


NUMBERS = st.integers(1, 30)
SCHEDULES = st.recursive(
    st.one_of(
        NUMBERS.map(every),
        NUMBERS.map(first),
        NUMBERS.map(logarithmic),
        st.lists(st.integers(0, 300), min_size=1, max_size=6).map(lambda steps: at_steps(*steps)),
        NUMBERS.map(lambda n: Schedule(lambda step: step % 7 == n, "a rule of the user's own")),
    ),
    lambda parts: st.builds(lambda one, other: one | other, parts, parts),
    max_leaves=6,
)


@given(SCHEDULES, st.integers(0, 300), st.integers(0, 300))
def test_steps_are_counted_as_if_each_were_asked_for(schedule, start, stop):
    steps = [step for step in range(start, stop) if schedule(step)]
    assert schedule.below(stop) == len(due(schedule, stop))
    assert schedule.between(start, stop) == ((len(steps), steps[0], steps[-1]) if steps else None)


def test_counting_far_ahead_asks_for_no_single_step():
    def asked(step):
        raise AssertionError(step)

    far = 10**15
    schedule = first(20) | every(10) | every(4) | at_steps(7, 33) | logarithmic(3)
    counted = Schedule(asked, "", schedule.due)
    # Of 20 consecutive steps 6 are multiples of 4 or 10; below 20 the other 14 are due, beyond it 33 and the powers.
    powers = {round(10 ** (k / 3)) for k in range(45)} - set(range(20))
    alone = {step for step in powers | {33} if step % 4 and step % 10}
    assert counted.below(far) == far // 20 * 6 + 14 + len(alone)
    assert counted.between(far, far + 21) == (7, far, far + 20)
    assert at_steps(5).between(0, far) == (1, 5, 5)
    assert at_steps(5).between(6, far) is None


def test_many_periods_are_counted_at_once():
    schedule = every(2)
    for n in range(3, 60, 2):
        schedule |= every(n)
    assert schedule.below(1000) == len(due(schedule, 1000))
    # What no prime below 60 divides: 1, and primes from 61 on with their products below 100,000.
    assert schedule.below(100_000) == 100_000 - sum(all(step % n for n in range(2, 60)) for step in range(100_000))
