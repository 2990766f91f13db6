"""HTML: what a reader of the page would read, without scripts, styles and navigation.

The layout that the text needs (a line per list item, a blank line before a paragraph) is put into the
source as whitespace before it is parsed, which is an order of magnitude cheaper than walking the tree.
Parsing holds the GIL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tournant.ingest.documents import Document
from tournant.ingest.readers.encoding import decode

_UNSEEN = [
    "script",
    "style",
    "noscript",
    "template",
    "svg",
    "canvas",
    "iframe",
    "object",
    "nav",
    "footer",
]
_NAVIGATION = "[role=navigation],[role=search],[hidden]"
_DECLARED = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)

_PREFORMATTED = re.compile(rb"(</?pre\b[^>]*>)", re.IGNORECASE)
# A form feed is white space to HTML, so it can stand anywhere, and no page has it for itself.
_NEW_LINE = re.compile(
    rb"<(?=/?(?:p|br|div|li|[uod]l|d[td]|h[1-6r]|table|t[rh]|section|article|aside|main|header|blockquote|pre|"
    rb"fig\w+|form|fieldset|details|summary|address|caption|body|title)[\s/>])",
    re.IGNORECASE,
)
_NEW_PARAGRAPH = re.compile(rb"\f<(?=/?(?:p|h[1-6]|table|[uod]l|section|blockquote)[ />])")
_CELL = re.compile(rb"<(?=td[\s>])", re.IGNORECASE)

_BREAK = re.compile("[ \t\n\f]*\f(?: (?! ))?")
_BLANKS = re.compile("\n{3,}")


@dataclass(frozen=True, slots=True)
class HtmlReader:
    """The visible text of an HTML page, and its title."""

    name: str = "html"
    suffixes: dict[str, str] = field(
        default_factory=lambda: dict.fromkeys((".html", ".htm", ".xhtml"), "text/html")
    )

    def read(self, source: str, data: bytes, suffix: str) -> Document:
        """Parse and extract; see `Reader.read`."""
        from selectolax.lexbor import LexborHTMLParser

        if not data:
            return Document(source, "", "text/html")
        tree = LexborHTMLParser(_lay_out(_as_utf8(data)))
        heading = tree.css_first("title")
        title = " ".join(heading.text().split()) if heading is not None else ""
        tree.strip_tags(_UNSEEN)
        for node in tree.css(_NAVIGATION):
            node.decompose()
        body = tree.body
        return Document(source, _tidy(body.text()) if body is not None else "", "text/html", title)


def _as_utf8(data: bytes) -> bytes:
    """The parser takes UTF-8. Most pages are; the others are decoded and encoded again."""
    try:
        if not data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
            data.decode("utf-8")
            if b"\0" not in data:
                return data
    except UnicodeDecodeError:
        pass
    declared = _DECLARED.search(data[:4096])
    name = declared.group(1).decode("ascii", "replace") if declared else None
    return decode(data, name).replace("\0", "").encode("utf-8", "replace")


def _lay_out(data: bytes) -> bytes:
    """Turn the source's own line ends into spaces, except in ``<pre>``, and mark where blocks begin and end."""
    parts = _PREFORMATTED.split(data)  # text and tags in turn, so no page makes this quadratic
    inside = False
    for n, part in enumerate(parts):
        if n % 2:
            opens = part[1:2] != b"/"
            if opens != inside:
                parts[n] = b"\n\f" + part if opens else part + b"\n\f"
            inside = opens
        elif not inside:
            lines = _NEW_LINE.sub(b"\f<", b" ".join(part.split()))
            # split() dropped the spaces at the ends, which may have stood beside inline text.
            parts[n] = b" " + _CELL.sub(b" <", _NEW_PARAGRAPH.sub(b"\n\f<", lines)) + b" "
    return b"".join(parts)


def _tidy(text: str) -> str:
    text = text.replace("\xa0", " ")
    return _BLANKS.sub("\n\n", _BREAK.sub(_line_end, text)).strip()


def _line_end(run: re.Match[str]) -> str:
    return "\n\n" if "\n" in run.group() else "\n"
