"""The index in PostgreSQL.

A replace is one transaction: the documents' rows are written first, in the order of their names, and stay locked until the commit, so
two writers take turns at a document and never wait for each other in a circle. Their chunks are copied into a temporary
table and from there put into place by one statement; a chunk that is the same as before is not touched, and what a document no longer
has is deleted. Whatever fails is undone by the database, and can be repeated as a whole.
"""

from __future__ import annotations

import logging
import random
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from psycopg import sql

from tournant.ingest.errors import (
    IndexMismatch,
    IndexTrouble,
    IndexWriteFailed,
    SearchFailed,
)
from tournant.ingest.indexes.base import Counts, Hit, IndexSettings, Mode
from tournant.ingest.indexes.catalog import require_same
from tournant.ingest.indexes.pgvector import rows, schema, searching, structures
from tournant.ingest.indexes.pgvector.address import Address, parse
from tournant.ingest.indexes.pgvector.connections import Connection, Connections
from tournant.ingest.indexes.pgvector.ledger import PostgresLedger
from tournant.ingest.indexes.searching import Query
from tournant.ingest.sources import from_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from tournant.ingest.documents import EmbeddedDocument

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a writer waits for a database that has gone, such as one that restarts.
PATIENCE = 60.0
#: Seconds that whoever asks waits for it: someone sits in front of that.
READERS_PATIENCE = 5.0
_CONNECTIONS = 4  # as many as the server has threads for searches
_SOURCES_PER_DELETE = 2_000
_ANEW = "was built anew since it was opened here; open it again"

