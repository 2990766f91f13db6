"""Text that is fit for a terminal and for machines, whatever a file is called or contains.

File names may hold newlines, escape sequences and bytes that are no text at all; documents
may hold anything. Nothing of that may reach a terminal as it is, nor break a line or a JSON document.
"""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from enum import IntEnum
from typing import Any, TextIO

from tournant.errors import TournantError

_SHOWN_ERRORS = 5
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\x1b": "\\e", "\\": "\\\\", "'": "\\'"}


class Exit(IntEnum):
    """The exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    SOME_SKIPPED = 3
    INTERRUPTED = 130
    READER_LEFT = 141


class ReaderLeft(Exception):
    """Whoever read our output has closed it: nobody wants the rest."""


class OutputLost(TournantError):
    """What the command has to say can't be written, while the work itself is done."""


def put(stream: TextIO | None, line: str) -> None:
    """Write one line, escaping what the stream's encoding has no letters for.

    A stream that was closed before the program began (``>&-``) is ``None``: nobody wants the output, so none is made.

    Raises:
        ReaderLeft: The other end of the pipe is closed.
        OutputLost: It can't be written.
    """
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    except BrokenPipeError:
        raise ReaderLeft from None
    except OSError as error:
        _lost(stream, error)


def put_json(stream: TextIO | None, value: Any) -> None:
    """Write one JSON document on one line, in ASCII, that the strictest parser takes.

    Raises:
        ReaderLeft: The other end of the pipe is closed.
        OutputLost: It can't be written.
    """
    put(stream, json.dumps(json_safe(value), default=str, allow_nan=False))


def finish(stream: TextIO | None) -> None:
    """Hand over what is still buffered.

    Raises:
        ReaderLeft: The other end of the pipe is closed.
        OutputLost: It can't be written.
    """
    if stream is None:
        return
    try:
        stream.flush()
    except BrokenPipeError:
        raise ReaderLeft from None
    except OSError as error:
        _lost(stream, error)


def _lost(stream: TextIO, error: OSError) -> None:
    """Say that a stream can't be written; of standard error there is nobody to say it to."""
    # The interpreter's last flush would fail like this one, and complain.
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
    if stream is not sys.stderr:
        raise OutputLost(
            f"the output can't be written: {error.strerror or error}; the work itself is done, so send the output elsewhere "
            "(a file on another disk) and run it again"
        ) from error


def json_safe(value: Any) -> Any:
    """Return data without what JSON cannot say.

    A byte of a file name that is no UTF-8 becomes U+FFFD; where that happens to the value of a key of an object,
    the object also gets ``<key>_base64``, the name's true bytes. NaN and the infinities become ``null``.
    """
    if isinstance(value, dict):
        safe: dict[str, Any] = {}
        for key, inner in value.items():
            name = _without_surrogates(str(key))
            safe[name] = json_safe(inner)
            if isinstance(inner, str) and safe[name] != inner:
                raw = inner.encode("utf-8", "surrogateescape" if _is_name(inner) else "replace")
                safe[f"{name}_base64"] = base64.b64encode(raw).decode("ascii")
        return safe
    if isinstance(value, (list, tuple)):
        return [json_safe(inner) for inner in value]
    if isinstance(value, str):
        return _without_surrogates(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _without_surrogates(text: str) -> str:
    return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)


def _is_name(text: str) -> bool:
    return all("\udc80" <= char <= "\udcff" for char in text if "\ud800" <= char <= "\udfff")


def shown_name(name: str) -> str:
    r"""Return a file name for people: as it is where that is safe, else as a shell would quote it.

    The quoted form is ``$'caf\xe9\n.txt'``, which bash and zsh take back as the very same name.
    """
    if name.isprintable():
        return name
    return "$'" + "".join(_quoted(char) for char in name) + "'"


def _quoted(char: str) -> str:
    if char in _NAMED:
        return _NAMED[char]
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # how Python shows the byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return (
        f"\\x{code:02x}"
        if code < 0x80
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def shown_path(path: str) -> str:
    """Return a path for people: relative where it lies below the working directory."""
    if os.path.isabs(path):
        here = os.path.join(os.getcwd(), "")
        if path.startswith(here):
            return shown_name(path[len(here) :])
    return shown_name(path)


def one_line(text: str) -> str:
    """Return a document's text with its white space as single blanks, and without control characters."""
    flat = " ".join(text.split())
    if flat.isprintable():
        return flat
    return "".join(char if char.isprintable() else "\ufffd" for char in flat)


def width(stream: TextIO | None) -> int:
    """Return how many columns to fill: those of the terminal, between 40 and 100; 80 elsewhere."""
    try:
        if stream is not None and stream.isatty():
            return min(100, max(40, shutil.get_terminal_size().columns))
    except ValueError:
        pass
    return 80


def bold(text: str, stream: TextIO | None) -> str:
    """Return text in bold where the stream is a terminal and nobody asked for none (``NO_COLOR``)."""
    if (
        stream is not None
        and stream.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    ):
        return f"\x1b[1m{text}\x1b[0m"
    return text


def size(count: int) -> str:
    """Return a number of bytes in words: ``1.4 MiB``."""
    amount = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{count:,} bytes" if unit == "bytes" else f"{amount:,.1f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} TiB"


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """Return a number and its noun: ``1 document``, ``2,000 documents``."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def error_lines(error: TournantError) -> Iterator[str]:
    """Say an error in a few lines: its message, and where it is a group, the first of its parts."""
    message = error.message if isinstance(error, BaseExceptionGroup) else str(error)
    yield f"tournant: {_lines_safe(message) or type(error).__name__}"
    if isinstance(error, BaseExceptionGroup):
        leaves = list(_leaves(error))
        for leaf in leaves[:_SHOWN_ERRORS]:
            notes = "; ".join(_lines_safe(note) for note in getattr(leaf, "__notes__", ())[:2])
            said = _lines_safe(str(leaf))
            name = type(leaf).__name__
            yield f"  {name}{': ' if said else ''}{said}" + (f" ({notes})" if notes else "")
        if len(leaves) > _SHOWN_ERRORS:
            yield f"  and {len(leaves) - _SHOWN_ERRORS:,} more"


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for inner in group.exceptions:
        if isinstance(inner, BaseExceptionGroup):
            yield from _leaves(inner)
        else:
            yield inner


def _lines_safe(text: str) -> str:
    """Return a message with its lines as one, and without what a terminal would obey."""
    return "".join(
        char if char.isprintable() else _quoted(char)
        for char in " ".join(line.strip() for line in text.splitlines() if line.strip())
    )
