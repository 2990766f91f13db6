"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to be written: beside its place, and moved into it when the block has ended without an error.

    A link is followed, so that it stays one. What is no file, such as ``/dev/stdout`` or a FIFO, is written to as it is: in its place
    there must not be a file afterwards.

    Args:
        path: where to; a file that is there is replaced, and stays as it was if something fails.

    Raises:
        OSError: it can't be written.
    """
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    # Of the name only so much that what is put to it can't make it too long; two threads may write at once.
    beside = target.with_name(f".{target.name[:40]}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with open(beside, "wb") as file:
            yield file
        os.replace(beside, target)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == os.fspath(beside):
            # Nobody knows the name of what lies beside it.
            error.filename, error.filename2 = os.fspath(path), None
        with suppress(OSError):
            beside.unlink()
        raise
