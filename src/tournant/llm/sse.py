"""Parsing of server-sent events, the format in which providers stream their answers.

Bytes in, events out, with no input or output of its own. Source: the HTML standard, section "Server-sent events", of which
providers use the fields ``data`` and ``event``; ``id`` and ``retry``, which serve reconnecting, are passed over.
"""

from __future__ import annotations

from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"
LARGEST = 32 * 2**20
"""How many bytes one event may have before it is refused: far above any answer's piece, images included."""


class Event(NamedTuple):
    """One event.

    Attributes:
        name: What the ``event`` field said; empty without one.
        data: The ``data`` fields' values, one a line.
    """

    name: bytes
    data: bytes


class EventTooLarge(ValueError):
    """One event grew larger than is sane: what is read is no stream of events, or a broken one."""


class EventParser:
    """Takes the bytes of a stream as they come, cut anywhere, and gives the events that are complete.

    Lines may end in LF, CR LF or CR. Its time is linear in the bytes, however they are cut.

    Args:
        largest: How many bytes one event may have. Default 32 MiB.
    """

    __slots__ = ("_after_cr", "_begun", "_data", "_largest", "_name", "_pieces", "_size")

    def __init__(self, largest: int = LARGEST) -> None:
        self._largest = largest
        self._pieces: list[bytes] = []  # of a line whose end has not come yet
        self._data: list[bytes] = []  # of an event whose end has not come yet
        self._size = 0
        self._name = b""
        self._after_cr = False
        self._begun = False

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes; return the events that they complete.

        Raises:
            EventTooLarge: when an event is larger than allowed. The parser is of no use after that.
        """
        if self._after_cr and data:
            self._after_cr = False
            if data.startswith(b"\n"):
                data = data[1:]
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not end:
            if data:
                self._keep(data)
            return []
        whole = data[:end]
        if self._pieces:
            self._size -= sum(map(len, self._pieces))
            whole = b"".join([*self._pieces, whole])
            self._pieces.clear()
        # Only a CR that is the very last byte so far may have its LF to come.
        self._after_cr = end == len(data) and whole.endswith(b"\r")
        if not self._begun:
            self._begun = True
            whole = whole.removeprefix(_BOM)
        events: list[Event] = []
        for line in whole.splitlines():
            if line:
                self._read(line)
            elif self._data or self._name:
                self._end(events)
        if end < len(data):
            self._keep(data[end:])
        return events

    def rest(self) -> Event | None:
        """Return what would be the last event if the stream had been ended properly, or ``None``. The parser is then done with."""
        last = b"".join(self._pieces)
        self._pieces.clear()
        if last:
            self._read(last)
        events: list[Event] = []
        self._end(events)
        return events[0] if events else None

    def _keep(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._grow(len(piece))

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._largest:
            raise EventTooLarge(f"one event has more than {self._largest:,} bytes")

    def _read(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._grow(len(value))
            self._data.append(value.removeprefix(b" "))
        elif name == b"event":
            self._name = value.removeprefix(b" ")

    def _end(self, events: list[Event]) -> None:
        if self._data:
            data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            events.append(Event(self._name, data))
            self._data.clear()
        self._name = b""
        self._size = 0
