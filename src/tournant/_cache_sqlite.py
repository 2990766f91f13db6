"""The store in a SQLite file: a thread that serves whatever has been asked for meanwhile in one go.

Internal to `tournant.cache`, which exports `SQLiteStore`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import queue
import threading
import weakref
from collections.abc import Hashable, Iterable, Mapping
from itertools import groupby
from types import TracebackType
from typing import Any, Literal, NamedTuple

from tournant._cache_file import CacheFile
from tournant._cache_stores import CacheError, InvalidCache, as_bytes
from tournant._cache_values import Stored, cache_key, encode_value


class SQLiteStore:
    """Keeps values in a SQLite file that several processes may use at once, across restarts.

    Numpy arrays are written as they lie in memory, so float32 takes four bytes a number; besides them, bytes and what JSON can
    hold can be kept. Arrays come back read-only. Every value is checked (checksum, length, type) when it is read; a
    damaged one counts as missing.

    A file that is locked, full, damaged or read-only costs time, never a run: it is logged once, and what can't be read is computed.
    A file of another program, or a path that can't be, is a `CacheError` at the first use. What was put is in the file when `put_many` returns.

    Args:
        path: The file; made when it isn't there. Its folder must exist. Beside it SQLite keeps ``-wal`` and ``-shm``: use a local disk.
        read_only: Never write to the file.
        max_bytes: Above this size the values that were written first go; ``None`` lets the file grow. A number, or text such as ``"2GiB"``.

    Raises:
        InvalidCache: an option can't be as it was given.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        max_bytes: int | str | None = None,
    ) -> None:
        name = os.fspath(path)
        if not isinstance(name, str) or not name or name == ":memory:":
            raise InvalidCache(
                f"SQLiteStore(): path={path!r}; give the path of a file (MemoryStore keeps values in memory)"
            )
        self._file = CacheFile(
            os.path.abspath(name),
            read_only=read_only,
            max_bytes=None
            if max_bytes is None
            else as_bytes("SQLiteStore", "max_bytes", max_bytes),
        )
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        weakref.finalize(self, self._jobs.put, None)

    async def get_many(self, keys: Iterable[Hashable]) -> dict[Any, Any]:
        """See `Store`.

        Raises:
            CacheError: the file can't be a cache, or the store is closed.
        """
        wanted = {key: _row_key(key) for key in keys}
        found = await self._do("read", list(wanted.values()))
        return {key: found[row] for key, row in wanted.items() if row in found}

    async def put_many(self, values: Mapping[Any, Any]) -> None:
        """See `Store`.

        Raises:
            CacheError: a value can't be stored, the file can't be a cache, or the store is closed.
        """
        await self._do("write", [(_row_key(key), value) for key, value in values.items()])

    async def delete_many(self, keys: Iterable[Hashable]) -> None:
        """See `Store`.

        Raises:
            CacheError: the file can't be written, or the store is closed.
        """
        await self._do("delete", [_row_key(key) for key in keys])

    def close(self) -> None:
        """Finish what was asked for and close the file. Closing twice does nothing."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
            self._jobs.put(None)
        if thread is not None:
            thread.join()

    async def aclose(self) -> None:
        """The same, without blocking the loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> SQLiteStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> SQLiteStore:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _do(self, what: Literal["read", "write", "delete"], rows: list[Any]) -> Any:
        if not rows:
            return {}
        job = _Job(what, rows, concurrent.futures.Future())
        with self._lock:
            if self._closed:
                raise CacheError(
                    f"The cache {self._file.path!r} was closed and is still in use: close it after the last run."
                )
            if self._thread is None:
                # It must not keep the store alive, so it is given the parts.
                self._thread = threading.Thread(
                    target=_serve,
                    args=(self._jobs, self._file),
                    name="tournant-cache",
                    daemon=True,
                )
                self._thread.start()
            self._jobs.put(job)
        return await asyncio.wrap_future(job.done)


class _Job(NamedTuple):
    what: Literal["read", "write", "delete"]
    rows: list[Any]
    done: concurrent.futures.Future[Any]


def _serve(jobs: queue.SimpleQueue[_Job | None], file: CacheFile) -> None:
    """Serve jobs in their order, neighbours of a kind together, until ``None`` comes."""
    open_ = True
    while open_:
        taken = [jobs.get()]
        while not jobs.empty():
            taken.append(jobs.get())
        open_ = None not in taken
        live = [job for job in taken if job and job.done.set_running_or_notify_cancel()]
        for what, group in groupby(live, key=lambda job: job.what):
            together = list(group)
            try:
                _do_together(what, together, file)
            except Exception as error:
                for job in together:
                    if not job.done.done():
                        job.done.set_exception(error)
    file.close()


def _do_together(what: str, together: list[_Job], file: CacheFile) -> None:
    if what == "read":
        found = file.read(list(dict.fromkeys(key for job in together for key in job.rows)))
        for job in together:
            job.done.set_result(found)
        return
    if what == "delete":
        file.delete([key for job in together for key in job.rows])
    else:
        rows: list[tuple[bytes, Stored]] = []
        for job in together:
            try:
                rows += [(key, encode_value(value)) for key, value in job.rows]
            except CacheError as error:
                job.done.set_exception(error)
        if rows:
            file.write(rows)
    for job in together:
        if not job.done.done():
            job.done.set_result(None)


def _row_key(key: Hashable) -> bytes:
    return cache_key(key)
