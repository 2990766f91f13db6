from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tournant.limits import VirtualClock
from tournant.limits.headers import Advertised, HeaderFacts, Window, read_headers, seconds_of
from tournant.limits.rate import RateLimit

WALL = 1_767_606_000.0  # 2026-01-05 09:40:00 UTC


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360),
        ("1s", 1),
        ("20ms", 0.02),
        ("1h2m3.5s", 3_723.5),
        ("2m59.56s", 179.56),
        ("1d", 86_400),
        ("0s", 0),
        ("7", 7),
        (" 1.5 ", 1.5),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("nan", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == (None if seconds is None else pytest.approx(seconds))


def test_openai_spelling() -> None:
    facts = read_headers(
        {
            "X-RateLimit-Limit-Requests": "500",
            "x-ratelimit-remaining-requests": "499",
            "x-ratelimit-reset-requests": "120ms",
            "x-ratelimit-limit-tokens": "200000",
            "x-ratelimit-remaining-tokens": "150000",
            "x-ratelimit-reset-tokens": "15s",
        },
        WALL,
    )
    assert facts == HeaderFacts(Advertised(500, 499, 0.12), Advertised(200_000, 150_000, 15))


def test_anthropic_spelling() -> None:
    facts = read_headers(
        [
            ("anthropic-ratelimit-requests-limit", "50"),
            ("anthropic-ratelimit-requests-remaining", "49"),
            ("anthropic-ratelimit-requests-reset", "2026-01-05T09:40:02Z"),
            ("anthropic-ratelimit-input-tokens-limit", "40000"),
            ("anthropic-ratelimit-input-tokens-remaining", "39000"),
            ("anthropic-ratelimit-input-tokens-reset", "2026-01-05T09:40:01Z"),
            ("anthropic-ratelimit-output-tokens-limit", "8000"),
            ("anthropic-ratelimit-output-tokens-remaining", "7000"),
            ("anthropic-ratelimit-output-tokens-reset", "2026-01-05T09:40:03+00:00"),
        ],
        WALL,
    )
    assert facts.requests == Advertised(50, 49, 2)
    assert facts.tokens == Advertised(48_000, 46_000, 3)


def test_one_side_of_tokens_used_up_is_all_used_up() -> None:
    facts = read_headers(
        {
            "anthropic-ratelimit-tokens-limit": "48000",
            "anthropic-ratelimit-tokens-remaining": "40000",
            "anthropic-ratelimit-output-tokens-limit": "8000",
            "anthropic-ratelimit-output-tokens-remaining": "0",
        },
        WALL,
    )
    assert facts.tokens == Advertised(48_000, 0, None)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Mon, 05 Jan 2026 09:40:10 GMT"}, 10),
        ({"retry-after": "Mon, 05 Jan 2026 09:00:00 GMT"}, 0),
        ({"retry-after": "2", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "99999999"}, 86_400),
        ({"retry-after": "when it suits you"}, None),
        ({"retry-after": "-1"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert read_headers(headers, WALL).retry_after == seconds


def test_dates_are_measured_by_the_providers_clock() -> None:
    headers = {
        "date": "Mon, 05 Jan 2026 09:00:00 GMT",
        "retry-after": "Mon, 05 Jan 2026 09:00:05 GMT",
    }
    assert read_headers(headers, WALL).retry_after == 5


NAMES = st.sampled_from(
    [
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-requests",
        "anthropic-ratelimit-requests-limit",
        "anthropic-ratelimit-tokens-reset",
        "anthropic-ratelimit-output-tokens-remaining",
        "retry-after",
        "retry-after-ms",
        "date",
    ]
)


@given(
    st.dictionaries(
        NAMES, st.text(max_size=12) | st.sampled_from(["0", "1e999", "inf", "9" * 400, "5", "1s"])
    )
)
def test_no_header_whatever_makes_reading_fail(headers: dict[str, str]) -> None:
    facts = read_headers(headers, WALL)
    assert facts.retry_after is None or 0 <= facts.retry_after <= 86_400
    limit = RateLimit(clock=VirtualClock())
    limit.observe(headers)
    assert str(limit.snapshot())


def test_a_daily_limit_is_told_from_how_fast_it_fills_and_a_reset_at_the_minute_is_not_misread() -> (
    None
):
    daily = Window()
    daily.learn(Advertised(14_400, 14_399, 6))
    assert daily.seconds == 60
    daily.learn(Advertised(14_400, 14_370, 179.56))
    assert daily.seconds == 86_400
    fixed = Window()
    for used in range(1, 50):
        fixed.learn(Advertised(60, 60 - used, 60 - 0.9 * used))
        assert fixed.seconds == 60
    known = Window(60, known=True)
    for left in (99, 98, 97):
        known.learn(Advertised(100, left, 864 * (100 - left)))
    assert known.seconds == 60
