"""Admission over HTTP: 429 for the caller's own limits, 503 for ours, both with an honest Retry-After, and before any work."""

from __future__ import annotations

import asyncio

import pytest
from serving import (
    CHAT,
    Call,
    ask,
    asking,
    metric,
    run,
    send,
    serving,
    talk,
    until,
    upstream,
    whole,
)

STREAM = {**CHAT, "stream": True}
ALICE = "sk-alice-0123456789abcdef"
BOB = "sk-bob-0123456789abcdefgh"


@pytest.fixture
def keys(tmp_path):
    def write(alice: str = "", bob: str = "") -> str:
        path = tmp_path / "keys"
        path.write_text(f"alice {ALICE} {alice}\nbob {BOB} {bob}\n")
        return str(path)

    return write


def of(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def wait_for_go(call: Call) -> None:
    await call.go.wait()
    await talk(call)


def test_requests_beyond_a_keys_rate_are_429_and_do_no_work(keys):
    async def main():
        async with (
            upstream(talk) as up,
            serving(llm=up.url, api_keys=keys("requests=2/hour")) as server,
        ):
            for _ in range(2):
                assert (await ask(server, "/v1/chat/completions", CHAT, **of(ALICE)))[0] == 200
            status, headers, body = await ask(server, "/v1/chat/completions", CHAT, **of(ALICE))
            assert status == 429
            assert body["error"]["type"] == "rate_limit_error"
            # 2 an hour: the next is due in half an hour.
            assert 1_790 <= int(headers["retry-after"]) <= 1_800
            assert len(up.calls) == 2
            # The others are not touched by it.
            assert (await ask(server, "/v1/chat/completions", CHAT, **of(BOB)))[0] == 200
            assert await metric(server, "tournant_caller_refused_total", **of(BOB)) == 1

    run(main())


def test_retry_after_is_honest(keys):
    """Whoever comes again when they were told to is let in."""

    async def main():
        async with (
            upstream(talk) as up,
            serving(llm=up.url, api_keys=keys("requests=1/s")) as server,
        ):
            assert (await ask(server, "/v1/chat/completions", CHAT, **of(ALICE)))[0] == 200
            status, headers, _ = await ask(server, "/v1/chat/completions", CHAT, **of(ALICE))
            assert status == 429
            await asyncio.sleep(int(headers["retry-after"]))
            assert (await ask(server, "/v1/chat/completions", CHAT, **of(ALICE)))[0] == 200

    run(main())


def test_tokens_are_reserved_settled_and_refunded(keys):
    async def script(call: Call) -> None:
        if call.json["max_tokens"] == 999:
            await call.reply({"error": {"message": "no"}}, "400 Bad Request")
        else:
            await call.reply(whole("x", prompt=10, written=90))

    async def main():
        async with (
            upstream(script) as up,
            serving(llm=up.url, api_keys=keys("tokens=1000/hour")) as server,
        ):

            async def level() -> float:
                (caller,) = (c for c in server.app.state.admission.callers() if c.name == "alice")
                return caller.limit.snapshot().tokens.level

            body = {**CHAT, "max_tokens": 900}
            # Reserved by estimate, settled at what it really was: 100.
            assert (await ask(server, "/v1/chat/completions", body, **of(ALICE)))[0] == 200
            assert 899 <= await level() <= 902
            # Refused by the upstream: given back.
            assert (
                await ask(server, "/v1/chat/completions", {**CHAT, "max_tokens": 800}, **of(ALICE))
            )[0] == 200
            assert 799 <= await level() <= 803
            assert (
                await ask(server, "/v1/chat/completions", {**CHAT, "max_tokens": 700}, **of(ALICE))
            )[0] == 200
            before = await level()
            up.script = lambda call: call.reply({"error": {"message": "no"}}, "400 Bad Request")
            assert (
                await ask(server, "/v1/chat/completions", {**CHAT, "max_tokens": 600}, **of(ALICE))
            )[0] == 400
            assert before <= await level() <= before + 2
            # More than is left is not let in, though nothing has been used yet: concurrency can't walk past the limit.
            status, headers, _ = await ask(
                server, "/v1/chat/completions", {**CHAT, "max_tokens": 950}, **of(ALICE)
            )
            assert status == 429
            assert int(headers["retry-after"]) > 60

    run(main())


def test_concurrent_requests_cannot_walk_past_a_token_limit(keys):
    async def main():
        async with (
            upstream(wait_for_go) as up,
            serving(llm=up.url, api_keys=keys("tokens=1000/hour")) as server,
        ):
            body = {**CHAT, "max_tokens": 300}
            tasks = [
                asyncio.create_task(ask(server, "/v1/chat/completions", body, **of(ALICE)))
                for _ in range(10)
            ]
            await until(lambda: sum(task.done() for task in tasks) == 7)
            assert len(up.calls) == 3
            for call in up.calls:
                call.go.set()
            statuses = sorted([(await task)[0] for task in tasks])
            assert statuses == [200] * 3 + [429] * 7

    run(main())


def test_a_client_that_leaves_before_the_first_token_is_refunded(keys):
    async def main():
        async with (
            upstream(wait_for_go) as up,
            serving(llm=up.url, api_keys=keys("tokens=1000/hour")) as server,
        ):
            _, writer = await send(
                server, "/v1/chat/completions", {**STREAM, "max_tokens": 900}, **of(ALICE)
            )
            await until(lambda: bool(up.calls))
            writer.transport.abort()
            await until(lambda: server.app.state.admission.running == 0)
            (caller,) = server.app.state.admission.callers()
            assert caller.limit.snapshot().tokens.level >= 999

    run(main())


def test_streams_of_a_key_beyond_its_limit_are_429(keys):
    async def main():
        async with (
            upstream(wait_for_go) as up,
            serving(llm=up.url, api_keys=keys("streams=2")) as server,
        ):
            tasks = [
                asyncio.create_task(ask(server, "/v1/chat/completions", STREAM, **of(ALICE)))
                for _ in range(2)
            ]
            await until(lambda: len(up.calls) == 2)
            status, headers, body = await ask(server, "/v1/chat/completions", STREAM, **of(ALICE))
            assert (status, body["error"]["code"]) == (429, "too_many_streams")
            assert int(headers["retry-after"]) >= 1
            for call in up.calls:
                call.go.set()
            await asyncio.gather(*tasks)
            up.script = talk
            assert (await ask(server, "/v1/chat/completions", STREAM, **of(ALICE)))[0] == 200

    run(main())


def test_what_finds_no_room_queues_and_beyond_the_queue_is_503():
    async def main():
        async with (
            upstream(wait_for_go) as up,
            serving(llm=up.url, max_streams=2, max_queued_tokens=700) as server,
        ):
            body = {**STREAM, "max_tokens": 300}
            tasks = [
                asyncio.create_task(ask(server, "/v1/chat/completions", body)) for _ in range(6)
            ]
            await until(lambda: sum(task.done() for task in tasks) == 2)
            assert len(up.calls) == 2, "what queues has done no work"
            assert len(server.app.state.admission.queue) == 2
            while up.calls:
                for call in up.calls:
                    call.go.set()
                if all(task.done() for task in tasks):
                    break
                await asyncio.sleep(0.01)
            done = [await task for task in tasks]
            assert sorted(status for status, _, _ in done) == [200] * 4 + [503] * 2
            for status, headers, said in done:
                if status == 503:
                    assert said["error"]["code"] == "overloaded"
                    assert int(headers["retry-after"]) >= 1

    run(main())


def test_who_waits_too_long_in_the_queue_is_503():
    async def main():
        async with (
            upstream(wait_for_go) as up,
            serving(llm=up.url, max_streams=1, queue_seconds=0.1) as server,
        ):
            first = asyncio.create_task(ask(server, "/v1/chat/completions", STREAM))
            await until(lambda: bool(up.calls))
            status, headers, _ = await ask(server, "/v1/chat/completions", STREAM)
            assert status == 503
            assert "retry-after" in headers
            up.calls[0].go.set()
            assert (await first)[0] == 200
            assert server.app.state.admission.running == 0

    run(main())


def test_who_leaves_the_queue_never_reaches_the_upstream():
    async def main():
        async with upstream(wait_for_go) as up, serving(llm=up.url, max_streams=1) as server:
            first = asyncio.create_task(ask(server, "/v1/chat/completions", STREAM))
            await until(lambda: bool(up.calls))
            _, writer = await send(server, "/v1/chat/completions", STREAM)
            queue = server.app.state.admission.queue
            await until(lambda: len(queue) == 1)
            writer.transport.abort()
            await until(lambda: len(queue) == 0)
            up.calls[0].go.set()
            assert (await first)[0] == 200
            assert len(up.calls) == 1

    run(main())


def test_a_refusal_leaves_the_connection_usable(keys):
    async def main():
        async with (
            upstream(talk) as up,
            serving(llm=up.url, api_keys=keys("requests=1/hour")) as server,
        ):
            await ask(server, "/v1/chat/completions", CHAT, **of(ALICE))
            async with asking(server, "/v1/chat/completions", CHAT, **of(ALICE)) as response:
                assert response.status == 429
                await response.json()
                assert "connection" not in response.headers
                response.writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert b"200 OK" in await response.reader.readuntil(b"\r\n")

    run(main())


def test_embeddings_are_charged_what_they_used(keys):
    """The estimate is made before the body is read, from its length; what is kept of it is the tokens that there were."""

    async def main():
        async with serving(embedder="static", api_keys=keys("tokens=1000/hour")) as server:

            def level() -> float:
                (caller,) = (c for c in server.app.state.admission.callers() if c.name == "alice")
                return caller.limit.snapshot().tokens.level

            long = {"input": "understanding " * 200}  # 700 by its length, a few to the tokenizer
            status, _, body = await ask(server, "/v1/embeddings", long, **of(ALICE))
            assert status == 200
            used = body["usage"]["total_tokens"]
            assert used < 600
            assert 999 - used <= level() <= 1_001 - used
            refused = {"input": "y" * 3_000, "encoding_format": "runes"}
            assert (await ask(server, "/v1/embeddings", refused, **of(ALICE)))[0] == 400
            assert 999 - used <= level() <= 1_001 - used

    run(main())


def test_relayed_embeddings_are_charged_what_they_used(keys):
    async def script(call: Call) -> None:
        usage = {"prompt_tokens": 40, "total_tokens": 40}
        await call.reply({"object": "list", "data": [], "usage": usage})

    async def main():
        async with (
            upstream(script) as up,
            serving(llm=up.url, api_keys=keys("tokens=1000/hour")) as server,
        ):
            body = {"model": "e", "input": "x" * 3_000}
            assert (await ask(server, "/v1/embeddings", body, **of(ALICE)))[0] == 200
            (caller,) = (c for c in server.app.state.admission.callers() if c.name == "alice")
            assert 959 <= caller.limit.snapshot().tokens.level <= 961

    run(main())
