"""The ledger: the durable record of which inputs are done, so that any run can be resumed.

A ledger is one SQLite file. It says for every input how it ended last time, with which fingerprint
and under which version of the pipeline. A record is written *after* the sink has returned, never
before: a run that is killed at any moment repeats at most what it had not yet recorded.

Durability. The file is in WAL mode with ``synchronous=NORMAL``. A commit is in the operating system's
hands when it returns, so ``kill -9`` loses no committed record, with this setting as with ``FULL``. They
differ when the *machine* loses power: then NORMAL may lose the last commits (the file stays sound), which
repeats some work on idempotent sinks. ``FULL`` would wait for the disk at every commit to make the
ledger more durable than the sink it speaks for, which is the one order that can lose data.

This room knows nothing of pipelines or event loops. Every method blocks: call it from a thread.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from tournant._ledger_file import RunLock, connect, sql_error
from tournant._ledger_records import (
    DONE,
    FAILED,
    FILTERED,
    OPEN,
    Counts,
    Entry,
    Fingerprint,
    Key,
    Outcome,
    RunRecord,
    decode_key,
    encode_key,
    encode_value,
    plain_text,
    to_entry,
    to_row,
)
from tournant.errors import LedgerError

__all__ = ["Counts", "Entry", "Fingerprint", "Key", "Ledger", "Outcome", "RunRecord"]

_LOOKUP = 500  # keys per SELECT: SQLite's oldest limit is 999 variables
_PAGE = 1_000  # rows read under one hold of the lock
_KEPT_RUNS = 100

_UPSERT = """
INSERT INTO inputs (key, fingerprint, version, outcome, delivered, outputs, attempts, stage, error)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET
    fingerprint = excluded.fingerprint, version = excluded.version, outcome = excluded.outcome,
    delivered = max(delivered, excluded.delivered), outputs = excluded.outputs,
    attempts = excluded.attempts, stage = excluded.stage, error = excluded.error
