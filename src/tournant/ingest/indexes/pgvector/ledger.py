"""The ledger of an index in PostgreSQL: in the same database, so that every machine skips what any of them has done.

Several runs may use it at once. What keeps it true is the session that stands in the row of each document: a record that an input is done
counts only as long as the document in the index is the one that the recording session wrote. Where another writer has
replaced the document since, or it is gone, the input runs again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from psycopg import sql

from tournant._ledger_records import (
    DONE,
    FAILED,
    FILTERED,
    OPEN,
    decode_key,
    encode_key,
    encode_value,
    plain_text,
    to_entry,
    to_row,
)
from tournant.errors import LedgerError
from tournant.ingest.errors import IndexTrouble
from tournant.ingest.indexes.pgvector.address import Address
from tournant.ingest.indexes.pgvector.connections import Connection, Connections
from tournant.ingest.indexes.pgvector.rows import storable, stored_source
from tournant.ingest.indexes.pgvector.schema import filled
from tournant.ledger import Counts, Entry, Fingerprint, Key, Ledger, RunRecord

T = TypeVar("T")

_PAGE = 1_000
_KEPT_RUNS = 100
_COLUMNS = "key, fingerprint, version, outcome, outputs, attempts, stage, error"

_PENDING = """
SELECT n.place, i.fingerprint = n.fingerprint AND i.version = %s,
    i.outcome = {filtered} OR (i.outcome = {done} AND d.writer IS NOT DISTINCT FROM i.writer)
FROM unnest(%s::bytea[], %s::bytea[], %s::text[]) WITH ORDINALITY AS n (key, fingerprint, source, place)
JOIN {s}.inputs AS i ON i.key = n.key LEFT JOIN {s}.documents AS d ON d.source = n.source
WHERE i.outcome IN ({filtered}, {done})
"""
_RECORD = """
INSERT INTO {s}.inputs AS i (key, fingerprint, version, outcome, delivered, outputs, attempts, stage, error, writer)
SELECT n.*, %s FROM unnest(%s::bytea[], %s::bytea[], %s::text[], %s::smallint[], %s::boolean[], %s::bigint[], %s::int[],
    %s::text[], %s::text[]) AS n (key, fingerprint, version, outcome, delivered, outputs, attempts, stage, error)
ORDER BY n.key
ON CONFLICT (key) DO UPDATE SET fingerprint = excluded.fingerprint, version = excluded.version, outcome = excluded.outcome,
    delivered = i.delivered OR excluded.delivered, outputs = excluded.outputs, attempts = excluded.attempts,
    stage = excluded.stage, error = excluded.error, writer = excluded.writer
