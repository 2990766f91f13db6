"""Streamed answers: whole or an error, never a part that looks whole; and nobody generates for a reader that has left."""

from __future__ import annotations

import asyncio
import gc
import itertools

import fault_server as fault
import pytest
from fault_server import DONE, ROLE, WHOLE, FaultServer, event, streams

import tournant as tn
from tournant import llm
from tournant.llm import Chunk, Client, Timeouts, Usage

SHORT = 0.05
READ = [
    Chunk("The "),
    Chunk("swing "),
    Chunk("cook."),
    Chunk("", "stop"),
    Chunk("", None, Usage(7, 5)),
]


def with_client(answers, work, **options):
    async def main():
        async with (
            FaultServer(*answers) as server,
            Client(server.url, "kitchen-1", **options) as client,
        ):
            return await work(client, server)

    return asyncio.run(main())


def read(*answers, **options):
    """Return the pieces of a stream, the error it ended with, and the server."""

    async def work(client, server):
        pieces = []
        try:
            async with client.stream("x") as chunks:
                async for chunk in chunks:
                    pieces.append(chunk)
        except llm.LLMError as error:
            assert str(error).startswith(f"POST {server.url}/chat/completions")
            assert error.__cause__ is None
            assert error.__context__ is None
            return pieces, error, server
        return pieces, None, server

    return with_client(answers, work, **options)


def test_pieces_come_as_they_are_sent():
    pieces, error, server = read(streams(*WHOLE))
    assert error is None
    assert pieces == READ
    assert pieces[0].raw["model"] == "kitchen-1"
    [request] = server.requests
    assert request.body == {
        "model": "kitchen-1",
        "stream": True,
        "messages": [{"role": "user", "content": "x"}],
    }


@pytest.mark.parametrize(
    "answer",
    [
        streams(b"".join(WHOLE)),
        streams(b"".join(WHOLE).replace(b"\n", b"\r\n")),
        streams(*WHOLE, chunked=False),
        streams(*WHOLE, kind="text/plain"),
        streams(b": OPENROUTER PROCESSING\n\n", *WHOLE),
        streams(*WHOLE[:-1], b"data: [DONE]"),
        streams(*WHOLE, b"data: after the end\n\n"),
        fault.trickle(b"".join(WHOLE)),
    ],
    ids=[
        "at once",
        "crlf",
        "by connection",
        "plain",
        "comments",
        "no last line",
        "more",
        "trickle",
    ],
)
def test_it_does_not_matter_how_they_are_sent(answer):
    pieces, error, _ = read(answer)
    assert error is None
    assert pieces == READ


def test_a_text_is_continued_piece_by_piece():
    sent = b'data: {"choices":[{"text":"so"}]}\n\ndata: {"choices":[{"text":"up","finish_reason":"stop"}]}\n\n'

    async def work(client, server):
        pieces = [chunk async for chunk in client.stream_completion("Hot", max_tokens=2)]
        return pieces, server.requests[0]

    pieces, request = with_client([streams(sent, DONE)], work)
    assert pieces == [Chunk("so"), Chunk("up", "stop")]
    assert request.path == "/v1/completions"
    assert request.body == {"model": "kitchen-1", "prompt": "Hot", "max_tokens": 2, "stream": True}


def test_pieces_without_text_are_given_when_they_say_something():
    call = b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n'
    pieces, error, _ = read(streams(ROLE, b'data: {"type":"ping"}\n\n', call, DONE))
    assert error is None
    assert pieces == [Chunk("")]
    assert pieces[0].raw["choices"][0]["delta"]["tool_calls"] == [{"index": 0}]


def test_the_connection_serves_on_after_a_whole_stream():
    async def work(client, server):
        for _ in range(3):
            assert [chunk async for chunk in client.stream("x")] == READ
        return server.connections

    assert with_client([streams(*WHOLE)], work) == 1


