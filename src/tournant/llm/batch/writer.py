"""Appends to the file of results, from a thread of its own: what comes while it writes goes together with the next write.

A line is written as soon as the thread comes to it, and whoever gave it waits for that: so a process that is killed loses no
more than what it was working on, and one that is stopped loses nothing. That the machine itself crashes costs at most the last second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from queue import Empty, SimpleQueue
from time import monotonic
from typing import NamedTuple

from tournant.llm.batch.errors import ResultsRefused
from tournant.llm.batch.results import ResultsFile

_SYNC_SECONDS = 1.0

_Waiting = tuple[bytes, asyncio.Future[None]]


class Written(NamedTuple):
    """A line on its way into the file.

    Attributes:
        future: Done when the line has been written, or can't be.
    """

    future: asyncio.Future[None]


class ResultsWriter:
    """Writes lines to a file of results.

    Args:
        file: The file.

    Attributes:
        error: Why it can't be written any more, or ``None``.
    """

    def __init__(self, file: ResultsFile) -> None:
        self.error: ResultsRefused | None = None
        self._file = file
        self._queue: SimpleQueue[list[_Waiting] | None] = SimpleQueue()
        self._gathered: list[_Waiting] = []
        self._unsynced = False
        self._synced_at = monotonic()
        self._thread = threading.Thread(target=self._work, name="tournant-results", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> Written:
        """Have a line appended; return what to hand to `wait` for that. From here on the line is not lost if nobody does."""
        loop = asyncio.get_running_loop()
        if not self._gathered:
            # Waking the thread costs more than all else here: once for what comes in one turn of the loop.
            loop.call_soon(self._hand_over)
        written = loop.create_future()
        self._gathered.append((line, written))
        return Written(written)

    def _hand_over(self) -> None:
        gathered, self._gathered = self._gathered, []
        self._queue.put(gathered)

    async def wait(self, written: Written) -> None:
        """Wait until a line has been handed to the system.

        Raises:
            ResultsRefused: when the file can't be written (any more).
        """
        await written.future
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        """Write what is still to be written, make it last, and end. Blocks until then; look at `error` afterwards."""
        self._hand_over()
        self._queue.put(None)
        self._thread.join()

    # On the thread

    def _work(self) -> None:
        ending = False
        while not ending:
            group, ending = self._next()
            self._write([line for line, _ in group])
            _tell([future for _, future in group])
            if ending or (self._unsynced and monotonic() - self._synced_at >= _SYNC_SECONDS):
                self._sync()

    def _next(self) -> tuple[list[_Waiting], bool]:
        """Wait for lines, and return all that are there (none, when it is time to make them last), and whether it is the end."""
        wait = None
        if self._unsynced:
            wait = max(0.0, self._synced_at + _SYNC_SECONDS - monotonic())
        group: list[_Waiting] = []
        with contextlib.suppress(Empty):
            gathered = self._queue.get(timeout=wait)
            while gathered is not None:
                group += gathered
                gathered = self._queue.get_nowait()
            return group, True
        return group, False

    def _write(self, lines: list[bytes]) -> None:
        if not lines or self.error is not None:
            return
        descriptor = self._file.descriptor
        data = memoryview(b"".join(lines))
        written = 0
        try:
            while written < len(data):
                written += os.write(descriptor, data[written:])
                self._unsynced = True
        except OSError as error:
            self.error = self._file.unwritable(error)
            # Whole lines stay. Where even this fails, the next run cuts the rest off.
            half = written - (bytes(data[:written]).rfind(b"\n") + 1)
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - half)

    def _sync(self) -> None:
        try:
            os.fsync(self._file.descriptor)
        except OSError as error:
            self.error = self.error or self._file.unwritable(error)
        self.error = self.error or self._file.missing()
        self._unsynced = False
        self._synced_at = monotonic()


def _tell(futures: list[asyncio.Future[None]]) -> None:
    if not futures:
        return

    def tell() -> None:
        for future in futures:
            if not future.done():
                future.set_result(None)

    # The loop is closed when nobody waits any more.
    with contextlib.suppress(RuntimeError):
        futures[0].get_loop().call_soon_threadsafe(tell)
