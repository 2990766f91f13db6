"""Naming whatever blocks the event loop: a thread looks whether the server's timer still rings, and where the loop stands when it does not.

One blocking call delays every stream of every client, so it is worth a line in the log that says which line of code it is.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from types import FrameType

from tournant.serve.ticker import Ticker

_LIMIT = 0.25
_LOOK = 0.05
_log = logging.getLogger("tournant.serve")
#: Where the loop itself waits or runs: a thread that stands there is idle, or kept from running by other programs.
_LOOPS = ("asyncio/runners.py", "asyncio/base_events.py", "selectors.py", "uvloop/__init__.py")


class Watchdog:
    """Watches one event loop. Start it on the loop's own thread.

    Args:
        ticker: The timer that rings while the loop runs.
        limit: From how many seconds on the loop counts as blocked.

    Attributes:
        blocked: How many times it was.
        last: What blocked it last: ``file:line in function``; empty if nothing ever did.
    """

    def __init__(self, ticker: Ticker, limit: float = _LIMIT) -> None:
        self._ticker = ticker
        self._limit = limit
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.blocked = 0
        self.last = ""

    def start(self) -> None:
        """Begin to watch the loop that runs in this thread."""
        loop_thread = threading.get_ident()
        self._thread = threading.Thread(
            target=self._watch, args=(loop_thread,), name="tournant-watchdog", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, loop_thread: int) -> None:
        reported = 0.0
        while not self._stop.wait(_LOOK):
            rang_at = self._ticker.rang_at
            if time.monotonic() - rang_at < self._limit or rang_at == reported:
                continue
            frame = sys._current_frames().get(loop_thread)
            if frame is None or frame.f_code.co_filename.endswith(_LOOPS):
                continue
            reported = rang_at  # once for each time that it is blocked
            self._report(frame, time.monotonic() - rang_at)

    def _report(self, frame: FrameType, seconds: float) -> None:
        self.blocked += 1
        place = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        self.last = place
        _log.warning(
            "the event loop has been blocked for %.0f ms by %s; nothing else of the server runs meanwhile: "
            "do it in a thread (asyncio.to_thread)\n%s",
            seconds * 1_000,
            place,
            "".join(traceback.format_stack(frame, 6)).rstrip(),
        )
