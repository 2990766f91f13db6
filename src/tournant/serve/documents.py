"""``POST /v1/documents``: files are uploaded, stored, ingested, and what happens to each is told as server-sent events.

Files go into a folder of uploads (`tournant.serve.indexes.uploads_of`) under a safe form of their names; one that has the name of an
earlier one replaces it. The folder is the truth: what lies in it belongs into the index. A client that leaves loses the answer and
the file that it was in the middle of; the files that had come completely are stored and ingested.

The events, each with a JSON object: ``received`` (a file is stored) and ``failed`` (with the ``reason``), then ``queued`` (``ahead``: ingests in
front), ``reading`` (the ingest has begun), ``progress`` (``read``, ``cut``, ``embedded``, ``written``: what has passed each stage), ``waiting`` (with
the ``reason``), ``done`` (it can be found now) or ``failed`` for each file, and last ``summary``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tournant.serve.bodies import ClientLeft, Receive, Scope, Send, header
from tournant.serve.errors import HTTPError, busy
from tournant.serve.indexes import uploads_of
from tournant.serve.ingests import MARK, Ingests
from tournant.serve.presence import Presence
from tournant.serve.receiving import Received, Reception, clear_stale
from tournant.serve.settings import ServeSettings
from tournant.serve.sse import EventResponse

T = TypeVar("T")

_PIECE = 256 * 1024  # bytes handed to a thread at once
_RECEIVING = 16  # uploads at once
_WAITING = 64  # uploads that may wait for their ingest
_SIGN_OF_LIFE = 10.0


class Documents:
    """Uploads into the index of a server, and their route. For one event loop.

    It needs no `start`, but only that finds what an earlier server has left undone.

    Args:
        settings: The server's settings; ``index`` must be set.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self.folder = uploads_of(settings)
        self._ingests = Ingests(settings, self.folder)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="tournant-upload")
        self._receiving = 0

    async def start(self) -> None:
        """Ingest what an earlier server has stored and not ingested, in the background."""
        behind = await self._on_thread(self._look)
        self._ingests.start(behind=behind)

    async def aclose(self) -> None:
        """Have a running ingest finish what is in flight, within the grace period; the next start does the rest."""
        await self._ingests.aclose(self._settings.grace_seconds)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def depth(self) -> dict[str, float]:
        """Return the figures of uploads and ingests."""
        ingests = self._ingests
        return {
            "receiving": self._receiving,
            "waiting": len(ingests.waiting),
            "running": int(ingests.running is not None),
            "ingests": ingests.ended,
            "ingests_failed": ingests.failed,
        }

    @property
    def process(self) -> int | None:
        """The process id of the ingest that runs."""
        return self._ingests.running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``POST /v1/documents``.

        Raises:
            HTTPError: the upload is refused as a whole: nothing of it is stored.
            ClientLeft: the client left.
        """
        if self._receiving >= _RECEIVING or len(self._ingests.waiting) >= _WAITING:
            raise busy(503, "too many uploads are in progress: try again later", 5.0)
        self._receiving += 1
        try:
            upload = await self._receive(scope, receive)
        finally:
            self._receiving -= 1
        async with Presence(receive):
            try:
                await self._report(upload, EventResponse(send))
            finally:
                upload.listening = False

    # Receiving

    async def _receive(self, scope: Scope, receive: Receive) -> _Upload:
        """Receive the files of an upload and hand them to the ingest."""
        settings = self._settings
        most = settings.max_upload_bytes
        reception = Reception(
            self.folder, header(scope, b"content-type"), most, settings.max_upload_files
        )
        announced = header(scope, b"content-length")
        if announced is not None and announced.isdecimal() and int(announced[:20]) > most:
            raise HTTPError(
                413,
                f"the upload is larger than {most:,} bytes: upload fewer files at once",
                "upload_too_large",
            )
        left = False
        try:
            try:
                await self._read(receive, reception)
                await self._on_thread(reception.finish)
            except ClientLeft:
                left = True
                if not any(file.reason is None for file in reception.files):
                    raise
            upload = await self._store(reception)
        finally:
            await asyncio.shield(self._on_thread(reception.close))
        if left:
            upload.listening = False
            raise ClientLeft
        return upload

    async def _read(self, receive: Receive, reception: Reception) -> None:
        pieces: list[bytes] = []
        size = 0
        more = True
        while more:
            try:
                async with asyncio.timeout(self._settings.body_seconds):
                    message = await receive()
            except TimeoutError:
                raise HTTPError(
                    408,
                    f"nothing of the upload came for {self._settings.body_seconds:g} s: send it again",
                ) from None
            if message["type"] == "http.disconnect":
                if pieces:
                    await self._on_thread(reception.feed, b"".join(pieces))
                raise ClientLeft
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            more = message.get("more_body", False)
            if size >= _PIECE or not more:
                await self._on_thread(reception.feed, b"".join(pieces))
                pieces.clear()
                size = 0

    async def _store(self, reception: Reception) -> _Upload:
        """Move the files to their places and queue them. Once begun it is completed, whoever leaves meanwhile."""
        task = asyncio.ensure_future(self._stored(reception))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()
            raise

    async def _stored(self, reception: Reception) -> _Upload:
        try:
            await self._ingests.announce()
            files = await self._on_thread(reception.commit)
        except OSError as error:
            raise HTTPError(
                503, f"the upload can't be stored: {error.strerror or error}", "storage_failed"
            ) from error
        upload = _Upload(files)
        if upload.paths:
            upload.tell("queued", {"ahead": self._ingests.add(upload)})
        else:
            await self._ingests.withdraw()
            upload.end(None, None)
        return upload

    # Reporting

    async def _report(self, upload: _Upload, response: EventResponse) -> None:
        while True:
            data, over = upload.take()
            if data or over:
                await response.write(data, last=over)
            if over:
                return
            try:
                async with asyncio.timeout(_SIGN_OF_LIFE):
                    await upload.changed.wait()
            except TimeoutError:
                await response.write(b": still at it\n\n")

    def _look(self) -> bool:
        clear_stale(self.folder)
        return os.path.exists(os.path.join(self.folder, MARK))

    async def _on_thread(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)


class _Upload:
    """The files of one upload on their way, and what is to be told of them. Bounded: a few events a file, and the latest progress."""

    def __init__(self, files: Sequence[Received]) -> None:
        self.listening = True
        self.changed = asyncio.Event()
        self._events: list[bytes] = []
        self._progress: bytes | None = None
        self._over = False
        self._names = {file.path: file.name for file in files if file.reason is None}
        self.paths: Sequence[str] = list(self._names)
        self._total = len(files)
        self._done = 0
        for file in files:
            what: dict[str, Any] = {"name": file.name, "bytes": file.size}
            if file.reason is None:
                self._add("received", what)
            else:
                self._add("failed", {**what, "reason": file.reason})

    def tell(self, event: str, what: dict[str, Any]) -> None:
        """Take an event of the ingest; those of other uploads' files are passed over."""
        if "path" in what:
            name = self._names.pop(what["path"], None)
            if name is None:
                return
            self._done += event == "done"
            reason = {"reason": what["reason"]} if "reason" in what else {}
            self._add(event, {"name": name, "source": what["path"], **reason})
        elif event == "progress":
            if self.listening:
                self._progress = _event(event, what)
                self.changed.set()
        else:
            self._add(event, what)

    def end(self, summary: dict[str, Any] | None, reason: str | None) -> None:
        """Take the end of the ingest."""
        for path, name in self._names.items():
            why = reason or "it changed while it was read; the next ingest reads it again"
            self._add("failed", {"name": name, "source": path, "reason": why})
        self._names.clear()
        about: dict[str, Any] = {
            "files": self._total,
            "done": self._done,
            "failed": self._total - self._done,
        }
        if summary is not None:
            about.update({name: summary[name] for name in ("chunks", "seconds", "index")})
        if reason is not None:
            about["error"] = reason
        self._add("summary", about)
        self._over = True
        self.changed.set()

    def take(self) -> tuple[bytes, bool]:
        """Return the events that have not been taken yet, and whether those were the last."""
        self.changed.clear()
        self._flush()
        events, self._events = self._events, []
        return b"".join(events), self._over

    def _add(self, event: str, what: dict[str, Any]) -> None:
        if self.listening:
            self._flush()
            self._events.append(_event(event, what))
            self.changed.set()

    def _flush(self) -> None:
        if self._progress is not None:
            self._events.append(self._progress)
            self._progress = None


def _event(name: str, what: dict[str, Any]) -> bytes:
    import msgspec

    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(what))
