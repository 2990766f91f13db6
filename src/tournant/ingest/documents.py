"""What travels through an ingest: a document, the same cut into chunks, the same with vectors.

One record travels per document, not one per chunk, and it carries the text once with the
positions of its chunks: pickling it costs little more than copying the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

HASH_BYTES = 16


def text_hash(text: str) -> bytes:
    """Identify a chunk's text: 16 bytes of BLAKE2b over its UTF-8."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Document:
    """The text of one source.

    Attributes:
        source: the source's identity; for files the path as `os.fsdecode` gives it, so a name that
            is not UTF-8 carries surrogate escapes.
        text: the whole text. It can always be encoded as UTF-8.
        media_type: what the text was read from, such as ``text/html``.
        title: the document's own title, or ``""``.
    """

    source: str
    text: str
    media_type: str = "text/plain"
    title: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a document: ``document.text[start:end]``."""

    source: str
    ordinal: int
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class ChunkedDocument:
    """A document and where its chunks lie.

    Attributes:
        document: the document that was cut.
        starts: the first character of each chunk, ascending.
        ends: the end of each chunk (exclusive). Chunks may overlap.
    """

    document: Document
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def source(self) -> str:
        """The identity of the document's source."""
        return self.document.source

    @property
    def texts(self) -> list[str]:
        """The text of each chunk, in order."""
        text = self.document.text
        return [text[start:end] for start, end in zip(self.starts, self.ends, strict=True)]

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Chunk]:
        for ordinal, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            yield Chunk(self.source, ordinal, start, end, self.document.text[start:end])


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedDocument:
    """A document, its chunks, and one vector for each chunk.

    Attributes:
        chunks: the document cut into chunks.
        vectors: float32, shape ``(len(chunks), dimensions)``.
        cached: how many of the vectors came from a cache.
        reused: how many were in the index before, with the same text.

    Raises:
        ValueError: when there are not as many vectors as chunks.
    """

    chunks: ChunkedDocument
    vectors: NDArray[np.float32]
    cached: int = 0
    reused: int = 0

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.shape[0] != len(self.chunks):
            raise ValueError(
                f"{self.chunks.source!r} has {len(self.chunks)} chunks but its vectors have the shape "
                f"{self.vectors.shape}; give one row per chunk"
            )

    @property
    def source(self) -> str:
        """The identity of the document's source."""
        return self.chunks.source


def embedded(
    documents: Sequence[ChunkedDocument], vectors: NDArray[np.float32]
) -> list[EmbeddedDocument]:
    """Hand the rows of one batch of vectors back to the documents they belong to.

    Args:
        documents: the documents, in the order in which their chunks were embedded.
        vectors: one row for each chunk of all the documents.

    Raises:
        ValueError: when the number of rows is not the number of chunks.
    """
    total = sum(map(len, documents))
    if len(vectors) != total:
        raise ValueError(f"{total} chunks were embedded but {len(vectors)} vectors came back")
    result, row = [], 0
    for document in documents:
        result.append(EmbeddedDocument(document, vectors[row : row + len(document)]))
        row += len(document)
    return result