"""
# In the order of the keys, as `_RECORD`, so that two runs never wait for each other in a circle.
_REOPEN = """
UPDATE {s}.inputs SET outcome = {open} WHERE key IN (SELECT key FROM {s}.inputs WHERE key = ANY(%s) ORDER BY key FOR UPDATE)
"""
_FORGET = """
DELETE FROM {s}.inputs WHERE key IN (SELECT key FROM {s}.inputs WHERE key = ANY(%s) ORDER BY key FOR UPDATE)
"""


class PostgresLedger(Ledger):
    """The ledger of one open index; made by `PgvectorIndex.ledger`. Opening and closing it opens and closes nothing.

    Args:
        address: the index.
        connections: the index's connections.
        session: names the session of the index that writes the documents.
        write: False only looks.
    """

    __slots__ = ("_address", "_connections", "_run", "_session", "_write")

    def __init__(
        self, address: Address, connections: Connections, session: int, *, write: bool
    ) -> None:
        self.path = address.shown
        self._address = address
        self._connections = connections
        self._session = session
        self._write = write
        self._run: int | None = None

    def __repr__(self) -> str:
        return f"PostgresLedger({self.path!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a ledger in PostgreSQL stays in the process of its index; open the index there"
        )

    def open(self) -> PostgresLedger:
        """Do nothing: it is as open as its index."""
        return self

    def close(self) -> None:
        """Do nothing, but that the next run may begin."""
        self._run = None

    # What a run asks and says

    def pending(
        self, keys: Sequence[Key], fingerprints: Sequence[Fingerprint], version: str
    ) -> list[bool]:
        """Say which inputs must run; see `Ledger.pending`."""
        version = plain_text(version)
        names = [encode_key(key) for key in keys]
        wanted = [encode_value(fingerprint) for fingerprint in fingerprints]
        sources = [stored_source(str(key)) for key in keys]

        def look(connection: Connection) -> list[bool]:
            answer = [True] * len(names)
            changed = []
            with connection.transaction():
                rows = connection.execute(
                    self._filled(_PENDING), [version, names, wanted, sources]
                ).fetchall()
                for place, same, holds in rows:
                    if same and holds:
                        answer[place - 1] = False
                    else:
                        changed.append(names[place - 1])
                if changed and self._write:
                    connection.execute(self._filled(_REOPEN), [changed])
            return answer

        return self._do(look) if names else []

    def record(self, entries: Sequence[Entry]) -> None:
        """Write how inputs ended, all of them or none; see `Ledger.record`."""
        if not entries:
            return
        latest = {row[0]: row for row in map(to_row, entries)}
        columns = [
            [storable(value) if isinstance(value, str) else value for value in column]
            for column in zip(*latest.values(), strict=True)
        ]
        self._change(_RECORD, [self._session, *columns])

    def forget(self, keys: Iterable[Key]) -> int:
        """Remove inputs from the ledger; see `Ledger.forget`."""
        names = [encode_key(key) for key in keys]
        return self._change(_FORGET, [names]) if names else 0

    def begin_run(self, version: str = "") -> int:
        """Record that a run starts; see `Ledger.begin_run`."""
        if self._run is not None:
            raise LedgerError(
                f"The ledger {self.path!r} is in use by run {self._run} of this process: wait until it has ended."
            )
        self._may_write()

        def begin(connection: Connection) -> int:
            with connection.transaction():
                row = connection.execute(
                    self._filled(
                        "INSERT INTO {s}.runs (started, version) VALUES (%s, %s) RETURNING id"
                    ),
                    [time.time(), plain_text(version)],
                ).fetchone()
                assert row is not None
                connection.execute(
                    self._filled("DELETE FROM {s}.runs WHERE id <= %s"), [row[0] - _KEPT_RUNS]
                )
                return int(row[0])

        self._run = self._do(begin)
        return self._run

    def end_run(self, run: int, summary: dict[str, Any]) -> None:
        """Record that a run has ended; see `Ledger.end_run`."""
        self._run = None
        text = json.dumps(summary, default=str)
        self._change(
            "UPDATE {s}.runs SET ended = %s, summary = %s WHERE id = %s", [time.time(), text, run]
        )

    # What anyone may read

    def keys(self) -> Iterator[str | bytes | int]:
        """Go through the keys of all inputs that the index holds something of; see `Ledger.keys`."""
        for row in self._pages("key", "delivered"):
            yield decode_key(row[0])

    def entries(self) -> Iterator[Entry]:
        """Go through all inputs that the ledger knows, in a fixed order."""
        return map(to_entry, self._pages(_COLUMNS, "true"))

    def failures(self) -> Iterator[Entry]:
        """Go through the inputs that failed when they were last tried, in a fixed order."""
        return map(to_entry, self._pages(_COLUMNS, f"outcome = {FAILED}"))

    def counts(self) -> Counts:
        """Count the inputs by outcome."""
        query = self._filled("SELECT outcome, count(*) FROM {s}.inputs GROUP BY outcome")
        rows: dict[int, int] = dict(
            self._do(lambda connection: connection.execute(query).fetchall())
        )
        return Counts(*(rows.get(outcome, 0) for outcome in (DONE, FAILED, FILTERED, OPEN)))

    def last_run(self) -> RunRecord | None:
        """Return the latest run, or ``None`` before the first."""
        query = self._filled(
            "SELECT id, started, ended, version, summary FROM {s}.runs ORDER BY id DESC LIMIT 1"
        )
        row = self._do(lambda connection: connection.execute(query).fetchone())
        if row is None:
            return None
        run, started, ended, version, summary = row
        return RunRecord(
            run, started, ended, version, None if summary is None else json.loads(summary)
        )

    # Inside

    def _filled(self, query: str) -> sql.Composed:
        outcomes = {"done": DONE, "filtered": FILTERED, "open": OPEN}
        names = {name: sql.Literal(outcome) for name, outcome in outcomes.items()}
        return filled(sql.SQL(query), self._address, **names)

    def _do(self, work: Callable[[Connection], T]) -> T:
        try:
            return self._connections.run(work, IndexTrouble)
        except IndexTrouble as error:
            raise LedgerError(f"The ledger of {error}") from error

    def _may_write(self) -> None:
        if not self._write:
            raise LedgerError(
                f"The ledger {self.path!r} was opened to look at and cannot be changed: open its index with write=True."
            )

    def _change(self, query: str, values: list[Any]) -> int:
        self._may_write()
        statement = self._filled(query)
        return self._do(lambda connection: connection.execute(statement, values).rowcount)

    def _pages(self, columns: str, condition: str) -> Iterator[tuple[Any, ...]]:
        query = self._filled(
            f"SELECT {columns} FROM {{s}}.inputs WHERE key > %s AND {condition} ORDER BY key LIMIT {_PAGE}"
        )
        after = b""
        while True:
            rows = self._do(
                lambda connection, after=after: connection.execute(query, [after]).fetchall()  # type: ignore[misc]
            )
            yield from rows
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]
