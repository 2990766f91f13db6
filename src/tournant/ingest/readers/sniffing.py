"""What a file is by its first bytes, whatever its name says."""

from __future__ import annotations

import re
from typing import Literal

from tournant.ingest.errors import UnreadableFile

Kind = Literal["pdf", "zip", "ole", "html", "text", "binary", "empty"]

_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_HTML = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html[\s>]|head[\s>]|body[\s>])",
    re.IGNORECASE | re.DOTALL,
)
# Text has tabs, line ends, form feeds, backspaces and escapes; the rest are signs of something else.
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\b\x1b")) + b"\x7f"
_BINARY_SHARE = 0.02
_NAMES = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"BZh", "bzip2-compressed data"),
    (b"\xfd7zXZ", "xz-compressed data"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3", "an SQLite database"),
)


def sniff(head: bytes) -> Kind:
    """Say what content begins like this.

    Args:
        head: the first bytes of a file, or all of them; some tens of kilobytes are enough.
    """
    if not head:
        return "empty"
    if b"%PDF-" in head[:1024]:
        return "pdf"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return "ole"
    if _is_binary(head):
        return "binary"
    text = head[:2048]
    if text.startswith(_BOMS):
        text = text.lstrip(b"\xef\xbb\xbf\xff\xfe").replace(b"\0", b"")
    return "html" if _HTML.match(text) else "text"


def refuse_binary(path: str, head: bytes) -> None:
    """Refuse content that no reader takes.

    Raises:
        UnreadableFile: naming the kind where it is a common one.
    """
    if sniff(head) == "binary":
        name = next((name for magic, name in _NAMES if head.startswith(magic)), None)
        raise UnreadableFile(path, f"its content is {name or 'binary, not text'}")


def wide_encoding(head: bytes) -> str | None:
    """Recognise UTF-16 and UTF-32, by a byte-order mark or by where the zero bytes of plain text lie."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    sample = head[:4096]
    half = len(sample) // 2
    if half < 8 or b"\0" not in sample:
        return None
    even, odd = sample[0 : 2 * half : 2].count(0), sample[1 : 2 * half : 2].count(0)
    if odd > 0.7 * half and even < 0.05 * half:
        return "utf-16-le"
    if even > 0.7 * half and odd < 0.05 * half:
        return "utf-16-be"
    return None


def _is_binary(head: bytes) -> bool:
    if wide_encoding(head):
        return False
    if b"\0" in head:
        return True
    controls = len(head) - len(head.translate(None, _CONTROLS))
    return controls > _BINARY_SHARE * len(head)
