"""Getting a file's bytes without being blocked, flooded or fooled."""

from __future__ import annotations

import os
import stat

from tournant.ingest.errors import UnreadableFile
from tournant.ingest.readers.sniffing import refuse_binary

MAX_BYTES = 64 << 20
HEAD_BYTES = 64 << 10

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def kind_of(mode: int) -> str | None:
    """Say what a path is that isn't a regular file; None if it is one."""
    if stat.S_ISREG(mode):
        return None
    return next((kind for test, kind in _KINDS if test(mode)), "something unknown")


def load(path: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a regular file whole.

    Its first 64 KiB are looked at before the rest is read, so a large file of binary content costs nothing. FIFOs,
    sockets and devices are refused without being opened. Releases the GIL while it waits for the disk.

    Args:
        path: the file.
        max_bytes: a larger file is refused.

    Raises:
        UnreadableFile: not there, not allowed, not a regular file, too large, or binary content of no known kind.
    """
    try:
        kind = kind_of(os.stat(path).st_mode)
        if kind is not None:
            raise UnreadableFile(path, f"it is {kind}, not a regular file")
        # Non-blocking, in case the path became a FIFO meanwhile.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            status = os.fstat(file)
            kind = kind_of(status.st_mode)
            if kind is not None:
                raise UnreadableFile(path, f"it is {kind}, not a regular file")
            head = _read(file, min(HEAD_BYTES, max_bytes + 1))
            refuse_binary(path, head)
            if status.st_size > max_bytes or len(head) > max_bytes:
                raise UnreadableFile(
                    path,
                    f"it has {_mebibytes(status.st_size)}, above the limit of {_mebibytes(max_bytes)}; "
                    "raise the limit or split the file",
                )
            if len(head) < HEAD_BYTES:
                return head
            data = head + _read(file, max_bytes + 1 - len(head))
        finally:
            os.close(file)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableFile(path, reason[0].lower() + reason[1:]) from error
    if len(data) > max_bytes:
        raise UnreadableFile(path, f"it grew beyond {_mebibytes(max_bytes)} while it was read")
    return data


def _read(file: int, most: int) -> bytes:
    """Read up to ``most`` bytes, or to the end."""
    parts, got = [], 0
    while got < most:
        part = os.read(file, min(most - got, 4 << 20))
        if not part:
            break
        parts.append(part)
        got += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB" if size >= 1 << 20 else f"{size:,} bytes"
