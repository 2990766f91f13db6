"""What a running server holds. Everything that lives longer than a request is here, and is opened and closed here."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tournant.serve.admission import Admission, Caller
from tournant.serve.bodies import Scope
from tournant.serve.errors import InvalidSettings
from tournant.serve.keys import read_keys
from tournant.serve.metrics import Figures
from tournant.serve.presence import Running
from tournant.serve.settings import ServeSettings
from tournant.serve.ticker import Ticker
from tournant.serve.upstream import Upstream
from tournant.serve.watchdog import Watchdog

if TYPE_CHECKING:
    from tournant.llm.model import Model
    from tournant.serve.documents import Documents
    from tournant.serve.embedding import Embeddings
    from tournant.serve.search import Searcher

_log = logging.getLogger("tournant.serve")


_LOCAL_PARALLEL = 4


class State:
    """One server.

    Args:
        settings: What it was told.
        model: A model that answers in place of the one that the settings name; for whoever embeds the server in a program.

    Attributes:
        admission: Who may begin.
        figures: What is counted.
        ticker: The server's timer.
        watchdog: Names what blocks the loop.
        upstream: Whom answers are relayed from, or ``None``.
        model: Who answers in this process, or ``None``.
        model_name: What that model, or the one of the upstream, is called; ``None`` where any model may be asked for.
        embeddings: Who embeds, or ``None``.
        searcher: Who searches, or ``None``.
        documents: Who takes uploads, or ``None``.
        running: The work in progress that must end when the server stops.
        connections: How many connections there are.
        models_kept: What the upstream listed as its models, and when.
        ready: Whether everything is loaded.
        started_at: When it was opened, in seconds of the epoch.

    Raises:
        InvalidSettings: the file of keys can't be read, or a variable that was named is not set.
    """

    def __init__(self, settings: ServeSettings, model: Model | None = None) -> None:
        self.settings = settings
        self.keys = None if settings.api_keys is None else read_keys(settings.api_keys)
        self.admission = Admission(settings)
        self.figures = Figures()
        self.ticker = Ticker()
        self.watchdog = Watchdog()
        self.model = model
        self.model_name = settings.model or (None if model is None else model.name)
        self.upstream: Upstream | None = None
        if settings.upstream is not None and model is None:
            self.upstream = Upstream(settings.upstream, _key(settings), settings.connect_seconds)
        if settings.local_model is not None and not Path(settings.local_model).is_file():
            raise InvalidSettings(
                f"llm: there is no file {settings.local_model!r}; name a model in the GGUF format"
            )
        self.embeddings: Embeddings | None = None
        self.searcher: Searcher | None = None
        self.documents: Documents | None = None
        self.running = Running()
        self.connections = 0
        self.models_kept: tuple[float, list[dict[str, Any]]] | None = None
        self.ready = False
        self.started_at = time.time()
        self._open = AsyncExitStack()

    @property
    def answers(self) -> bool:
        """Whether there is anybody who answers."""
        return (
            self.model is not None
            or self.upstream is not None
            or self.settings.local_model is not None
        )

    async def start(self) -> None:
        """Open everything: the models load in parallel, off the loop."""
        settings = self.settings
        self.ticker.start()
        self._open.callback(self.ticker.stop)
        self.watchdog.start()
        self._open.callback(self.watchdog.stop)
        try:
            if self.upstream is not None:
                await self.upstream.start()
                self._open.push_async_callback(self.upstream.aclose)
                self.ticker.watched.add(self.upstream)
            await asyncio.gather(self._start_model(), self._start_index())
        except BaseException:
            await self._open.aclose()
            raise
        self.started_at = time.time()
        self.ready = True
        _log.debug("ready; index %s, llm %s", settings.index and "given", settings.llm and "given")

    async def aclose(self) -> None:
        """Close everything."""
        self.ready = False
        await self._open.aclose()

    def caller(self, scope: Scope) -> Caller:
        """Return whose request this is.

        Raises:
            HTTPError: 401 for a key that is missing or unknown.
        """
        if self.keys is None:
            return self.admission.anonymous()
        return self.admission.caller(self.keys.caller(scope))

    def passed_authorization(self, scope: Scope) -> bytes | None:
        """Return the caller's own ``Authorization``, where it is for the upstream: this server has no keys, and none for it."""
        if self.keys is not None or self.upstream is None or self.upstream.has_key:
            return None
        for name, value in scope["headers"]:
            if name == b"authorization":
                found: bytes = value
                return found
        return None

    async def _start_model(self) -> None:
        path = self.settings.local_model
        if path is None or self.model is not None:
            return
        from tournant.llm import local

        # More than the model writes at once queue here, where the queue is fair.
        self.admission.most = min(self.settings.max_streams, _LOCAL_PARALLEL)
        model: Any = await asyncio.to_thread(local, path, parallel=self.admission.most)
        self._open.push_async_callback(model.aclose)
        await model.load()
        self.model = model
        self.model_name = self.settings.model or Path(path).stem

    async def _start_index(self) -> None:
        settings = self.settings
        if settings.index is None and settings.embedder is None:
            return
        from tournant.serve.embedding import Embeddings

        embeddings = Embeddings(settings)
        await embeddings.start()
        self._open.push_async_callback(embeddings.aclose)
        self.embeddings = embeddings
        if settings.index is not None:
            from tournant.serve.search import Searcher

            searcher = Searcher(settings, embeddings)
            await searcher.start()
            self._open.push_async_callback(searcher.aclose)
            self.searcher = searcher
            from tournant.serve.documents import Documents

            documents = Documents(settings)
            await documents.start()
            self._open.push_async_callback(documents.aclose)
            self.documents = documents


def _key(settings: ServeSettings) -> str | None:
    name = settings.llm_api_key_env
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise InvalidSettings(
            f"the environment variable {name} is not set: put the upstream's API key into it"
        )
    return key
