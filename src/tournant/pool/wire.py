"""Messages between the parent and a worker process: pickles on a pair of pipes, large data never copied through them.

A message is a header (number of buffers, length of each), the buffers, and a pickle stream. Buffers (arrays, anything that
supports pickle protocol 5) travel out of band. Large ``bytes`` are handed to the pipe as they are and read into place by the
unpickler. Light on purpose: worker processes import it before their first item.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Sequence
from typing import Any

_HEAD = struct.Struct("<IIQ")
_LENGTH = struct.Struct("<Q")
#: Pieces of one ``writev``; POSIX guarantees no more than 16, Linux and macOS take 1024.
_PIECES = 512
#: A buffer below this goes into the pickle: a separate piece would cost more than the copy.
_IN_BAND = 16 * 1024
_READ_AHEAD = 256 * 1024

#: How the pickle stream was made.
PLAIN, BY_VALUE = 0, 1

Pieces = list[Any]


class _Collector:
    """A file that keeps what is written: the pickler hands large bytes over without copying them."""

    __slots__ = ("pieces",)

    def __init__(self) -> None:
        self.pieces: Pieces = []

    def write(self, data: Any) -> int:
        self.pieces.append(data)
        return len(data)


def dump(value: Any, *, in_worker: bool = False) -> Pieces:
    """Pickle `value` into the pieces of one message.

    Plain pickle goes first because it is fastest. Where it fails, or where the stream names ``__main__`` (which no worker
    imports), cloudpickle sends the functions and classes concerned by value.

    Args:
        value: what to send.
        in_worker: in a worker ``__main__`` is the worker itself; what plain pickle accepts is right there.

    Raises:
        Exception: whatever the pickler raised when even cloudpickle could not do it.
    """
    buffers: list[pickle.PickleBuffer] = []

    def out_of_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _IN_BAND:
            return True
        buffers.append(buffer)
        return False

    collector = _Collector()
    try:
        pickle.Pickler(collector, 5, buffer_callback=out_of_band).dump(value)
        by_value = not in_worker and any(
            len(piece) < 2 * 65536 and b"__main__" in bytes(piece) for piece in collector.pieces
        )
    except Exception:
        by_value = True
    if by_value:
        import cloudpickle

        buffers.clear()
        collector = _Collector()
        cloudpickle.Pickler(collector, 5, buffer_callback=out_of_band).dump(value)
    raws = [buffer.raw() for buffer in buffers]
    size = sum(len(piece) for piece in collector.pieces)
    head = _HEAD.pack(len(raws), BY_VALUE if by_value else PLAIN, size)
    head += b"".join(_LENGTH.pack(raw.nbytes) for raw in raws)
    return [head, *raws, *collector.pieces]


def dump_in_band(value: Any, *, in_worker: bool = False) -> Pieces:
    """Pickle `value` into pieces that ``pickle.loads`` takes when they are joined; `in_worker` as for `dump`."""
    try:
        data = pickle.dumps(value, 5)
        if in_worker or b"__main__" not in data:
            return [data]
    except Exception:
        pass
    import cloudpickle

    return [cloudpickle.dumps(value, 5)]


def write(fd: int, pieces: Sequence[Any]) -> None:
    """Write all `pieces` to `fd`, blocking.

    Raises:
        OSError: the other end is gone (``BrokenPipeError``), or ``EBADF``.
    """
    if len(pieces) > 3 and sum(len(p) for p in pieces) < 65536:
        pieces = [b"".join(pieces)]
    views = [memoryview(piece).cast("B") if len(piece) else memoryview(b"") for piece in pieces]
    start = 0
    while start < len(views):
        sent = os.writev(fd, views[start : start + _PIECES])
        while start < len(views) and sent >= len(views[start]):
            sent -= len(views[start])
            start += 1
        if sent:
            views[start] = views[start][sent:]


class Reader:
    """Reads messages from a pipe."""

    def __init__(self, fd: int) -> None:
        self._file = io.BufferedReader(io.FileIO(fd, closefd=False), _READ_AHEAD)

    def read(self) -> Any:
        """Return the next message, blocking.

        Raises:
            EOFError: the other end is gone, between messages or within one.
            Exception: the message could not be unpickled; the stream stands at the next message.
        """
        head = self._exactly(_HEAD.size)
        count, _how, size = _HEAD.unpack(head)
        lengths = [_LENGTH.unpack(self._exactly(_LENGTH.size))[0] for _ in range(count)]
        buffers = []
        for length in lengths:
            buffer = bytearray(length)
            view = memoryview(buffer)
            while len(view):
                got = self._file.readinto(view)
                if not got:
                    raise EOFError
                view = view[got:]
            buffers.append(buffer)
        source = _Limited(self._file, size)
        try:
            return pickle.Unpickler(source, buffers=buffers).load()
        finally:
            source.skip()

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if data is None or len(data) < size:
            raise EOFError
        return data


class _Limited:
    """The next `size` bytes of a file, for an unpickler that may fail midway; `skip` moves on to what follows."""

    __slots__ = ("_file", "_left")

    def __init__(self, file: io.BufferedReader[Any], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError
        self._left -= size
        return data

    def readinto(self, target: Any) -> int:
        view = memoryview(target)[: self._left]
        wanted = len(view)
        while len(view):
            got = self._file.readinto(view)
            if not got:
                raise EOFError
            view = view[got:]
        self._left -= wanted
        return wanted

    def peek(self, size: int = 0) -> bytes:
        return self._file.peek(size)[: self._left] if self._left else b""

    def readline(self) -> bytes:
        line = self._file.readline(self._left)
        self._left -= len(line)
        return line

    def skip(self) -> None:
        while self._left:
            data = self._file.read(min(self._left, 1 << 20))
            if not data:
                raise EOFError
            self._left -= len(data)
