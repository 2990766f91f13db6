"""When an index is compacted and its full-text structure brought up to date, and by whom.

The store never does either by itself. Bringing the full-text structure up to date costs about 20
microseconds per new row, plus a rewrite of the structure that grows with the table, so doing it often is
quadratic. It is due when the rows that aren't in it are at least half of those that are: then all rewrites together
cost about as much as the last one. Commits count too, since each leaves small files behind. The work runs on one
thread beside the writer; searches are right at any moment, only slower on rows that wait.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

FEWEST_ROWS = 32_768
MOST_COMMITS = 256
_REST = 4.0  # commits alone make it due only after this many times the last duration


@dataclass(frozen=True, slots=True)
class UpkeepPolicy:
    """When upkeep is due.

    Attributes:
        rows: never for fewer new rows than this (unless there were many commits).
        share: when the new rows are this share of the rows that are taken care of.
        commits: after so many commits, however small.
    """

    rows: int = FEWEST_ROWS
    share: float = 0.5
    commits: int = MOST_COMMITS


class Upkeep:
    """Counts what was written, and runs the work on a thread of its own when it is due.

    Args:
        work: brings everything up to date. It is never run twice at once.
        settled: how many rows are taken care of already.
        waiting: how many are not.
        policy: when it is due.
        commits: how many earlier writers have made since the last upkeep. Many short runs are due as one long run is.
    """

    def __init__(
        self,
        work: Callable[[], None],
        settled: int,
        waiting: int,
        policy: UpkeepPolicy,
        commits: int = 0,
    ) -> None:
        self._work = work
        self._earlier = commits
        self._policy = policy
        self._settled, self._waiting, self._commits = settled, waiting, 0
        self._duration, self._ended = 0.0, float("-inf")
        self._state = threading.Lock()
        self._running = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def behind(self) -> bool:
        """Whether anything was written that hasn't been taken care of."""
        with self._state:
            return self._waiting > 0 or self._commits > 0

    def wrote(self, rows: int) -> None:
        """Count a commit, and start the work if it is due and not running."""
        with self._state:
            self._waiting += rows
            self._commits += 1
            if not self._is_due() or (self._thread and self._thread.is_alive()):
                return
            self._thread = threading.Thread(
                target=self._run_quietly, name="tournant-index-upkeep", daemon=True
            )
            self._thread.start()

    def _is_due(self) -> bool:
        if self._waiting >= max(self._policy.rows, self._policy.share * self._settled):
            return True
        rested = time.monotonic() - self._ended >= _REST * self._duration
        return self._earlier + self._commits >= self._policy.commits * (1 if rested else 4)

    def _run_quietly(self) -> None:
        try:
            self.run(self._work)
        except Exception as error:
            # Nothing is lost: searches are right without it, and it is due again at the next commit.
            logger.warning("upkeep of an index failed and will be tried again: %s", error)

    def run(self, work: Callable[[], None]) -> None:
        """Do the work, or a more thorough variant of it, on this thread; wait first if it is running."""
        with self._running:
            with self._state:
                rows, commits = self._waiting, self._commits
            start = time.monotonic()
            work()
            with self._state:
                self._ended = time.monotonic()
                self._duration = self._ended - start
                self._settled += rows
                self._waiting -= rows
                self._commits -= commits
                self._earlier = 0

    def join(self) -> None:
        """Wait until nothing runs."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
