"""Searching in PostgreSQL: by words, by vector, and by both at once.

A search by vector is one statement. All statements of another search run in one read-only snapshot, so what they find together existed
together. By vector, the inner product of
vectors of length 1 is the cosine, as in the LanceDB index. By words, PostgreSQL has no BM25: its ``ts_rank`` (how often a word
stands in a chunk, damped, over the logarithm of the chunk's length) of each word is weighed by the word's rarity, which the
planner's statistics know. Of words that stand in very many chunks only some thousand of these are ranked.
Both are fused by reciprocal rank, with the constants of the LanceDB index.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import IsolationLevel, sql
from psycopg.pq import TransactionStatus

from tournant.ingest.indexes.base import Hit
from tournant.ingest.indexes.pgvector.address import Address
from tournant.ingest.indexes.pgvector.connections import Connection
from tournant.ingest.indexes.pgvector.rows import storable, vector_literal
from tournant.ingest.indexes.pgvector.schema import Stored, filled
from tournant.ingest.indexes.pgvector.structures import halved
from tournant.ingest.indexes.searching import FUSED_DEPTH, RANK_CONSTANT, Query
from tournant.ingest.sources import from_store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: How many candidates HNSW keeps: more find more of the true neighbours, and take longer.
EF_SEARCH = 150
_RANKED = 2_000  # chunks that the words of one search may lead to
_MOST_WORDS = 24
_FRESH = 60.0  # seconds for which the planner's figures are kept
_QUERY_CHARS = 20_000

# Statements that compare every row with a value are not prepared: a prepared one would parse the value for every row.
Place = tuple[int, int]  # a document's number and a chunk's ordinal

_LEXEMES = "SELECT lexeme FROM unnest(to_tsvector(%s::text::regconfig, %s))"
_COMMON = """
SELECT (SELECT greatest(reltuples, 0) FROM pg_class WHERE oid = '{s}.chunks'::regclass),
    most_common_elems::text::text[], most_common_elem_freqs FROM pg_stats
