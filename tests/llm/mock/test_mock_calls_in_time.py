"""How long answers take, in a time of the tests' own: no real second passes here."""

from __future__ import annotations

import heapq
import json
from typing import Any

import pytest

from tournant.llm.mock import MockSettings
from tournant.llm.mock.provider import Provider


class Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Time:
    """The part of an event loop that the provider uses, with a clock that jumps to what is next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Timer, Any, tuple[Any, ...]]] = []
        self._number = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, function: Any, *args: Any) -> Timer:
        timer = Timer()
        self._number += 1
        heapq.heappush(self._due, (when, self._number, timer, function, args))
        return timer

    def call_later(self, seconds: float, function: Any, *args: Any) -> Timer:
        return self.call_at(self.now + seconds, function, *args)

    def call_soon(self, function: Any, *args: Any) -> Timer:
        return self.call_at(self.now, function, *args)

    def run(self, until: float = float("inf")) -> None:
        while self._due and self._due[0][0] <= until:
            when, _, timer, function, args = heapq.heappop(self._due)
            if not timer.cancelled:
                self.now = max(self.now, when)
                function(*args)
        if until < float("inf"):
            self.now = until


class Exchange:
    """Takes what would go to a client, and notes when."""

    method, path, authorization = "POST", "/v1/chat/completions", b""

    def __init__(self, time: Time, **body: Any) -> None:
        self._time = time
        message = {"role": "user", "content": body.pop("text", "a question")}
        self.body = json.dumps({"model": "m", "messages": [message], **body}).encode()
        self.on_left = self.on_ready = None
        self.over, self.ready = False, True
        self.status = 0
        self.at = -1.0
        self.sent: list[tuple[float, int]] = []

    def reply(self, status: int, body: bytes, headers: bytes = b"", kind: bytes = b"") -> None:
        self.status, self.at, self.over = status, self._time.now, True

    def start(self, headers: bytes = b"", first: bytes = b"") -> None:
        self.status = 200

    def send(self, data: bytes) -> None:
        if data:
            self.sent.append((self._time.now, data.count(b'"content":"')))

    def finish(self, data: bytes = b"") -> None:
        self.send(data)
        self.at, self.over = self._time.now, True

    def leave(self) -> None:
        self.over = True
        self.on_left()


def provider(**given: Any) -> tuple[Time, Provider]:
    time = Time()
    return time, Provider(MockSettings(**given), None, time, lambda: None, lambda seconds: None)  # type: ignore[arg-type]


def test_an_answer_takes_its_latency():
    time, mock = provider(latency=0.25)
    call = Exchange(time)
    mock.handle(call)
    assert mock.stats.open == 1
    time.run()
    assert (call.status, call.at) == (200, 0.25)
    assert mock.stats.open == mock.working == 0


def test_without_latency_the_answer_comes_at_once():
    time, mock = provider()
    call = Exchange(time)
    mock.handle(call)
    assert call.status == 200


def test_an_answer_that_is_not_streamed_comes_with_its_last_token():
    time, mock = provider(latency=1.0, token_interval=0.1)
    call = Exchange(time, max_tokens=11)
    mock.handle(call)
    time.run()
    assert call.at == pytest.approx(2.0)


def test_tokens_of_a_stream_come_one_after_the_other():
    time, mock = provider(latency=1.0, token_interval=0.1)
    call = Exchange(time, max_tokens=5, stream=True)
    mock.handle(call)
    time.run()
    assert [when for when, _ in call.sent] == pytest.approx([1.0, 1.1, 1.2, 1.3, 1.4])
    assert [count for _, count in call.sent] == [1] * 5
    assert call.at == pytest.approx(1.4)


def test_a_loop_that_is_late_catches_up():
    time, mock = provider(token_interval=0.1)
    call = Exchange(time, max_tokens=10, stream=True)
    mock.handle(call)
    time.run(until=0.05)
    time.now = 0.55  # something held up the loop
    time.run()
    assert [count for _, count in call.sent] == [1, 5, 1, 1, 1, 1]
    assert call.at == pytest.approx(0.9)


def test_a_client_that_does_not_read_is_not_written_to():
    time, mock = provider(token_interval=0.1)
    call = Exchange(time, max_tokens=10, stream=True)
    mock.handle(call)
    call.ready = False
    time.run(until=60.0)
    assert len(call.sent) == 1
    call.ready = True
    call.on_ready()
    time.run()
    assert sum(count for _, count in call.sent) == 10
    assert call.over


def test_a_long_stream_at_once_is_written_in_parts():
    time, mock = provider()
    call = Exchange(time, max_tokens=2_000, stream=True)
    mock.handle(call)
    assert not call.over
    time.run()
    assert call.over
    assert sum(count for _, count in call.sent) == 2_000
    assert max(count for _, count in call.sent) <= 256


def throughput(calls_at_once: int, **given: Any) -> float:
    """Answers per second when so many callers each ask again at once."""
    time, mock = provider(latency=0.1, **given)
    answered, asked = 0, 0

    class Again(Exchange):
        def reply(self, *args: Any) -> None:
            nonlocal answered
            super().reply(*args)
            answered += 1
            if time.now < 20:
                put()

    def put() -> None:
        nonlocal asked
        asked += 1
        mock.handle(Again(time, text=str(asked)))

    for _ in range(calls_at_once):
        put()
    time.run(until=20.0)
    return answered / 20


def test_beyond_the_knee_throughput_stays_flat():
    assert throughput(5, knee=10) == pytest.approx(50, rel=0.05)
    assert throughput(10, knee=10) == pytest.approx(100, rel=0.05)
    assert throughput(20, knee=10) == pytest.approx(100, rel=0.05)
    assert throughput(100, knee=10) == pytest.approx(100, rel=0.1)
    assert throughput(100) == pytest.approx(1_000, rel=0.05)


def test_calls_that_hang_take_no_part_in_the_knee():
    time, mock = provider(latency=0.1, knee=1, hang_rate=1.0)
    for n in range(5):
        mock.handle(Exchange(time, text=str(n)))
    mock.change(mock.settings.changed({"hang_rate": 0.0}))
    call = Exchange(time, text="answered")
    mock.handle(call)
    time.run()
    assert call.at == pytest.approx(0.1)
    assert (mock.stats.hung, mock.stats.open, mock.stats.peak, mock.working) == (5, 5, 6, 0)


def test_a_client_that_leaves_is_counted_and_frees_its_place():
    time, mock = provider(latency=0.1, token_interval=0.1, knee=1)
    waiting, streaming = Exchange(time), Exchange(time, stream=True, max_tokens=50)
    mock.handle(waiting)
    waiting.leave()
    assert (mock.stats.left, mock.stats.left_streams, mock.working) == (1, 0, 0)
    mock.handle(streaming)
    time.run(until=0.35)
    streaming.leave()
    time.run()
    assert (mock.stats.left, mock.stats.left_streams, mock.working, mock.stats.open) == (2, 1, 0, 0)
    assert mock.stats.tokens_out == 3, "what was sent before it left counts"
    assert mock.stats.ok == 0
    assert mock.stats.bodies.as_dict()["answered"] == 0


def test_overload_is_said_at_once_and_other_errors_after_their_latency():
    time, mock = provider(latency=0.1, overload_rate=1.0)
    refused = Exchange(time)
    mock.handle(refused)
    assert refused.status == 503
    mock.change(MockSettings(latency=0.1, error_rate=1.0))
    failed = Exchange(time)
    mock.handle(failed)
    time.run()
    assert (failed.status, failed.at) == (500, 0.1)


def test_limits_follow_the_clock():
    time, mock = provider(rpm=60)
    statuses = []
    for _ in range(4):
        call = Exchange(time)
        mock.handle(call)
        statuses.append(call.status)
        time.now += 0.5
    assert statuses == [200, 429, 200, 429]


def test_the_fate_of_a_call_does_not_hang_on_what_was_refused_before():
    """A 429 comes by time; it must not shift what is drawn."""

    def fates(rpm: float | None) -> list[int]:
        time, mock = provider(error_rate=0.5, rpm=rpm, seed=3)
        seen = []
        for n in range(60):
            while True:
                call = Exchange(time, text=str(n % 20))
                mock.handle(call)
                time.now += 0.3
                if call.status != 429:
                    break
            seen.append(call.status)
        return seen

    free, limited = fates(None), fates(60)
    assert free == limited
    assert set(free) == {200, 500}
    assert free[:20] != free[20:40], "a second attempt is drawn anew"


def test_beyond_the_knee_tokens_come_more_slowly():
    time, mock = provider(latency=1.0, token_interval=0.1, knee=1)
    first, second = (Exchange(time, text=f"call {n}", stream=True, max_tokens=3) for n in range(2))
    mock.handle(first)
    mock.handle(second)
    time.run()
    assert [when for when, _ in first.sent] == pytest.approx([1.0, 1.1, 1.2])
    assert [when for when, _ in second.sent] == pytest.approx([2.0, 2.2, 2.4])


def test_calls_that_are_open_survive_a_reset_of_the_counters():
    time, mock = provider(latency=1.0)
    for n in range(3):
        mock.handle(Exchange(time, text=f"call {n}"))
    mock.stats.reset(time.now)
    assert (mock.stats.open, mock.stats.peak, mock.stats.requests) == (3, 3, 0)
    time.run()
    assert (mock.stats.open, mock.stats.peak, mock.stats.ok) == (0, 3, 3)
