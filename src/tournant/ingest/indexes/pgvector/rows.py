"""Documents as rows of PostgreSQL's binary COPY, and vectors back out of its binary results.

The form is written by hand, as whole blocks: going through psycopg row by row, value by value, costs ten times as much.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tournant.ingest.documents import EmbeddedDocument, text_hash
from tournant.ingest.sources import to_store

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The columns that `copy_rows` writes.
COLUMNS = "document, ordinal, start_at, end_at, text, hash, vector"
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = struct.pack(">h", -1)
_ROW = struct.Struct(
    ">h" + "iq" + "ii" * 3 + "i"
)  # the count of columns, four numbers, the length of the text
_HASH = struct.Struct(">i")
_VECTOR = struct.Struct(">ihH")
_BLOCK = 1 << 20


def check(documents: Sequence[EmbeddedDocument], dimensions: int) -> None:
    """Refuse documents that no index can take.

    Raises:
        ValueError: two have the same source, or vectors have other dimensions or are not numbers.
    """
    if len({document.source for document in documents}) != len(documents):
        raise ValueError(
            "two documents of one replace have the same source; give the last one only"
        )
    for document in documents:
        if document.vectors.shape[1] != dimensions:
            raise ValueError(
                f"{document.source!r} has vectors of {document.vectors.shape[1]} dimensions, "
                f"the index has {dimensions}"
            )
        if not np.isfinite(document.vectors).all():
            raise ValueError(
                f"{document.source!r} has a vector with an infinite number, or none; see what its embedder does"
            )
        if "\0" in document.source:
            raise ValueError(
                f"{document.source!r} has a NUL in its name, which no database can hold"
            )


def storable(text: str) -> str:
    """Return text that PostgreSQL can hold: for NUL, which it can't, stands U+FFFD. The length stays."""
    return text.replace("\0", "\ufffd") if "\0" in text else text


def stored_source(source: str) -> str:
    """Return a source as it is stored."""
    return to_store(source)


def copy_rows(documents: Sequence[EmbeddedDocument], ids: dict[str, int]) -> Iterator[bytes]:
    """Write the chunks of documents in the form of a binary COPY, in blocks of about a megabyte.

    Args:
        documents: what `check` has passed.
        ids: the number of each document, by its stored source.
    """
    block = [_HEADER]
    size = 0
    for document in documents:
        chunks = document.chunks
        number = ids[to_store(document.source)]
        width = 4 * document.vectors.shape[1]
        vectors = np.ascontiguousarray(document.vectors, dtype=">f4").tobytes()
        head = _VECTOR.pack(4 + width, document.vectors.shape[1], 0)
        for ordinal, (start, end, text) in enumerate(
            zip(chunks.starts, chunks.ends, chunks.texts, strict=True)
        ):
            encoded = storable(text).encode("utf-8", "replace")
            digest = text_hash(text)
            block += (
                _ROW.pack(7, 8, number, 4, ordinal, 4, start, 4, end, len(encoded)),
                encoded,
                _HASH.pack(len(digest)),
                digest,
                head,
                vectors[ordinal * width : (ordinal + 1) * width],
            )
            size += len(encoded) + width
        if size > _BLOCK:
            yield b"".join(block)
            block, size = [], 0
    block.append(_TRAILER)
    yield b"".join(block)


def vector_literal(vector: NDArray[np.float32]) -> str:
    """Write a vector so that the database reads the very same numbers."""
    return "[" + ",".join(map(repr, vector.tolist())) + "]"


def from_binary(data: bytes) -> NDArray[np.float32]:
    """Read a vector of a binary result."""
    return np.frombuffer(data, ">f4", offset=4).astype(np.float32)
