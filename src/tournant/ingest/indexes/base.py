"""What an index is, and the records it deals in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from tournant.ingest.errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

    from tournant.ingest.documents import EmbeddedDocument
    from tournant.ledger import Ledger

Mode = Literal["hybrid", "vector", "text"]
MODES: tuple[Mode, ...] = ("hybrid", "vector", "text")


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """What all rows of one index have in common. It is stored, and another is refused.

    Attributes:
        embedder: the name of the embedder that made the vectors.
        dimensions: the length of a vector.
        chunker: the name of the chunker that cut the texts.
    """

    embedder: str
    dimensions: int
    chunker: str

    def __post_init__(self) -> None:
        if self.dimensions < 1:
            raise InvalidOption(f"dimensions is {self.dimensions}; a vector has at least one")


@dataclass(frozen=True, slots=True)
class Counts:
    """How much is in an index. A document without chunks (an empty file) has no rows and isn't counted."""

    documents: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Hit:
    """One chunk that answers a search.

    Attributes:
        source: the document's source.
        ordinal: the chunk's number in its document, from 0.
        start: where the chunk begins in the document's text.
        end: where it ends.
        text: the chunk.
        score: higher is better: cosine similarity (vector), BM25 (text), or the fused rank (hybrid).
            PostgreSQL has no BM25: see `tournant.ingest.indexes.pgvector.searching`.
        title: the document's title, or "".
        media_type: what the document was read from.
    """

    source: str
    ordinal: int
    start: int
    end: int
    text: str
    score: float
    title: str
    media_type: str


class Index(Protocol):
    """Embedded documents, replaced as wholes and searched by words, by vector or by both.

    Every method may be called from any thread. How many processes may write at a time is the store's own matter: one into a folder,
    any number into PostgreSQL.
    """

    @property
    def settings(self) -> IndexSettings:
        """What the index was created with."""
        ...

    def replace(self, documents: Sequence[EmbeddedDocument]) -> None:
        """Put documents in, in one commit: what their sources had before is gone when the new is there.

        Doing it again changes nothing. A document without chunks leaves nothing of its source.

        Raises:
            ValueError: two of the documents have the same source, or vectors have other dimensions.
            IndexWriteFailed: the store refused; nothing has changed.
        """
        ...

    def remove(self, sources: Iterable[str]) -> int:
        """Take sources out, and say how many chunks went. Sources that aren't there are no error.

        Raises:
            IndexWriteFailed: the store refused; some of a very long list may be gone already.
        """
        ...

    def vectors_of(self, sources: Iterable[str]) -> dict[bytes, NDArray[np.float32]]:
        """Give the vectors that these sources have now, by `text_hash` of their chunk."""
        ...

    def sources(self) -> set[str]:
        """Name every source that has chunks."""
        ...

    def counts(self) -> Counts:
        """Count documents and chunks."""
        ...

    def search(
        self, text: str, vector: NDArray[np.float32] | None, k: int = 10, mode: Mode = "hybrid"
    ) -> list[Hit]:
        """Find the best chunks.

        Args:
            text: the words to look for; not used in mode "vector".
            vector: the embedded query; not used in mode "text".
            k: how many hits to give at most.
            mode: by words (BM25), by vector (cosine), or by both, fused by reciprocal rank.

        Returns:
            Hits, best first. Everything that is committed is found, indexed or not.

        Raises:
            InvalidOption: an unknown mode, ``k`` below 1, or a vector that is missing or has other dimensions.
            SearchFailed: the store could not answer.
        """
        ...

    def optimize(self) -> None:
        """Bring the search structures up to date, compact files, delete what no version needs."""
        ...

    def size_bytes(self) -> int:
        """Bytes that it takes where it lies."""
        ...

    def close(self) -> None:
        """Finish upkeep and let go of the files. Closing twice is no error."""
        ...


class StoredIndex(Index, Protocol):
    """An index with what an ingest keeps beside it. It closes itself as a context manager."""

    @property
    def directory(self) -> str:
        """Where it lies, for messages: a folder, or a URL without its password."""
        ...

    @property
    def folder(self) -> str | None:
        """Its folder on this machine, which no ingest may walk into; None where it has none."""
        ...

    def ledger(self, *, lock: bool = True) -> Ledger | None:
        """Return the ledger of the ingests into it; None when it is only to be looked at and there is none yet.

        Args:
            lock: False only looks.
        """
        ...

    def remember_embedder(self, spec: str) -> None:
        """Keep the embedder's spec, so that a search can embed its words with it.

        Raises:
            IndexWriteFailed: the store refused.
        """
        ...

    def recall_embedder(self) -> str | None:
        """Return the embedder's spec, if one was kept."""
        ...

    def is_being_written(self) -> bool:
        """Tell whether someone has it open for writing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
