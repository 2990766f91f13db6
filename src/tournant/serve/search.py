"""``POST /v1/search``: passages of the index, by words, by meaning or by both. Runs on threads, never on the loop.

The index is looked at anew for every search: what an ingest has committed is found by the next one, and an index that was
deleted or built anew meanwhile is noticed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tournant.ingest.errors import (
    IndexMismatch,
    IndexMissing,
    IndexTrouble,
    IngestError,
    InvalidOption,
)
from tournant.ingest.indexes import locations
from tournant.ingest.indexes.base import MODES, Hit, Mode
from tournant.serve.bodies import Receive, Scope, Send, an_object, field, one_of, read_json, whole
from tournant.serve.errors import HTTPError, bad_request, busy
from tournant.serve.presence import Presence
from tournant.serve.respond import respond
from tournant.serve.settings import ServeSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tournant.ingest.indexes.base import StoredIndex
    from tournant.serve.embedding import Embeddings

DEFAULT_K = 5
_THREADS = 4  # the store has its own, as many as cores; these wait for them
_WAITING = 256  # searches that may wait for a thread
_QUERY_CHARS = 8_000  # what a query may have; a passage has some hundreds
_log = logging.getLogger("tournant.serve")


class Searcher:
    """The index of a server, and its route. For one event loop; start it before use.

    Args:
        settings: The server's settings; ``index`` must be set.
        embeddings: Who embeds the queries.

    Attributes:
        waiting: How many searches are under way or wait for a thread.
    """

    def __init__(self, settings: ServeSettings, embeddings: Embeddings) -> None:
        if settings.index is None:
            raise ValueError("a search needs an index: give one with --index DIR")
        self._settings = settings
        self._folder = locations.folder_of(settings.index)
        self._location = settings.index if self._folder is None else self._folder
        self._directory = locations.shown(self._location)
        self._embeddings = embeddings
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tournant-search")
        self._opened: tuple[tuple[int, int], StoredIndex] | None = None
        self._opening = threading.Lock()
        self.waiting = 0

    async def start(self) -> None:
        """Load the store's packages and open the index. That there is none yet is no error.

        Raises:
            MissingExtra: a package is not installed.
            IndexTrouble: the index is damaged, or was built by another embedder than the one that is served.
        """
        await asyncio.get_running_loop().run_in_executor(self._threads, self._prepare)

    async def aclose(self) -> None:
        """Wait for the searches that are under way."""
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
        await asyncio.to_thread(self._forget)

    async def search(self, query: str, k: int = DEFAULT_K, mode: Mode = "hybrid") -> list[Hit]:
        """Find the passages that fit a query best. A caller that is cancelled before it began costs nothing.

        Args:
            query: The words; beyond 8,000 characters they are cut off.
            k: The most passages.
            mode: By meaning (``vector``), by words (``text``), or by both.

        Raises:
            HTTPError: 503 when there is no index, it can't be used, or too many searches wait.
        """
        if self.waiting >= _WAITING:
            raise busy(503, f"{self.waiting} searches wait already: try again later", 1.0)
        self.waiting += 1
        try:
            query = query[:_QUERY_CHARS]
            vector = None
            if mode != "text":
                vector = (await self._embeddings.embed([query])).vectors[0]
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._search, query, vector, k, mode)
        finally:
            self.waiting -= 1

    # The route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``POST /v1/search``.

        Raises:
            HTTPError: the request is refused.
            ClientLeft: the client left.
        """
        body = an_object(await read_json(scope, receive, self._settings))
        query = field(body, "query", str)
        if not query or not query.strip():
            raise bad_request("query must be a string with a word or more", "query")
        k = whole(body, "k", DEFAULT_K, 1, self._settings.max_results) or DEFAULT_K
        mode: Any = one_of(body, "mode", MODES, "hybrid")
        async with Presence(receive):
            hits = await self.search(query, k, mode)
        import msgspec

        data = msgspec.json.encode(
            {"object": "list", "query": query, "mode": mode, "hits": [as_json(hit) for hit in hits]}
        )
        await respond(send, 200, data)

    # On a thread

    def _prepare(self) -> None:
        if locations.needs_lance(self._location):
            from tournant.ingest.indexes.lance import preload

            _import(preload)
        try:
            self._check(self._open())
        except IndexMissing:
            return

    def _search(
        self, query: str, vector: NDArray[np.float32] | None, k: int, mode: Mode
    ) -> list[Hit]:
        try:
            return self._ask(query, vector, k, mode)
        except HTTPError:
            raise
        except IndexMissing as error:
            raise HTTPError(503, f"there is nothing to search: {error}", "index_missing") from error
        except (IndexTrouble, InvalidOption) as error:
            raise HTTPError(
                503, f"the index can't be searched: {error}", "index_unusable"
            ) from error
        except IngestError as error:
            raise HTTPError(503, str(error), "search_unavailable") from error
        except BaseException as error:
            # The store's native code panics, with an error that is no `Exception`, when files vanish under it.
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            _log.error("a search failed", exc_info=error)
            raise HTTPError(
                503,
                f"index {self._directory!r}: the search failed ({type(error).__name__}); the server's log says more. If "
                "it fails again, delete the folder and ingest again",
                "index_unusable",
            ) from error

    def _ask(self, query: str, vector: NDArray[np.float32] | None, k: int, mode: Mode) -> list[Hit]:
        for attempt in range(2):
            index = self._open()
            try:
                if vector is not None:
                    self._check(index)
                return index.search(query, vector, k, mode)
            except (IndexMissing, IndexMismatch):
                # It is another one than was opened: look once more at what is there now.
                self._forget(index)
                if attempt:
                    raise
        raise AssertionError("unreachable")

    def _open(self) -> StoredIndex:
        """Return the index that is there now. One that lies elsewhere says itself when it is another one.

        Raises:
            IndexMissing: there is none.
            IndexDamaged: it can't be understood.
            SearchFailed: it can't be reached.
        """
        state = (1, 1)
        if self._folder is not None:
            try:
                # This file is written once: another one is another index, though its table have the very same versions.
                status = os.stat(os.path.join(self._folder, "index.json"))
                state = (status.st_ino, status.st_mtime_ns)
            except OSError:
                state = (0, 0)
        with self._opening:
            opened = self._opened
            if opened is None or opened[0] != state or state == (0, 0):
                self._opened = None
                if opened is not None:
                    opened[1].close()
                opened = self._opened = (state, locations.open_index(self._location))
            return opened[1]

    def _forget(self, index: StoredIndex | None = None) -> None:
        """Close the index that is open, if it is this one (or whichever it is)."""
        with self._opening:
            opened = self._opened
            if opened is None or (index is not None and opened[1] is not index):
                return
            self._opened = None
        opened[1].close()

    def _check(self, index: StoredIndex) -> None:
        """Refuse to compare vectors of different models."""
        built, ours = index.settings.embedder, self._embeddings.name
        if built != ours:
            raise IndexMismatch(
                self._directory,
                f"was built with the embedder {built!r}, and the server has {ours!r}. Start the server again with the "
                "index's embedder (the default), or ingest into a new folder",
            )


def as_json(hit: Hit) -> dict[str, Any]:
    """Return a passage as plain data for JSON."""
    return {
        "source": shown(hit.source),
        "score": hit.score,
        "title": hit.title,
        "ordinal": hit.ordinal,
        "start": hit.start,
        "end": hit.end,
        "media_type": hit.media_type,
        "text": hit.text,
    }


def shown(source: str) -> str:
    """Return a source's name so that it can be written as UTF-8: file names on POSIX are bytes."""
    return source if source.isascii() else source.encode("utf-8", "replace").decode()


def _import(preload: Any) -> None:
    try:
        preload()
    except ImportError as error:
        from tournant.ingest.errors import MissingExtra

        raise MissingExtra("a search", error.name or "lancedb", "ingest") from error
