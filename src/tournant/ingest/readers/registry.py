"""Which reader reads a file: by its content where that is unmistakable, else by its suffix."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tournant.ingest.documents import Document
from tournant.ingest.errors import UnreadableFile
from tournant.ingest.readers.html import HtmlReader
from tournant.ingest.readers.office import OfficeReader
from tournant.ingest.readers.opening import HEAD_BYTES, MAX_BYTES, load
from tournant.ingest.readers.pdf import PdfReader
from tournant.ingest.readers.sniffing import refuse_binary, sniff
from tournant.ingest.readers.structured import JsonLinesReader, JsonReader
from tournant.ingest.readers.table import CsvReader
from tournant.ingest.readers.text import TextReader

if TYPE_CHECKING:
    from tournant.ingest.readers.base import Reader

TEXT, HTML, PDF, OFFICE = TextReader(), HtmlReader(), PdfReader(), OfficeReader()
READERS: tuple[Reader, ...] = (
    TEXT,
    HTML,
    PDF,
    CsvReader(),
    JsonReader(),
    JsonLinesReader(),
    OFFICE,
)
SUFFIXES: dict[str, Reader] = {suffix: reader for reader in READERS for suffix in reader.suffixes}
"""Every suffix that is read, and its reader."""

# Names under which a page of HTML is more likely a mislabelled page than text about HTML.
_MISLABELLED_PAGE = frozenset(
    (".txt", ".text", ".pdf", ".json", ".csv", ".docx", ".xlsx", ".pptx", "")
)


def suffix_of(path: str) -> str:
    """The suffix of a path, lower case with its dot; "" if it has none."""
    return os.path.splitext(os.path.basename(path))[1].lower()


def choose(source: str, data: bytes) -> Reader:
    """Choose the reader of a file.

    Args:
        source: its path.
        data: its content, or at least the first 64 KiB.

    Raises:
        UnreadableFile: the content is binary and of no kind that is read.
    """
    suffix = suffix_of(source)
    by_name = SUFFIXES.get(suffix)
    kind = sniff(data[:HEAD_BYTES])
    if kind == "empty":
        return by_name or TEXT
    if kind == "pdf":
        return PDF
    if kind in ("zip", "ole"):
        if kind == "zip" and by_name is OFFICE:
            return OFFICE
        what = (
            "a ZIP archive"
            if kind == "zip"
            else "an old Office document (save it as .docx, .xlsx or .pptx)"
        )
        raise UnreadableFile(source, f"its content is {what}")
    refuse_binary(source, data[:HEAD_BYTES])
    if kind == "html" and (by_name is None or suffix in _MISLABELLED_PAGE):
        return HTML
    if by_name is None or by_name in (PDF, OFFICE):
        return TEXT  # text, whatever it is called
    return by_name


def parse(source: str, data: bytes) -> Document:
    """Turn a file's bytes into a document. Pure computation: see `pdf` for why it belongs on processes.

    Args:
        source: the path; its suffix matters where the content leaves a choice.
        data: the whole content.

    Raises:
        UnreadableFile: the content can't be read; the reason says why.
        MissingExtra: a package is needed that is not installed.
    """
    document = choose(source, data).read(source, data, suffix_of(source))
    text, title = document.text, document.title
    if _encodable(text) and _encodable(title):
        return document
    # JSON, for one, can spell half a surrogate pair.
    return Document(source, _repair(text), document.media_type, _repair(title))


def read(path: str, max_bytes: int = MAX_BYTES) -> Document:
    """Load and parse one file.

    Raises:
        UnreadableFile: it can't be opened or read; the reason says why.
        MissingExtra: a package is needed that is not installed.
    """
    return parse(path, load(path, max_bytes))


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _repair(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
