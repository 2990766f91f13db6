"""Relaying from an upstream: cut when the client leaves, never truncated in silence, refused before the stream where possible."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from serving import (
    CHAT,
    Call,
    ask,
    asking,
    metric,
    read_head,
    run,
    send,
    serving,
    talk,
    token,
    until,
    upstream,
    whole,
)

STREAM = {**CHAT, "stream": True}


async def hang(call: Call) -> None:
    await call.go.wait()


async def tokens_then(call: Call, count: int = 2) -> None:
    await call.start()
    for number in range(count):
        await call.token(f"t{number}")


def texts(events: list[tuple[str, str]]) -> list[str]:
    return [
        json.loads(data)["choices"][0]["delta"]["content"]
        for name, data in events
        if data != "[DONE]" and name != "error"
    ]


def test_a_streamed_answer_is_relayed_as_it_is():
    async def main():
        async with upstream(talk) as up, serving(llm=up.url) as server:
            async with asking(server, "/v1/chat/completions", STREAM) as response:
                assert response.status == 200
                assert response.headers["content-type"].startswith("text/event-stream")
                raw = await response.text()
            events = [token("t0 "), token("t1 "), token("t2 ")]
            lines = [*map(json.dumps, events), "[DONE]"]
            assert raw == "".join(f"data: {line}\n\n" for line in lines)
            assert up.calls[0].path == "/v1/chat/completions"
            assert up.calls[0].json == STREAM

    run(main())


def test_the_body_goes_up_unchanged_byte_for_byte():
    async def main():
        body = b'{ "messages" : [ {"role":"user","content":"h\\u00e9"} ], "stream": true, "unknown": [1.0, 1e3] }'
        async with upstream(talk) as up, serving(llm=up.url) as server:
            await ask(server, "/v1/chat/completions", body)
            assert up.calls[0].body == body

    run(main())


def test_an_answer_that_is_not_streamed_is_relayed():
    async def main():
        async with upstream(talk) as up, serving(llm=up.url) as server:
            status, headers, body = await ask(server, "/v1/chat/completions", CHAT)
            assert (status, body) == (200, whole("hello"))
            assert headers["content-type"] == "application/json"
            assert await metric(server, "tournant_prompt_tokens_total") == 3
            assert await metric(server, "tournant_completion_tokens_total") == 4

    run(main())


def test_completions_are_relayed_too():
    async def main():
        async with upstream(talk) as up, serving(llm=up.url) as server:
            status, _, _ = await ask(server, "/v1/completions", {"prompt": "once"})
            assert status == 200
            assert up.calls[0].path == "/v1/completions"

    run(main())


def test_connections_to_the_upstream_are_used_again():
    async def main():
        async with upstream(talk) as up, serving(llm=up.url) as server:
            for _ in range(5):
                await ask(server, "/v1/chat/completions", STREAM)
                await ask(server, "/v1/chat/completions", CHAT)
            assert len(up.calls) == 10
            assert server.app.state.upstream.opened == 1

    run(main())


def test_a_kept_connection_that_was_closed_meanwhile_is_replaced():
    async def once(call: Call):
        await talk(call)
        if len(up_calls) == 1:
            await call.go.wait()
            call.cut()

    up_calls: list[Call] = []

    async def main():
        async with upstream(once) as up, serving(llm=up.url) as server:
            up_calls.clear()
            up.calls = up_calls
            await ask(server, "/v1/chat/completions", CHAT)
            # The upstream closes in the very moment in which the next request is on its way.
            channel = server.app.state.upstream._idle[0]
            original = channel.send

            def send_and_lose(request, listener):
                original(request, listener)
                channel._transport.abort()

            channel.send = send_and_lose
            status, _, body = await ask(server, "/v1/chat/completions", CHAT)
            assert (status, body) == (200, whole("hello"))

    run(main())


# Promise 3: first token at once, and never truncated in silence


def test_the_first_token_does_not_wait_for_the_second():
    async def script(call: Call):
        await tokens_then(call, 1)
        await call.go.wait()
        await call.token("last")
        await call.event("[DONE]")
        await call.end()

    async def main():
        async with (
            upstream(script) as up,
            serving(llm=up.url) as server,
            asking(server, "/v1/chat/completions", STREAM) as response,
        ):
            events = response.events()
            first = await anext(events)
            assert texts([first]) == ["t0"]
            up.calls[0].go.set()
            assert texts([event async for event in events]) == ["last"]

    run(main())


async def _die(call: Call):
    await tokens_then(call)
    call.cut()


async def _end_without_done(call: Call):
    await tokens_then(call)
    await call.end()


async def _end_by_eof(call: Call):
    await call.start(transfer_encoding="")
    await call.write(
        f"data: {json.dumps(token('t0'))}\n\ndata: {json.dumps(token('t1'))}\n\n".encode()
    )
    call.writer.close()


async def _half_an_event(call: Call):
    await tokens_then(call)
    await call.chunk(b'data: {"choices": [{"index": 0, "del')
    call.cut()


async def _garbage(call: Call):
    await tokens_then(call)
    await call.write(b"\x00\xff not a chunk\r\n" * 20)
    await call.go.wait()


async def _long_line(call: Call):
    await tokens_then(call)
    try:
        for _ in range(160):
            await call.chunk(b"x" * 65_536)
    finally:
        await call.go.wait()


@pytest.mark.parametrize(
    "script",
    [_die, _end_without_done, _end_by_eof, _half_an_event, _garbage, _long_line],
    ids=lambda f: f.__name__,
)
def test_an_upstream_that_fails_midway_ends_the_stream_with_an_error_event(script):
    async def main():
        async with upstream(script) as up, serving(llm=up.url) as server:
            async with asking(server, "/v1/chat/completions", STREAM) as response:
                assert response.status == 200
                events = [event async for event in response.events()]
            assert texts(events) == ["t0", "t1"], "only whole events are passed on"
            name, data = events[-1]
            assert name == "error"
            error = json.loads(data)["error"]
            assert error["type"] == "server_error"
            assert "upstream" in error["message"]
            assert ("", "[DONE]") not in events
            assert server.app.state.figures.answers == {"failed": 1}
            if script is not _end_without_done:  # that one ended properly, as far as HTTP goes
                await up.calls[0].gone.wait()

    run(main())


def test_an_error_event_of_the_upstream_is_not_followed_by_a_second():
    async def script(call: Call):
        await tokens_then(call, 1)
        await call.event({"error": {"message": "out of memory", "type": "server_error"}})
        await call.end()

    async def main():
        async with upstream(script) as up, serving(llm=up.url) as server:
            async with asking(server, "/v1/chat/completions", STREAM) as response:
                events = [event async for event in response.events()]
            assert len(events) == 2
            assert "out of memory" in events[-1][1]
            assert server.app.state.figures.answers == {"failed": 1}

    run(main())


def test_an_upstream_that_says_nothing_more_is_given_up():
    async def script(call: Call):
        await tokens_then(call, 1)
        await call.go.wait()

    async def main():
        async with (
            upstream(script) as up,
            serving(llm=up.url, between_tokens_seconds=0.3) as server,
        ):
            async with asking(server, "/v1/chat/completions", STREAM) as response:
                events = [event async for event in response.events()]
            assert events[-1][0] == "error"
            assert "no further event" in events[-1][1]
            await up.calls[0].gone.wait()

    run(main())


def test_an_upstream_that_trickles_bytes_without_an_event_is_given_up():
    async def script(call: Call):
        await call.start()
        while True:
            await call.chunk(b":")
            await asyncio.sleep(0.05)

    async def main():
        async with upstream(script) as up, serving(llm=up.url, first_token_seconds=0.4) as server:
            status, _, body = await ask(server, "/v1/chat/completions", STREAM)
            assert status == 504
            assert "no first event" in body["error"]["message"]
            await up.calls[0].gone.wait()

    run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_when_to_come_again_is_passed_on_with_a_refusal(stream):
    async def script(call: Call) -> None:
        error = {"error": {"message": "another answer is being written", "code": "locked"}}
        await call.reply(error, "409 Conflict", retry_after="7")

    async def main():
        async with upstream(script) as up, serving(llm=up.url) as server:
            for path, body in (
                ("/v1/chat/completions", {**CHAT, "stream": stream}),
                ("/v1/embeddings", {"input": "x"}),
            ):
                status, headers, said = await ask(server, path, body)
                assert (status, headers["retry-after"]) == (409, "7")
                assert said["error"]["code"] == "locked"

    run(main())


async def _first_refuse(call: Call):
    await call.reply({"error": {"message": "no such thing", "code": "bad"}}, "400 Bad Request")


async def _first_crash(call: Call):
    await call.reply(b"<html>oops</html>", "500 Internal Server Error", content_type="text/html")


async def _first_key(call: Call):
    await call.reply(
        {"error": {"message": "Incorrect API key provided: sk-secret"}}, "401 Unauthorized"
    )


async def _first_busy(call: Call):
    await call.reply({"error": {}}, "429 Too Many Requests", retry_after="7")


async def _first_cut(call: Call):
    call.cut()


async def _first_nothing(call: Call):
    await call.start()
    await call.end()


async def _first_error(call: Call):
    await call.start()
    await call.event({"error": {"message": "no memory"}})
    await call.end()


async def _first_json(call: Call):
    await call.reply(whole("not a stream"))


async def _first_garbage(call: Call):
    await call.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")


async def _first_gzip(call: Call):
    await call.start(content_encoding="gzip")
    await call.go.wait()


REFUSALS = {
    _first_refuse: 400,
    _first_crash: 502,
    _first_key: 502,
    _first_busy: 503,
    _first_cut: 502,
    _first_nothing: 502,
    _first_error: 502,
    _first_json: 502,
    _first_garbage: 502,
    _first_gzip: 502,
}


@pytest.mark.parametrize(
    ("script", "status"), REFUSALS.items(), ids=lambda v: getattr(v, "__name__", str(v))
)
def test_what_fails_before_the_first_event_is_a_status(script, status):
    async def main():
        async with upstream(script) as up, serving(llm=up.url) as server:
            got, headers, body = await ask(server, "/v1/chat/completions", STREAM)
            assert got == status, body
            assert body["error"]["message"]
            assert "sk-secret" not in str(body)
            if status == 503:
                assert headers["retry-after"] == "7"

    run(main())


def test_a_date_as_the_time_to_come_again_is_understood():
    async def script(call: Call):
        when = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
        await call.reply({"error": {}}, "429 Too Many Requests", retry_after=when)

    async def main():
        async with upstream(script) as up, serving(llm=up.url) as server:
            status, headers, _ = await ask(server, "/v1/chat/completions", STREAM)
            assert status == 503
            assert 30 < int(headers["retry-after"]) <= 90

    run(main())


def test_an_upstream_that_is_not_there_is_a_502():
    async def main():
        async with serving(llm="http://127.0.0.1:9/v1") as server:
            for body in (CHAT, STREAM):
                status, _, said = await ask(server, "/v1/chat/completions", body)
                assert status == 502
                assert said["error"]["code"] == "upstream_unreachable"

    run(main())


def test_an_answer_that_breaks_off_is_a_502():
    async def script(call: Call):
        await call.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{"
        )
        call.cut()

    async def main():
        async with upstream(script) as up, serving(llm=up.url) as server:
            status, _, body = await ask(server, "/v1/chat/completions", CHAT)
            assert status == 502
            assert "upstream" in body["error"]["message"]

    run(main())


def test_an_answer_that_takes_too_long_is_a_504_and_is_cut():
    async def main():
        async with upstream(hang) as up, serving(llm=up.url, total_seconds=0.2) as server:
            status, _, _ = await ask(server, "/v1/chat/completions", CHAT)
            assert status == 504
            await up.calls[0].gone.wait()

    run(main())


def test_an_answer_that_is_too_large_is_a_502_and_is_cut():
    async def script(call: Call):
        await call.start(content_type="application/json")
        while True:
            await call.chunk(b"x" * 65_536)

    async def main():
        async with (
            upstream(script) as up,
            serving(llm=up.url, max_answer_bytes=1_000_000) as server,
        ):
            status, _, _ = await ask(server, "/v1/chat/completions", CHAT)
            assert status == 502
            await up.calls[0].gone.wait()

    run(main())


# Coalescing


def test_under_load_tokens_wait_for_each_other_and_none_is_lost():
    async def script(call: Call):
        await call.start()
        for number in range(200):
            await call.token(f"{number} ")
            await asyncio.sleep(0)
        await call.event("[DONE]")
        await call.end()

    async def main():
        async with upstream(script) as up, serving(llm=up.url) as server:

            async def writes(loaded: bool) -> tuple[int, str]:
                ticker = server.app.state.ticker
                before = server.app.state.figures.writes
                async with asking(server, "/v1/chat/completions", STREAM) as response:
                    ticker.stop()  # its measuring would overrule the test
                    ticker.loaded = loaded
                    events = [event async for event in response.events()]
                await until(lambda: server.app.state.admission.running == 0)
                return server.app.state.figures.writes - before, "".join(texts(events))

            calm, text = await writes(False)
            loaded, same = await writes(True)
            assert text == same == "".join(f"{n} " for n in range(200))
            assert loaded < calm / 2

    run(main())


def test_a_pipelined_request_is_answered_after_the_stream_before_it():
    async def main():
        async with upstream(talk) as up, serving(llm=up.url) as server:
            reader, writer = await send(server, "/v1/chat/completions", STREAM)
            body = json.dumps(CHAT).encode()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            first = await read_head(reader, writer)
            assert "[DONE]" in await first.text()
            second = await read_head(reader, writer)
            assert await second.json() == whole("hello")
            writer.close()

    run(main())