def test_usage_is_asked_for_when_a_limit_wants_it_and_no_one_said_otherwise():
    async def work(client, server):
        for options in ({}, {"stream_options": {"include_usage": False}}):
            async for _ in client.stream("x", **options):
                pass
        return [request.body.get("stream_options") for request in server.requests]

    answers = [streams(*WHOLE)]
    limit = tn.limits.RateLimit("1000/s")
    assert with_client(answers, work) == [None, {"include_usage": False}]
    assert with_client(answers, work, limit=limit) == [
        {"include_usage": True},
        {"include_usage": False},
    ]


# What is cut off


@pytest.mark.parametrize(
    "answer",
    [
        streams(*WHOLE[:3]),
        streams(*WHOLE[:3], chunked=False),
        streams(*WHOLE[:3], end="close"),
        streams(*WHOLE[:3], event("half")[:20]),
        streams(*WHOLE[:3], b"data: [DO"),
    ],
    ids=["clean end", "clean close", "close in its midst", "half an event", "half a DONE"],
)
def test_a_stream_without_done_is_cut_off_however_it_ends(answer):
    pieces, error, _ = read(answer)
    assert pieces == READ[:2]
    assert type(error) is llm.StreamTruncated
    assert "after 2 pieces" in str(error)


def test_even_one_that_had_said_why_it_ended():
    pieces, error, _ = read(streams(*WHOLE[:-1]))
    assert pieces == READ
    assert type(error) is llm.StreamTruncated


def test_a_stream_of_nothing_is_cut_off_too():
    pieces, error, _ = read(streams())
    assert pieces == []
    assert type(error) is llm.StreamTruncated


def test_a_connection_that_is_reset_in_a_stream():
    async def work(client, server):
        stream = client.stream("x")
        pieces = [await anext(stream), await anext(stream)]
        server.left.set()
        with pytest.raises(llm.StreamTruncated, match="broke"):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        return pieces

    assert with_client([streams(*WHOLE[:3], end="reset")], work) == READ[:2]


@pytest.mark.parametrize(
    ("sent", "kind", "code", "status"),
    [
        (b'data: {"error":{"message":"out of memory","type":"server_error","code":null}}\n\n', llm.StreamFailed, "server_error", 500),
        (b'data: {"error":{"message":"slow","code":429}}\n\n', llm.StreamFailed, "429", 429),
        (b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n', llm.StreamFailed, "overloaded_error", 529),
        (b'event: error\ndata: {"message":"out of memory","code":"oom"}\n\n', llm.StreamFailed, "oom", None),
        (b"event: error\ndata: out of memory\n\n", llm.StreamFailed, None, None),
        (b"data: <html>\n\n", llm.BadReply, None, 200),
        (b"data: [1]\n\n", llm.BadReply, None, 200),
        (b'data: {"choices":[7]}\n\n', llm.BadReply, None, 200),
        (b'data: {"choices":[{"delta":{"content":7}}]}\n\n', llm.BadReply, None, 200),
    ],
)  # fmt: skip
@pytest.mark.parametrize("apart", [True, False])
def test_an_error_in_a_stream_comes_after_the_pieces_before_it(sent, kind, code, status, apart):
    parts = [*WHOLE[:3], sent, *WHOLE[3:]]
    pieces, error, _ = read(streams(*(parts if apart else [b"".join(parts)])))
    assert pieces == READ[:2]
    assert type(error) is kind
    assert (error.code, error.status) == (code, status)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (fault.openai_error(429, "rate_limit_exceeded", "slow", retry_after="2"), llm.RateLimited),
        (fault.anthropic_error(529, "overloaded_error", "Overloaded"), llm.Overloaded),
        (fault.openai_error(401, "invalid_api_key", "no"), llm.AuthenticationFailed),
        (fault.html(), llm.BadReply),
        (fault.html(500), llm.ProviderFailed),
        (fault.says(), llm.BadReply),
        (fault.says({"error": {"code": 429, "message": "slow"}}), llm.RateLimited),
        (fault.resets, llm.ConnectionFailed),
        (fault.closes, llm.ConnectionFailed),
        (fault.no_http, llm.ConnectionFailed),
        (fault.cut_body, llm.StreamTruncated),
    ],
)
def test_a_stream_that_never_begins(answer, kind):
    pieces, error, _ = read(answer)
    assert pieces == []
    assert type(error) is kind


