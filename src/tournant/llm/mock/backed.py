"""A model behind the provider: its answers go out on the same surface, and a client that leaves stops it.

Each call is a task, which is cancelled when its client's connection is gone. A stream begins with the model's first piece, so that what
fails before it gets a proper status.
"""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tournant.llm.errors import ContextTooLong, InvalidClient, LLMError
from tournant.llm.mock import wording
from tournant.llm.mock.answers import encoded_vector
from tournant.llm.mock.asks import CHAT, EMBEDDING, everything, options_of
from tournant.llm.mock.fate import Fate
from tournant.llm.mock.tokens import count_tokens

if TYPE_CHECKING:
    from tournant.llm.mock.calls import Call
    from tournant.llm.model import ChunkStream, Model, Reply

log = logging.getLogger("tournant.llm.mock")

#: Bytes that a client may lag behind a stream before the model has to wait for it.
_MOST_UNREAD = 64 * 1024
_ENDINGS = (Fate.CUT, Fate.CUT_HARD, Fate.STREAM_ERROR, Fate.HALF)


async def answer(model: Model, call: Call) -> None:
    """Let a model answer a call, whatever it asks for."""
    try:
        whole = everything(call.exchange.body)
        if call.ask.kind == EMBEDDING:
            await _embed(model, call)
        elif call.ask.streamed:
            await _stream(model, call, whole)
        else:
            await _complete(model, call, whole)
    except asyncio.CancelledError:
        raise  # the client has left, or the provider ends
    except Exception as error:
        _fail(call, error)


def _fail(call: Call, error: Exception) -> None:
    status, code = 500, None
    kind = "server_error"
    if isinstance(error, LLMError):
        status, code = error.status or 500, error.code
        if isinstance(error, ContextTooLong):
            status, code = 400, "context_length_exceeded"
        elif isinstance(error, InvalidClient):
            status = 400
        if status < 500:
            kind = "invalid_request_error"
        message = str(error)
    else:
        log.error("the model %s failed", call.provider.models[0], exc_info=error)
        message = f"The model failed: {type(error).__name__}: {error}"
    body = wording.error_body(message, kind, code)
    stats = call.provider.stats
    call.end()
    if call.events is not None:
        stats.stream_errors += 1
        call.exchange.finish(call.events.failed(body))
    elif status in range(400, 600):
        stats.by_status[status] += 1
        call.exchange.reply(status, body, call.headers)


async def _embed(model: Model, call: Call) -> None:
    ask = call.ask
    vectors: Sequence[Sequence[float]] = await model.embed(ask.texts)
    if ask.dimensions is not None and vectors and len(vectors[0]) != ask.dimensions:
        raise InvalidClient(
            f"This model gives {len(vectors[0])} dimensions: leave 'dimensions' out, or ask for that many"
        )
    made: list[list[float] | str] = [
        encoded_vector(array("f", vector)) if ask.base64 else list(vector) for vector in vectors
    ]
    call.complete(wording.embeddings_body(ask, made), 0)


async def _complete(model: Model, call: Call, whole: dict[str, Any]) -> None:
    ask, options = call.ask, _options(call, whole)
    replies: list[Reply] = []
    if ask.kind == CHAT:
        replies.append(await model.chat(whole["messages"], **options))
    else:
        for prompt in ask.texts:
            replies.append(await model.complete(prompt, **options))  # noqa: PERF401 (one after the other)
    tokens_in = (
        sum(reply.usage.prompt_tokens if reply.usage else 0 for reply in replies) or ask.tokens_in
    )
    tokens_out = sum(
        reply.usage.completion_tokens if reply.usage else count_tokens(reply.text)
        for reply in replies
    )
    call.provider.settle(call.estimate, tokens_in + tokens_out)
    answers = [(reply.text, reply.finish_reason or "stop") for reply in replies]
    call.complete(
        wording.answer_body(ask, call.number, int(time.time()), answers, tokens_in, tokens_out),
        tokens_out,
    )


async def _stream(model: Model, call: Call, whole: dict[str, Any]) -> None:
    ask, options = call.ask, _options(call, whole)
    tokens_in = tokens_out = 0
    prompts = [""] if ask.kind == CHAT else ask.texts
    reasons: list[str] = []
    for index, prompt in enumerate(prompts):
        if ask.kind == CHAT:
            source = model.stream(whole["messages"], **options)
        else:
            source = model.stream_completion(prompt, **options)
        said_in, said_out, reason = await _relay(source, call, index)
        tokens_in += said_in
        tokens_out += said_out
        reasons.append(reason)
        if call.exchange.over:
            return
    if call.events is None:
        call.begin_stream()
    assert call.events is not None
    if call.lot.fate in _ENDINGS:
        call.end_badly(b"")  # the answer was over before it came to that
        return
    ask.tokens_in = tokens_in or ask.tokens_in
    call.provider.settle(call.estimate, ask.tokens_in + tokens_out)
    ends = [call.events.last(reason, index) for index, reason in enumerate(reasons)]
    call.finish_stream(b"".join(ends), tokens_out)


async def _relay(source: ChunkStream, call: Call, index: int) -> tuple[int, int, str]:
    """Pass a model's stream on; return its tokens in and out, and why it ended."""
    ends_after = None
    if call.lot.fate in _ENDINGS:
        longest = call.ask.longest(call.provider.settings)
        ends_after = 0 if call.lot.fate is Fate.HALF else int(call.lot.where * longest)
    pieces, usage, reason = 0, None, "stop"
    async with source as chunks:
        async for chunk in chunks:
            events = call.events or call.begin_stream()
            usage, reason = chunk.usage or usage, chunk.finish_reason or reason
            if ends_after is not None and pieces >= ends_after:
                piece = events.piece(chunk.text, index)
                call.end_badly(piece[:-20] if call.lot.fate is Fate.HALF else b"")
                return 0, pieces, reason
            if chunk.text:
                pieces += 1
                call.exchange.send(events.piece(chunk.text, index))
                if call.exchange.waiting > _MOST_UNREAD:
                    await _read(call)
                elif call.exchange.lost:
                    await asyncio.sleep(
                        0
                    )  # a model that never waits would go on to its end: this is where the task is cancelled
    if usage is None:
        return 0, pieces, reason
    return usage.prompt_tokens, usage.completion_tokens, reason


async def _read(call: Call) -> None:
    """Wait until the client has caught up; one that leaves cancels the task."""
    caught_up = asyncio.Event()
    call.exchange.on_ready = caught_up.set
    if not call.exchange.ready:
        await caught_up.wait()
    call.exchange.on_ready = None


def _options(call: Call, whole: dict[str, Any]) -> dict[str, Any]:
    options = options_of(whole)
    options.setdefault("max_tokens", call.ask.longest(call.provider.settings))
    return options
