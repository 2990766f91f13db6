from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tournant.ingest.chunkers import Chunker, ChunkSettings, SemanticChunker
from tournant.ingest.documents import Document
from tournant.ingest.embedders.static import StaticEmbedder
from tournant.ingest.errors import InvalidOption

PROSE = "\n\n".join(
    f"Paragraph {n}. " + " ".join(f"Sentence {m} of it says something." for m in range(n % 9 + 1))
    for n in range(40)
)
TOKENIZER = StaticEmbedder().tokenizer_file

CHUNKERS: dict[str, Callable[[], Chunker]] = {
    "characters": lambda: SemanticChunker(ChunkSettings(120, 20)),
    "default": SemanticChunker,
    "no overlap": lambda: SemanticChunker(ChunkSettings(120, 0)),
    "tokens": lambda: SemanticChunker(ChunkSettings(40, 8, "tokens", TOKENIZER)),
}


@pytest.fixture(params=CHUNKERS)
def chunker(request: pytest.FixtureRequest) -> Chunker:
    return CHUNKERS[request.param]()


class TestEveryChunker:
    @pytest.mark.parametrize("media_type", ["text/plain", "text/markdown"])
    @pytest.mark.parametrize(
        "text", [PROSE, "# Head\n\nText *here*.\n\n- one\n- two\n", "x" * 700, "日本語。" * 90]
    )
    def test_keeps_all_text_in_order(self, chunker: Chunker, text: str, media_type: str) -> None:
        document = Document("s", text, media_type)
        chunks = list(chunker.chunk(document))
        covered = [False] * len(text)
        for chunk in chunks:
            assert chunk.text == text[chunk.start : chunk.end]
            assert chunk.text.strip()
            covered[chunk.start : chunk.end] = [True] * len(chunk.text)
        assert all(covered[n] or text[n].isspace() for n in range(len(text)))
        assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))
        assert [chunk.start for chunk in chunks] == sorted(chunk.start for chunk in chunks)

    def test_gives_the_same_chunks_again(self, chunker: Chunker) -> None:
        document = Document("s", PROSE)
        assert chunker.chunk(document) == chunker.chunk(document)

    @pytest.mark.parametrize("text", ["", " \n\t\n "])
    def test_gives_no_chunks_for_no_text(self, chunker: Chunker, text: str) -> None:
        assert len(chunker.chunk(Document("s", text))) == 0

    def test_is_named_after_its_parameters(self, chunker: Chunker) -> None:
        assert chunker.name
        assert len({make().name for make in CHUNKERS.values()}) == len(CHUNKERS)


def test_chunks_are_no_longer_than_the_size() -> None:
    chunker = SemanticChunker(ChunkSettings(120, 20))
    lengths = [len(chunk.text) for chunk in chunker.chunk(Document("s", PROSE))]
    assert max(lengths) <= 120
    assert sum(lengths) / len(lengths) > 60


def test_tokens_are_counted_with_the_tokenizer() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(TOKENIZER)
    chunker = SemanticChunker(ChunkSettings(40, 0, "tokens", TOKENIZER))
    for chunk in chunker.chunk(Document("s", PROSE)):
        assert len(tokenizer.encode(chunk.text).ids) <= 40


def test_chunks_overlap_by_what_is_asked() -> None:
    text = " ".join(f"word{n}" for n in range(200))
    document = SemanticChunker(ChunkSettings(100, 30)).chunk(Document("s", text))
    pairs = list(zip(document.starts[1:], document.ends, strict=False))
    assert pairs
    assert all(0 < end - start <= 30 for start, end in pairs)


def test_markdown_is_cut_at_its_headings() -> None:
    text = "# One\nfirst words\n# Two\nsecond words"
    chunker = SemanticChunker(ChunkSettings(30, 0))
    assert chunker.chunk(Document("s", text, "text/markdown")).texts == [
        "# One\nfirst words",
        "# Two\nsecond words",
    ]


@given(st.text("ab \n\té\U0001f600", max_size=60).map(lambda piece: piece * 700), st.integers(1, 3))
def test_long_texts_are_cut_in_windows_without_losing_anything(text: str, repeat: int) -> None:
    text *= repeat
    document = SemanticChunker(ChunkSettings(500, 0)).chunk(Document("s", text))
    joined = "".join("".join(chunk.split()) for chunk in document.texts)
    assert joined == "".join(text.split())
    assert document.texts == [
        text[s:e] for s, e in zip(document.starts, document.ends, strict=True)
    ]


def test_a_huge_line_takes_no_more_than_linear_time() -> None:
    document = SemanticChunker().chunk(Document("s", "x" * 2_000_000))
    assert sum(map(len, document.texts)) >= 2_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "chunk size of 0 characters"),
        ({"size": 10, "overlap": 10}, "overlap of 10"),
        ({"size": 10, "overlap": -1}, "overlap of -1"),
        ({"unit": "words"}, "no unit 'words'"),
        ({"unit": "tokens"}, "need the embedder's tokenizer"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        ChunkSettings(**options)  # type: ignore[arg-type]


def test_a_tokenizer_that_is_none_is_refused(tmp_path: object) -> None:
    chunker = SemanticChunker(ChunkSettings(unit="tokens", tokenizer_file=f"{tmp_path}/none.json"))
    with pytest.raises(InvalidOption, match=r"none\.json"):
        chunker.chunk(Document("s", "x"))


def test_settings_travel_and_fill_in_defaults() -> None:
    settings = pickle.loads(pickle.dumps(ChunkSettings()))
    assert settings.sizes == (800, 100)
    assert settings.name == "semantic:characters:800:100"
    assert ChunkSettings(400).sizes == (400, 50)
    assert ChunkSettings(overlap=10).sizes == (800, 10)
