"""Connections: slow readers and slow senders are bounded in bytes and time, and slow nobody else."""

from __future__ import annotations

import asyncio
import json
import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import (
    CHAT,
    Call,
    ask,
    asking,
    connect,
    metric,
    read_head,
    run,
    send,
    serving,
    talk,
    until,
    upstream,
)

STREAM = {**CHAT, "stream": True}


async def flood(call: Call) -> None:
    """Tokens without end, as fast as they are taken."""
    await call.start()
    while True:
        await call.token("x" * 4_000)


def memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def stop_reading(server) -> socket.socket:
    """Ask for a stream, read a little of it, and then nothing more."""
    host, port = server.url.removeprefix("http://").rsplit(":", 1)
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.setblocking(False)
    await loop.sock_connect(client, (host, int(port)))
    body = json.dumps(STREAM).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    await loop.sock_sendall(client, head.encode() + body)
    assert (await loop.sock_recv(client, 512)).startswith(b"HTTP/1.1 200")
    return client


# Promise 2


def test_a_reader_that_stops_costs_bounded_bytes_and_is_closed():
    async def main():
        async with upstream(flood) as up, serving(llm=up.url, slow_reader_seconds=1) as server:
            client = await stop_reading(server)
            await until(lambda: bool(server.app.state.figures.live))
            (relay,) = server.app.state.figures.live
            await until(lambda: relay._pump.blocked)
            sent = relay.sent
            one_read = 256 * 1024
            assert relay._pump._size < server.app.state.settings.client_buffer_bytes + one_read
            assert sent < 2**20, "what was handed to the system is bounded too"
            # Closed after its time, and the upstream with it.
            await asyncio.wait_for(up.calls[0].gone.wait(), 15)
            assert await metric(server, "tournant_slow_readers_total") == 1
            await until(lambda: server.app.state.admission.running == 0)
            client.close()

    run(main())


def test_readers_that_stop_slow_nobody_else():
    async def script(call: Call) -> None:
        await (flood if len(up_calls) <= 20 else talk)(call)

    up_calls: list[Call] = []

    async def main():
        async with upstream(script) as up, serving(llm=up.url, slow_reader_seconds=30) as server:
            up.calls = up_calls
            stopped = [await stop_reading(server) for _ in range(20)]
            state = server.app.state
            await until(
                lambda: (
                    all(one._pump.blocked for one in state.figures.live)
                    and len(state.figures.live) == 20
                )
            )
            _, _, text = await ask(server, "/v1/chat/completions", STREAM)
            assert text.endswith("data: [DONE]\n\n")
            for client in stopped:
                client.close()
            await until(lambda: state.admission.running == 0)

    run(main())


def test_a_hundred_readers_that_stop_stay_below_a_mebibyte_each():
    async def main():
        async with upstream(flood) as up, serving(llm=up.url, slow_reader_seconds=60) as server:
            (await stop_reading(server)).close()
            await until(lambda: server.app.state.admission.running == 0)
            before = memory()
            stopped = [await stop_reading(server) for _ in range(100)]
            state = server.app.state
            await until(
                lambda: (
                    all(one._pump.blocked for one in state.figures.live)
                    and len(state.figures.live) == 100
                )
            )
            # The upstream and the clients of this test are in the process too.
            assert (memory() - before) / 100 < 2**20
            for client in stopped:
                client.close()
            await until(lambda: state.admission.running == 0)

    run(main())


def test_a_reader_that_stops_in_the_middle_of_a_whole_answer_is_closed():
    async def script(call: Call) -> None:
        await call.reply(b"[" + b"1," * 4_000_000 + b"1]")

    async def main():
        async with upstream(script) as up, serving(llm=up.url, slow_reader_seconds=1) as server:
            _, writer = await send(server, "/v1/chat/completions", CHAT)
            writer.transport.pause_reading()
            await until(lambda: server.app.state.figures.slow_readers == 1)
            await until(lambda: server.app.state.connections == 0)
            writer.transport.abort()

    run(main())


