"""The file of requests: read twice, once to be checked before anything is sent, once to be asked. It is never loaded."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from tournant.errors import short
from tournant.llm.batch.digests import DigestSet
from tournant.llm.batch.errors import InputRefused
from tournant.llm.batch.fields import CsvRows
from tournant.llm.batch.requests import BadLine, Form, Request

_BUFFER = 2**20
#: Bad lines that are kept to be listed; beyond that they are counted.
MOST_BAD = 1_000
#: What files begin with that hold requests only for whoever converts them first.
_OTHER_FORMS = (
    (b"\x1f\x8b", "is compressed: gunzip it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed: decompress it first (unzstd)"),
    (b"PK\x03\x04", "is a zip archive or a spreadsheet: unpack it, or save it as CSV"),
    (b"\xff\xfe", "is in UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "is in UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
)


@dataclass(slots=True)
class Checked:
    """What the first reading found.

    Attributes:
        requests: How many there are.
        ids: Their ids.
        bad: The first lines that are no requests.
        bad_count: How many lines are no requests.
    """

    requests: int = 0
    ids: DigestSet = field(default_factory=DigestSet)
    bad: list[BadLine] = field(default_factory=list)
    bad_count: int = 0


class InputFile:
    """A file of requests, open for reading.

    It is opened once, so that both readings see the same file, even if another is put in its place meanwhile.

    Args:
        path: The file.
        form: How it holds requests.

    Raises:
        InputRefused: when it can't be read.
    """

    def __init__(self, path: str, form: Form) -> None:
        self.path = path
        self._form = form
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise self._refused(f"can't be opened: {error.strerror}; check the path") from error
        self.status = os.fstat(descriptor)
        if not stat.S_ISREG(self.status.st_mode):
            os.close(descriptor)
            what = "is a folder" if stat.S_ISDIR(self.status.st_mode) else "is no regular file"
            raise self._refused(f"{what}; it is read twice, so give a file")
        self._file = cast("BinaryIO", io.BufferedReader(io.FileIO(descriptor), buffer_size=_BUFFER))

    def close(self) -> None:
        """Close it. Twice is once."""
        self._file.close()

    def check(self) -> Checked:
        """Read it to its end.

        Raises:
            InputRefused: when a ``custom_id`` is there twice, when there is no request in it, or it can't be read.
        """
        checked = Checked()
        self._look_at_form()
        for entry in self._read():
            if isinstance(entry, BadLine):
                checked.bad_count += 1
                if len(checked.bad) < MOST_BAD:
                    checked.bad.append(entry)
            elif checked.ids.add(entry.digest):
                checked.requests += 1
            else:
                raise self._doubled(entry)
        if not checked.requests:
            if not checked.bad_count:
                table = self.status.st_size and isinstance(self._form, CsvRows)
                what = "has no row below the names of its columns" if table else "is empty"
                raise self._refused(f"{what}; there is nothing to ask")
            first = checked.bad[0]
            raise self._refused(
                f"has no request in it; {checked.bad_count:,} line(s) are none, the first of them line {first.line}: "
                f"{first.reason}"
            )
        return checked

    def requests(self, answered: DigestSet) -> Iterator[Request]:
        """Read the requests that are not in `answered`.

        Raises:
            InputRefused: when the file has changed since it was opened, or can't be read.
        """
        for entry in self._read():
            if isinstance(entry, Request) and entry.digest not in answered:
                yield entry

    def _look_at_form(self) -> None:
        try:
            start = os.pread(self._file.fileno(), 4, 0)
        except OSError as error:
            raise self._refused(f"can't be read: {error.strerror}") from error
        for beginning, mend in _OTHER_FORMS:
            if start.startswith(beginning):
                raise self._refused(f"{mend} (nothing was sent)")

    def _read(self) -> Iterator[Request | BadLine]:
        try:
            self._file.seek(0)
            yield from self._form.read(self._file)
            now = os.fstat(self._file.fileno())
        except OSError as error:
            raise self._refused(f"can't be read: {error.strerror}") from error
        if (now.st_size, now.st_mtime_ns) != (self.status.st_size, self.status.st_mtime_ns):
            raise self._refused(
                "was changed while it was read; run the batch again when nobody writes to it, what was answered is kept"
            )

    def _doubled(self, second: Request) -> InputRefused:
        # Only where it goes wrong is it worth to look for the first one, which nobody has kept.
        for entry in self._read():
            if isinstance(entry, Request) and entry.custom_id == second.custom_id:
                break
        return self._refused(
            f"has the custom_id {short(second.custom_id)} twice, in line {entry.line} and in line {second.line}; "
            "answers are told apart by it, so give each request one of its own (nothing was sent)"
        )

    def _refused(self, why: str) -> InputRefused:
        return InputRefused(f"the file of requests {short(self.path, 200)} {why}")


class Unanswered:
    """The requests of a file that are still to be asked, as the source of a pipeline.

    Args:
        file: The file.
        answered: What is not asked.
        count: How many will be asked.
    """

    def __init__(self, file: InputFile, answered: DigestSet, count: int) -> None:
        self._file = file
        self._answered = answered
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Request]:
        return self._file.requests(self._answered)
