"""The same answers as the relay's, made by a `tournant.llm.Model`: the one in this process, or any other.

The model writes pieces of text; here they become OpenAI's events and bodies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec

from tournant.llm.errors import (
    BadRequest,
    InvalidClient,
    LLMError,
    LLMTimeout,
    NotFound,
    Overloaded,
    RateLimited,
)
from tournant.serve.errors import HTTPError, bad_request, busy
from tournant.serve.question import Question, options_of
from tournant.serve.sse import DONE, EventResponse

if TYPE_CHECKING:
    from tournant.llm.model import Chunk, ChunkStream, Model, Reply, Usage

_encode = msgspec.json.encode
_numbers = count(1)


class ModelAnswer:
    """One answer of a model.

    Args:
        model: Who answers.
        name: What the model is called here.
        question: What was asked.
        extra: More fields for the body, the first event and the last (the sources).

    Attributes:
        events: Events written.
        sent: Bytes written.
        writes: Writes that took.
        usage: What it cost, where the model said so.
    """

    def __init__(
        self, model: Model, name: str, question: Question, extra: dict[str, Any] | None = None
    ) -> None:
        self._model = model
        self._question = question
        self._extra = extra or {}
        self._head = new_head(question.kind, name)
        self.events = 0
        self.sent = 0
        self.writes = 0
        self.usage: Usage | None = None

    async def whole(self) -> bytes:
        """Return the whole answer's body.

        Raises:
            HTTPError: the model failed.
        """
        question = self._question
        try:
            if question.kind == "chat":
                reply = await self._model.chat(question.body["messages"], **self._options())
            else:
                reply = await self._model.complete(self._prompt(), **self._options())
        except LLMError as error:
            raise http_error(error) from None
        self.usage = reply.usage
        return _encode(
            {
                **self._head,
                "choices": [self._choice(reply)],
                "usage": _usage(reply.usage),
                **self._extra,
            }
        )

    async def stream(self, response: EventResponse, first: Callable[[], None]) -> None:
        """Stream the answer. Nothing is sent before the first piece is there.

        Raises:
            HTTPError: the model failed; when the response has started, the caller ends it with an event.
        """
        question = self._question
        self._head["object"] = (
            "chat.completion.chunk" if question.kind == "chat" else "text_completion"
        )
        try:
            async with aclosing(self._open()) as chunks:
                async for chunk in chunks:
                    data = self._event(chunk, begins=not self.events)
                    if not self.events:
                        first()
                    self.events += 1
                    self.sent += len(data)
                    self.writes += 1
                    await response.write(data)
                    if chunk.usage is not None:
                        self.usage = chunk.usage
        except LLMError as error:
            raise http_error(error) from None
        await response.write(self._end(), last=True)

    def _open(self) -> ChunkStream:
        if self._question.kind == "chat":
            return self._model.stream(self._question.body["messages"], **self._options())
        return self._model.stream_completion(self._prompt(), **self._options())

    def _options(self) -> dict[str, Any]:
        options = options_of(self._question.body)
        if options.pop("n", 1) != 1:
            raise bad_request("n must be 1 here: ask several times for several answers", "n")
        return options

    def _prompt(self) -> str:
        prompt = self._question.body["prompt"]
        if isinstance(prompt, list):
            if len(prompt) != 1 or not isinstance(prompt[0], str):
                raise bad_request("prompt must be one string here", "prompt")
            prompt = prompt[0]
        return str(prompt)

    def _event(self, chunk: Chunk, *, begins: bool) -> bytes:
        if self._question.kind == "chat":
            delta: dict[str, Any] = {"role": "assistant"} if begins else {}
            if chunk.text or begins:
                delta["content"] = chunk.text
            choice: dict[str, Any] = {"index": 0, "delta": delta}
        else:
            choice = {"index": 0, "text": chunk.text}
        choice["finish_reason"] = chunk.finish_reason
        more = self._extra if begins else {}
        return b"data: " + _encode({**self._head, "choices": [choice], **more}) + b"\n\n"

    def _end(self) -> bytes:
        end = b""
        if self._extra:
            end += extra_event(self._question.kind, self._head["model"], self._extra)
        if self._question.wants_usage:
            end += (
                b"data: "
                + _encode({**self._head, "choices": [], "usage": _usage(self.usage)})
                + b"\n\n"
            )
        return end + DONE

    def _choice(self, reply: Reply) -> dict[str, Any]:
        finish = {"index": 0, "finish_reason": reply.finish_reason or "stop"}
        if self._question.kind == "chat":
            return {**finish, "message": {"role": "assistant", "content": reply.text}}
        return {**finish, "text": reply.text}


def extra_event(kind: str, name: str, extra: dict[str, Any]) -> bytes:
    """Return an event that writes nothing and carries more fields. Clients that look at the first choice find one."""
    head = new_head(kind, name)
    choice: dict[str, Any] = {"index": 0, "finish_reason": None}
    if kind == "chat":
        head["object"] = "chat.completion.chunk"
        choice["delta"] = {"content": ""}
    else:
        choice["text"] = ""
    return b"data: " + _encode({**head, "choices": [choice], **extra}) + b"\n\n"


def new_head(kind: str, name: str) -> dict[str, Any]:
    """Return the fields that every event of an answer begins with."""
    chat = kind == "chat"
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{time.time_ns():x}-{next(_numbers)}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": name,
    }


def http_error(error: LLMError) -> HTTPError:
    """Return what a model's error means for the client."""
    text = str(error)
    if isinstance(error, (BadRequest, InvalidClient)):
        return bad_request(text, code=error.code or error.kind)
    if isinstance(error, NotFound):
        return HTTPError(404, text, "model_not_found")
    if isinstance(error, LLMTimeout):
        return HTTPError(504, text, error.kind)
    if isinstance(error, (RateLimited, Overloaded)):
        return busy(503, text, error.retry_after or 1.0)
    return HTTPError(502, text, error.kind)


def _usage(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
