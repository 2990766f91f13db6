"""PDF, by PDFium.

PDFium is not thread-safe and can give wrong text silently when two threads use it: run this in worker processes,
one document at a time, and nowhere else. Parsing holds the GIL for most of the time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tournant.ingest.documents import Document
from tournant.ingest.errors import MissingExtra, UnreadableFile

MEDIA_TYPE = "application/pdf"
# PDFium marks a hyphen at the end of a line that it took to divide a word.
_DIVIDED = re.compile("[\x02\ufffe]\\s*")
_TAIL = 2048
_REASONS = {
    "password": "it is encrypted and needs a password; save it without one",
    "security": "it is encrypted in a way that can't be read; save it without encryption",
}


@dataclass(frozen=True, slots=True)
class PdfReader:
    """The text of a PDF's pages, in their order. Process workers only: see the module."""

    name: str = "pdf"
    suffixes: dict[str, str] = field(default_factory=lambda: {".pdf": MEDIA_TYPE})

    def read(self, source: str, data: bytes, suffix: str) -> Document:
        """Extract the pages' text; see `Reader.read`."""
        if not data:
            return Document(source, "", MEDIA_TYPE)
        try:
            import pypdfium2
        except ImportError as error:
            raise MissingExtra("reading .pdf files", "pypdfium2", "ingest") from error
        if b"%%EOF" not in data[-_TAIL:] and b"startxref" not in data[-_TAIL:]:
            # PDFium would repair it silently, and lose pages silently.
            raise UnreadableFile(
                source, "the PDF is truncated: its end is missing; get the file again"
            )
        try:
            with pypdfium2.PdfDocument(data) as pdf:
                title = pdf.get_metadata_value("Title").strip()
                pages = [_page_text(pdf[number]) for number in range(len(pdf))]
        except pypdfium2.PdfiumError as error:
            raise UnreadableFile(source, _reason(error)) from error
        text = "\n\n".join(page for page in pages if page)
        if pages and not text:
            raise UnreadableFile(
                source,
                f"none of its {len(pages)} pages has text (a scan?); run it through OCR first",
            )
        return Document(source, text, MEDIA_TYPE, title.replace("\0", ""))


def _page_text(page: object) -> str:
    textpage = page.get_textpage()  # type: ignore[attr-defined]
    try:
        text: str = textpage.get_text_bounded()
    finally:
        textpage.close()
        page.close()  # type: ignore[attr-defined]
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return _DIVIDED.sub("", text).strip()


def _reason(error: Exception) -> str:
    message = str(error)
    for sign, reason in _REASONS.items():
        if sign in message.lower():
            return reason
    return f"the PDF is damaged ({message.rstrip('.')}); get the file again"
