"""The provider's limits: never more than it says, and what it tells its callers is true."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tournant.limits.headers import read_headers
from tournant.llm.mock import MockSettings
from tournant.llm.mock.limits import Limits, duration


def limits(now: float = 0.0, **given: object) -> Limits:
    return Limits(MockSettings(**given), now)


def said(headers: bytes) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in headers.decode().split("\r\n") if line)


ARRIVALS = st.lists(st.tuples(st.floats(0, 2), st.integers(1, 400)), min_size=1, max_size=80)


@given(ARRIVALS, st.floats(0.1, 70))
@settings(max_examples=150, deadline=None)
def test_no_window_sees_more_than_the_burst_and_what_flows_in(arrivals, burst):
    provider = limits(rpm=120, tpm=6_000, burst=burst)
    requests, tokens = max(1.0, 2 * burst), max(1.0, 100 * burst)
    now, admitted = 0.0, []
    for gap, cost in arrivals:
        now += gap
        if provider.admit(cost, now) is None:
            admitted.append((now, cost))
    for first in range(len(admitted)):
        count = spent = 0.0
        for when, cost in admitted[first:]:
            seconds = when - admitted[first][0]
            # What comes before a request that is larger than the bucket is bounded, the excess of that one is not.
            assert spent + min(cost, tokens) <= tokens + 100 * seconds + 1e-6
            count += 1
            spent += cost
            assert count <= requests + 2 * seconds + 1e-6


@given(ARRIVALS)
@settings(max_examples=100, deadline=None)
def test_whoever_comes_again_after_retry_after_is_let_in(arrivals):
    provider = limits(rpm=60, tpm=6_000)
    now = 0.0
    for gap, cost in arrivals:
        now += gap
        refusal = provider.admit(cost, now)
        if refusal is not None:
            told = read_headers(said(provider.headers(refusal)), 0.0).retry_after
            assert told is not None
            assert refusal.wait <= told < refusal.wait + 0.002
            now += told
            assert provider.admit(cost, now) is None


def test_a_refusal_costs_nothing_and_names_the_limit():
    provider = limits(rpm=60, tpm=60_000)
    assert provider.admit(10, 0.0) is None
    for _ in range(5):
        refusal = provider.admit(10, 0.5)
        assert refusal is not None
        assert (refusal.kind, refusal.limit, refusal.wait) == ("requests", 60, pytest.approx(0.5))
    assert provider.admit(10, 1.0) is None
    heavy = limits(rpm=6_000, tpm=600)
    assert heavy.admit(8, 0.0) is None
    refusal = heavy.admit(8, 0.0)
    assert refusal is not None
    assert (refusal.kind, refusal.asked, refusal.used) == ("tokens", 8, 8)
    assert refusal.wait == pytest.approx(0.6)


def test_what_is_larger_than_the_burst_passes_when_it_is_full_and_leaves_a_debt():
    provider = limits(tpm=6_000)
    assert provider.admit(300, 0.0) is None
    refusal = provider.admit(1, 0.0)
    assert refusal is not None
    assert refusal.wait == pytest.approx(2.01)


def test_what_is_larger_than_a_minutes_limit_never_passes():
    provider = limits(tpm=600)
    refusal = provider.admit(601, 0.0)
    assert refusal is not None
    assert refusal.wait == math.inf
    assert b"retry-after" not in provider.headers(refusal)
    assert provider.admit(600, 0.0) is None


def test_limits_change_while_it_runs():
    provider = limits(rpm=600)  # 10 at once
    for _ in range(10):
        assert provider.admit(1, 0.0) is None
    provider.change(MockSettings(rpm=60), 0.0)
    refusal = provider.admit(1, 0.0)
    assert refusal is not None
    assert refusal.wait == pytest.approx(1.0)
    provider.change(MockSettings(rpm=60), 100.0)
    assert provider.admit(1, 100.0) is None
    assert provider.admit(1, 100.0) is not None, "a change saves nothing up beyond the burst"
    provider.change(MockSettings(), 100.0)
    assert provider.burst == {"requests": None, "tokens": None}
    assert all(provider.admit(10**6, 100.0) is None for _ in range(1_000))


def test_a_smaller_limit_leaves_no_more_than_its_own_burst():
    provider = limits(rpm=6_000)
    provider.change(MockSettings(rpm=600), 0.0)
    assert [provider.admit(1, 0.0) is None for _ in range(11)] == [True] * 10 + [False]


def test_an_estimate_is_put_right():
    provider = limits(tpm=6_000)  # 100 at once
    assert provider.admit(100, 0.0) is None
    provider.settle(100, 20, 0.0)
    assert provider.admit(80, 0.0) is None
    assert provider.admit(1, 0.0) is not None
    provider.settle(0, 50, 0.0)
    refusal = provider.admit(1, 0.0)
    assert refusal is not None
    assert refusal.wait == pytest.approx(0.51)


def test_openai_headers_say_what_is_left_and_when_it_is_whole():
    provider = limits(rpm=600, tpm=60_000)
    provider.admit(250, 0.0)
    told = said(provider.headers())
    assert told == {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "100ms",
        "x-ratelimit-limit-tokens": "60000",
        "x-ratelimit-remaining-tokens": "750",
        "x-ratelimit-reset-tokens": "250ms",
    }
    for _ in range(9):
        provider.admit(1, 0.0)
    told = said(provider.headers(provider.admit(1, 0.0)))
    assert (told["retry-after"], told["retry-after-ms"]) == ("1", "100")
    assert told["x-ratelimit-remaining-requests"] == "0"


def test_anthropic_headers():
    provider = limits(rpm=60, tpm=6_000, headers="anthropic")
    provider.admit(50, 0.0)
    told = said(provider.headers(provider.admit(1, 0.0)))
    assert told["anthropic-ratelimit-requests-limit"] == "60"
    assert told["anthropic-ratelimit-requests-remaining"] == "0"
    assert told["anthropic-ratelimit-tokens-remaining"] == "50"
    assert told["retry-after"] == "1"
    assert "retry-after-ms" not in told
    whole = datetime.fromisoformat(told["anthropic-ratelimit-tokens-reset"])
    assert abs((whole - datetime.now(UTC)).total_seconds()) < 60
    assert not any("x-ratelimit" in name for name in told)


def test_no_headers():
    provider = limits(rpm=60, headers="none")
    provider.admit(1, 0.0)
    assert provider.headers(provider.admit(1, 0.0)) == b""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.02, "20ms"), (0.0201, "21ms"), (1, "1s"), (1.5, "1.5s"), (59.999, "59.999s"), (360, "6m0s"),
     (7_230, "2h0m30s")],
)  # fmt: skip
def test_durations_are_written_as_openai_does(seconds, text):
    assert duration(seconds) == text