def test_memory_after_many_abandoned_streams_is_as_before():
    async def script(call: Call) -> None:
        await call.start()
        await call.token("a")
        await call.go.wait()

    async def main():
        async with upstream(script) as up, serving(llm=up.url) as server:
            state = server.app.state

            async def abandon(count: int) -> None:
                async with asyncio.TaskGroup() as group:
                    for _ in range(count):
                        group.create_task(one())
                await until(lambda: state.admission.running == 0 and up.open == 0)
                up.calls.clear()

            async def one() -> None:
                async with asking(server, "/v1/chat/completions", STREAM) as response:
                    await anext(response.events())
                    response.leave()

            for _ in range(3):
                await abandon(100)
            before = memory()
            for _ in range(10):
                await abandon(100)
            assert memory() - before < 10 * 2**20
            assert not state.figures.live
            assert not len(state.running)
            assert state.connections == 0

    run(main())


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_a_storm_of_clients_that_leave_anywhere_leaves_nothing(points):
    """Each client leaves after so many steps: connected, half a head, head, half a body, asked, first token, all tokens."""

    async def script(call: Call) -> None:
        await talk(call, tokens=3)

    async def main():
        async with upstream(script) as up, serving(llm=up.url, max_streams=4) as server:
            state = server.app.state
            body = json.dumps(STREAM).encode()
            head = (
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
                % len(body)
            )
            steps = [b"", head[:20], head[20:], body[:15], body[15:]]

            async def client(leave_after: int) -> None:
                reader, writer = await connect(server)
                try:
                    for step in steps[: leave_after + 1]:
                        writer.write(step)
                        await writer.drain()
                    if leave_after < len(steps):
                        return
                    response = await read_head(reader, writer)
                    assert response.status == 200
                    events = response.events()
                    await anext(events)
                    if leave_after == len(steps) + 1:
                        assert [event async for event in events][-1] == ("", "[DONE]")
                finally:
                    writer.transport.abort()

            await asyncio.gather(*map(client, points))
            await until(lambda: state.connections == 0 and state.admission.running == 0)
            assert not len(state.admission.queue)
            assert not state.figures.live
            assert not len(state.running)
            assert state.figures.faults == 0
            assert state.admission.anonymous().running == 0

    run(main())


# Half-sent requests


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/chat/comp", b"GET / HTTP/1.1\r\nhost: localhost\r\nx-a: 1\r\n"]
)
def test_a_head_that_never_ends_is_refused_in_time(sent):
    async def main():
        async with serving(header_seconds=0.3) as server:
            reader, writer = await connect(server)
            writer.write(sent)
            response = await read_head(reader, writer)
            assert response.status == 408
            assert "complete" in (await response.json())["error"]["message"]
            assert await reader.read() == b""
            writer.close()
            assert await metric(server, "tournant_slow_requests_total") == 1

    run(main())


def test_a_second_request_that_never_ends_is_refused_in_time():
    async def main():
        async with serving(header_seconds=0.3) as server:
            reader, writer = await send(server, "/healthz")
            await (await read_head(reader, writer)).json()
            writer.write(b"GET /healthz HT")
            assert (await read_head(reader, writer)).status == 408
            writer.close()

    run(main())


def test_a_head_that_trickles_is_refused_in_time():
    async def main():
        async with serving(header_seconds=0.3) as server:
            reader, writer = await connect(server)
            writer.write(b"GET / HTTP/1.1\r\n")

            async def trickle() -> None:
                while True:
                    writer.write(b"x-a: 1\r\n")
                    await asyncio.sleep(0.02)

            task = asyncio.create_task(trickle())
            assert (await read_head(reader, writer)).status == 408
            task.cancel()
            writer.close()

    run(main())


def test_a_body_that_never_ends_is_refused_in_time():
    async def main():
        async with upstream(talk) as up, serving(llm=up.url, body_seconds=0.2) as server:
            for part in (b"", b'{"messages": ['):
                reader, writer = await send(
                    server, "/v1/chat/completions", part, content_length="100"
                )
                response = await read_head(reader, writer)
                assert response.status == 408
                assert response.headers["connection"] == "close"
                writer.close()
            assert not up.calls

    run(main())


def test_a_head_that_is_too_large_is_refused():
    async def main():
        async with serving(max_header_bytes=4_096) as server:
            reader, writer = await connect(server)
            writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n")
            for _ in range(16):
                writer.write(b"x-a: " + b"a" * 1_000 + b"\r\n")
                await writer.drain()
            assert (await read_head(reader, writer)).status == 431
            writer.close()

    run(main())


def test_what_is_no_http_is_refused():
    async def main():
        async with serving() as server:
            reader, writer = await connect(server)
            writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n")
            response = await read_head(reader, writer)
            assert response.status == 400
            assert (await response.json())["error"]["type"] == "invalid_request_error"
            writer.close()

    run(main())


# How many there may be


def test_a_connection_above_the_limit_is_told_503():
    async def main():
        async with serving(max_connections=3) as server:
            held = [await connect(server) for _ in range(3)]
            await until(lambda: server.app.state.connections == 3)
            reader, writer = await connect(server)
            response = await read_head(reader, writer)
            assert response.status == 503
            assert int(response.headers["retry-after"]) >= 1
            assert (await response.json())["error"]["code"] == "overloaded"
            writer.close()
            for _, other in held:
                other.close()
            await until(lambda: server.app.state.connections == 0)
            assert (await ask(server, "/healthz"))[0] == 200
            assert server.app.state.figures.refused_connections == 1

    run(main())


def test_an_idle_connection_is_closed_in_the_end():
    async def main():
        async with serving(keep_alive_seconds=1) as server:
            reader, writer = await send(server, "/healthz")
            await (await read_head(reader, writer)).json()
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()

    run(main())
