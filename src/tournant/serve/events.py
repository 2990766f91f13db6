"""Looking at an upstream's events without parsing them: where one ends, whether the stream is complete, and what it cost.

For most tokens this is one comparison of two bytes. An event is never cut: what has no end yet is held back, so that an error event can
follow at any moment.
"""

from __future__ import annotations

import re

_END = b"\n\n"
_END_CRLF = b"\r\n\r\n"
_DONE = re.compile(rb"(?:^|\n)data: ?\[DONE\]\s*$")
_ERROR = re.compile(rb'(?:^|\n)(?:event: ?error\r?\n|data: ?\{\s*"error"\s*:\s*[{"])')
_DATA = re.compile(rb"(?:^|\n)data:")
_PROMPT = re.compile(rb'"prompt_tokens"\s*:\s*(\d{1,12})\b')
_WRITTEN = re.compile(rb'"completion_tokens"\s*:\s*(\d{1,12})\b')


class EventTooLarge(ValueError):
    """One event is larger than allowed."""


class EventCutter:
    """Takes the bytes of a stream as they come, and gives back those that end with an event's end.

    Args:
        most: How many bytes one event may have.

    Attributes:
        events: How many events have passed.
        done: Whether the last was ``[DONE]``.
    """

    __slots__ = ("_before", "_held", "_held_size", "_last", "_most", "done", "events")

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: list[bytes] = []
        self._held_size = 0
        self._last = b""
        self._before = b""
        self.events = 0
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return whole events, or nothing.

        Raises:
            EventTooLarge: an event has become larger than allowed.
        """
        if self._held or not data.endswith(_END):
            data = self._cut(data)
            if not data:
                return data
        self.events += data.count(_END)
        self._before = self._last
        self._last = data
        if data.endswith((b"[DONE]\n\n", b"[DONE]\r\n\r\n")) and _DONE.search(data[-64:]):
            self.done = True
        return data

    def rest(self) -> bytes:
        """Return a last event that was not ended properly, where it is a ``[DONE]``; otherwise nothing."""
        held = b"".join(self._held)
        if _DONE.search(held):
            self.done = True
            return held.rstrip() + _END
        return b""

    @property
    def empty(self) -> bool:
        """Whether nothing is held back."""
        return not self._held

    def said_error(self) -> bool:
        """Whether the upstream's last word was an error event of its own."""
        return _ERROR.search(self._last[-4096:]) is not None

    def usage(self) -> tuple[int, int] | None:
        """Return the tokens read and written that the last events tell, or ``None``."""
        return usage_in(self._before[-4096:] + self._last[-4096:])

    def _cut(self, data: bytes) -> bytes:
        if b"\n" not in data:
            self._hold(data)
            return b""
        if self._held:
            data = b"".join([*self._held, data])
            self._held.clear()
            self._held_size = 0
        end = max(data.rfind(_END) + 2, data.rfind(_END_CRLF) + 4)
        if end < 4:  # neither was found; an event is longer than that
            self._hold(data)
            return b""
        if data[:end].endswith(_END_CRLF):
            self.events += data.count(_END_CRLF, 0, end)
        if end < len(data):
            self._hold(data[end:])
        return data[:end]

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size > self._most:
            raise EventTooLarge(f"the upstream sent an event of more than {self._most:,} bytes")


def usage_in(data: bytes) -> tuple[int, int] | None:
    """Return the tokens read and written that a body or an event tells, by its last mention, or ``None``."""
    prompt = _last(_PROMPT, data)
    if prompt is None:
        return None
    return prompt, _last(_WRITTEN, data) or 0


def is_error_event(data: bytes) -> bool:
    """Whether what comes first in a stream is an error."""
    return _ERROR.match(data) is not None


def has_data(data: bytes) -> bool:
    """Whether there is an event with data among these; comments, which only keep a connection alive, have none."""
    return _DATA.search(data) is not None


def _last(pattern: re.Pattern[bytes], data: bytes) -> int | None:
    found: int | None = None
    for match in pattern.finditer(data):
        found = int(match[1])
    return found
