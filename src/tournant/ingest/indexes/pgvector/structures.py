"""The search structures over the chunks: HNSW over the vectors and GIN over the words. When they are built, and by whom.

A table that is filled with both in place takes a twentieth of the chunks per second, so they are built when a writer is done: at the end of
the first ingest that leaves enough chunks. Until then, and below that, searches look at every row, which is exact. From then on
PostgreSQL keeps them up to date with every commit. They are built beside running reads and writes
(``CREATE INDEX CONCURRENTLY``), by one process at a time; what a killed one left half-built is dropped and built again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import psycopg
from psycopg import sql

from tournant.ingest.indexes.pgvector.address import Address
from tournant.ingest.indexes.pgvector.connections import Connection
from tournant.ingest.indexes.pgvector.schema import Stored, filled

logger = logging.getLogger(__name__)

#: Chunks from which on looking at every row is slower than a structure.
FEWEST_ROWS = 5_000
#: The longest vectors that HNSW takes, and the longest that it takes as numbers of two bytes. Longer ones are searched row by row.
MOST_DIMENSIONS = 2_000
MOST_HALF_DIMENSIONS = 4_000
_BUILD_MEMORY = (64 << 20, 1 << 30)  # bytes, at least and at most, where the database gives less
_NODE = 400  # bytes of a vector's links while they are built
_ANALYZE_SHARE = 0.1
#: Settings that a build changes for its connection.
_CHANGED = ("statement_timeout", "maintenance_work_mem", "max_parallel_maintenance_workers")


@dataclass(frozen=True, slots=True)
class _Structure:
    name: str
    definition: str


_WORDS = _Structure("chunks_words", "gin (words)")
_VECTORS = _Structure("chunks_vector", "hnsw (vector {v}.vector_ip_ops)")
_HALF_VECTORS = _Structure(
    "chunks_vector", "hnsw ((vector::{v}.halfvec({dimensions})) {v}.halfvec_ip_ops)"
)


def halved(dimensions: int) -> bool:
    """Tell whether the structure over vectors of so many dimensions has numbers of two bytes."""
    return MOST_DIMENSIONS < dimensions <= MOST_HALF_DIMENSIONS


def build(
    connection: Connection, address: Address, stored: Stored, *, fewest: int, written: int
) -> None:
    """Build what is missing, and bring the planner's figures up to date.

    Args:
        connection: in autocommit mode.
        address: the index.
        stored: what it is.
        fewest: build nothing for fewer chunks than this.
        written: how many chunks the caller has written.

    Raises:
        psycopg.Error: the database refused.
    """
    row = connection.execute(
        filled(sql.SQL("SELECT coalesce(sum(chunks), 0) FROM {s}.documents"), address)
    ).fetchone()
    chunks = 0 if row is None else int(row[0])
    wanted = [_WORDS]
    if stored.settings.dimensions <= MOST_HALF_DIMENSIONS:
        wanted.append(_HALF_VECTORS if halved(stored.settings.dimensions) else _VECTORS)
    missing = [each for each in wanted if _state(connection, address, each) is not True]
    if chunks >= max(fewest, 1) and missing:
        _build_all(connection, address, stored, missing, chunks)
    elif written < _ANALYZE_SHARE * chunks or not written:
        return
    connection.execute(filled(sql.SQL("ANALYZE {s}.chunks, {s}.documents"), address))


def _build_all(
    connection: Connection,
    address: Address,
    stored: Stored,
    missing: list[_Structure],
    chunks: int,
) -> None:
    key = [address.schema]
    mine = connection.execute(
        "SELECT pg_try_advisory_lock(hashtext('tournant build'), hashtext(%s))", key
    ).fetchone()
    if mine is None or not mine[0]:
        return  # another process is at it
    try:
        # A limit that is meant for questions is none for this.
        connection.execute("SET statement_timeout = 0")
        for structure in missing:
            state = _state(connection, address, structure)
            if state is False:
                query = sql.SQL("DROP INDEX CONCURRENTLY {s}.{name}")
                connection.execute(filled(query, address, name=sql.Identifier(structure.name)))
            if state is not True:
                _build_one(connection, address, stored, structure, chunks)
    finally:
        if not connection.closed:
            for name in _CHANGED:
                connection.execute(sql.SQL("RESET {}").format(sql.Identifier(name)))
            connection.execute(
                "SELECT pg_advisory_unlock(hashtext('tournant build'), hashtext(%s))", key
            )


def _build_one(
    connection: Connection, address: Address, stored: Stored, structure: _Structure, chunks: int
) -> None:
    # A graph that doesn't fit into this memory is built many times more slowly.
    least, most = _BUILD_MEMORY
    need = min(max(least, chunks * (4 * stored.settings.dimensions + _NODE)), most)
    connection.execute(
        "SELECT set_config('maintenance_work_mem', greatest(%s::bigint, "
        "pg_size_bytes(current_setting('maintenance_work_mem')) / 1024)::text || 'kB', false)",
        [need // 1024],
    )
    definition = sql.SQL(structure.definition).format(
        v=sql.Identifier(stored.extension), dimensions=sql.Literal(stored.settings.dimensions)
    )
    query = sql.SQL("CREATE INDEX CONCURRENTLY {name} ON {s}.chunks USING {definition}")
    names = {"name": sql.Identifier(structure.name), "definition": definition}
    logger.info("building %s of index %s over %d chunks", structure.name, address.shown, chunks)
    try:
        connection.execute(filled(query, address, **names))
    except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory):
        # Workers share the graph in /dev/shm, which containers often have little of: once more, without them.
        drop = sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {s}.{name}")
        connection.execute(filled(drop, address, name=names["name"]))
        connection.execute("SET max_parallel_maintenance_workers = 0")
        connection.execute(filled(query, address, **names))


def _state(connection: Connection, address: Address, structure: _Structure) -> bool | None:
    """Whether a structure is whole (True), half-built (False), or not there (None)."""
    row = connection.execute(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(format('%%I.%%I', %s::text, %s::text))",
        [address.schema, structure.name],
    ).fetchone()
    return None if row is None else bool(row[0])
