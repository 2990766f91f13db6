"""What a reader is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tournant.ingest.documents import Document


class Reader(Protocol):
    """Turns the bytes of one kind of file into a document. Has no state, so it can be shared and pickled."""

    @property
    def name(self) -> str:
        """What it reads, in a word: "text", "html", "pdf"."""
        ...

    @property
    def suffixes(self) -> dict[str, str]:
        """The suffixes it reads (lower case, with the dot) and the media type of each."""
        ...

    def read(self, source: str, data: bytes, suffix: str) -> Document:
        """Parse a file.

        Args:
            source: the path, for the document and for messages.
            data: the whole content; empty content gives an empty document.
            suffix: the file's suffix, lower case with the dot, or "".

        Raises:
            UnreadableFile: the content is damaged, encrypted or of another kind.
            MissingExtra: a package it needs is not installed.
        """
        ...
