"""The doors of ``/v1/embeddings``, ``/v1/search`` and ``/v1/documents``: who may come in, before any work is done.

What is behind them is in `embedding`, `search` and `documents`. Without an embedder of its own the server relays embeddings to
the upstream.
"""

from __future__ import annotations

from tournant.llm.estimate import estimate_tokens
from tournant.serve.bodies import (
    TOKENS,
    Endpoint,
    Message,
    Receive,
    Scope,
    Send,
    an_object,
    header,
    parse_json,
    read_body,
)
from tournant.serve.errors import HTTPError, error_event
from tournant.serve.presence import Presence
from tournant.serve.relay import fetch
from tournant.serve.respond import JSON, respond
from tournant.serve.state import State

_BYTES_PER_TOKEN = 4


class Vectors:
    """The endpoints around the index.

    Args:
        state: The server.
    """

    def __init__(self, state: State) -> None:
        self._state = state

    async def embeddings(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``POST /v1/embeddings``."""
        state = self._state
        caller = state.caller(scope)
        if state.embeddings is not None:
            length = header(scope, b"content-length") or "0"
            tokens = int(length[:12]) // _BYTES_PER_TOKEN if length.isdecimal() else 0
            with state.admission.charged(caller, tokens) as charge:
                await self._guarded(state.embeddings, scope, receive, send)
                charge.settle(scope.get(TOKENS, tokens))
            return
        if state.upstream is None:
            raise HTTPError(
                404,
                "nobody embeds here: start the server with --embedder, --index or --llm",
                "no_embedder",
            )
        raw = await read_body(scope, receive, state.settings)
        body = an_object(await parse_json(raw, state.settings))
        with state.admission.charged(caller, estimate_tokens(body)) as charge:
            async with Presence(receive, state.running, scope):
                request = state.upstream.request(
                    "POST", "/embeddings", raw, state.passed_authorization(scope)
                )
                settings = state.settings
                answer = await fetch(
                    state.upstream, request, settings.total_seconds, settings.max_answer_bytes
                )
            if (used := answer.usage()) is not None:
                charge.settle(sum(used))
        kind = answer.headers.get(b"content-type", JSON)
        await respond(send, answer.status, answer.body, kind, answer.when_again())

    async def search(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``POST /v1/search``."""
        state = self._state
        with state.admission.charged(state.caller(scope)):
            if state.searcher is None:
                raise HTTPError(503, "the index is not open yet", headers={"retry-after": "1"})
            await self._guarded(state.searcher, scope, receive, send)

    async def documents(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``POST /v1/documents``."""
        state = self._state
        with state.admission.charged(state.caller(scope)):
            if state.documents is None:
                raise HTTPError(503, "the index is not open yet", headers={"retry-after": "1"})
            await self._guarded(state.documents, scope, receive, send)

    async def _guarded(
        self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Run an endpoint so that it ends when the server must; a stream that has begun ends with an error event."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with Presence(None, self._state.running):
                await endpoint(scope, receive, watched)
        except HTTPError as error:
            if not started:
                raise
            await send({"type": "http.response.body", "body": error_event(error)})
