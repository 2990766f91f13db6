"""``/v1/chat/completions`` and ``/v1/completions``: who may ask, what is retrieved first, and who answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from tournant.serve.admission import Ticket
from tournant.serve.answers import ModelAnswer, extra_event
from tournant.serve.bodies import (
    DIRECT,
    ClientLeft,
    Receive,
    Scope,
    Send,
    off_the_loop,
    parse_json,
    read_body,
)
from tournant.serve.errors import HTTPError
from tournant.serve.metrics import Live
from tournant.serve.models import resolve_model
from tournant.serve.presence import Presence
from tournant.serve.question import Kind, Question, read_question
from tournant.serve.relay import Answer, Passed, StreamRelay, fetch, with_field
from tournant.serve.respond import respond
from tournant.serve.sse import EventResponse
from tournant.serve.state import State

_PATHS = {"chat": "/chat/completions", "completion": "/completions"}


class Answering:
    """The endpoints of chat and completions.

    Args:
        state: The server.
    """

    def __init__(self, state: State) -> None:
        self._state = state

    async def chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``POST /v1/chat/completions``."""
        await self._answer("chat", scope, receive, send)

    async def completion(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``POST /v1/completions``."""
        await self._answer("completion", scope, receive, send)

    async def _answer(self, kind: Kind, scope: Scope, receive: Receive, send: Send) -> None:
        state = self._state
        caller = state.caller(scope)
        if state.admission.closed is not None:
            raise state.admission.closed
        raw = await read_body(scope, receive, state.settings)
        question = read_question(await parse_json(raw, state.settings), raw, kind, state.settings)
        job = _Job(state, question, scope, send)
        try:
            async with Presence(receive, state.running, scope):
                ticket = await state.admission.enter(caller, question.tokens)
                try:
                    await job.run(ticket)
                finally:
                    ticket.close()
        except ClientLeft:
            state.figures.answers["left"] += 1
            raise
        except HTTPError as error:
            state.figures.answers[_outcome(error)] += 1
            await job.response.fail(error)


def _outcome(error: HTTPError) -> str:
    if error.code == "stopping":
        return "stopped"
    return "failed" if error.status >= 500 and error.code != "overloaded" else "refused"


class _Job:
    """One answer, from the moment that its request was read."""

    def __init__(self, state: State, question: Question, scope: Scope, send: Send) -> None:
        self._state = state
        self._question = question
        self._scope = scope
        self._send = send
        direct = scope.get(DIRECT) if scope["http_version"] == "1.1" else None
        self.response = EventResponse(send, direct=direct)
        self._began = time.monotonic()
        self._first_at = 0.0

    async def run(self, ticket: Ticket) -> None:
        """Answer.

        Raises:
            HTTPError: nobody could.
        """
        state, question = self._state, self._question
        await resolve_model(state, question, self._scope)
        extra: dict[str, Any] = {}
        if question.retrieve is not None:
            extra["sources"] = await self._retrieve()
        if state.model is not None:
            await self._by_model(ticket, extra)
        elif question.stream:
            await self._streamed(ticket, extra)
        else:
            await self._whole(ticket, extra)
        state.figures.duration.add(time.monotonic() - self._began)

    async def _retrieve(self) -> Sequence[Any]:
        from tournant.serve.retrieval import with_sources

        state, question = self._state, self._question
        assert state.searcher is not None
        assert question.retrieve is not None
        k, mode = question.retrieve
        body, sources = await with_sources(question.body, state.searcher, k=k, mode=mode)
        question.body, question.raw = body, b""
        return sources

    # From the upstream

    async def _streamed(self, ticket: Ticket, extra: dict[str, Any]) -> None:
        state, question = self._state, self._question
        event = b""
        if extra:
            event = extra_event(question.kind, question.model or "", extra)
        relay = StreamRelay(self.response, state.settings, state.ticker, self._first, event, event)
        assert state.upstream is not None
        state.figures.began(relay)
        try:
            await relay.run(state.upstream, await self._request())
        except Passed as passed:
            await self._pass_on(ticket, passed.answer)
            return
        finally:
            self._account(ticket, relay)
        state.figures.answers["complete" if relay.failed is None else "failed"] += 1

    async def _whole(self, ticket: Ticket, extra: dict[str, Any]) -> None:
        state, question, settings = self._state, self._question, self._state.settings
        assert state.upstream is not None
        request = await self._request()
        answer = await fetch(
            state.upstream, request, settings.total_seconds, settings.max_answer_bytes
        )
        if answer.status != 200:
            await self._pass_on(ticket, answer)
            return
        used = answer.usage() or (question.prompt_tokens, question.tokens - question.prompt_tokens)
        self._used(ticket, *used)
        body = answer.body
        for name, value in extra.items():
            body = await with_field(body, name, msgspec.json.encode(value))
        kind = answer.headers.get(b"content-type", b"application/json")
        state.figures.answers["complete"] += 1
        await respond(self._send, 200, body, kind)

    async def _request(self) -> bytes:
        question, upstream = self._question, self._state.upstream
        assert upstream is not None
        body = question.raw
        if not body:
            large = question.tokens > 16_384
            body = (
                await off_the_loop(msgspec.json.encode, question.body)
                if large
                else msgspec.json.encode(question.body)
            )
        authorization = self._state.passed_authorization(self._scope)
        return upstream.request("POST", _PATHS[question.kind], body, authorization)

    async def _pass_on(self, ticket: Ticket, answer: Answer) -> None:
        """Hand on what the upstream says about the request itself."""
        ticket.refund()
        self._state.figures.answers["refused"] += 1
        kind = answer.headers.get(b"content-type", b"application/json")
        await respond(self._send, answer.status, answer.body, kind, answer.when_again())

    def _account(self, ticket: Ticket, relay: StreamRelay) -> None:
        """Count a streamed answer, however it ended."""
        question = self._question
        self._ended(relay)
        if not relay.events:
            ticket.refund()
            return
        # Without usage, an event is taken for a token; the first, the last and [DONE] carry none.
        used = relay.usage() or (question.prompt_tokens, max(1, relay.events - 3))
        self._used(ticket, *used)

    # From a model in this process

    async def _by_model(self, ticket: Ticket, extra: dict[str, Any]) -> None:
        state, question = self._state, self._question
        assert state.model is not None
        answer = ModelAnswer(state.model, state.model_name or state.model.name, question, extra)
        state.figures.began(answer)
        try:
            if question.stream:
                await answer.stream(self.response, self._first)
            else:
                body = await answer.whole()
                await respond(self._send, 200, body)
        finally:
            if answer.usage is not None:
                self._used(ticket, answer.usage.prompt_tokens, answer.usage.completion_tokens)
            elif answer.events:
                self._used(ticket, question.prompt_tokens, answer.events)
            self._ended(answer)
        state.figures.answers["complete"] += 1

    # Counting

    def _first(self) -> None:
        self._first_at = time.monotonic()
        self._state.figures.first_token.add(self._first_at - self._began)

    def _used(self, ticket: Ticket, prompt: int, written: int) -> None:
        ticket.settle(prompt + written)
        self._state.figures.tokens_read += prompt
        self._state.figures.tokens_written += written

    def _ended(self, answer: Live) -> None:
        figures = self._state.figures
        figures.ended(answer)
        if answer.events > 1 and self._first_at:
            figures.gap.add((time.monotonic() - self._first_at) / (answer.events - 1))