_STAGING = """
CREATE TEMPORARY TABLE IF NOT EXISTS tournant_staging (
    document bigint, ordinal integer, start_at integer, end_at integer, text text, hash bytea, vector {v}.vector
) ON COMMIT DELETE ROWS
"""
_DOCUMENTS = """
INSERT INTO {s}.documents (source, title, media_type, chunks, writer)
SELECT source, title, media_type, chunks, %s FROM unnest(%s::text[], %s::text[], %s::text[], %s::int[])
    AS n (source, title, media_type, chunks) ORDER BY source COLLATE "C"
ON CONFLICT (source) DO UPDATE SET title = excluded.title, media_type = excluded.media_type, chunks = excluded.chunks,
    writer = excluded.writer
RETURNING source, id
"""
_SHORTER = """
DELETE FROM {s}.chunks AS c USING {s}.documents AS d
WHERE d.id = c.document AND d.id = ANY(%s) AND c.ordinal >= d.chunks
"""
_PUT = """
INSERT INTO {s}.chunks AS c (document, ordinal, start_at, end_at, text, hash, vector)
SELECT document, ordinal, start_at, end_at, text, hash, vector FROM tournant_staging
ON CONFLICT (document, ordinal) DO UPDATE SET start_at = excluded.start_at, end_at = excluded.end_at,
    text = excluded.text, hash = excluded.hash, vector = excluded.vector
WHERE c.hash <> excluded.hash OR c.start_at <> excluded.start_at OR c.end_at <> excluded.end_at
    OR c.vector OPERATOR({v}.<>) excluded.vector
"""
_LOCK = 'SELECT id FROM {s}.documents WHERE source = ANY(%s) ORDER BY source COLLATE "C" FOR UPDATE'
_SIZE = """
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind = 'r'
"""
_VECTORS = """
SELECT c.hash, c.vector FROM {s}.chunks AS c JOIN {s}.documents AS d ON d.id = c.document WHERE d.source = ANY(%s)
"""
_WRITING = """
SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2
    AND classid = hashtext('tournant writer')::oid AND objid = hashtext(%s)::oid
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""


class PgvectorIndex:
    """An index in a schema of a PostgreSQL database. Made by `PgvectorIndex.open`; closes itself as a context manager."""

    #: It has no folder: what an ingest must not walk into.
    folder: str | None = None

    def __init__(
        self, address: Address, stored: schema.Stored, connections: Connections, *, write: bool
    ) -> None:
        self._address = address
        self._stored = stored
        self._connections = connections
        self._write = write
        self._fewest = structures.FEWEST_ROWS
        self._written = 0
        self._rarity = searching.Rarity()
        # Names this session in the rows that it writes: see `PostgresLedger`.
        self._session = random.SystemRandom().getrandbits(63)

    @classmethod
    def open(
        cls,
        url: str,
        settings: IndexSettings | None = None,
        *,
        write: bool = False,
        patience: float | None = None,
        fewest: int = structures.FEWEST_ROWS,
    ) -> PgvectorIndex:
        """Open an index, or with ``write=True`` and settings make it where there is none.

        Args:
            url: see `tournant.ingest.indexes.pgvector.address`.
            settings: what the index must have been built with; None takes what it has.
            write: whether to write. Any number of processes may, on any number of machines.
            patience: seconds for which a lost database is waited for; by default a minute for writers, 5 seconds for
                readers. At the start nobody waits: what isn't there then is most likely a wrong URL.
            fewest: chunks from which on search structures are built.

        Raises:
            InvalidOption: the URL can't be understood.
            MissingExtra: psycopg is not installed.
            IndexMissing: there is no index here, and none is to be made.
            IndexMismatch: it was built with other settings.
            IndexDamaged: a newer version wrote it, or something else has its name.
            IndexWriteFailed: it can't be made, or the database can't be reached.
            SearchFailed: the database can't be reached, for a reader.
        """
        address = parse(url)
        failed: type[IndexTrouble] = IndexWriteFailed if write else SearchFailed
        if patience is None:
            patience = PATIENCE if write else READERS_PATIENCE

        def prepare(connection: Connection) -> None:
            searching.prepare(connection)
            if write:
                # Tells others that an ingest is under way, for as long as the connection lives.
                connection.execute(
                    "SELECT pg_advisory_lock_shared(hashtext('tournant writer'), hashtext(%s))",
                    [address.schema],
                )

        def begin(connection: Connection) -> schema.Stored:
            if write:
                return schema.ensure(connection, address, settings)
            stored = schema.read(connection, address)
            if settings is not None:
                require_same(address.shown, stored.settings, settings)
            return stored

        connections = Connections(address, size=_CONNECTIONS, patience=patience, prepare=prepare)
        try:
            stored = connections.run(begin, failed, patient=False)
        except BaseException:
            connections.close()
            raise
        index = cls(address, stored, connections, write=write)
        index._fewest = fewest
        return index

    @property
    def settings(self) -> IndexSettings:
        """What the index was created with."""
        return self._stored.settings

    @property
    def directory(self) -> str:
        """The URL of the index without its password, for messages."""
        return self._address.shown

    # --- writing ---

    def replace(self, documents: Sequence[EmbeddedDocument]) -> None:
        """Put documents in, in one transaction; see `Index.replace`.

        Raises:
            IndexMismatch: the index was built anew meanwhile; open it again.
            IndexMissing: it was dropped meanwhile.
        """
        rows.check(documents, self.settings.dimensions)
        self._writing(lambda connection: self._replace(connection, documents))
        self._written += sum(len(document.chunks) for document in documents)

    def _replace(self, connection: Connection, documents: Sequence[EmbeddedDocument]) -> None:
        if not documents:
            return
        fill = {"v": sql.Identifier(self._stored.extension)}
        table = [
            (
                rows.stored_source(document.source),
                _plain(document.chunks.document.title),
                _plain(document.chunks.document.media_type),
                len(document.chunks),
            )
            for document in documents
        ]
        connection.execute(schema.filled(sql.SQL(_STAGING), self._address, **fill))
        with connection.transaction():
            cursor = connection.execute(
                schema.filled(sql.SQL(_DOCUMENTS), self._address),
                [self._session, *map(list, zip(*table, strict=True))],
            )
            ids: dict[str, int] = dict(cursor.fetchall())
            self._check_identity(connection)
            with connection.cursor().copy(
                f"COPY tournant_staging ({rows.COLUMNS}) FROM STDIN (FORMAT binary)"
            ) as copy:
                for block in rows.copy_rows(documents, ids):
                    copy.write(block)
            connection.execute(
                schema.filled(sql.SQL(_SHORTER), self._address), [list(ids.values())]
            )
            connection.execute(schema.filled(sql.SQL(_PUT), self._address, **fill))

    def _check_identity(self, connection: Connection) -> None:
        """See that this is still the index that was opened: vectors of another embedder would not fit among these."""
        if schema.identity(connection, self._address) != self._stored.identity:
            raise IndexMismatch(self.directory, _ANEW)

    def remove(self, sources: Iterable[str]) -> int:
        """Take sources out; see `Index.remove`."""
        names = sorted({rows.stored_source(source) for source in sources})
        removed = 0
        for start in range(0, len(names), _SOURCES_PER_DELETE):
            some = names[start : start + _SOURCES_PER_DELETE]
            removed += self._writing(partial(self._remove, sources=some))
        return removed

    def _remove(self, connection: Connection, sources: list[str]) -> int:
        with connection.transaction():
            cursor = connection.execute(schema.filled(sql.SQL(_LOCK), self._address), [sources])
            ids = [row[0] for row in cursor]
            removed = 0
            for table, column in (("chunks", "document"), ("documents", "id")):
                query = schema.filled(
                    sql.SQL("DELETE FROM {s}.{table} WHERE {column} = ANY(%s)"),
                    self._address,
                    table=sql.Identifier(table),
                    column=sql.Identifier(column),
                )
                count = connection.execute(query, [ids]).rowcount
                removed += count if table == "chunks" else 0
        return removed

    def optimize(self) -> None:
        """Build the search structures that are due and missing; see `structures`."""
        self._writing(self._build)

    def _build(self, connection: Connection) -> None:
        structures.build(
            connection, self._address, self._stored, fewest=self._fewest, written=self._written
        )
        self._written = 0

    def _writing(self, work: Callable[[Connection], T]) -> T:
        if not self._write:
            raise IndexWriteFailed(
                self.directory, "was opened for reading (or is closed); open it with write=True"
            )
        return self._connections.run(work, IndexWriteFailed)

    # --- reading ---

    def vectors_of(self, sources: Iterable[str]) -> dict[bytes, NDArray[np.float32]]:
        """Give the vectors that sources have now; see `Index.vectors_of`."""
        names = [rows.stored_source(source) for source in sources]
        if not names:
            return {}
        query = schema.filled(sql.SQL(_VECTORS), self._address)

        def look(connection: Connection) -> dict[bytes, NDArray[np.float32]]:
            found = connection.cursor(binary=True).execute(query, [names])
            return {digest: rows.from_binary(vector) for digest, vector in found}

        return self._connections.run(look, IndexTrouble)

    def sources(self) -> set[str]:
        """Name every source that has chunks; see `Index.sources`."""
        query = schema.filled(
            sql.SQL("SELECT source FROM {s}.documents WHERE chunks > 0"), self._address
        )
        return self._connections.run(
            lambda connection: {from_store(row[0]) for row in connection.execute(query)},
            IndexTrouble,
        )

    def counts(self) -> Counts:
        """Count documents and chunks; see `Index.counts`."""
        query = schema.filled(
            sql.SQL(
                "SELECT count(*), coalesce(sum(chunks), 0) FROM {s}.documents WHERE chunks > 0"
            ),
            self._address,
        )
        row = self._connections.run(
            lambda connection: connection.execute(query).fetchone(), IndexTrouble
        )
        assert row is not None
        return Counts(int(row[0]), int(row[1]))

    def search(
        self, text: str, vector: NDArray[np.float32] | None, k: int = 10, mode: Mode = "hybrid"
    ) -> list[Hit]:
        """Find the best chunks; see `Index.search`.

        Raises:
            IndexMismatch: the index was built anew meanwhile; open it again.
            IndexMissing: it was dropped meanwhile.
        """
        query = Query(text, vector, k, mode)
        query.check(self.settings.dimensions)
        hits, identity = self._connections.run(
            lambda connection: searching.search(
                connection, self._address, self._stored, self._rarity, query
            ),
            SearchFailed,
        )
        if identity not in (None, self._stored.identity):
            raise IndexMismatch(self.directory, _ANEW)
        return hits

    def size_bytes(self) -> int:
        """Bytes of the index's tables and structures in the database."""
        row = self._connections.run(
            lambda connection: connection.execute(_SIZE, [self._address.schema]).fetchone(),
            IndexTrouble,
        )
        return 0 if row is None else int(row[0])

    # --- what an ingest keeps beside it ---

    def ledger(self, *, lock: bool = True) -> PostgresLedger:
        """Return the ledger of the ingests into this index, which lies in the same database. Several runs may use it at once."""
        return PostgresLedger(
            self._address, self._connections, self._session, write=lock and self._write
        )

    def remember_embedder(self, spec: str) -> None:
        """Keep the embedder's spec, so that a search can embed its words with it."""
        self._writing(lambda connection: schema.remember(connection, self._address, spec))

    def recall_embedder(self) -> str | None:
        """Return the embedder's spec, if one was kept."""
        return self._connections.run(
            lambda connection: schema.recall(connection, self._address), IndexTrouble
        )

    def is_being_written(self) -> bool:
        """Tell whether someone has it open for writing."""
        row = self._connections.run(
            lambda connection: connection.execute(_WRITING, [self._address.schema]).fetchone(),
            IndexTrouble,
        )
        return row is not None and bool(row[0])

    def close(self) -> None:
        """Build what is due, when this has been writing, and close the connections. Closing twice is no error."""
        try:
            if self._write:
                self._write = False
                self._connections.run(self._build, IndexWriteFailed, patient=False)
        except IndexTrouble as error:
            # Nothing is lost: searches are right without it, and it is due again when the next writer closes.
            logger.warning("upkeep of an index failed and will be tried again: %s", error)
        finally:
            self._connections.close()

    def __enter__(self) -> PgvectorIndex:
        return self

    def __exit__(self, *raised: object) -> None:
        if raised[0] is not None:
            # Whoever is being thrown out does not wait for structures to be built; the next writer builds them.
            self._write = False
        self.close()


def _plain(text: str) -> str:
    return rows.storable(text.encode("utf-8", "replace").decode())