def test_ten_megabytes_in_one_event():
    pieces, error, _ = read(streams(event("x" * 10_000_000), DONE))
    assert error is None
    assert [len(piece.text) for piece in pieces] == [10_000_000]


def test_a_line_without_an_end_is_given_up(monkeypatch):
    monkeypatch.setattr(
        "tournant.llm.stream.EventParser", lambda: tn.llm.sse.EventParser(largest=1_000_000)
    )
    pieces, error, _ = read(fault.endless(itertools.repeat(b"x" * 65_536)))
    assert pieces == []
    assert type(error) is llm.BadReply
    assert "more than 1,000,000 bytes" in str(error)


# Waiting


@pytest.mark.parametrize("answer", [fault.hangs, streams(end="hang"), streams(ROLE, end="hang")])
def test_a_first_piece_that_does_not_come(answer):
    pieces, error, _ = read(answer, timeouts=Timeouts(first_token=SHORT))
    assert pieces == []
    assert type(error) is llm.LLMTimeout
    assert (error.which, error.seconds) == ("first_token", SHORT)


def test_a_next_piece_that_does_not_come():
    answer = streams(*WHOLE[:3], end="hang")
    pieces, error, _ = read(answer, timeouts=Timeouts(between_tokens=SHORT))
    assert pieces == READ[:2]
    assert (error.which, error.seconds) == ("between_tokens", SHORT)


def test_comments_that_keep_a_connection_alive_are_no_pieces():
    async def keeps_alive(to):
        await to.head(200, "text/event-stream", transfer_encoding="chunked")
        while True:
            await to.chunk(b": still here\n\n")
            await asyncio.sleep(SHORT / 5)

    _, error, _ = read(keeps_alive, timeouts=Timeouts(first_token=2 * SHORT))
    assert error.which == "first_token"


def test_the_time_the_reader_takes_does_not_count():
    async def work(client, server):
        pieces = []
        async for chunk in client.stream("x"):
            pieces.append(chunk)
            await asyncio.sleep(2 * SHORT)
        return pieces

    timeouts = Timeouts(first_token=SHORT, between_tokens=SHORT, total=SHORT)
    assert with_client([streams(*WHOLE)], work, timeouts=timeouts) == READ


# Leaving


async def by_break(client):
    async for _ in client.stream("x"):
        break


async def by_break_of_a_block(client):
    async with client.stream("x") as chunks:
        async for _ in chunks:
            break


async def by_exception(client):
    with pytest.raises(ZeroDivisionError):
        async for _ in client.stream("x"):
            raise ZeroDivisionError


async def by_aclose(client):
    stream = client.stream("x")
    await anext(stream)
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def by_cancellation(client):
    begun = asyncio.Event()

    async def reads():
        async for _ in client.stream("x"):
            begun.set()

    task = asyncio.create_task(reads())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_timeout_of_the_reader(client):
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(SHORT):
            async for _ in client.stream("x"):
                pass
    assert type(caught.value) is TimeoutError


async def by_losing_it(client):
    stream = client.stream("x")
    await anext(stream)
    del stream


async def by_an_operator(client):
    async for _ in tn.streams.take(client.stream("x"), 1):
        pass


async def by_closing_the_client(client):
    stream = client.stream("x")
    await anext(stream)
    await client.aclose()
    with pytest.raises(llm.StreamTruncated):
        while True:
            await anext(stream)


LEAVING = [
    by_break, by_break_of_a_block, by_exception, by_aclose, by_cancellation, by_timeout_of_the_reader,
    by_losing_it, by_an_operator, by_closing_the_client,
]  # fmt: skip


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("limited", [False, True])
def test_the_connection_closes_when_the_reader_leaves(leave, limited):
    """The client is still open then: it is the stream that lets go."""
    limit = tn.limits.RateLimit("1000/s", "1000000/s") if limited else None
    options = {"limit": limit, "concurrency": 2} if limited else {}

    async def work(client, server):
        await leave(client)
        async with asyncio.timeout(10):
            await server.left.wait()
        if limited:
            assert client.concurrency.snapshot().running == 0
            assert limit.snapshot().in_flight == 0

    with_client([streams(*WHOLE[:3], end="hang")], work, **options)


