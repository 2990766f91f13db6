"""Writing the ledger behind the loop: outcomes are collected and committed in groups on one thread.

One commit per input would cost more than many an input. The loop only appends to a queue; this
thread takes what has gathered and writes it in one transaction.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from tournant.errors import LedgerError
from tournant.ledger import Entry, Ledger

_WINDOW = 0.05
_GROUP = 1_000


class LedgerWriter:
    """A thread that records the outcomes of one run, in groups.

    A group is committed 50 ms after its first entry, or as soon as 1,000 entries wait. When the process is killed, what was
    not yet committed runs again.

    After a failed write nothing more is written: `error` is set, and further entries are dropped, so that
    their inputs run again. It is for the engine to stop the run then.

    Args:
        ledger: An open ledger; it must stay open until `close` has returned.
        limit: The number of waiting entries from which on `full` says that the source should pause.
        on_error: Called once, on the writer's thread, when a write has failed.

    Attributes:
        error: Why writing ended, or ``None``.
    """

    __slots__ = (
        "_closing",
        "_entries",
        "_full",
        "_ledger",
        "_limit",
        "_on_error",
        "_thread",
        "_wake",
        "error",
    )

    def __init__(
        self,
        ledger: Ledger,
        *,
        limit: int = 10_000,
        on_error: Callable[[LedgerError], None] | None = None,
    ) -> None:
        self.error: LedgerError | None = None
        self._ledger = ledger
        self._limit = limit
        self._on_error = on_error
        self._entries: deque[Entry] = deque()
        self._wake = threading.Event()
        self._full = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="tournant-ledger", daemon=True)
        self._thread.start()

    @property
    def backlog(self) -> int:
        """How many entries wait to be committed."""
        return len(self._entries)

    @property
    def full(self) -> bool:
        """Whether so many wait that the run should start no new inputs for now."""
        return len(self._entries) >= self._limit

    def put(self, entry: Entry) -> None:
        """Leave an entry to be written. Never blocks and never raises; may be called from any thread."""
        if self.error is not None:
            return
        # Appending before looking, here, and clearing before taking, in the thread: so no entry
        # can be left behind without a wake-up.
        self._entries.append(entry)
        if not self._wake.is_set():
            self._wake.set()
        if len(self._entries) >= _GROUP and not self._full.is_set():
            self._full.set()

    def close(self) -> None:
        """Commit what waits, and end the thread. Blocks; may be called again.

        Raises:
            LedgerError: A write failed, now or earlier.
        """
        self._closing = True
        self._full.set()
        self._wake.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _work(self) -> None:
        closing = False
        while not closing:
            self._wake.wait()
            self._full.wait(_WINDOW)
            self._wake.clear()
            self._full.clear()
            # Read after the events are cleared, so that no call of close() is missed, and before the
            # queue is emptied: whoever closes has put everything before.
            closing = self._closing
            try:
                while self._entries:
                    self._commit()
            except LedgerError as error:
                self._fail(error)
                return
            except Exception as error:
                failure = LedgerError(
                    f"The ledger {self._ledger.path!r} could not be written ({error!r})."
                )
                failure.__cause__ = error
                self._fail(failure)
                return

    def _commit(self) -> None:
        # What is being written stays in the queue until it is committed: the backlog tells the truth.
        entries = [self._entries[index] for index in range(min(len(self._entries), _GROUP))]
        self._ledger.record(entries)
        for _ in entries:
            self._entries.popleft()

    def _fail(self, error: LedgerError) -> None:
        self.error = error
        self._entries.clear()
        if self._on_error is not None:
            self._on_error(error)
