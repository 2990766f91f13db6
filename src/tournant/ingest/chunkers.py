"""Chunkers: a document is cut into pieces of a size that an embedder and a reader can take in.

Measured on technical documentation: 30 microseconds for a document of 7,000 characters when sizes are in
characters, 5 milliseconds when they are in tokens, because the tokenizer then runs for every place where a cut might
be. So characters are the default; chunks of at most 800 of them have about 190 tokens of technical English on average. The splitter releases the GIL while it
splits, but not while it makes its result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tournant.ingest.documents import ChunkedDocument, Document
from tournant.ingest.errors import InvalidOption, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Iterator

Unit = Literal["characters", "tokens"]

DEFAULT_SIZE: dict[Unit, int] = {"characters": 800, "tokens": 250}
DEFAULT_OVERLAP: dict[Unit, int] = {"characters": 100, "tokens": 30}
# Office documents are read as Markdown.
_MARKDOWN = ("text/markdown", "application/vnd.openxmlformats-officedocument.")
# The splitter's time grows faster than the text (quadratically for one long line): give it windows.
_WINDOW = 32_768
_BREAKS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"\s"))


class Chunker(Protocol):
    """Cuts documents. One instance serves one thread at a time."""

    @property
    def name(self) -> str:
        """The identity of the cut: algorithm and parameters. An index keeps and compares it."""
        ...

    def chunk(self, document: Document) -> ChunkedDocument:
        """Cut a document.

        Chunks are in order, none is blank, and all text but white space is in at least one. The same document gives
        the same chunks.
        """
        ...


@dataclass(frozen=True, slots=True)
class ChunkSettings:
    """How to cut.

    Attributes:
        size: the most that a chunk may hold; None takes the default of the unit (800 characters, 250 tokens).
        overlap: how much of a chunk's end the next one may repeat; None takes the default of the unit (100
            characters, 30 tokens), or an eighth of a given size.
        unit: what sizes are counted in. "tokens" is a hundred times slower and needs ``tokenizer_file``.
        tokenizer_file: the ``tokenizer.json`` that counts tokens: the embedder's.

    Raises:
        InvalidOption: a size below 1, an overlap not below the size, or tokens without a tokenizer.
    """

    size: int | None = None
    overlap: int | None = None
    unit: Unit = "characters"
    tokenizer_file: str = ""

    def __post_init__(self) -> None:
        if self.unit not in DEFAULT_SIZE:
            raise InvalidOption(
                f"no unit {self.unit!r} of chunk sizes; use 'characters' or 'tokens'"
            )
        size, overlap = self.sizes
        if size < 1:
            raise InvalidOption(f"a chunk size of {size} {self.unit} is too small; use 1 or more")
        if not 0 <= overlap < size:
            raise InvalidOption(
                f"an overlap of {overlap} doesn't fit a chunk size of {size} {self.unit}; "
                "use 0 or more, and less than the size"
            )
        if self.unit == "tokens" and not self.tokenizer_file:
            raise InvalidOption(
                "chunk sizes in tokens need the embedder's tokenizer; give tokenizer_file, or count in characters"
            )

    @property
    def sizes(self) -> tuple[int, int]:
        """Size and overlap, with the defaults filled in."""
        size = DEFAULT_SIZE[self.unit] if self.size is None else self.size
        if self.overlap is not None:
            return size, self.overlap
        return size, DEFAULT_OVERLAP[self.unit] if self.size is None else size // 8

    @property
    def name(self) -> str:
        """The identity of the cut that these settings make."""
        size, overlap = self.sizes
        return f"semantic:{self.unit}:{size}:{overlap}"


class SemanticChunker:
    """Cuts at the largest boundaries that fit: paragraphs, lines, sentences, words.

    Markdown is cut along its own structure. The splitters are made at the first document.

    Args:
        settings: sizes and units.

    Raises:
        MissingExtra: semantic-text-splitter is not installed (at the first document).
    """

    def __init__(self, settings: ChunkSettings | None = None) -> None:
        self._settings = settings or ChunkSettings()
        self._plain: Any = None
        self._markdown: Any = None

    @property
    def name(self) -> str:
        """The identity of the cut."""
        return self._settings.name

    def chunk(self, document: Document) -> ChunkedDocument:
        """Cut a document; see `Chunker.chunk`."""
        if self._plain is None:
            self._load()
        splitter = self._markdown if document.media_type.startswith(_MARKDOWN) else self._plain
        starts: list[int] = []
        ends: list[int] = []
        for offset, window in _windows(document.text):
            for start, piece in splitter.chunk_indices(window):
                starts.append(offset + start)
                ends.append(offset + start + len(piece))
        return ChunkedDocument(document, tuple(starts), tuple(ends))

    def _load(self) -> None:
        try:
            from semantic_text_splitter import MarkdownSplitter, TextSplitter
        except ImportError as error:
            raise MissingExtra("cutting documents", "semantic-text-splitter", "ingest") from error
        size, overlap = self._settings.sizes
        if self._settings.unit == "characters":
            self._markdown = MarkdownSplitter(size, overlap)
            self._plain = TextSplitter(size, overlap)
            return
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(self._settings.tokenizer_file)
        except Exception as error:
            raise InvalidOption(
                f"the tokenizer {self._settings.tokenizer_file!r} can't be used: {error}"
            ) from error
        tokenizer.no_truncation()  # it would cap what a chunk counts
        tokenizer.no_padding()
        self._markdown = MarkdownSplitter.from_huggingface_tokenizer(tokenizer, size, overlap)
        self._plain = TextSplitter.from_huggingface_tokenizer(tokenizer, size, overlap)


def _windows(text: str) -> Iterator[tuple[int, str]]:
    """Cut a long text into windows, at the last blank line, line end or space in each."""
    start = 0
    while len(text) - start > _WINDOW:
        middle, end = start + _WINDOW // 2, start + _WINDOW
        for boundary in _BREAKS:
            found = list(boundary.finditer(text, middle, end))
            if found:
                end = found[-1].end()
                break
        yield start, text[start:end]
        start = end
    yield start, text[start:] if start else text
