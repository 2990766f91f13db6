"""The words on the wire: JSON bodies of answers, events of streams, and errors in OpenAI's form.

Written out by hand around the few parts that differ: a general encoder costs several times as much, and this
provider must not be what a benchmark measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from tournant.llm.mock.asks import CHAT, Ask

encode: Callable[[Any], bytes] = msgspec.json.encode

DONE = b"data: [DONE]\n\n"
HTML = (
    b"<!DOCTYPE html>\n<html><head><title>Just a moment...</title></head>"
    b"<body><h1>502 Bad Gateway</h1><p>proxy</p></body></html>\n"
)


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """Return an error as OpenAI writes it."""
    return encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _usage(tokens_in: int, tokens_out: int) -> bytes:
    return b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}' % (
        tokens_in, tokens_out, tokens_in + tokens_out,
    )  # fmt: skip


def answer_body(
    ask: Ask,
    number: int,
    created: int,
    answers: list[tuple[str, str]],
    tokens_in: int,
    tokens_out: int,
) -> bytes:
    """Return the body of an answer that is not streamed.

    Args:
        ask: What was asked.
        number: The call's number, for the id.
        created: Seconds since 1970.
        answers: Text and finish reason of each choice.
        tokens_in: Tokens of the prompt.
        tokens_out: Tokens of all choices.
    """
    if ask.kind == CHAT:
        text, reason = answers[0]
        return (
            b'{"id":"chatcmpl-%d","object":"chat.completion","created":%d,"model":%b,"choices":[{"index":0,"message":'
            b'{"role":"assistant","content":%b,"refusal":null},"logprobs":null,"finish_reason":"%b"}],"usage":%b}'
        ) % (
            number, created, encode(ask.model), encode(text), reason.encode(), _usage(tokens_in, tokens_out),
        )  # fmt: skip
    choices = b",".join(
        b'{"text":%b,"index":%d,"logprobs":null,"finish_reason":"%b"}'
        % (encode(text), index, reason.encode())
        for index, (text, reason) in enumerate(answers)
    )
    return (
        b'{"id":"cmpl-%d","object":"text_completion","created":%d,"model":%b,"choices":[%b],"usage":%b}'
    ) % (number, created, encode(ask.model), choices, _usage(tokens_in, tokens_out))


def embeddings_body(ask: Ask, vectors: Iterable[list[float] | str]) -> bytes:
    """Return the body of embeddings: numbers, or base64 where that was asked for."""
    data = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, encode(vector))
        for index, vector in enumerate(vectors)
    )
    return (
        b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
    ) % (data, encode(ask.model), ask.tokens_in, ask.tokens_in)


class Events:
    """The events of one streamed answer.

    Args:
        ask: What was asked.
        number: The call's number, for the id.
        created: Seconds since 1970.
    """

    __slots__ = ("_chat", "_head", "_tail")

    def __init__(self, ask: Ask, number: int, created: int) -> None:
        self._chat = ask.kind == CHAT
        name, kind = (
            (b"chatcmpl", b"chat.completion.chunk") if self._chat else (b"cmpl", b"text_completion")
        )
        self._head = b'data: {"id":"%b-%d","object":"%b","created":%d,"model":%b,"choices":[' % (
            name, number, kind, created, encode(ask.model),
        )  # fmt: skip
        # With usage asked for, OpenAI says in every event but the last that there is none yet.
        self._tail = b'],"usage":null}\n\n' if ask.with_usage else b"]}\n\n"

    def begin(self) -> bytes:
        """Return what comes before the first piece."""
        if not self._chat:
            return b""
        return (
            self._head
            + b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
            + self._tail
        )

    def piece(self, text: str, index: int = 0) -> bytes:
        """Return one piece of the answer."""
        if self._chat:
            choice = b'{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null}'
        else:
            choice = b'{"index":%d,"text":%b,"logprobs":null,"finish_reason":null}'
        return self._head + choice % (index, encode(text)) + self._tail

    def last(self, reason: str, index: int = 0) -> bytes:
        """Return the event that says why the answer ended."""
        if self._chat:
            choice = b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%b"}'
        else:
            choice = b'{"index":%d,"text":"","logprobs":null,"finish_reason":"%b"}'
        return self._head + choice % (index, reason.encode()) + self._tail

    def usage(self, tokens_in: int, tokens_out: int) -> bytes:
        """Return the event that says what it cost."""
        return self._head + b'],"usage":%b}\n\n' % _usage(tokens_in, tokens_out)

    def failed(self, body: bytes) -> bytes:
        """Return an error event."""
        return b"data: " + body + b"\n\n"
