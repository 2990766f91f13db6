"""Receiving files: a multipart body is parsed and written to disk in pieces on a thread, and bounded in every way.

A file that is complete is looked at, and waits in a hidden folder until it is known what becomes of the upload: `Reception.commit` moves
files to their places, `Reception.close` deletes what was not moved. So an upload that is refused midway replaces nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass
from typing import Any

from tournant.ingest.errors import UnreadableFile
from tournant.ingest.readers.opening import HEAD_BYTES
from tournant.ingest.readers.registry import OFFICE, SUFFIXES, suffix_of
from tournant.ingest.readers.sniffing import refuse_binary, sniff
from tournant.serve.errors import HTTPError, MissingExtra, bad_request
from tournant.serve.names import below, safe_name

try:
    from python_multipart.exceptions import FormParserError, MultipartParseError
    from python_multipart.multipart import MultipartParser, parse_options_header
except ImportError:
    raise MissingExtra("uploading files", "python-multipart") from None

INCOMING = ".incoming"
_STALE = 86_400.0  # seconds after which what a kill has left is deleted
_HEADER_BYTES = 4_096
#: What an Office document may unpack to. They are ZIP archives, and a small one can hold terabytes.
_UNPACKED = 256 * 2**20
_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Received:
    """One file of an upload.

    Attributes:
        name: What it is called below the folder of uploads; where it was refused for its name, as much of it as can be shown.
        path: Where it lies, absolute; empty when it was refused.
        size: Bytes.
        reason: Why it was refused, or ``None``.
    """

    name: str
    path: str
    size: int
    reason: str | None = None


class Reception:
    """Takes the body of one upload. Every method blocks: call it from a thread.

    Args:
        folder: Where files go; made when there is none.
        content_type: The request's header.
        max_bytes: The most bytes of the body.
        max_files: The most files.

    Attributes:
        files: The files that are complete; before `commit` none of them has a path.

    Raises:
        HTTPError: 415 when it is no ``multipart/form-data``.
    """

    def __init__(
        self, folder: str, content_type: str | None, max_bytes: int, max_files: int
    ) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise HTTPError(
                415,
                "files are uploaded as multipart/form-data with a boundary, one part a file, as browsers and "
                "`curl -F files=@FILE` do",
            )
        if len(boundary) > 200:
            raise bad_request(
                "the boundary of the multipart body is longer than 200 bytes: use a shorter one"
            )
        self.files: list[Received] = []
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._lock = (
            threading.Lock()
        )  # a client that leaves is cleaned up after while a thread still writes
        self._closed = False
        self._size = 0
        self._ended = False
        self._waiting: dict[str, str] = {}  # where the content of each name lies
        self._fields: dict[bytes, bytes] = {}
        self._field = self._value = b""
        self._filename: bytes | None = None
        self._file: Any = None
        self._temporary = ""
        self._written = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_part_data": self._data,
                "on_part_end": self._complete,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_end": self._end,
            },
            max_header_size=_HEADER_BYTES,
        )

    def feed(self, data: bytes) -> None:
        """Take the next piece of the body.

        Raises:
            HTTPError: 413 when it is too large or holds too many files, 400 when it can't be parsed, 503 when the disk refuses.
        """
        with self._lock:
            if not self._closed:
                self._feed(data)

    def _feed(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._max_bytes:
            raise HTTPError(
                413,
                f"the upload is larger than {self._max_bytes:,} bytes: upload fewer files at once",
                "upload_too_large",
            )
        try:
            self._parser.write(data)
        except (MultipartParseError, FormParserError) as error:
            raise bad_request(f"the multipart body can't be parsed: {str(error)[:200]}") from None
        except OSError as error:
            raise _refused_by_disk(self._folder, error) from error

    def finish(self) -> None:
        """Take in that the body has ended.

        Raises:
            HTTPError: 400 when it has not come to its own end, or holds no file.
        """
        if not self._ended:
            raise bad_request("the multipart body ends before its closing boundary: send it again")
        if not self.files:
            raise bad_request(
                "the upload holds no file: send one part a file, each with a filename"
            )

    def commit(self) -> list[Received]:
        """Move the files that are complete to their places, and say what became of each."""
        done = []
        for file in self.files:
            if file.reason is None:
                file = self._placed(file)  # noqa: PLW2901
            done.append(file)
        self.files = done
        return done

    def close(self) -> None:
        """Delete whatever has not been moved to its place. What comes later is not taken."""
        with self._lock:
            self._closed = True
            self._delete()

    def _delete(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        for path in (self._temporary, *self._waiting.values()):
            if path:
                with contextlib.suppress(OSError):
                    os.unlink(path)
        self._waiting.clear()
        self._temporary = ""

    # What the parser tells

    def _begin(self) -> None:
        self._fields = {}
        self._filename = None

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._fields[self._field.lower()] = self._value
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        disposition = self._fields.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        self._filename = options.get(b"filename")
        if self._filename is None:
            return  # a plain field of the form
        if len(self.files) >= self._max_files:
            raise HTTPError(
                413,
                f"the upload holds more than {self._max_files:,} files: upload fewer at once",
                "too_many_files",
            )
        folder = os.path.join(self._folder, INCOMING)
        os.makedirs(folder, exist_ok=True)
        handle, self._temporary = tempfile.mkstemp(dir=folder)
        self._file = os.fdopen(handle, "wb")
        self._written = 0

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])
            self._written += end - start

    def _complete(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        assert self._filename is not None
        self.files.append(self._judged(self._filename))

    def _end(self) -> None:
        self._ended = True

    # What becomes of a file

    def _judged(self, raw: bytes) -> Received:
        """Look at a complete file: either it waits to be moved to its place, or it is deleted and the reason is told."""
        name = safe_name(raw)
        if name is None:
            shown = raw[:100].decode("utf-8", "replace")
            reason: str | None = "its name can't be used; give it a simple one"
        else:
            shown, reason = name, self._reason_against(name)
        if name is not None and reason is None:
            self._waiting[name] = self._temporary
        else:
            os.unlink(self._temporary)
        self._temporary = ""
        return Received(shown, "", self._written, reason)

    def _placed(self, file: Received) -> Received:
        temporary = self._waiting.pop(file.name)
        try:
            path = below(self._folder, file.name)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            reason = f"it can't be stored: {error.strerror or error}"
            return Received(file.name, "", file.size, reason)
        return Received(file.name, path, file.size)

    def _reason_against(self, name: str) -> str | None:
        """Return why a file is not taken, or ``None``: what the ingest is sure to refuse, or must not be given."""
        suffix = suffix_of(name)
        if name in self._waiting:
            return "another file of this upload has the same name; rename one"
        if suffix not in SUFFIXES:
            kind = f"of the kind {suffix[:20]!r}" if suffix else "without a suffix"
            return f"files {kind} are not read; what is read: text, Markdown, HTML, PDF, Office documents, CSV, JSON and source code"
        if not self._written:
            return "it is empty (0 bytes)"
        with open(self._temporary, "rb") as file:
            head = file.read(HEAD_BYTES)
        if sniff(head) == "zip":
            if SUFFIXES[suffix] is not OFFICE:
                return "its content is a ZIP archive; unpack it, and upload the files"
            return _reason_against_archive(self._temporary)
        try:
            refuse_binary(name, head)
        except UnreadableFile as error:
            return error.reason
        return None


def _reason_against_archive(path: str) -> str | None:
    """Return why an Office document must not be unpacked, or ``None``."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        return f"the document is damaged ({error})"
    # A reader gets no more out of an entry than the size that stands here.
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > _ENTRIES or unpacked > _UNPACKED:
        return (
            f"it would unpack to {unpacked / 2**20:,.0f} MiB in {len(entries):,} parts; "
            f"at most {_UNPACKED // 2**20} MiB in {_ENTRIES:,} are taken"
        )
    return None


def clear_stale(folder: str) -> None:
    """Delete incomplete files that a kill has left, once they are a day old."""
    incoming = os.path.join(folder, INCOMING)
    try:
        names = os.listdir(incoming)
    except OSError:
        return
    for name in names:
        path = os.path.join(incoming, name)
        try:
            if time.time() - os.lstat(path).st_mtime > _STALE:
                os.unlink(path)
        except OSError:
            continue


def _refused_by_disk(folder: str, error: OSError) -> HTTPError:
    try:
        left = f"{shutil.disk_usage(folder).free // 2**20:,} MiB are free"
    except OSError:
        left = "the folder can't be reached"
    return HTTPError(
        503,
        f"the upload can't be stored in {folder!r}: {error.strerror or error} ({left})",
        "storage_failed",
    )
