"""What the stages of an ingest do with one document. Module-level functions, so that workers import them by name.

Reading, cutting and embedding run in processes: parsing and the default embedder hold the GIL, and PDF may run nowhere
else. Recalling old vectors and writing run in the process that holds the index.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from tournant.ingest.documents import ChunkedDocument, EmbeddedDocument, text_hash

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from tournant.ingest.chunkers import ChunkSettings, SemanticChunker
    from tournant.ingest.documents import Document
    from tournant.ingest.embedders.base import Embedder
    from tournant.ingest.embedders.cached import CachedEmbedder
    from tournant.ingest.indexes.base import Index
    from tournant.ingest.walk import FoundFile


@dataclass(frozen=True, slots=True, eq=False)
class Recalled:
    """A cut document and the vectors that the index already has for some of its chunks.

    Attributes:
        chunks: the document.
        rows: the ordinals of the chunks whose vectors are known, ascending.
        vectors: those vectors, shape ``(len(rows), dimensions)``.
    """

    chunks: ChunkedDocument
    rows: tuple[int, ...]
    vectors: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.chunks)


def read(file: FoundFile, *, max_bytes: int) -> Document:
    """Load and parse one file."""
    from tournant.ingest.readers.registry import read as read_file

    return read_file(file.path, max_bytes)


def make_chunker(settings: ChunkSettings) -> SemanticChunker:
    """Build a worker's chunker."""
    from tournant.ingest.chunkers import SemanticChunker

    return SemanticChunker(settings)


def cut(document: Document, chunker: SemanticChunker) -> ChunkedDocument:
    """Cut one document."""
    return chunker.chunk(document)


def make_embedder(spec: str) -> Embedder:
    """Build a worker's embedder, loaded."""
    from tournant.ingest.embedders import embedder

    made = embedder(spec)
    made.embed(["ready"])
    return made


def make_cached_embedder(spec: str, name: str, dimensions: int, path: str) -> CachedEmbedder:
    """Build a worker's embedder with the cache at `path` before it; the model loads when a text is not in there."""
    from tournant.ingest.embedders.cached import CachedEmbedder

    return CachedEmbedder(partial(make_embedder, spec), name, dimensions, path)


def close_cached(embedder: CachedEmbedder) -> None:
    """Close a worker's cache."""
    embedder.close()


def embed(document: ChunkedDocument, embedder: Embedder) -> EmbeddedDocument:
    """Embed one document."""
    return EmbeddedDocument(document, embedder.embed(document.texts))


def embed_cached(
    documents: Sequence[ChunkedDocument | Recalled], embedder: CachedEmbedder
) -> list[EmbeddedDocument]:
    """Do as `embed_all`, and note of each document how many of its vectors came from the cache."""
    embedded, row = [], 0
    for asked, document in zip(documents, embed_all(documents, embedder), strict=True):
        fresh = len(asked) - (len(asked.rows) if isinstance(asked, Recalled) else 0)
        cached = sum(embedder.known[row : row + fresh])
        row += fresh
        embedded.append(replace(document, cached=cached))
    return embedded


def embed_all(
    documents: Sequence[ChunkedDocument | Recalled], embedder: Embedder
) -> list[EmbeddedDocument]:
    """Embed several documents by one call, but for the chunks whose vectors are known."""
    import numpy as np

    texts: list[str] = []
    for document in documents:
        if isinstance(document, Recalled):
            known = set(document.rows)
            texts += [t for n, t in enumerate(document.chunks.texts) if n not in known]
        else:
            texts += document.texts
    vectors = embedder.embed(texts)
    embedded, row = [], 0
    for document in documents:
        if isinstance(document, Recalled):
            fresh = len(document) - len(document.rows)
            own = np.empty((len(document), vectors.shape[1]), np.float32)
            mask = np.zeros(len(document), bool)
            mask[list(document.rows)] = True
            own[mask] = document.vectors
            own[~mask] = vectors[row : row + fresh]
            row += fresh
            embedded.append(EmbeddedDocument(document.chunks, own, reused=len(document.rows)))
        else:
            embedded.append(EmbeddedDocument(document, vectors[row : row + len(document)]))
            row += len(document)
    return embedded


class Recall:
    """Looks up which chunks of changed documents have kept their text, so that they need not be embedded again.

    Args:
        index: the index that holds the documents' earlier state.
        known: the sources that have one.
    """

    def __init__(self, index: Index, known: Container[str]) -> None:
        self._index = index
        self._known = known

    def __call__(self, documents: list[ChunkedDocument]) -> list[ChunkedDocument | Recalled]:
        """Attach known vectors to documents that the index has in an earlier state."""
        changed = [document.source for document in documents if document.source in self._known]
        if not changed:
            return list(documents)
        vectors = self._index.vectors_of(changed)
        return [
            self._recalled(document, vectors) if document.source in self._known else document
            for document in documents
        ]

    def _recalled(
        self, document: ChunkedDocument, vectors: dict[bytes, NDArray[np.float32]]
    ) -> ChunkedDocument | Recalled:
        found = {n: vectors.get(text_hash(text)) for n, text in enumerate(document.texts)}
        rows = [(n, vector) for n, vector in found.items() if vector is not None]
        if not rows:
            return document
        import numpy as np

        return Recalled(
            document, tuple(n for n, _ in rows), np.stack([vector for _, vector in rows])
        )


class Writer:
    """The sink: puts lists of documents into the index.

    Attributes:
        chunks: chunks written.
        cached: how many of them had their vectors from a cache.
        reused: how many had them from the index.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self.chunks = 0
        self.cached = 0
        self.reused = 0

    def __call__(self, documents: list[EmbeddedDocument]) -> None:
        """Replace the documents in the index, in one commit."""
        self._index.replace(documents)
        self.chunks += sum(len(document.chunks) for document in documents)
        self.cached += sum(document.cached for document in documents)
        self.reused += sum(document.reused for document in documents)


class Preload:
    """Loads the store's packages on a thread of its own as soon as there is a first document to do.

    Args:
        wanted: whether the store has any that take long.
    """

    def __init__(self, wanted: bool = True) -> None:
        self._wanted = wanted
        self._thread: threading.Thread | None = None

    def __call__(self, file: FoundFile) -> None:
        """Begin to load, once."""
        if self._wanted and self._thread is None:
            from tournant.ingest.indexes.lance import preload

            self._thread = threading.Thread(target=preload, name="tournant-preload", daemon=True)
            self._thread.start()


def chunk_count(document: EmbeddedDocument) -> float:
    """Weigh a document for the writer's batches: its chunks, and 1 for itself."""
    return len(document.chunks) + 1.0


def reader(max_bytes: int) -> partial[Document]:
    """Return the reading stage with its size limit."""
    return partial(read, max_bytes=max_bytes)
