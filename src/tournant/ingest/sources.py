"""Source names in a store that takes only valid UTF-8.

File names on POSIX are bytes. Python shows bytes that are not UTF-8 as lone surrogates, which no
Arrow column can hold. `to_store` writes each of them as U+FFFD (the replacement character that a reader
expects there) and two hex digits, and a genuine U+FFFD twice; everything else stays as it is.
`from_store` is its exact inverse.
"""

from __future__ import annotations

import re

_MARK = "\ufffd"
_ESCAPED = re.compile(f"[\ud800-\udfff{_MARK}]")
_STORED = re.compile(f"{_MARK}({_MARK}|u[0-9A-F]{{4}}|[0-9A-F]{{2}})")


def _escape(match: re.Match[str]) -> str:
    char = match.group()
    code = ord(char)
    if char == _MARK:
        return _MARK * 2
    if 0xDC80 <= code <= 0xDCFF:
        return f"{_MARK}{code - 0xDC00:02X}"
    return f"{_MARK}u{code:04X}"


def _restore(match: re.Match[str]) -> str:
    body = match.group(1)
    if body == _MARK:
        return _MARK
    if body[0] == "u":
        return chr(int(body[1:], 16))
    return chr(0xDC00 + int(body, 16))


def to_store(source: str) -> str:
    """Write a source's name so that it is valid UTF-8."""
    return source if source.isascii() else _ESCAPED.sub(_escape, source)


def from_store(stored: str) -> str:
    """Give back the name that `to_store` was given."""
    return stored if _MARK not in stored else _STORED.sub(_restore, stored)
