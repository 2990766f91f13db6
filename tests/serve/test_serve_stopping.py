"""Stopping: no new answers, running ones have their grace period, then an error event; the exit code is 0."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest
from serving import CHAT, Call, ask, asking, read_head, run, send, serving, talk, until, upstream

STREAM = {**CHAT, "stream": True}
PROGRAM = "import sys; from tournant.cli import serve; import argparse; p = argparse.ArgumentParser(); s = p.add_subparsers(); \
serve.add_to(s, argparse.ArgumentParser(add_help=False)); a = p.parse_args(sys.argv[1:]); sys.exit(a.run(a))"


async def one_then_wait(call: Call) -> None:
    await call.start()
    await call.token("first")
    await call.go.wait()
    await call.token("last")
    await call.event("[DONE]")
    await call.end()


async def start(*options: str) -> tuple[asyncio.subprocess.Process, str]:
    """Start `tournant serve` as a process; return it and its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, "serve", "--port", "0", *options, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
    assert line.startswith("Listening on http://"), line
    return process, line.split()[2]


class At:
    """What `ask` needs of a server."""

    def __init__(self, url: str) -> None:
        self.url = url


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str]:
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, said.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_running_stream_end_and_the_exit_code_is_0(number):
    async def main():
        async with upstream(one_then_wait) as up:
            process, url = await start("--llm", up.url)
            server = At(url)
            async with asking(server, "/v1/chat/completions", STREAM) as response:
                events = response.events()
                await anext(events)
                # A connection that is kept from before the signal.
                reader, writer = await send(server, "/readyz")
                assert (await read_head(reader, writer)).status == 200
                process.send_signal(number)
                await until(lambda: not listens(url))
                up.calls[0].go.set()
                rest = [event async for event in events]
            assert rest[-1] == ("", "[DONE]")
            code, said = await ended(process)
            assert code == 0
            assert said == "Stopped.\n"
            writer.close()

    run(main())


def listens(url: str) -> bool:
    import socket

    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_after_the_grace_period_a_stream_ends_with_an_error_event():
    async def main():
        async with upstream(one_then_wait) as up:
            process, url = await start("--llm", up.url, "--grace-seconds", "0.3")
            async with asking(At(url), "/v1/chat/completions", STREAM) as response:
                events = response.events()
                await anext(events)
                process.send_signal(signal.SIGTERM)
                rest = [event async for event in events]
            assert len(rest) == 1
            assert rest[0][0] == "error"
            assert json.loads(rest[0][1])["error"]["code"] == "stopping"
            await asyncio.wait_for(up.calls[0].gone.wait(), 10)
            assert (await ended(process))[0] == 0

    run(main())


def test_a_second_signal_hurries():
    async def main():
        async with upstream(one_then_wait) as up:
            process, url = await start("--llm", up.url, "--grace-seconds", "600")
            async with asking(At(url), "/v1/chat/completions", STREAM) as response:
                events = response.events()
                await anext(events)
                process.send_signal(signal.SIGINT)
                await until(lambda: not listens(url))
                process.send_signal(signal.SIGINT)
                assert [event async for event in events][-1][0] == "error"
            assert (await ended(process))[0] == 0

    run(main())


def test_while_it_stops_nothing_new_begins_and_what_waits_is_refused():
    async def main():
        async with (
            upstream(one_then_wait) as up,
            serving(llm=up.url, max_streams=1, grace_seconds=30) as server,
        ):
            async with asking(server, "/v1/chat/completions", STREAM) as response:
                events = response.events()
                await anext(events)
                # Connections from before: one idle in the queue, one that has not asked yet.
                waiting = asyncio.create_task(ask(server, "/v1/chat/completions", STREAM))
                await until(lambda: len(server.app.state.admission.queue) == 1)
                ready = await ask(server, "/readyz")
                assert ready[0] == 200
                server.app.stop()
                status, headers, body = await waiting
                assert (status, body["error"]["code"]) == (503, "stopping")
                assert int(headers["retry-after"]) >= 1
                assert (await ask(server, "/v1/chat/completions", STREAM))[0] == 503
                assert (await ask(server, "/v1/embeddings", {"input": "x"}))[0] == 503
                assert (await ask(server, "/readyz"))[0] == 503
                assert (await ask(server, "/healthz"))[0] == 200
                up.calls[0].go.set()
                assert [event async for event in events][-1] == ("", "[DONE]")
            assert len(up.calls) == 1

    run(main())


def test_an_answer_that_is_not_streamed_is_a_503_after_the_grace_period():
    async def main():
        async with (
            upstream(lambda call: call.go.wait()) as up,
            serving(llm=up.url, grace_seconds=0.1) as server,
        ):
            asked = asyncio.create_task(ask(server, "/v1/chat/completions", CHAT))
            await until(lambda: bool(up.calls))
            server.stop()
            status, _, body = await asked
            assert (status, body["error"]["code"]) == (503, "stopping")
            await up.calls[0].gone.wait()

    run(main())


def test_watchers_of_the_figures_do_not_hold_the_server_up():
    async def main():
        async with (
            serving(grace_seconds=0.1) as server,
            asking(server, "/v1/stats/stream") as response,
        ):
            events = response.events()
            await anext(events)
            server.stop()
            assert [event async for event in events] == []

    run(main())


def test_a_port_in_use_is_told_and_the_exit_code_is_1():
    async def main():
        async with serving() as server:
            port = server.url.rsplit(":", 1)[1]
            done = await asyncio.create_subprocess_exec(
                sys.executable, "-c",
                "import sys; from tournant.serve import ServeSettings, run\n"
                "from tournant.serve.run import CannotListen\n"
                f"try: run(ServeSettings(port={port}))\n"
                "except CannotListen as error: print(error); sys.exit(1)",
                stdout=subprocess.PIPE,
            )  # fmt: skip
            out, _ = await asyncio.wait_for(done.communicate(), 30)
            assert done.returncode == 1
            assert b"choose another with --port" in out

    run(main())


def test_nothing_of_a_server_is_left():
    async def main():
        async with upstream(talk) as up:
            for _ in range(2):
                async with serving(llm=up.url) as server:
                    await ask(server, "/v1/chat/completions", STREAM)
                await until(lambda: up.open == 0)
            assert len(asyncio.all_tasks()) <= 4  # this test, and those of the upstream

    before = len(os.listdir("/proc/self/fd"))
    run(main())
    assert len(os.listdir("/proc/self/fd")) <= before
