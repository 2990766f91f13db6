"""The control loops against a modelled provider whose limit halves midway, in virtual time."""

from __future__ import annotations

import math

import pytest
from provider_model import Outcome, Provider, drive

from tournant.limits import Adaptive, RateLimit, VirtualClock

SECONDS = 60.0
REQUESTS = 50.0


def simulate(
    told: bool, advertises: bool, capacity: float, tokens: float = math.inf, seed: int = 1
) -> tuple[Outcome, Provider]:
    clock = VirtualClock()
    provider = Provider(
        clock,
        REQUESTS,
        tokens=tokens,
        capacity=capacity,
        changes=[(SECONDS / 2, 0.5)],
        advertises=advertises,
        seed=seed,
    )
    limit = RateLimit(
        requests=f"{REQUESTS * 60:.0f}/min" if told else None,
        tokens=f"{tokens * 60:.0f}/min" if told and tokens < math.inf else None,
        clock=clock,
    )
    sizes = (0.0, 0.0) if tokens == math.inf else (500.0, 3_500.0)
    adaptive = Adaptive(1, 128, clock=clock)
    return drive(clock, provider, limit, adaptive, SECONDS, workers=160, tokens=sizes), provider


@pytest.mark.parametrize("capacity", [0.5, 1.0, 10.0, 60.0])
def test_told_the_limits_it_gets_what_is_allowed_and_is_hardly_refused(capacity: float) -> None:
    outcome, _ = simulate(told=True, advertises=True, capacity=capacity)
    assert outcome.goodput >= 0.97
    assert outcome.refused < 0.01


def test_told_the_limits_by_a_provider_that_advertises_nothing() -> None:
    outcome, _ = simulate(told=True, advertises=False, capacity=1.0)
    assert outcome.goodput >= 0.97
    assert outcome.refused < 0.01


@pytest.mark.parametrize("advertises", [True, False])
@pytest.mark.parametrize("capacity", [0.5, 1.0, 10.0, 60.0])
def test_discovering_the_limits_it_gets_most_of_what_is_allowed(
    advertises: bool, capacity: float
) -> None:
    outcome, _ = simulate(told=False, advertises=advertises, capacity=capacity)
    assert outcome.goodput >= 0.85
    assert outcome.refused < 0.01


@pytest.mark.parametrize("capacity", [0.5, 1.0, 10.0])
@pytest.mark.parametrize("told", [True, False])
def test_where_tokens_are_what_is_short(told: bool, capacity: float) -> None:
    tokens = 80_000.0
    outcome, provider = simulate(told, advertises=told, capacity=capacity, tokens=tokens)
    allowed = tokens * (capacity + SECONDS * 0.75)
    assert provider.accepted_tokens / allowed >= (0.97 if told else 0.85)
    assert outcome.refused < 0.01


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (simulate(told=True, advertises=True, capacity=1.0)[0] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("advertises", [True, False])
def test_tiny_buckets_cost_something_but_never_the_concurrency(advertises: bool) -> None:
    # A fifth of a second's worth, and each refusal costs a whole second of waiting.
    for seed in (1, 2, 3):
        outcome, _ = simulate(told=True, advertises=advertises, capacity=0.2, seed=seed)
        assert outcome.goodput >= (0.94 if advertises else 0.75)
        assert outcome.refused < 0.01
        assert outcome.concurrency > 20


def test_slots_and_permits_that_are_both_short_are_not_exchanged_for_ever() -> None:
    # It hangs where two calls that hold one each give it back at once.
    for seed in (1, 2, 3):
        outcome, _ = simulate(True, advertises=False, capacity=0.5, tokens=80_000.0, seed=seed)
        assert outcome.refused < 0.01


def test_after_the_limit_has_risen_again_it_is_found_again() -> None:
    clock = VirtualClock()
    provider = Provider(
        clock, REQUESTS, changes=[(0.0, 0.3), (30.0, 1.0)], advertises=False, errors=0, hangs=0
    )
    limit = RateLimit(requests=f"{REQUESTS * 60:.0f}/min", clock=clock)
    outcome = drive(clock, provider, limit, Adaptive(1, 128, clock=clock), 90.0, workers=160)
    assert outcome.goodput >= 0.7
    assert outcome.refused < 0.01
