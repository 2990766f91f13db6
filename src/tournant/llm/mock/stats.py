"""What the provider has seen: counters, and which bodies were answered how often."""

from __future__ import annotations

from collections import Counter
from typing import Any

_MOST_BODIES = 1 << 20
_ONE_ANSWER = 1 << 32


class Bodies:
    """How often each request body was admitted and answered, in about 150 bytes a body.

    It remembers a bounded number of bodies; what comes after them is counted in `untracked` alone.
    """

    __slots__ = ("_counts", "_most", "untracked")

    def __init__(self, most: int = _MOST_BODIES) -> None:
        self._counts: dict[bytes, int] = {}  # admitted, and answered times 2**32
        self._most = most
        self.untracked = 0

    def admitted(self, digest: bytes) -> int:
        """Count an admission; return how many there were of this body before."""
        count = self._counts.get(digest, 0)
        if not count and len(self._counts) >= self._most:
            self.untracked += 1
            # Each its own draw, as if it were a further attempt at one body that is seen again and again.
            return self.untracked - 1
        self._counts[digest] = count + 1
        return count & (_ONE_ANSWER - 1)

    def answered(self, digest: bytes) -> None:
        """Count an answer that is complete."""
        if digest in self._counts:
            self._counts[digest] += _ONE_ANSWER

    def as_dict(self) -> dict[str, int]:
        """Return the counts as JSON has them."""
        answers = [count >> 32 for count in self._counts.values()]
        return {
            "distinct": len(answers),
            "answered": sum(1 for count in answers if count),
            "answered_again": sum(1 for count in answers if count > 1),
            "most_answers": max(answers, default=0),
            "untracked": self.untracked,
        }


class Stats:
    """The counters since the start or the last reset.

    Attributes:
        requests: Calls to ``/v1/...``, refused ones included.
        by_status: Replies by HTTP status; a reply counts when it begins.
        admitted: Calls that the limits let pass.
        ok: Answers that are complete: status 200, and for a stream its last event. An answer counts when it is sent.
        hung: Calls that were accepted and will never be answered.
        garbage: HTML pages with status 200.
        half: Halves of an answer with status 200.
        resets: Connections that were reset in the place of an answer.
        cut: Streams that the provider ended too early.
        stream_errors: Streams that ended with an error event.
        left: Calls whose client left before the answer was complete.
        left_streams: Those of them whose stream had begun.
        open: Calls that were admitted and wait for their answer now; also those that hang.
        peak: The most of them at once.
        tokens_in: Tokens of the prompts of all admitted calls.
        tokens_out: Tokens that were sent.
        connections: Connections that were accepted.
    """

    def __init__(self, now: float) -> None:
        self.since = now
        self.requests = self.admitted = self.ok = self.hung = self.garbage = self.half = 0
        self.resets = self.cut = self.stream_errors = self.left = self.left_streams = 0
        self.open = self.peak = self.tokens_in = self.tokens_out = self.connections = 0
        self.by_status: Counter[int] = Counter()
        self.bodies = Bodies()

    def reset(self, now: float) -> None:
        """Count anew. Calls that are open stay open, and count again when they are answered."""
        still_open = self.open
        self.__init__(now)  # type: ignore[misc]
        self.open = self.peak = still_open

    def as_dict(self, now: float) -> dict[str, Any]:
        """Return everything as JSON has it."""
        return {
            "requests": self.requests,
            "admitted": self.admitted,
            "ok": self.ok,
            "refused": self.by_status[429],
            "errors": self.by_status[500],
            "overloads": self.by_status[503],
            "by_status": {str(status): count for status, count in sorted(self.by_status.items())},
            "hung": self.hung,
            "garbage": self.garbage,
            "half": self.half,
            "resets": self.resets,
            "cut": self.cut,
            "stream_errors": self.stream_errors,
            "left": self.left,
            "left_streams": self.left_streams,
            "open": self.open,
            "peak": self.peak,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "bodies": self.bodies.as_dict(),
            "connections": self.connections,
            "seconds": round(now - self.since, 3),
        }
