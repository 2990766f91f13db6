"""Everything a provider can do wrong to a whole answer, against a real server that does it."""

from __future__ import annotations

import asyncio

import fault_server as fault
import pytest
from fault_server import FaultServer, says

from tournant import llm
from tournant.llm import Client, Timeouts

SHORT = 0.05


def failing(*answers, call=lambda client: client.chat("x"), **options):
    """Return the error of a call, which must name what was called, and the server's state after it."""

    async def main():
        async with (
            FaultServer(*answers) as server,
            Client(server.url, "kitchen-1", **options) as client,
        ):
            with pytest.raises(llm.LLMError) as caught:
                await call(client)
            error = caught.value
            assert str(error).startswith(f"POST {server.url}/")
            assert error.__cause__ is None
            assert error.__context__ is None
            return error, server

    return asyncio.run(main())


def test_a_provider_that_is_down():
    async def main():
        async with Client(await fault.refused_url(), "kitchen-1") as client:
            with pytest.raises(
                llm.ConnectionFailed, match="check that the provider is running"
            ) as caught:
                await client.chat("x")
            return caught.value

    error = asyncio.run(main())
    assert error.sent is False
    assert error.__context__ is None


def test_a_host_that_is_unknown():
    async def main():
        async with Client("http://no-such-host.invalid", "kitchen-1") as client:
            with pytest.raises(llm.ConnectionFailed, match="host's name") as caught:
                await client.chat("x")
            return caught.value

    assert asyncio.run(main()).sent is False


@pytest.mark.parametrize("answer", [fault.resets, fault.closes, fault.cut_body, fault.no_http])
def test_a_connection_that_breaks(answer):
    error, _ = failing(answer)
    assert type(error) is llm.ConnectionFailed
    assert error.sent is True
    assert "try again" in str(error)


@pytest.mark.parametrize("answer", [fault.hangs, fault.hangs_after_head])
def test_a_provider_that_hangs(answer):
    async def main():
        async with FaultServer(answer) as server:
            async with Client(server.url, "kitchen-1", timeouts=Timeouts(total=SHORT)) as client:
                with pytest.raises(llm.LLMTimeout, match=r"Timeouts\(total=") as caught:
                    await client.chat("x")
                await server.left.wait()  # the connection is closed, not kept for another call
            return caught.value

    error = asyncio.run(main())
    assert (error.which, error.seconds) == ("total", SHORT)


def test_a_host_that_takes_no_connection():
    """A listener whose queue is full drops what knocks."""
    import socket

    async def main():
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            port = listener.getsockname()[1]
            knocking = []
            try:
                for _ in range(8):
                    knock = socket.socket()
                    knock.setblocking(False)
                    knock.connect_ex(("127.0.0.1", port))
                    knocking.append(knock)
                timeouts = Timeouts(connect=SHORT)
                async with Client(f"http://127.0.0.1:{port}", "m", timeouts=timeouts) as client:
                    with pytest.raises(llm.LLMTimeout) as caught:
                        await client.chat("x")
                    with pytest.raises(llm.LLMTimeout) as streamed:
                        await anext(client.stream("x"))
            finally:
                for knock in knocking:
                    knock.close()
            return caught.value, streamed.value

    for error in asyncio.run(main()):
        assert (error.which, error.seconds) == ("connect", SHORT)


def test_waiting_for_a_place_in_a_bounded_pool_is_no_part_of_connecting():
    async def main():
        async with FaultServer(fault.hangs, says()) as server:
            timeouts = Timeouts(connect=SHORT, total=20 * SHORT)
            async with Client(server.url, "m", timeouts=timeouts, connections=1) as client:
                hanging = asyncio.create_task(client.chat("x"))
                await server.waiting.wait()
                waiting = asyncio.create_task(client.chat("x"))
                await asyncio.sleep(3 * SHORT)
                hanging.cancel()
                return (await waiting).text

    assert asyncio.run(main()) == "The swing cook."


def test_a_caller_that_is_cancelled_closes_its_connection():
    async def main():
        async with (
            FaultServer(fault.hangs_after_head) as server,
            Client(server.url, "kitchen-1") as client,
        ):
            task = asyncio.create_task(client.chat("x"))
            await server.waiting.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await server.left.wait()

    asyncio.run(main())


