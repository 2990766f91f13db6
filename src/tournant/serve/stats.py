"""What the server does right now: ``/v1/stats`` once, ``/v1/stats/stream`` every second, ``/metrics`` for Prometheus."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import msgspec

from tournant.serve.bodies import ClientLeft, Receive, Scope, Send, off_the_loop
from tournant.serve.errors import HTTPError
from tournant.serve.metrics import render
from tournant.serve.presence import Presence
from tournant.serve.respond import respond, respond_json
from tournant.serve.sse import EventResponse
from tournant.serve.state import State

_EVERY = 1.0
_MOST_WATCHERS = 64
_PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"


class Stats:
    """The endpoints that show how things stand.

    Args:
        state: The server.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._cores = _Cores()
        self._watchers = 0
        self._last: tuple[float, int, int, int] | None = None
        self._rates = (0.0, 0.0, 0.0)

    async def once(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``GET /v1/stats``."""
        self._state.caller(scope)
        await respond_json(send, self.snapshot())

    async def stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``GET /v1/stats/stream``: an event a second, until the client leaves."""
        state = self._state
        state.caller(scope)
        if state.admission.closed is not None:
            raise state.admission.closed
        if self._watchers >= _MOST_WATCHERS:
            raise HTTPError(
                503,
                f"{_MOST_WATCHERS} others are watching already: try again later",
                headers={"retry-after": "10"},
            )
        response = EventResponse(send)
        self._watchers += 1
        try:
            async with Presence(receive, state.running, scope):
                while True:
                    data = msgspec.json.encode(self.snapshot())
                    await response.write(b"data: " + data + b"\n\n")
                    await asyncio.sleep(_EVERY)
        except ClientLeft:
            return
        except HTTPError:
            await response.end()
        finally:
            self._watchers -= 1

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``GET /metrics``."""
        state = self._state
        state.caller(scope)
        text = await off_the_loop(render, state.figures, self._gauges(), state.admission.callers())
        await respond(send, 200, text, _PROMETHEUS)

    def snapshot(self) -> dict[str, Any]:
        """Return how things stand, as ``/v1/stats`` shows it. Rates are per second, times in seconds, shares from 0 to 1."""
        state = self._state
        figures, admission = state.figures, state.admission
        self._measure()
        median, worst = state.ticker.lag_percentiles()
        oldest = admission.queue.oldest()
        now = time.monotonic()
        return {
            "uptime": round(time.time() - state.started_at, 1),
            "ready": state.ready and admission.closed is None,
            "serves": {
                "llm": state.answers,
                "index": state.settings.index is not None,
                "embedder": None if state.embeddings is None else state.embeddings.model,
            },
            "connections": state.connections,
            "answers": {
                "running": admission.running,
                "limit": admission.most,
                "ended": dict(figures.answers),
            },
            "queue": {
                "waiting": len(admission.queue),
                "tokens": round(admission.queue.tokens),
                "limit_tokens": state.settings.max_queued_tokens,
                "oldest": 0.0 if oldest is None else round(now - oldest, 3),
            },
            "embedding": None if state.embeddings is None else dict(state.embeddings.depth()),
            "documents": None if state.documents is None else dict(state.documents.depth()),
            "rates": {
                "events": round(self._rates[0], 1),
                "bytes": round(self._rates[1]),
                "requests": round(self._rates[2], 1),
            },
            "totals": {
                "requests": sum(figures.requests.values()),
                "events": figures.events,
                "tokens_read": figures.tokens_read,
                "tokens_written": figures.tokens_written,
                "slow_readers": figures.slow_readers,
                "slow_requests": figures.slow_requests,
                "refused_connections": figures.refused_connections,
                "refused": admission.refused,
                "faults": figures.faults,
            },
            "loop": {
                "lag_p50": round(median, 4),
                "lag_p99": round(worst, 4),
                "late": state.ticker.loaded,
                "blocked": state.watchdog.blocked,
            },
            "cores": self._cores.shares,
            "memory": _memory(),
        }

    def _measure(self) -> None:
        """Refresh the rates, at most twice a second however many watch."""
        figures = self._state.figures
        now = time.monotonic()
        fresh = (now, figures.events, figures.sent_bytes, sum(figures.requests.values()))
        if self._last is None:
            self._last = fresh
            self._cores.look()
            return
        seconds = now - self._last[0]
        if seconds < 0.5:
            return
        self._rates = (
            (fresh[1] - self._last[1]) / seconds,
            (fresh[2] - self._last[2]) / seconds,
            (fresh[3] - self._last[3]) / seconds,
        )
        self._last = fresh
        self._cores.look()

    def _gauges(self) -> dict[str, float]:
        state = self._state
        admission = state.admission
        median, worst = state.ticker.lag_percentiles()
        gauges = {
            "connections": float(state.connections),
            "answers_running": float(admission.running),
            "queue_waiting": float(len(admission.queue)),
            "queue_tokens": float(admission.queue.tokens),
            "refused_for_room": float(admission.refused),
            "loop_lag_p50_seconds": median,
            "loop_lag_p99_seconds": worst,
            "loop_blocked": float(state.watchdog.blocked),
            "ready": float(state.ready and admission.closed is None),
        }
        if state.upstream is not None:
            gauges["upstream_connections"] = float(state.upstream.connections)
        if state.embeddings is not None:
            gauges.update({f"embedding_{k}": float(v) for k, v in state.embeddings.depth().items()})
        if state.documents is not None:
            gauges.update({f"documents_{k}": float(v) for k, v in state.documents.depth().items()})
        return gauges


class _Cores:
    """How busy each core was between two looks; empty where the system does not say."""

    def __init__(self) -> None:
        self._last: list[tuple[int, int]] = []
        self.shares: list[float] = []

    def look(self) -> None:
        """Look again."""
        now = _core_times()
        if len(now) == len(self._last):
            self.shares = [
                round((busy - busy_then) / max(1, total - total_then), 3)
                for (busy, total), (busy_then, total_then) in zip(now, self._last, strict=True)
            ]
        self._last = now


def _core_times() -> list[tuple[int, int]]:
    try:
        with open("/proc/stat", encoding="ascii") as file:
            lines = file.read(64 * 1024).splitlines()
    except OSError:
        return []
    found = []
    for line in lines[1:]:
        if not line.startswith("cpu"):
            break
        figures = [int(word) for word in line.split()[1:9]]
        total = sum(figures)
        found.append((total - figures[3] - figures[4], total))
    return found


def _memory() -> int | None:
    """Return the bytes of memory that the process has, or ``None`` where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
