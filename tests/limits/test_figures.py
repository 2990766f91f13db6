from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tournant.errors import TournantError
from tournant.limits import InvalidLimit, Rate, RateLimit, VirtualClock, forget


@pytest.mark.parametrize(
    ("text", "amount", "seconds"),
    [
        ("500/min", 500, 60),
        ("200_000/min", 200_000, 60),
        ("200,000 / minute", 200_000, 60),
        ("10/s", 10, 1),
        ("1.5/s", 1.5, 1),
        ("100/10s", 100, 10),
        ("2M/day", 2_000_000, 86_400),
        ("40k per hour", 40_000, 3_600),
    ],
)
def test_figures_are_read_as_people_write_them(text: str, amount: float, seconds: float) -> None:
    assert Rate.parse(text) == Rate(amount, seconds)


@given(st.integers(1, 10**9), st.sampled_from([1, 60, 3_600, 86_400, 10]))
def test_a_rate_reads_back_what_it_writes(amount: int, seconds: int) -> None:
    assert Rate.parse(str(Rate(amount, seconds))) == Rate(amount, seconds)


@pytest.mark.parametrize(
    "text", ["", "500", "500/", "/min", "-5/min", "0/min", "5/fortnight", "5/0s", "nan/min", "a/s"]
)
def test_what_is_no_figure_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidLimit, match="give a figure"):
        RateLimit(requests=text)


def test_a_bare_number_is_refused_with_the_unit_that_is_missing() -> None:
    with pytest.raises(InvalidLimit, match=r"requests=500: say how many in how long.*'500/min'"):
        RateLimit(requests=500)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        ({"key": ""}, "give a string that is not empty"),
        ({"key": 7}, "give a string that is not empty"),
        ({"requests": "5/s", "burst": 0}, "1 or more"),
        ({"requests": "5/s", "burst": True}, "1 or more"),
        ({"burst": 5}, "a burst belongs to a figure"),
        ({"is_throttle": 429}, "give a function"),
    ],
)
def test_options_that_cannot_be_are_refused_with_the_mend(options: dict, mend: str) -> None:
    with pytest.raises(InvalidLimit, match=mend) as caught:
        RateLimit(**options)
    assert isinstance(caught.value, TournantError)
    assert isinstance(caught.value, ValueError)


def test_the_same_key_with_other_figures_is_refused_and_never_shown() -> None:
    key = "sk-canary-0123456789abcdef"
    first = RateLimit(requests="500/min", key=key)
    try:
        assert RateLimit(requests="500/minute", key=key) == first
        with pytest.raises(InvalidLimit, match=r"500/min.*600/min.*choose another key") as caught:
            RateLimit(requests="600/min", key=key)
        shown = f"{caught.value} {first!r} {first.snapshot()!r} {first.snapshot()}"
        assert "canary" not in shown
    finally:
        forget(key)
    RateLimit(requests="600/min", key=key)
    forget(key)


def test_all_who_name_a_key_share_one_state_and_others_do_not() -> None:
    clock = VirtualClock()
    ours = [RateLimit(requests="1/s", burst=1, key="shared-state", clock=clock) for _ in range(2)]
    try:
        assert ours[0].try_reserve() is not None
        assert ours[1].try_reserve() is None
        apart = [RateLimit(requests="1/s", burst=1, clock=clock) for _ in range(2)]
        assert all(limit.try_reserve() is not None for limit in apart)
    finally:
        forget("shared-state")


def test_a_limit_can_be_pickled_and_joins_its_key_again() -> None:
    limit = RateLimit(requests="1/min", tokens="10/min", burst=1, key="pickled-limit")
    try:
        again = pickle.loads(pickle.dumps(limit))
        assert again == limit
        assert limit.try_reserve() is not None
        assert again.try_reserve() is None
    finally:
        forget("pickled-limit")


@pytest.mark.parametrize("tokens", [-1, float("nan"), float("inf"), "5", True])
def test_a_cost_that_is_no_number_is_refused(tokens: object) -> None:
    with pytest.raises(InvalidLimit, match="a number of tokens"):
        RateLimit().reserve(tokens)  # type: ignore[arg-type]
