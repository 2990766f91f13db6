"""The client's life: loops come and go, it travels, and the key is never seen."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import pickle
import subprocess
import sys
import threading
import traceback

import fault_server as fault
import pytest
from fault_server import WHOLE, FaultServer, says, streams

import tournant as tn
from tournant import llm
from tournant.limits import Adaptive, RateLimit
from tournant.llm import Client, Timeouts

KEY = "sk-canary-0123456789"


def runners():
    found = [asyncio.run]
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.run(asyncio.sleep(0))  # its first loop opens descriptors that it keeps
        found.append(uvloop.run)
    return found


async def used(client, server):
    """Use a client in every way."""
    replies = await asyncio.gather(*(client.chat("x") for _ in range(4)))
    pieces = [chunk.text async for chunk in client.stream("x")]
    async for _ in client.stream("x"):
        break
    assert len(replies) == 4
    assert "".join(pieces) == "The swing cook."


async def answers(to):
    await (streams(*WHOLE) if to.request.body.get("stream") else says())(to)


@pytest.mark.parametrize("run", runners())
def test_one_client_serves_one_loop_after_the_other_without_being_closed(run, nothing_left):
    clients = {}

    async def main():
        async with FaultServer(answers) as server:
            client = clients.setdefault("one", Client("http://127.0.0.1:1", "kitchen-1"))
            client._base, client._endpoints = server.url, {}  # each loop has its own server
            await used(client, server)

    for _ in range(3):
        run(main())
        gc.collect()
    assert len(clients["one"].connections._kept) == 1
    clients.clear()


@pytest.mark.parametrize("run", runners())
def test_a_client_that_nobody_keeps_closes_its_connections(run, nothing_left):
    async def main():
        async with FaultServer(answers) as server:
            client = Client(server.url, "kitchen-1")
            await used(client, server)
            del client
            gc.collect()
            while server.open:
                await asyncio.sleep(0)

    run(main())


def test_a_client_that_was_closed_can_be_used_again():
    async def main():
        async with FaultServer(answers) as server:
            client = Client(server.url, "kitchen-1")
            for _ in range(2):
                async with client:
                    await used(client, server)
                while server.open:
                    await asyncio.sleep(0)
            await client.aclose()

    asyncio.run(main())


def test_loops_in_several_threads_share_a_client(nothing_left):
    client = None
    failures = []
    ready = threading.Barrier(3)

    async def use(server):
        for _ in range(20):
            await used(client, server)

    def work(server):
        try:
            ready.wait(10)
            asyncio.run(use(server))
        except BaseException as error:
            failures.append(error)

    async def main():
        nonlocal client
        async with FaultServer(answers) as server:
            client = Client(server.url, "kitchen-1")
            threads = [threading.Thread(target=work, args=(server,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                await asyncio.to_thread(thread.join)

    asyncio.run(main())
    assert failures == []


def test_closing_reaches_the_connections_of_other_loops(nothing_left):
    async def main():
        async with FaultServer(answers) as server:
            client = Client(server.url, "kitchen-1")
            closed, open_ = threading.Event(), threading.Event()

            async def elsewhere():
                await used(client, server)
                open_.set()
                while not closed.is_set():
                    await asyncio.sleep(0.001)

            thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
            thread.start()
            await asyncio.to_thread(open_.wait)
            assert server.open
            await client.aclose()
            while server.open:
                await asyncio.sleep(0.001)
            closed.set()
            await asyncio.to_thread(thread.join)

    asyncio.run(main())


def test_a_pipeline_run_from_sync_code_leaves_nothing(nothing_left):
    """A run has its own loop, twice."""
    started, stop = threading.Event(), threading.Event()
    urls = []

    async def serve():
        async with FaultServer(answers) as server:
            urls.append(server.url)
            started.set()
            while not stop.is_set():
                await asyncio.sleep(0.001)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    started.wait(10)
    try:
        client = Client(urls[0], "kitchen-1")
        pipeline = tn.Pipeline(["a", "b"]).map(client.chat, concurrency=2)
        for _ in range(2):
            assert [reply.text for reply in pipeline.iter()] == ["The swing cook."] * 2
        assert [c.text for c in tn.sync.iterate(client.stream("x"))][:2] == ["The ", "swing "]
    finally:
        stop.set()
        thread.join()


# Travelling


def test_it_travels_with_all_its_settings(monkeypatch):
    monkeypatch.setenv("KITCHEN_KEY", KEY)
    client = Client(
        "http://localhost:1/v1",
        "kitchen-1",
        api_key_env="KITCHEN_KEY",
        limit=RateLimit("5/s", key="kitchen"),
        concurrency=Adaptive(1, 4),
        timeouts=Timeouts(total=7),
        headers={"X-Title": "kitchen"},
        connections=3,
    )
    data = pickle.dumps(client)
    assert b"canary" not in data
    assert b"KITCHEN_KEY" in data
    twin = pickle.loads(data)
    assert repr(twin) == repr(client)
    assert twin.limit == client.limit
    assert twin.limit.snapshot() == client.limit.snapshot()
    assert twin.concurrency.max == 4
    assert twin.timeouts == client.timeouts
    assert twin.connections._headers == client.connections._headers
    assert twin.connections._most == 3


def test_where_it_arrives_the_variable_must_be_set_too(monkeypatch):
    monkeypatch.setenv("KITCHEN_KEY", KEY)
    data = pickle.dumps(Client("http://localhost:1", api_key_env="KITCHEN_KEY"))
    monkeypatch.delenv("KITCHEN_KEY")
    with pytest.raises(llm.InvalidClient, match="KITCHEN_KEY"):
        pickle.loads(data)


def test_a_key_that_was_given_itself_travels_itself():
    twin = pickle.loads(pickle.dumps(Client("http://localhost:1", api_key=KEY)))
    assert twin.connections._headers["Authorization"] == f"Bearer {KEY}"


# The key


CANARY_ANSWERS = [
    fault.echoes_key,
    fault.says({"error": KEY}),
    fault.says({"error": {"message": KEY, "code": KEY}}, 429),
    fault.sends(f"<html>{KEY}</html>".encode(), 200, "text/html"),
    fault.sends(f"<html>{KEY}</html>".encode(), 502, "text/html"),
    fault.sends(f'{{"key": "{KEY}'.encode()),
    fault.says({"choices": [{"message": KEY}]}),
    fault.says({}, 307, location=f"https://elsewhere/?key={KEY}"),
    fault.no_http,
    fault.resets,
    fault.cut_body,
    fault.hangs,
    streams(f'data: {{"error": {{"message": "{KEY}", "code": "{KEY}"}}}}\n\n'.encode()),
    streams(f"event: error\ndata: {KEY}\n\n".encode()),
    streams(f"data: {KEY}\n\n".encode()),
]


def locals_of(trace):
    """What a report that shows local variables would show of the library's frames."""
    return [
        repr(value)
        for frame, _ in traceback.walk_tb(trace)
        if "tournant" in frame.f_globals.get("__name__", "")
        for value in frame.f_locals.values()
    ]


