"""Searching a LanceDB table: by words, by vector, and by both at once.

Both halves of a hybrid search read the same version of the table, so what they find together existed
together. They are fused by reciprocal rank (Cormack, Clarke and Büttcher, 2009): a hit at rank r of a list counts 1 / (60 +
r), which needs no common scale of BM25 and cosine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tournant.ingest.errors import InvalidOption, SearchFailed
from tournant.ingest.indexes.base import MODES, Hit, Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

RANK_CONSTANT = 60
FUSED_DEPTH = 50  # hits taken from each list at least
_ATTEMPTS = 3

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """One search: see `Index.search` for what the fields mean and what is refused."""

    text: str
    vector: NDArray[np.float32] | None
    k: int
    mode: Mode

    def check(self, dimensions: int) -> None:
        """Refuse what can't be answered by an index of these dimensions.

        Raises:
            InvalidOption: saying what and how to mend it.
        """
        if self.mode not in MODES:
            raise InvalidOption(f"no search mode {self.mode!r}; use one of {', '.join(MODES)}")
        if self.k < 1:
            raise InvalidOption(f"k is {self.k}; ask for at least one hit")
        if self.mode == "text":
            return
        shape = None if self.vector is None else self.vector.shape
        if shape != (dimensions,):
            raise InvalidOption(
                f"mode {self.mode!r} needs the embedded query, a vector of shape ({dimensions},), not {shape}"
            )


def search(directory: str, open_latest: Callable[[], Any], query: Query) -> list[Hit]:
    """Answer a search.

    Args:
        directory: the folder of the index, for messages.
        open_latest: gives a handle on the newest version of the table, or None for an index without a table.
        query: what to look for.

    Raises:
        SearchFailed: the store could not answer.
    """
    for attempt in range(_ATTEMPTS):
        try:
            table = open_latest()
            return [] if table is None else _answer(table, query)
        except (RuntimeError, ValueError, OSError) as error:
            # Upkeep in another process may have deleted the files of the version that was being read.
            if attempt + 1 == _ATTEMPTS or "not found" not in str(error).lower():
                reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
                raise SearchFailed(directory, f"could not be searched: {reason}") from error
    raise AssertionError("unreachable")


def _answer(table: Any, query: Query) -> list[Hit]:
    from tournant.ingest.indexes.rows import to_hits

    if query.mode == "text":
        rows = _by_words(table, query.text, query.k)
        return to_hits(rows, [row["_score"] for row in rows])
    if query.mode == "vector":
        rows = _by_vector(table, query.vector, query.k)
        return to_hits(rows, [1.0 - row["_distance"] for row in rows])
    depth = max(query.k, FUSED_DEPTH)
    found: dict[str, Row] = {}
    scores: dict[str, float] = {}
    for ranking in (_by_vector(table, query.vector, depth), _by_words(table, query.text, depth)):
        for rank, row in enumerate(ranking, start=1):
            found.setdefault(row["id"], row)
            scores[row["id"]] = scores.get(row["id"], 0.0) + 1.0 / (RANK_CONSTANT + rank)
    best = sorted(scores, key=lambda key: (-scores[key], key))[: query.k]
    return to_hits([found[key] for key in best], [scores[key] for key in best])


def _by_vector(table: Any, vector: NDArray[np.float32] | None, k: int) -> list[Row]:
    from tournant.ingest.indexes.rows import HIT_COLUMNS

    # Vectors have length 1, so the dot product is the cosine, and a zero vector is no special case.
    query = table.search(vector, vector_column_name="vector", query_type="vector")
    query = query.distance_type("dot").select([*HIT_COLUMNS, "_distance"]).limit(k)
    rows: list[Row] = query.to_arrow().to_pylist()
    return rows


def _by_words(table: Any, text: str, k: int) -> list[Row]:
    if not text.strip():
        return []
    from lancedb.query import MatchQuery

    from tournant.ingest.indexes.rows import HIT_COLUMNS

    words = text.encode("utf-8", "replace").decode()
    match: Any = MatchQuery  # its stub takes the defaults of its fields for required
    query = (
        table.search(match(words, "text"), query_type="fts")
        .select([*HIT_COLUMNS, "_score"])
        .limit(k)
    )
    rows: list[Row] = query.to_arrow().to_pylist()
    return rows