def test_a_named_stream_can_be_read_on():
    async def work(client, server):
        stream = client.stream("x")
        async for chunk in stream:
            first = chunk
            break
        return [first, *[chunk async for chunk in stream]]

    assert with_client([streams(*WHOLE)], work) == READ


def test_closing_ends_a_task_that_waits_for_a_piece():
    async def work(client, server):
        stream = client.stream("x")

        async def reads():
            return [chunk async for chunk in stream]

        task = asyncio.create_task(reads())
        await server.waiting.wait()
        await stream.aclose()
        pieces = await task
        await server.left.wait()
        return pieces

    assert with_client([streams(end="hang")], work) == []
    assert with_client([fault.hangs], work) == []


def test_closing_ends_a_task_that_waits_for_its_turn():
    async def work(client, server):
        async with client.concurrency.slot():
            stream = client.stream("x")
            task = asyncio.create_task(anext(stream, None))
            while not client.concurrency.snapshot().waiting:
                await asyncio.sleep(0)
            await stream.aclose()
            assert await task is None
        assert client.concurrency.snapshot().running == 0
        assert client.concurrency.snapshot().waiting == 0
        return server.requests

    assert with_client([streams(*WHOLE)], work, concurrency=1) == []


def test_a_stream_that_was_never_read_makes_no_call_and_no_fuss():
    async def work(client, server):
        client.stream("x")
        async with client.stream("x"):
            pass
        gc.collect()
        return server.connections

    assert with_client([streams(*WHOLE)], work) == 0


def test_two_readers_at_once_are_refused():
    async def work(client, server):
        stream = client.stream("x")
        task = asyncio.create_task(anext(stream))
        await server.waiting.wait()
        with pytest.raises(llm.InvalidClient, match="tee"):
            await anext(stream)
        task.cancel()
        await asyncio.wait([task])

    with_client([streams(end="hang")], work)


def test_readers_share_a_stream_by_tee():
    async def work(client, server):
        branches = tn.streams.tee(client.stream("x"), 2)
        return await asyncio.gather(*(collect(branch) for branch in branches))

    async def collect(branch):
        return [chunk async for chunk in branch]

    assert with_client([streams(*WHOLE)], work) == [READ, READ]


def test_a_loop_that_is_gone_does_no_harm_to_a_stream_that_is_not():
    server = FaultServer(streams(*WHOLE[:3], end="hang"))
    kept = []

    async def main():
        async with server:
            client = Client(server.url, "m")
            stream = client.stream("x")
            await anext(stream)
            kept.append(stream)

    asyncio.run(main())
    kept.clear()
    gc.collect()


def test_its_state_is_shown_without_the_key():
    async def work(client, server):
        stream = client.stream("x")
        texts = [repr(stream)]
        await anext(stream)
        texts.append(repr(stream))
        await stream.aclose()
        return [*texts, repr(stream)]

    texts = with_client([streams(*WHOLE)], work, api_key="sk-canary-0123")
    for text, state in zip(texts, ["not begun", "open", "over"], strict=True):
        assert state in text
        assert "canary" not in text


def test_a_stream_is_a_stage():
    async def main(**options):
        async with (
            FaultServer(streams(*WHOLE)) as server,
            Client(server.url, "kitchen-1") as client,
        ):
            pieces = tn.Pipeline(["x", "y"]).flat_map(client.stream, **options)
            return sorted(chunk.text for chunk in await pieces.acollect() if chunk.text)

    expected = sorted(["The ", "swing ", "cook."] * 2)
    assert asyncio.run(main()) == expected
    assert asyncio.run(main(limit=tn.limits.RateLimit("60_000/min"))) == expected