@pytest.mark.parametrize("given", ["key", "variable", "header"])
def test_the_key_is_never_seen(given, monkeypatch, caplog, capfd):
    """Not in errors, their attributes, notes, chains, tracebacks and pickles, nor in logs, nor in what is printed."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("KITCHEN_KEY", KEY)
    options = {
        "key": {"api_key": KEY},
        "variable": {"api_key_env": "KITCHEN_KEY"},
        "header": {"headers": {"Authorization": f"Bearer {KEY}"}},
    }[given]
    seen = []

    async def main():
        asyncio.get_running_loop().set_debug(True)
        for answer in CANARY_ANSWERS:
            seconds = 0.2 if answer is fault.hangs else 60
            timeouts = Timeouts(first_token=seconds, total=seconds)
            for call in (ask, read):
                async with (
                    FaultServer(answer) as server,
                    Client(server.url, "m", timeouts=timeouts, **options) as client,
                ):
                    seen.append(repr(client))
                    with pytest.raises(llm.LLMError) as caught:
                        await call(client)
                    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
                    failures.append(caught.value)
        async with Client(await fault.refused_url(), "m", **options) as client:
            with pytest.raises(llm.LLMError) as caught:
                await client.chat("x")
            failures.append(caught.value)

    async def ask(client):
        await client.chat("x")

    async def read(client):
        async for _ in client.stream("x"):
            pass

    failures = []
    asyncio.run(main())
    for error in failures:
        chain = error
        while chain is not None:
            seen += [str(chain), repr(chain), repr(vars(chain)), *getattr(chain, "__notes__", ())]
            seen += traceback.format_exception(chain)
            seen += locals_of(chain.__traceback__)
            chain = chain.__cause__ or chain.__context__
        seen.append(pickle.dumps(error).decode("latin-1"))
    seen += [record.getMessage() + str(vars(record)) for record in caplog.records]
    seen += capfd.readouterr()
    assert len(failures) == 2 * len(CANARY_ANSWERS) + 1
    assert [text for text in seen if "canary" in text] == []


def test_a_failed_item_of_a_pipeline_does_not_show_it(monkeypatch):
    monkeypatch.setenv("KITCHEN_KEY", KEY)

    async def main():
        async with (
            FaultServer(fault.echoes_key) as server,
            Client(server.url, "m", api_key_env="KITCHEN_KEY") as client,
        ):
            pipeline = tn.Pipeline(["a"]).map(client.chat, on_error="skip")
            return await pipeline.arun()

    report = asyncio.run(main())
    assert "KITCHEN_KEY" in repr(report.failures)
    assert "canary" not in f"{report} {report.failures!r}"


# Around it


def test_a_proxy_is_taken_from_the_environment_but_never_for_this_machine(monkeypatch):
    async def main():
        async with FaultServer(says()) as server:
            proxy = server.url.removesuffix("/v1")
            monkeypatch.setenv("http_proxy", proxy)
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
            async with Client("http://kitchen.invalid/v1", "m") as client:
                await client.chat("x")
            async with Client(server.url, "m") as client:
                await client.chat("x")
            monkeypatch.setenv("no_proxy", "kitchen.invalid")
            async with Client("http://kitchen.invalid/v1", "m") as client:
                with pytest.raises(llm.ConnectionFailed, match="host's name"):
                    await client.chat("x")
            return [request.path for request in server.requests]

    assert asyncio.run(main()) == [
        "http://kitchen.invalid/v1/chat/completions",
        "/v1/chat/completions",
    ]


def python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=os.environ
    )
    return done.stdout + done.stderr


def test_the_room_is_entered_without_an_http_client():
    program = "import sys, tournant.llm as llm; llm.Reply, llm.Timeouts, llm.LLMError, llm.Model; print({'aiohttp', 'msgspec', 'xllamacpp'} & set(sys.modules))"
    assert python(program).strip() == "set()"


@pytest.mark.parametrize("package", ["aiohttp", "msgspec"])
def test_a_missing_package_is_named_with_its_extra(package):
    program = f"import sys; sys.modules[{package!r}] = None\nimport tournant.llm as llm\nllm.Client"
    out = python(program).splitlines()[-1]
    assert package in out
    assert "pip install 'tournant[llm]'" in out


def test_every_exported_name_is_there():
    for name in llm.__all__:
        if name not in ("Local", "local"):
            assert getattr(llm, name) is not None
            assert name in dir(llm)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        llm.nonsense
