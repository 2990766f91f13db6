"""The file of results as the ledger of a batch: who may write it, what it holds already, and how it is mended.

What a kill can leave is a half-written last line, which is cut off once all other lines have been found to be results. Whatever else would change what is there (leaving
out failures that are asked again) writes a new file beside it, and puts that in its place whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from tournant.errors import short
from tournant.llm.batch.digests import DigestSet, digest_of
from tournant.llm.batch.errors import ResultsRefused
from tournant.llm.batch.lines import State, is_half, read_line

_BUFFER = 2**20
_LONGEST_LINE = 2**29
_UNWRITABLE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would become larger than this process may write (ulimit -f)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOENT: "its folder does not exist",
    errno.ENOTDIR: "its folder is no folder",
    errno.EISDIR: "it is a folder",
}


@dataclass(slots=True)
class Kept:
    """What a file of results holds already.

    Attributes:
        settled: The requests of this batch that are not asked again.
        answered: How many of them have an answer.
        refused: How many of them the provider refused.
        again: How many failed and are asked again; their lines are left out from now on.
        foreign: Lines of requests that are not in this batch; they stay.
    """

    settled: DigestSet = field(default_factory=DigestSet)
    answered: int = 0
    refused: int = 0
    again: int = 0
    foreign: int = 0


class ResultsFile:
    """A file of results, open and locked for one batch.

    The lock is an advisory ``flock`` on the file itself, so nothing lies beside it, and it vanishes with its holder
    however that ends.

    Args:
        path: The file; made where there is none. A link is followed.

    Attributes:
        path: Where the file really is.
        descriptor: Open for appending.

    Raises:
        ResultsRefused: when it can't be written, or another batch writes it.
    """

    def __init__(self, path: str) -> None:
        self.shown = short(path, 200)
        self.path = os.path.realpath(path)
        self.made = not os.path.lexists(self.path)
        self.descriptor = self._locked()
        if self.made:
            sync_folder(self.path)

    def close(self) -> None:
        """Close it, which gives the lock back. A file that was made here and is still empty goes. Twice is once."""
        if self.descriptor < 0:
            return
        if (
            self.made
            and os.fstat(self.descriptor).st_size == 0
            and _same(self.descriptor, self.path)
        ):
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        os.close(self.descriptor)
        self.descriptor = -1

    def _locked(self) -> int:
        while True:
            try:
                # Not blocking: opening a FIFO would wait for its reader.
                descriptor = os.open(
                    self.path,
                    os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK,
                    0o666,
                )
            except OSError as error:
                raise self.unwritable(error) from error
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise self._refused(
                        "is no regular file; results are read again to go on after a stop, so give a file"
                    )
                self._lock(descriptor)
                # Whoever had the lock before may have put another file in this one's place.
                if _same(descriptor, self.path):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refused(
                "is being written by another batch; wait for it to end, or give this one a file of its own"
            ) from None
        except OSError as error:
            raise self._refused(
                f"is on a file system without locks ({error.strerror}); choose another folder"
            ) from error

    # What is there

    def read(self, ids: DigestSet, *, retry_refused: bool) -> Kept:
        """Mend the file's end, say what it holds, and take out the lines of what is asked again.

        Args:
            ids: The requests of this batch.
            retry_refused: Whether those that the provider refused are asked again too.

        Raises:
            ResultsRefused: when it is no file of results, or can't be written.
        """
        try:
            start = self._last_line(os.fstat(self.descriptor).st_size)
            kept = Kept()
            leave_out = lines = 0
            for _, custom_id, state in self._lines(start):
                lines += 1
                leave_out += not _keep(kept, custom_id, state, ids, retry_refused)
            # Nothing is cut before all the rest is known to be results.
            last = self._mend_end(start, lines > 0)
            if last is not None:
                leave_out += not _keep(kept, *last, ids, retry_refused)
            if leave_out:
                self._rewrite(ids, retry_refused)
        except OSError as error:
            raise self.unwritable(error) from error
        return kept

    def _lines(self, end: int | None = None) -> Iterator[tuple[bytes, str, State]]:
        """Return each line, whose it is and what it says; up to `end`, where a line begins."""
        with self._reader() as file:
            number = place = 0
            while (end is None or place < end) and (line := file.readline(_LONGEST_LINE)):
                number += 1
                place += len(line)
                if line.isspace():
                    continue
                try:
                    custom_id, state = read_line(line)
                except ValueError as error:
                    raise self._refused(
                        f"has a line {number} that is no line of results ({error}); is it the right file? "
                        "Nothing was sent, and nothing in it was changed"
                    ) from None
                yield line, custom_id, state

    def _reader(self) -> BinaryIO:
        return open(self.path, "rb", buffering=_BUFFER)

    def _mend_end(self, start: int, after_others: bool) -> tuple[str, State] | None:
        """Cut a half-written last line off, or give a whole one the line break that it lacks and return what it says.

        Args:
            start: Where the last line begins that has no line break.
            after_others: Whether there are results before it.
        """
        with self._reader() as file:
            file.seek(start)
            line = file.read(_LONGEST_LINE)
        text = line.rstrip(b"\0")  # zeros are what a crash of the machine leaves
        if not line:
            return None
        try:
            found = read_line(text)
        except ValueError:
            if not (is_half(text) if text else after_others):
                raise self._refused(
                    "does not end as a file of results ends; is it the right file? Nothing was sent, and nothing in it "
                    "was changed"
                ) from None
            os.ftruncate(self.descriptor, start)
            return None
        os.ftruncate(self.descriptor, start + len(text))
        os.write(self.descriptor, b"\n")
        return found

    def _last_line(self, size: int) -> int:
        """Return where the last line begins; `size` where the file ends with a line break."""
        with self._reader() as file:
            end = size
            while end:
                begin = max(0, end - _BUFFER)
                file.seek(begin)
                found = file.read(end - begin).rfind(b"\n")
                if found >= 0:
                    return begin + found + 1
                end = begin
        return 0

    def _rewrite(self, ids: DigestSet, retry_refused: bool) -> None:
        """Write the lines that stay into a new file, and put it in place of the old one."""
        # A name that nobody else has: whatever lies there already is somebody's file.
        beside = os.path.join(
            os.path.dirname(self.path), f".tournant-results-{secrets.token_hex(8)}.new"
        )
        mode = stat.S_IMODE(os.fstat(self.descriptor).st_mode)
        new = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, mode)
        try:
            self._lock(new)
            kept = Kept()
            with open(new, "wb", buffering=_BUFFER, closefd=False) as file:
                for line, custom_id, state in self._lines():
                    if _keep(kept, custom_id, state, ids, retry_refused):
                        file.write(line)
            os.fsync(new)
            os.replace(beside, self.path)
        except BaseException:
            os.close(new)
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        old, self.descriptor = self.descriptor, new
        os.close(old)
        sync_folder(self.path)

    def missing(self) -> ResultsRefused | None:
        """Return an error where the file is no longer what stands at its path, so that what is written would be lost."""
        try:
            there = _same(self.descriptor, self.path)
        except OSError as error:
            return self.unwritable(error)
        if there:
            return None
        return self._refused(
            "was deleted, moved or replaced while the batch wrote it; put it back, or run the batch again, which asks "
            "what is not in it"
        )

    # Errors

    def unwritable(self, error: OSError) -> ResultsRefused:
        """Say why the file can't be written."""
        why = _UNWRITABLE.get(error.errno or 0) or error.strerror or str(error)
        return self._refused(
            f"can't be written: {why}; mend that and run the batch again, what was answered is kept"
        )

    def _refused(self, why: str) -> ResultsRefused:
        return ResultsRefused(f"the file of results {self.shown} {why}")


def _keep(kept: Kept, custom_id: str, state: State, ids: DigestSet, retry_refused: bool) -> bool:
    """Count a line, and tell whether it stays."""
    digest = digest_of(custom_id)
    if digest not in ids:
        kept.foreign += 1
        return True
    if state is State.FAILED or (state is State.REFUSED and retry_refused):
        kept.again += 1
        return False
    if not kept.settled.add(digest):
        return False  # there already, in files that were put together
    if state is State.ANSWERED:
        kept.answered += 1
    else:
        kept.refused += 1
    return True


def _same(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def sync_folder(path: str) -> None:
    """Make it last that a file has its name."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