"""
_COLUMNS = "key, fingerprint, version, outcome, outputs, attempts, stage, error"


class Ledger:
    """The durable record of which inputs are done.

    Give it to a pipeline (``tn.Pipeline(source, ledger=tn.Ledger("run.db"))``) and a second run skips
    what is done and unchanged, and runs again what failed. Give every pipeline a ledger of its own:
    two that share one would take each other's versions for changes.

    The object is only a path until it is opened. ``open`` and ``close`` are counted, so a ledger that you
    hold open stays open through the runs that use it. All methods may be called from any thread, and block.

    Args:
        path: The file; made on first use, in a folder that exists. Beside it lie SQLite's ``-wal`` and
            ``-shm`` while it is open, and ``.lock``, which names the process that uses it.
        lock: ``True`` (the default) to write, which one process at a time can do. ``False`` only looks, also
            while a run writes: whatever would change the ledger raises `LedgerError`.

    Raises:
        LedgerError: From every method, when the file cannot be used; the message says how to mend it.
    """

    __slots__ = ("_active", "_connection", "_guard", "_lock", "_opened", "_run_lock", "path")

    def __init__(self, path: str | os.PathLike[str], *, lock: bool = True) -> None:
        text = os.fspath(path)
        if text in {"", ":memory:"}:
            raise LedgerError(
                f"A ledger has to outlive its run, so it needs a file, not {text!r}: "
                "give it a path such as 'run.db'."
            )
        self.path = os.path.abspath(text)
        self._lock = lock
        self._guard = threading.RLock()
        self._opened = 0
        self._connection: sqlite3.Connection | None = None
        self._run_lock: RunLock | None = None
        self._active: int | None = None

    def __repr__(self) -> str:
        return f"Ledger({self.path!r})" if self._lock else f"Ledger({self.path!r}, lock=False)"

    def __reduce__(self) -> tuple[Callable[[str, bool], Ledger], tuple[str, bool]]:
        return _restore, (self.path, self._lock)

    # Opening and closing

    def open(self) -> Ledger:
        """Open the file, making it when there is none; count one more user of an open one.

        Returns:
            The ledger itself.

        Raises:
            LedgerError: Another run uses it (at once, without waiting), it is not a ledger, it is damaged, it
                was written by a newer version, or its folder is missing or cannot be written.
        """
        with self._guard:
            if self._connection is None:
                run_lock = RunLock(self.path) if self._lock else None
                try:
                    self._connection = connect(self.path, write=self._lock)
                except BaseException:
                    if run_lock is not None:
                        run_lock.release()
                    raise
                self._run_lock = run_lock
            self._opened += 1
        return self

    def close(self) -> None:
        """Give back one `open`; the last one closes the file. Closing a closed ledger does nothing."""
        with self._guard:
            self._opened = max(0, self._opened - 1)
            if self._opened or self._connection is None:
                return
            self._connection.close()
            self._connection = None
            self._active = None
            if self._run_lock is not None:
                self._run_lock.release()
                self._run_lock = None

    def __enter__(self) -> Ledger:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # What a run asks and says

    def pending(
        self, keys: Sequence[Key], fingerprints: Sequence[Fingerprint], version: str
    ) -> list[bool]:
        """Say which inputs must run.

        An input need not run when it is done or filtered with this fingerprint under this version. Inputs that
        are settled but have changed are marked open in the same step, before anyone works on them:
        if the run is killed after the sink took the change, and the input then changes *back*,
        the ledger does not mistake what the sink holds for what it held before.

        Args:
            keys: The inputs' keys; any number, looked up 500 at a time (a few microseconds each).
            fingerprints: One for each key, in the same order. ``None`` for inputs that never change.
            version: The version of the pipeline; any text.

        Returns:
            For each key, ``True`` where the input must run.

        Raises:
            LedgerError: The file cannot be read or written, or a key is of a type that cannot be stored.
        """
        version = plain_text(version)
        wanted = [
            (encode_key(key), encode_value(fingerprint))
            for key, fingerprint in zip(keys, fingerprints, strict=True)
        ]
        answer: list[bool] = []
        changed: list[tuple[bytes]] = []
        with self._using() as db:
            for start in range(0, len(wanted), _LOOKUP):
                part = wanted[start : start + _LOOKUP]
                marks = ",".join("?" * len(part))
                rows = db.execute(
                    f"SELECT key, fingerprint, version, outcome FROM inputs WHERE key IN ({marks})",
                    [key for key, _ in part],
                )
                known = {row[0]: row[1:] for row in rows}
                for key, fingerprint in part:
                    row = known.get(key)
                    if row is None or row[2] not in (DONE, FILTERED):
                        answer.append(True)
                    elif row[0] == fingerprint and row[1] == version:
                        answer.append(False)
                    else:
                        answer.append(True)
                        changed.append((key,))
            if changed and self._lock:
                with self._transaction(db):
                    db.executemany(f"UPDATE inputs SET outcome = {OPEN} WHERE key = ?", changed)
        return answer

    def record(self, entries: Sequence[Entry]) -> None:
        """Write how inputs ended, all of them or none, in one transaction.

        Args:
            entries: The outcomes; a later one for the same key replaces an earlier one.

        Raises:
            LedgerError: The file cannot be written (a full disk, for one), or an entry cannot be stored.
        """
        if not entries:
            return
        rows = [to_row(entry) for entry in entries]
        with self._using() as db, self._transaction(db):
            db.executemany(_UPSERT, rows)

    def forget(self, keys: Iterable[Key]) -> int:
        """Remove inputs from the ledger, as if they had never been seen.

        Args:
            keys: Their keys; those that the ledger does not know are passed over.

        Returns:
            How many were removed.
        """
        rows = [(encode_key(key),) for key in keys]
        with self._using() as db, self._transaction(db):
            return db.executemany("DELETE FROM inputs WHERE key = ?", rows).rowcount if rows else 0

    def begin_run(self, version: str = "") -> int:
        """Record that a run starts.

        Args:
            version: The version of its pipeline.

        Returns:
            The run's number, for `end_run`.

        Raises:
            LedgerError: A run of this very object has not ended yet.
        """
        with self._using() as db:
            if self._active is not None:
                raise LedgerError(
                    f"The ledger {self.path!r} is in use by run {self._active} of this process: wait "
                    "until it has ended, or give the other pipeline a ledger of its own."
                )
            with self._transaction(db):
                made = db.execute(
                    "INSERT INTO runs (started, version) VALUES (?, ?)",
                    (time.time(), plain_text(version)),
                ).lastrowid
                assert made is not None
                db.execute("DELETE FROM runs WHERE id <= ?", (made - _KEPT_RUNS,))
            self._active = made
            return made

    def end_run(self, run: int, summary: dict[str, Any]) -> None:
        """Record that a run has ended, and what it says of itself.

        Args:
            run: What `begin_run` returned.
            summary: Anything JSON can say; what it cannot is written as its text.
        """
        text = json.dumps(summary, default=str)
        with self._using() as db:
            self._active = None
            with self._transaction(db):
                db.execute(
                    "UPDATE runs SET ended = ?, summary = ? WHERE id = ?", (time.time(), text, run)
                )

    # What anyone may read

    def keys(self) -> Iterator[str | bytes | int]:
        """Go through the keys of all inputs that the sink holds something of.

        Those are the inputs that are done, and those that were done once and have changed, failed or been
        filtered since: their older outputs are still there. Memory stays bounded, and the ledger may
        be written meanwhile.

        Yields:
            The keys, in a fixed order.
        """
        for row in self._pages("key", "delivered = 1"):
            yield decode_key(row[0])

    def entries(self) -> Iterator[Entry]:
        """Go through all inputs that the ledger knows, in a fixed order."""
        return map(to_entry, self._pages(_COLUMNS, "1"))

    def failures(self) -> Iterator[Entry]:
        """Go through the inputs that failed when they were last tried, in a fixed order."""
        return map(to_entry, self._pages(_COLUMNS, f"outcome = {FAILED}"))

    def counts(self) -> Counts:
        """Count the inputs by outcome. Reads the whole ledger: half a second for a million inputs."""
        with self._using() as db:
            rows = dict(db.execute("SELECT outcome, count(*) FROM inputs GROUP BY outcome"))
        return Counts(
            rows.get(DONE, 0), rows.get(FAILED, 0), rows.get(FILTERED, 0), rows.get(OPEN, 0)
        )

    def last_run(self) -> RunRecord | None:
        """Return the latest run, or ``None`` before the first."""
        with self._using() as db:
            row = db.execute(
                "SELECT id, started, ended, version, summary FROM runs ORDER BY id DESC LIMIT 1"
            ).fetchone()
        if row is None:
            return None
        run, started, ended, version, summary = row
        return RunRecord(
            run, started, ended, version, None if summary is None else json.loads(summary)
        )

    # Inside

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """Hold the connection for one operation, and say SQLite's errors in our words."""
        with self._guard:
            if self._connection is None:
                raise LedgerError(
                    f"The ledger {self.path!r} is not open: put the work inside 'with ledger:'."
                )
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise sql_error(self.path, error) from error

    @contextmanager
    def _transaction(self, db: sqlite3.Connection) -> Iterator[None]:
        if not self._lock:
            raise LedgerError(
                f"The ledger {self.path!r} was opened to look at (lock=False) and cannot be changed: "
                "open it with lock=True."
            )
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            # A full disk has rolled it back already.
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _pages(self, columns: str, condition: str) -> Iterator[tuple[Any, ...]]:
        """Read rows page by page, so that no reader holds the ledger while its caller works."""
        after = b""
        while True:
            with self._using() as db:
                rows = db.execute(
                    f"SELECT {columns} FROM inputs WHERE key > ? AND {condition} "
                    f"ORDER BY key LIMIT {_PAGE}",
                    (after,),
                ).fetchall()
            yield from rows
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]


def _restore(path: str, lock: bool) -> Ledger:
    return Ledger(path, lock=lock)
