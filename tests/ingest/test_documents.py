from __future__ import annotations

import pickle

import numpy as np
import pytest
from ingest_samples import embedded as sample

from tournant.ingest.documents import (
    ChunkedDocument,
    Document,
    EmbeddedDocument,
    embedded,
    text_hash,
)


def chunked(source: str = "a") -> ChunkedDocument:
    return ChunkedDocument(Document(source, "one two three"), (0, 4), (3, 13))


def test_chunks_are_slices_of_the_text() -> None:
    document = chunked()
    assert document.texts == ["one", "two three"]
    assert [(c.ordinal, c.start, c.end, c.text) for c in document] == [
        (0, 0, 3, "one"),
        (1, 4, 13, "two three"),
    ]
    assert len(document) == 2


def test_documents_survive_pickling() -> None:
    document = EmbeddedDocument(chunked("\udce9\n"), np.ones((2, 3), np.float32))
    again = pickle.loads(pickle.dumps(document, 5))
    assert again.chunks == document.chunks
    assert (again.vectors == document.vectors).all()


def test_a_document_is_smaller_pickled_than_its_chunks() -> None:
    text = "word " * 10_000
    document = ChunkedDocument(
        Document("a", text), tuple(range(0, 50_000, 500)), tuple(range(500, 50_001, 500))
    )
    assert len(pickle.dumps(document, 5)) < 1.05 * len(text)


def test_as_many_vectors_as_chunks_are_required() -> None:
    with pytest.raises(ValueError, match="'a' has 2 chunks"):
        EmbeddedDocument(chunked(), np.ones((3, 3), np.float32))


def test_a_batch_of_vectors_goes_back_to_its_documents() -> None:
    first, empty, second = chunked("a"), ChunkedDocument(Document("b", ""), (), ()), chunked("c")
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    result = embedded([first, empty, second], vectors)
    assert [document.source for document in result] == ["a", "b", "c"]
    assert [document.vectors[:, 0].tolist() for document in result] == [[0, 3], [], [6, 9]]
    with pytest.raises(ValueError, match="4 chunks were embedded but 3"):
        embedded([first, second], vectors[:3])


def test_hashes_tell_texts_apart() -> None:
    assert text_hash("a") == text_hash("a") != text_hash("b")
    assert len(text_hash("\ud800")) == 16
    assert sample("s", ["x"]).source == "s"
