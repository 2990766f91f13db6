"""Connections to PostgreSQL: a few are kept, lost ones are replaced, and work that can be repeated is repeated.

psycopg's own pool connects on threads of its own and tells a caller that waits only that it waited too long. Here the thread
that needs a connection makes it, so that a wrong password is said at once and as what it is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from tournant.ingest.errors import IndexTrouble
from tournant.ingest.indexes.pgvector.address import Address
from tournant.ingest.indexes.pgvector.errors import explained, is_passing

logger = logging.getLogger(__name__)

Connection: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"
T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


class Connections:
    """At most `size` connections to one database, for any number of threads.

    Args:
        address: where to connect.
        size: how many connections at once; more callers wait.
        patience: seconds for which work is tried again after a connection was lost, before it fails.
        prepare: run on every new connection.
    """

    def __init__(
        self,
        address: Address,
        *,
        size: int,
        patience: float,
        prepare: Callable[[Connection], None],
    ) -> None:
        self._address = address
        self._patience = patience
        self._prepare = prepare
        self._slots = threading.BoundedSemaphore(size)
        self._guard = threading.Lock()
        self._idle: list[Connection] = []
        self._closed = threading.Event()

    def run(
        self, work: Callable[[Connection], T], failed: type[IndexTrouble], *, patient: bool = True
    ) -> T:
        """Do some work on a connection, and again while its failure is a passing one.

        Args:
            work: gets a connection in autocommit mode, opens its own transactions, and may be repeated as a whole, even
                after a commit that was made but not confirmed.
            failed: the class of the error that is raised.
            patient: False tries once more on a fresh connection, and no longer.

        Raises:
            IndexTrouble: of the class given, or a kind that says it better.
        """
        pause, due, attempt = _FIRST_PAUSE, None, 0
        while True:
            try:
                with self.connection(failed) as connection:
                    return work(connection)
            except psycopg.Error as error:
                attempt += 1
                trouble = explained(self._address, error, failed)
                now = time.monotonic()
                due = now + (self._patience if patient else 0) if due is None else due
                # An idle connection that was lost says nothing of the server: one more attempt is always made.
                if not is_passing(error) or (now + pause > due and attempt > 1):
                    raise trouble from error
                logger.info("%s; trying again in %.2g s", trouble, pause)
            self._closed.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    @contextmanager
    def connection(self, failed: type[IndexTrouble] = IndexTrouble) -> Iterator[Connection]:
        """Lend a connection in autocommit mode. What is left open in it is rolled back.

        Raises:
            psycopg.Error: there is none to be had.
            IndexTrouble: these connections are closed.
        """
        with self._slots:
            if self._closed.is_set():
                raise failed(self._address.shown, "is closed; open it again")
            with self._guard:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                connection = self._connect()
            try:
                yield connection
            finally:
                self._take_back(connection)

    def close(self) -> None:
        """Close all of them; those that are lent close when they come back. Closing twice is no error."""
        self._closed.set()
        self._drop_idle()

    def _connect(self) -> Connection:
        connection: Connection = psycopg.connect(self._address.conninfo, autocommit=True)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _take_back(self, connection: Connection) -> None:
        status = connection.info.transaction_status
        if status == TransactionStatus.IDLE and not self._closed.is_set():
            with self._guard:
                self._idle.append(connection)
            return
        # Also one that is in the middle of a statement, because its thread was interrupted.
        connection.close()
        if status == TransactionStatus.UNKNOWN:
            # When one was lost, the server has most likely gone, and the others with it.
            self._drop_idle()

    def _drop_idle(self) -> None:
        with self._guard:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
