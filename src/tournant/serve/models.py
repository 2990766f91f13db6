"""Which models there are: ``/v1/models``, and the model that a request means."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from tournant.errors import short
from tournant.serve.bodies import Receive, Scope, Send
from tournant.serve.errors import HTTPError
from tournant.serve.question import RAG, Question
from tournant.serve.relay import fetch
from tournant.serve.respond import respond_json
from tournant.serve.state import State

_KEPT = 30.0
_WAIT = 10.0
_MOST = 4 * 2**20


class Models:
    """The list of models.

    Args:
        state: The server.
    """

    def __init__(self, state: State) -> None:
        self._state = state

    async def all(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``GET /v1/models``."""
        self._state.caller(scope)
        await respond_json(send, {"object": "list", "data": await self._list(scope)})

    async def one(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``GET /v1/models/NAME``."""
        self._state.caller(scope)
        name = scope["path"].removeprefix("/v1/models/")
        for model in await self._list(scope):
            if model.get("id") == name:
                await respond_json(send, model)
                return
        raise HTTPError(
            404,
            f"there is no model {short(name)}; /v1/models lists those there are",
            "model_not_found",
        )

    async def _list(self, scope: Scope) -> list[dict[str, Any]]:
        state = self._state
        found: list[dict[str, Any]] = []
        if state.model_name is not None:
            found.append(self._described(state.model_name))
        elif state.upstream is not None:
            found.extend(await upstream_models(state, scope))
        if state.searcher is not None and state.answers:
            found.append(self._described(RAG))
        if state.embeddings is not None:
            found.append(self._described(state.embeddings.model))
        return found

    def _described(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": int(self._state.started_at),
            "owned_by": "tournant",
        }


async def upstream_models(state: State, scope: Scope) -> list[dict[str, Any]]:
    """Return what the upstream lists; the list is kept for half a minute where this server's own key asks for it.

    Raises:
        HTTPError: the upstream can't be asked, or answered something else.
    """
    upstream = state.upstream
    assert upstream is not None
    now = time.monotonic()
    kept = state.models_kept
    if kept is not None and now - kept[0] < _KEPT:
        return kept[1]
    authorization = state.passed_authorization(scope)
    answer = await fetch(
        upstream, upstream.request("GET", "/models", b"", authorization), _WAIT, _MOST
    )
    try:
        data = msgspec.json.decode(answer.body)["data"]
        found = [
            model for model in data if isinstance(model, dict) and isinstance(model.get("id"), str)
        ]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise HTTPError(502, "the upstream lists no models: name one with --model") from None
    if authorization is None:
        state.models_kept = (now, found)
    return found


async def resolve_model(state: State, question: Question, scope: Scope) -> None:
    """Give a question the model that it is answered by.

    Raises:
        HTTPError: 404 when nobody answers here, or not this model.
    """
    if not state.answers:
        raise HTTPError(
            404, "nobody answers here: this server was started without --llm", "no_model"
        )
    asked, name = question.model, state.model_name
    rag = asked == RAG and question.retrieve is not None
    if name is None:
        if rag:
            listed = await upstream_models(state, scope)
            if not listed:
                raise HTTPError(502, "the upstream lists no models: name one with --model")
            name = listed[0]["id"]
        else:
            return  # the upstream knows its models
    elif asked is not None and asked != name and not rag:
        raise HTTPError(
            404,
            f"there is no model {short(asked)} here; use {name!r}",
            "model_not_found",
            param="model",
        )
    if asked != name:
        question.model = name
        question.body = {**question.body, "model": name}
        question.raw = b""