WHERE schemaname = %s AND tablename = 'chunks' AND attname = 'words'
"""
_NEAREST = "ORDER BY vector OPERATOR({v}.<#>) %(vector)s::{v}.vector LIMIT %(k)s"
# Where the structure has numbers of half the length, some more are taken and ranked by the whole ones.
_NEAREST_HALF = """
ORDER BY (vector::{v}.halfvec({dimensions})) OPERATOR({v}.<#>) %(vector)s::{v}.halfvec({dimensions}) LIMIT %(more)s
"""
_BY_VECTOR = """
SELECT document, ordinal, score FROM (
    SELECT document, ordinal, -(vector OPERATOR({v}.<#>) %(vector)s::{v}.vector) AS score FROM {s}.chunks {nearest}
) AS c ORDER BY score DESC, document, ordinal LIMIT %(k)s
"""
_COLUMNS = """
SELECT c.document, c.ordinal, d.source, c.start_at, c.end_at, c.text, d.title, d.media_type,
    (SELECT identity::text FROM {s}.tournant)
"""
_HITS_BY_VECTOR = f"""
{_COLUMNS}, c.score FROM (
    SELECT document, ordinal, start_at, end_at, text, -(vector OPERATOR({{v}}.<#>) %(vector)s::{{v}}.vector) AS score
    FROM {{s}}.chunks {{nearest}}
) AS c JOIN {{s}}.documents AS d ON d.id = c.document ORDER BY c.score DESC, c.document, c.ordinal LIMIT %(k)s
"""
_HITS = f"""
{_COLUMNS}
FROM unnest(%s::bigint[], %s::int[]) AS f (document, ordinal)
JOIN {{s}}.chunks AS c USING (document, ordinal) JOIN {{s}}.documents AS d ON d.id = c.document
"""


class Rarity:
    """In how many chunks a word stands, by the planner's statistics of the table, looked up again once a minute."""

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}
        self._due = float("-inf")
        self.chunks = 0.0

    def refresh(self, connection: Connection, address: Address) -> None:
        """Look it up, if the last time is long ago."""
        now = time.monotonic()
        if now < self._due:
            return
        row = connection.execute(filled(sql.SQL(_COMMON), address), [address.schema]).fetchone()
        # Behind the words' own figures stand some of the whole.
        self._shares = {} if row is None else dict(zip(row[1] or (), row[2] or (), strict=False))
        self.chunks = 0.0 if row is None else float(row[0])
        self._due = now + _FRESH

    def chunks_with(self, lexeme: str) -> float:
        """Return about how many chunks have this word; 0 when they are too few to be known."""
        return self._shares.get(lexeme, 0.0) * self.chunks


@dataclass(frozen=True, slots=True)
class _Word:
    lexeme: str
    chunks: float  # about how many have it
    weight: float


def prepare(connection: Connection) -> None:
    """Set what searches need, once for a connection."""
    # Compiling a statement takes longer than any of these runs.
    connection.execute(
        "SELECT set_config('hnsw.ef_search', %s, false), set_config('hnsw.iterative_scan', 'strict_order', false), "
        "set_config('jit', 'off', false)",
        [str(EF_SEARCH)],
    )


def search(
    connection: Connection, address: Address, stored: Stored, rarity: Rarity, query: Query
) -> tuple[list[Hit], str | None]:
    """Answer a search.

    Returns:
        The hits, and the identity of the index that they came from, None when there are none.

    Raises:
        psycopg.Error: the database could not answer.
    """
    if query.mode == "vector":
        assert query.vector is not None
        rows = _vector_rows(connection, address, stored, _HITS_BY_VECTOR, query.vector, query.k)
        hits = [_to_hit(row, row[9]) for row in rows]
        return hits, rows[0][8] if rows else None
    with _snapshot(connection):
        if query.mode == "text":
            best = _by_words(connection, address, stored, rarity, query.text, query.k)
        else:
            assert query.vector is not None
            depth = max(query.k, FUSED_DEPTH)
            scores: dict[Place, float] = {}
            for ranking in (
                _by_vector(connection, address, stored, query.vector, depth),
                _by_words(connection, address, stored, rarity, query.text, depth),
            ):
                for rank, (place, _) in enumerate(ranking, start=1):
                    scores[place] = scores.get(place, 0.0) + 1.0 / (RANK_CONSTANT + rank)
            best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[: query.k]
        if not best:
            return [], None
        places = [place for place, _ in best]
        rows = connection.execute(
            filled(sql.SQL(_HITS), address),
            [[document for document, _ in places], [ordinal for _, ordinal in places]],
        ).fetchall()
    found = {(row[0], row[1]): row for row in rows}
    return [_to_hit(found[place], score) for place, score in best], rows[0][8]


@contextmanager
def _snapshot(connection: Connection) -> Iterator[None]:
    """Open a read-only transaction in which nothing changes."""
    connection.isolation_level, connection.read_only = IsolationLevel.REPEATABLE_READ, True
    try:
        with connection.transaction():
            yield
    finally:
        if connection.info.transaction_status == TransactionStatus.IDLE:
            connection.isolation_level = connection.read_only = None


def _to_hit(row: tuple[Any, ...], score: float) -> Hit:
    _, ordinal, source, start, end, text, title, media_type, *_ = row
    return Hit(from_store(source), ordinal, start, end, text, score, title, media_type)


def _by_vector(
    connection: Connection, address: Address, stored: Stored, vector: NDArray[np.float32], k: int
) -> list[tuple[Place, float]]:
    rows = _vector_rows(connection, address, stored, _BY_VECTOR, vector, k)
    return [((row[0], row[1]), float(row[2])) for row in rows]


def _vector_rows(
    connection: Connection,
    address: Address,
    stored: Stored,
    query: str,
    vector: NDArray[np.float32],
    k: int,
) -> list[tuple[Any, ...]]:
    extension, dimensions = sql.Identifier(stored.extension), stored.settings.dimensions
    nearest = sql.SQL(_NEAREST_HALF if halved(dimensions) else _NEAREST).format(
        v=extension, dimensions=sql.Literal(dimensions)
    )
    statement = filled(sql.SQL(query), address, v=extension, nearest=nearest)
    values = {"vector": vector_literal(vector), "k": k, "more": 2 * k + FUSED_DEPTH}
    return connection.execute(statement, values, prepare=False).fetchall()


def _by_words(
    connection: Connection, address: Address, stored: Stored, rarity: Rarity, text: str, k: int
) -> list[tuple[Place, float]]:
    if not text.strip():
        return []
    clean = storable(text[:_QUERY_CHARS].encode("utf-8", "replace").decode())
    rarity.refresh(connection, address)
    words = _weighed(connection, stored, rarity, clean)
    if not words:
        return []
    found: list[tuple[Place, float]] = []
    for candidates, values in _candidates(words, k):
        known = {place for place, _ in found}
        found += [
            each
            for each in _ranked(connection, address, words, candidates, values, k)
            if each[0] not in known
        ]
        if len(found) >= k:
            break
    return found[:k]


def _weighed(connection: Connection, stored: Stored, rarity: Rarity, text: str) -> list[_Word]:
    """The words of a text, the rarest first, with the weight that BM25 gives a word (its inverse document frequency)."""
    words = []
    for (lexeme,) in connection.execute(_LEXEMES, [stored.language, text]):
        chunks = rarity.chunks_with(lexeme)
        weight = math.log(1 + (max(rarity.chunks - chunks, 0) + 0.5) / (chunks + 0.5))
        words.append(_Word(lexeme, chunks, weight))
    return sorted(words, key=lambda word: (word.chunks, word.lexeme))[:_MOST_WORDS]


def _candidates(words: list[_Word], k: int) -> list[tuple[str, list[Any]]]:
    """The conditions that say which chunks are ranked, the best first; the next is for when one finds too few."""
    most = max(_RANKED, k)
    total, rare = 0.0, 0
    while rare < len(words) and total + words[rare].chunks <= most:
        total += words[rare].chunks
        rare += 1
    if rare == len(words):
        return [("words @@ %s::tsquery", [_joined(words, "|")])]
    some = "SELECT document, ordinal FROM {s}.chunks WHERE words @@ %s::tsquery LIMIT %s"
    parts = [(_joined(words, "&"), most)]
    if rare:
        parts.append((_joined(words[:rare], "|"), most))
    common = (_joined(words[rare : rare + 1], "|"), most)
    every = (_joined(words, "|"), most)
    lists = [parts if rare else [*parts, common], [every]]
    return [
        (
            "(document, ordinal) IN (" + " UNION ".join(f"({some})" for _ in group) + ")",
            [value for part in group for value in part],
        )
        for group in lists
    ]


def _ranked(
    connection: Connection,
    address: Address,
    words: list[_Word],
    candidates: str,
    values: list[Any],
    k: int,
) -> list[tuple[Place, float]]:
    score = " + ".join("%s * ts_rank(words, %s::tsquery, 1)" for _ in words)
    weights = [value for word in words for value in (word.weight, _joined([word], "|"))]
    statement = (
        f"SELECT document, ordinal, {score} AS score FROM {{s}}.chunks WHERE {candidates} "
        "ORDER BY score DESC, document, ordinal LIMIT %s"
    )
    rows = connection.execute(
        filled(sql.SQL(statement), address),
        [*weights, *values, k],
        prepare=False,
    )
    return [((row[0], row[1]), float(row[2])) for row in rows]


def _joined(words: list[_Word], operator: str) -> str:
    """Write words as a tsquery."""
    return operator.join(
        "'" + word.lexeme.replace("\\", "\\\\").replace("'", "''") + "'" for word in words
    )