def test_a_timeout_of_the_caller_is_the_callers():
    async def main():
        async with (
            FaultServer(fault.hangs) as server,
            Client(server.url, "kitchen-1") as client,
        ):
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(SHORT):
                    await client.chat("x")
            await server.left.wait()
            return caught.value

    assert type(asyncio.run(main())) is TimeoutError


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (fault.html(), "Log in"),
        (fault.half_json(), "chatcmpl-1"),
        (fault.sends(b""), "an empty body"),
        (fault.sends(b"\xff\xfe"), "no whole JSON"),
        (says([]), "choices"),
    ],
)
def test_a_reply_that_is_no_answer(answer, shown):
    error, _ = failing(answer)
    assert type(error) is llm.BadReply
    assert error.status == 200
    assert shown in str(error)
    assert "base_url" in str(error)


@pytest.mark.parametrize(
    ("answer", "kind", "facts"),
    [
        (fault.openai_error(400, None, "too hot"), llm.BadRequest, (400, None)),
        (fault.openai_error(400, "context_length_exceeded", "too long"), llm.ContextTooLong, (400, None)),
        (fault.openai_error(404, "model_not_found", "no such model"), llm.NotFound, (404, None)),
        (fault.openai_error(429, "rate_limit_exceeded", "slow", "tokens", retry_after="3"), llm.RateLimited, (429, 3.0)),
        (fault.openai_error(429, "insufficient_quota", "pay"), llm.QuotaExhausted, (429, None)),
        (fault.openai_error(500, None, "oops", "server_error"), llm.ProviderFailed, (500, None)),
        (fault.openai_error(503, None, "busy", retry_after_ms="250"), llm.Overloaded, (503, 0.25)),
        (fault.anthropic_error(401, "authentication_error", "invalid x-api-key"), llm.AuthenticationFailed, (401, None)),
        (fault.anthropic_error(429, "rate_limit_error", "slow"), llm.RateLimited, (429, None)),
        (fault.anthropic_error(529, "overloaded_error", "Overloaded"), llm.Overloaded, (529, None)),
        (fault.html(502), llm.ProviderFailed, (502, None)),
        (says({"error": {"code": 502, "message": "upstream"}}), llm.ProviderFailed, (502, None)),
    ],
)  # fmt: skip
def test_a_provider_that_refuses(answer, kind, facts):
    error, _ = failing(answer)
    assert type(error) is kind
    assert (error.status, error.retry_after) == facts


def test_a_refused_key_names_its_variable(monkeypatch):
    monkeypatch.setenv("KITCHEN_KEY", "sk-canary-0123")
    error, _ = failing(fault.openai_error(401, "invalid_api_key", "no"), api_key_env="KITCHEN_KEY")
    assert type(error) is llm.AuthenticationFailed
    assert "KITCHEN_KEY" in str(error)


def test_the_connection_serves_on_after_a_refusal():
    async def main():
        refusal = fault.openai_error(400, None, "no")
        async with (
            FaultServer(refusal, says()) as server,
            Client(server.url, "kitchen-1") as client,
        ):
            with pytest.raises(llm.BadRequest):
                await client.chat("x")
            await client.chat("x")
            return server.connections

    assert asyncio.run(main()) == 1


def test_a_provider_that_comes_back():
    async def main():
        async with (
            FaultServer(fault.resets, fault.html(502), says()) as server,
            Client(server.url, "kitchen-1") as client,
        ):
            for kind in (llm.ConnectionFailed, llm.ProviderFailed):
                with pytest.raises(kind):
                    await client.chat("x")
            return (await client.chat("x")).text

    assert asyncio.run(main()) == "The swing cook."


def test_a_reply_without_a_length_is_read_to_its_end():
    async def whole(to):
        await to.head(200)
        await to.send(b'{"choices": [{"message": {"content": "')
        await to.send(b'soup"}}]}')

    async def main():
        async with FaultServer(whole) as server, Client(server.url, "m") as client:
            return (await client.chat("x")).text

    assert asyncio.run(main()) == "soup"


def test_a_reply_without_an_end_is_given_up(monkeypatch):
    monkeypatch.setattr("tournant.llm.client._LARGEST_REPLY", 1_000_000)

    async def endless(to):
        await to.head(200, transfer_encoding="chunked")
        while True:
            await to.chunk(b"x" * 65_536)

    async def main():
        async with FaultServer(endless) as server, Client(server.url, "m") as client:
            with pytest.raises(llm.BadReply, match="more than 1,000,000 bytes"):
                await client.chat("x")
            await server.left.wait()

    asyncio.run(main())
