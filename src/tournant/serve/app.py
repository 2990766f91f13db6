"""The application: which request goes where, what every response has in common, and what happens to errors.

Plain ASGI: a look-up in a dict, and no middleware that could stand between an endpoint and its client.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tournant.serve.bodies import DIRECT, ClientLeft, Endpoint, Message, Receive, Scope, Send
from tournant.serve.browsers import BrowserRules, is_preflight, preflight_headers, with_origin
from tournant.serve.chat import Answering
from tournant.serve.errors import HTTPError, busy
from tournant.serve.models import Models
from tournant.serve.openapi import OpenAPI
from tournant.serve.pages import Pages
from tournant.serve.respond import Incoming, respond, respond_error, respond_json
from tournant.serve.settings import ServeSettings
from tournant.serve.state import State
from tournant.serve.stats import Stats
from tournant.serve.vectors import Vectors

if TYPE_CHECKING:
    from tournant.llm.model import Model

_log = logging.getLogger("tournant.serve")


class App:
    """The ASGI application of one server.

    Args:
        settings: What it is told.
        model: A model that answers in place of the one that the settings name.

    Attributes:
        state: What it holds.

    Raises:
        InvalidSettings: the file of keys can't be read, or a variable that was named is not set.
    """

    def __init__(self, settings: ServeSettings, model: Model | None = None) -> None:
        self.state = state = State(settings, model)
        self._rules = BrowserRules(settings)
        self._pages = Pages()
        answering, models, stats = Answering(state), Models(state), Stats(state)
        self._models = models
        self._routes: dict[str, dict[str, Endpoint]] = {
            "/healthz": {"GET": self._healthz},
            "/readyz": {"GET": self._readyz},
            "/metrics": {"GET": stats.metrics},
            "/v1/stats": {"GET": stats.once},
            "/v1/stats/stream": {"GET": stats.stream},
            "/v1/models": {"GET": models.all},
            "/v1/chat/completions": {"POST": answering.chat},
            "/v1/completions": {"POST": answering.completion},
        }
        vectors = Vectors(state)
        self._routes["/v1/embeddings"] = {"POST": vectors.embeddings}
        if settings.index is not None:
            self._routes["/v1/search"] = {"POST": vectors.search}
            self._routes["/v1/documents"] = {"POST": vectors.documents}
        self._routes["/openapi.json"] = {"GET": self._describe}
        self._description = OpenAPI(settings, self._routes)

    def stop(self) -> None:
        """Begin no more answers; those in progress go on."""
        self.state.admission.close(
            busy(503, "the server is stopping: ask another, or try again later", 5.0, "stopping")
        )

    def cut(self) -> None:
        """End the answers in progress with an error."""
        why = self.state.admission.closed
        if why is not None:
            self.state.running.interrupt(why)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the server's beginning and end."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            raise ValueError(f"no protocol {scope['type']!r} is served here: only HTTP")

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        incoming = Incoming(receive)
        route = "other"
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        sending: Send = counted
        try:
            try:
                origin = self._rules.check(scope)
                if origin is not None:
                    sending = with_origin(counted, origin)
                    if is_preflight(scope):
                        await respond(sending, 204, b"", headers=preflight_headers())
                        return
                route, endpoint = self._find(scope)
                await endpoint(scope, incoming, sending)
            except HTTPError as error:
                if status:
                    raise
                await respond_error(scope, incoming, sending, error)
        except ClientLeft:
            status = 499
        except Exception:
            self.state.figures.faults += 1
            _log.exception("%s %s failed", scope["method"], route)
            if status:
                # Nothing but a connection that breaks tells the client that the response is not complete.
                if DIRECT not in scope:
                    raise
                scope[DIRECT].drop()
                return
            fault = HTTPError(500, "the server failed; its log says why")
            await respond_error(scope, incoming, sending, fault)
        finally:
            self.state.figures.requests[route, status] += 1

    def _find(self, scope: Scope) -> tuple[str, Endpoint]:
        path, method = scope["path"], scope["method"]
        methods = self._routes.get(path)
        if methods is None:
            if path in self._pages:
                path, methods = "page", {"GET": self._pages, "HEAD": self._pages}
            elif path.startswith("/v1/models/"):
                path, methods = "/v1/models/NAME", {"GET": self._models.one}
            else:
                raise HTTPError(
                    404, "there is nothing at this address; /openapi.json lists what there is"
                )
        endpoint = methods.get(method)
        if endpoint is None:
            allowed = ", ".join(methods)
            raise HTTPError(405, f"this address takes {allowed}", headers={"allow": allowed})
        return path, endpoint

    async def _healthz(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond_json(send, {"status": "ok"})

    async def _describe(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._description(scope, receive, send)

    async def _readyz(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.state.admission.closed is not None:
            raise self.state.admission.closed
        if not self.state.ready:
            raise busy(503, "the server is still loading", 1.0, "loading")
        await respond_json(send, {"status": "ready"})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.state.start()
                except Exception as error:
                    self.failure = error
                    await send({"type": "lifespan.startup.failed", "message": ""})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                self.stop()
                await self.state.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    failure: Exception | None = None


def make_app(settings: ServeSettings, model: Model | None = None) -> App:
    """Return the ASGI application of a server.

    It runs under any ASGI server that speaks ``lifespan``. What concerns connections (their number, requests that never become
    complete, clients that do not read) is done by `tournant.serve.run`, and there only.

    Args:
        settings: What it is told.
        model: A `tournant.llm.Model` that answers in place of the one that the settings name.

    Raises:
        InvalidSettings: the file of keys can't be read, or a variable that was named is not set.
    """
    return App(settings, model)
