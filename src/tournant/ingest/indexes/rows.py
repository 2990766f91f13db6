"""Embedded documents as Arrow tables, and back."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tournant.ingest.documents import HASH_BYTES, text_hash
from tournant.ingest.indexes.base import Hit
from tournant.ingest.sources import from_store, to_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from tournant.ingest.documents import EmbeddedDocument

HIT_COLUMNS = ["id", "source", "ordinal", "start", "end", "text", "title", "media_type"]


def schema(dimensions: int) -> pa.Schema:
    """The columns of an index."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("ordinal", pa.int32(), nullable=False),
            pa.field("start", pa.int32(), nullable=False),
            pa.field("end", pa.int32(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("title", pa.string(), nullable=False),
            pa.field("media_type", pa.string(), nullable=False),
            pa.field("hash", pa.binary(HASH_BYTES), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dimensions), nullable=False),
        ]
    )


def to_table(documents: Sequence[EmbeddedDocument], dimensions: int) -> pa.Table:
    """Lay documents out as rows.

    A row's id is a digest of its source and its ordinal, so the same chunk always has the same id.

    Raises:
        ValueError: the vectors of a document have other dimensions.
    """
    ids: list[str] = []
    texts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    ordinals: list[int] = []
    per_document: dict[str, list[str]] = {"source": [], "title": [], "media_type": []}
    lengths: list[int] = []
    for document in documents:
        if document.vectors.shape[1] != dimensions:
            raise ValueError(
                f"{document.source!r} has vectors of {document.vectors.shape[1]} dimensions, "
                f"the index has {dimensions}"
            )
        chunks = document.chunks
        source = to_store(chunks.source)
        prefix = blake2b(source.encode(), digest_size=12).hexdigest()
        count = len(chunks)
        ids += [f"{prefix}{ordinal:08x}" for ordinal in range(count)]
        ordinals += range(count)
        starts += chunks.starts
        ends += chunks.ends
        texts += chunks.texts
        lengths.append(count)
        per_document["source"].append(source)
        per_document["title"].append(chunks.document.title)
        per_document["media_type"].append(chunks.document.media_type)
    owner = np.repeat(np.arange(len(documents)), lengths)
    repeated = {
        name: pa.array(values, pa.string()).take(pa.array(owner))
        for name, values in per_document.items()
    }
    hashes = pa.py_buffer(b"".join(map(text_hash, texts)))
    return pa.table(
        [
            pa.array(ids, pa.string()),
            repeated["source"],
            pa.array(ordinals, pa.int32()),
            pa.array(starts, pa.int32()),
            pa.array(ends, pa.int32()),
            pa.array(texts, pa.string()),
            repeated["title"],
            repeated["media_type"],
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(HASH_BYTES), len(texts), [None, hashes]),
            _vector_column([document.vectors for document in documents], dimensions),
        ],
        schema=schema(dimensions),
    )


def _vector_column(parts: Sequence[NDArray[np.float32]], dimensions: int) -> pa.Array:
    filled = [part for part in parts if len(part)]
    if not filled:
        return pa.array([], pa.list_(pa.float32(), dimensions))
    # One document's vectors are used where they lie; those of several are copied together once.
    whole = filled[0] if len(filled) == 1 else np.concatenate(filled)
    flat = np.ascontiguousarray(whole, dtype=np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), dimensions)


def vectors_by_hash(table: pa.Table, dimensions: int) -> dict[bytes, NDArray[np.float32]]:
    """Give each row's vector by the hash of its text, from the columns ``hash`` and ``vector``."""
    if table.num_rows == 0:
        return {}
    column = table["vector"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions)
    return dict(zip(table["hash"].to_pylist(), vectors, strict=True))


def to_hits(rows: Iterable[dict[str, Any]], scores: Iterable[float]) -> list[Hit]:
    """Make hits of rows that have the `HIT_COLUMNS`."""
    return [
        Hit(
            source=from_store(row["source"]),
            ordinal=row["ordinal"],
            start=row["start"],
            end=row["end"],
            text=row["text"],
            score=score,
            title=row["title"],
            media_type=row["media_type"],
        )
        for row, score in zip(rows, scores, strict=True)
    ]


def condition(sources: Iterable[str]) -> str:
    """Write the SQL condition that selects sources. There must be at least one."""
    names = (to_store(source).replace("'", "''") for source in sources)
    return "source IN ('" + "','".join(names) + "')"
