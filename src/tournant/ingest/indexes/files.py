"""Small files beside an index: written whole or not at all, and a lock for the one writer."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from typing import Any

from tournant.ingest.errors import IndexBusy, IndexTrouble, IndexWriteFailed

_UNWRITABLE = {
    errno.ENOSPC: "the disk is full; free some space and run again, what is done is kept",
    errno.EDQUOT: "the disk quota is used up; free some space and run again, what is done is kept",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; make the folder writable or choose another",
    errno.EPERM: "permission denied; make the folder writable or choose another",
}


def write_failed(directory: str, error: OSError) -> IndexWriteFailed:
    """Say in words why a write was refused."""
    reason = _UNWRITABLE.get(error.errno or 0) or f"can't write: {error.strerror or error}"
    return IndexWriteFailed(directory, reason)


def write_json(path: str, value: Any) -> None:
    """Write a JSON file so that a reader, or a crash, sees either the old or the new one.

    Raises:
        OSError: the file could not be written; the old one is still there.
    """
    temporary = f"{path}.new"  # what a kill leaves is overwritten next time: there is one writer
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=True, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_json(path: str) -> Any:
    """Read a JSON file; None where there is none, or none that can be understood."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


class WriterLock:
    """The right to write to one index, held by at most one open index of one process.

    It is an advisory ``flock`` on a file, so it vanishes with its holder however that ends.

    Args:
        directory: the folder of the index, which must exist.

    Raises:
        IndexBusy: another writer holds it; the message names its host and process id.
        IndexWriteFailed: the lock file can't be made.
        IndexTrouble: the file system has no locks.
    """

    def __init__(self, directory: str) -> None:
        path = os.path.join(directory, "writer.lock")
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise write_failed(directory, error) from error
        try:
            _lock(self._file)
        except BlockingIOError:
            holder = os.pread(self._file, 512, 0).decode("utf-8", "replace").strip()
            os.close(self._file)
            raise IndexBusy(
                directory,
                f"is being written by {holder or 'another process'}; wait for it to end, or stop it",
            ) from None
        except OSError as error:
            os.close(self._file)
            raise IndexTrouble(
                directory,
                f"its file system offers no locks ({error.strerror}); choose another folder",
            ) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Let go. Releasing twice is no error."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _lock(file: int) -> None:
    for _ in range(5):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Whoever only asks (`is_being_written`) holds it for some microseconds.
            time.sleep(0.01)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_being_written(directory: str) -> bool:
    """Tell whether some process holds the right to write to an index, without taking it."""
    try:
        file = os.open(os.path.join(directory, "writer.lock"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False
