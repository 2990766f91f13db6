from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tournant.limits.pace import NEAR, PAST, Pace


def test_a_step_down_is_to_seven_tenths_and_recovery_is_additive_up_to_the_goal() -> None:
    pace = Pace(10.0, 10.0)
    pace.step_down()
    assert pace.rate == pytest.approx(7)
    pace.advance(1.0, pressed=False)
    first = pace.rate - 7
    pace.advance(1.0, pressed=False)
    assert pace.rate - 7 == pytest.approx(2 * first)
    pace.advance(1_000.0, pressed=False)
    assert pace.rate == 10.0
    assert pace.why == "configured"


def test_recovery_slows_down_near_where_the_provider_refused() -> None:
    pace = Pace(100.0, 100.0)
    pace.step_down(accepted=50.0)
    assert pace.rate <= 50
    pace.advance(3.0, pressed=True)
    assert NEAR * 50 <= pace.rate < 50
    pace.advance(10.0, pressed=True)
    assert pace.rate < PAST * 50
    pace.advance(10.0, pressed=False)
    assert pace.rate < PAST * 50, "nobody asked, so nothing was learned"
    pace.advance(600.0, pressed=True)
    assert pace.rate == 100


def test_a_new_goal_takes_a_rate_along_that_stood_at_the_old_one() -> None:
    pace = Pace(10.0, 10.0)
    pace.aim(20.0, "advertised")
    assert (pace.rate, pace.why) == (20.0, "advertised")
    pace.step_down()
    pace.aim(30.0, "advertised")
    assert pace.rate == pytest.approx(14)
    pace.aim(5.0, "advertised")
    assert pace.rate == 5.0


def test_a_rate_without_a_goal_grows_only_while_someone_waits() -> None:
    pace = Pace(10.0, why="discovered")
    pace.step_down()
    pace.advance(1_000.0, pressed=False)
    assert pace.rate == pytest.approx(NEAR * 10)
    pace.advance(1_000.0, pressed=True)
    assert pace.rate > 20


STEPS = st.lists(
    st.tuples(st.just("down"), st.none() | st.floats(0.01, 1e4))
    | st.tuples(st.just("up"), st.floats(0, 1e4))
    | st.tuples(st.just("aim"), st.floats(0.1, 1e4)),
    max_size=30,
)


@given(st.floats(0.1, 1e4), st.booleans(), STEPS)
def test_the_rate_is_always_above_nothing_and_never_above_the_goal(
    rate: float, known: bool, steps: list
) -> None:
    pace = Pace(rate, rate if known else math.inf)
    for what, value in steps:
        before = pace.rate
        if what == "down":
            pace.step_down(value)
            assert pace.rate <= before
        elif what == "up":
            pace.advance(value, pressed=True)
            assert pace.rate >= before
        else:
            pace.aim(value, "advertised")
        assert 0 < pace.rate <= pace.goal
        assert pace.why
