"""Clients that leave: wherever their request is, the upstream's call is cut, because of the client and not of a timeout."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import time

import pytest
from serving import CHAT, Call, asking, metric, run, send, serving, until, upstream

STREAM = {**CHAT, "stream": True}


async def hang(call: Call) -> None:
    await call.go.wait()


async def cut_within(up, client_leaves, seconds: float = 0.1) -> float:
    await until(lambda: bool(up.calls))
    began = time.perf_counter()
    client_leaves()
    await asyncio.wait_for(up.calls[0].gone.wait(), 10)
    return time.perf_counter() - began


def test_leaving_before_the_first_token_cuts_the_upstream():
    async def main():
        async with upstream(hang) as up, serving(llm=up.url) as server:
            _, writer = await send(server, "/v1/chat/completions", STREAM)
            took = await cut_within(up, writer.transport.abort)
            assert took < 5, "cut, but not because the client left"
            await until(lambda: server.app.state.admission.running == 0)
            assert await metric(server, "tournant_answers_total") == 1
            assert server.app.state.figures.answers["left"] == 1

    run(main())


def test_leaving_after_the_first_token_cuts_the_upstream():
    async def script(call: Call):
        await call.start()
        await call.token("t0")
        await call.go.wait()

    async def main():
        async with upstream(script) as up, serving(llm=up.url) as server:
            async with asking(server, "/v1/chat/completions", STREAM) as response:
                assert (await anext(response.events()))[1]
                await cut_within(up, response.leave)
            await until(lambda: server.app.state.admission.running == 0)
            assert server.app.state.figures.answers["left"] == 1

    run(main())


def test_leaving_an_answer_that_is_not_streamed_cuts_the_upstream():
    async def main():
        async with upstream(hang) as up, serving(llm=up.url) as server:
            _, writer = await send(server, "/v1/chat/completions", CHAT)
            await cut_within(up, writer.transport.abort)
            await until(lambda: server.app.state.admission.running == 0)

    run(main())


def test_leaving_by_closing_properly_cuts_the_upstream_too():
    async def main():
        async with upstream(hang) as up, serving(llm=up.url) as server:
            _, writer = await send(server, "/v1/chat/completions", STREAM)
            await cut_within(up, writer.close)

    run(main())


def test_leaving_while_the_upstream_is_being_connected_to_leaves_nothing():
    async def main():
        listener = (
            socket.socket()
        )  # nobody accepts: one connection is made, the others are being made for ever
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        async with serving(llm=f"http://127.0.0.1:{port}/v1") as server:
            writers = [(await send(server, "/v1/chat/completions", STREAM))[1] for _ in range(8)]
            await until(lambda: server.app.state.admission.running == 8)
            for writer in writers:
                writer.transport.abort()
            await until(lambda: server.app.state.admission.running == 0)
            await until(lambda: server.app.state.upstream.connections == 0)
        listener.close()

    run(main())


@pytest.mark.parametrize("size", [70_000, 150_000, 500_000])
def test_a_client_with_a_large_body_is_seen_to_leave(size):
    """Reading of a connection is paused while a large body waits to be taken; that must not hide the client's end."""

    async def main():
        body = json.dumps(
            {"messages": [{"role": "user", "content": "x" * size}], "stream": True}
        ).encode()
        async with upstream(hang) as up, serving(llm=up.url) as server:
            _, writer = await send(
                server, "/v1/chat/completions", b"", content_length=str(len(body))
            )
            await until(lambda: any(one.cycle for one in server.server_state.connections))
            for _ in range(5):
                await asyncio.sleep(0)  # the server waits for the body now
            writer.write(body)
            await writer.drain()
            await cut_within(up, writer.transport.abort)

    run(main())


def test_a_client_that_has_sent_its_next_request_already_is_seen_to_leave():
    async def main():
        async with upstream(hang) as up, serving(llm=up.url) as server:
            _, writer = await send(server, "/v1/chat/completions", STREAM)
            await until(lambda: bool(up.calls))
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await until(lambda: any(one.pipeline for one in server.server_state.connections))
            await cut_within(up, writer.transport.abort)
            assert len(up.calls) == 1

    run(main())


def test_a_client_may_not_send_requests_ahead_without_end():
    async def main():
        async with upstream(hang) as up, serving(llm=up.url) as server:
            _, writer = await send(server, "/v1/chat/completions", STREAM)
            await until(lambda: bool(up.calls))
            await cut_within(
                up, lambda: writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n" * 50)
            )
            writer.transport.abort()

    run(main())


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_left_leaves_nothing_to_the_garbage_collection(stream):
    """What only a garbage collection frees is kept by the thousand, and collecting it holds up every stream."""

    async def script(call: Call):
        if stream:
            await call.start()
            await call.token("t0")
        await call.go.wait()

    async def leave(up, server):
        calls = len(up.calls)
        _, writer = await send(
            server, "/v1/chat/completions", {**CHAT, "stream": stream, "model": "m"}
        )
        await until(lambda: len(up.calls) > calls)
        await asyncio.sleep(0)
        writer.transport.abort()
        await up.calls[calls].gone.wait()
        await until(lambda: server.app.state.admission.running == 0)
        await until(lambda: server.app.state.connections == 0)

    async def main():
        async with upstream(script) as up, serving(llm=up.url) as server:
            await leave(up, server)
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                for _ in range(3):
                    await leave(up, server)
                gc.collect()
                kinds = {f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.garbage}
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
            assert not {kind for kind in kinds if kind.startswith(("tournant.", "uvicorn."))}

    run(main())
