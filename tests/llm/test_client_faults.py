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


def nested(depth, before=b"", after=b""):
    return before + b"[" * depth + b"]" * depth + after


@pytest.mark.parametrize(
    ("data", "status", "kind"),
    [
        (nested(5000, b'{"choices":', b"}"), 200, llm.BadReply),
        (nested(900, b'{"choices":', b"}"), 200, llm.BadReply),
        (nested(5000, b'{"error":', b"}"), 400, llm.BadRequest),
        (nested(900, b'{"error":', b"}"), 400, llm.BadRequest),
        (nested(900, b'{"error":{"message":', b"}}"), 400, llm.BadRequest),
        (nested(900, b'{"error":{"message":"x","code":', b"}}"), 400, llm.BadRequest),
    ],
)
@pytest.mark.parametrize("call", [lambda c: c.chat("x"), lambda c: anext(c.stream("x"))])
def test_a_reply_nested_beyond_sense(data, status, kind, call):
    error, _ = failing(fault.sends(data, status), call=call)
    assert type(error) is kind
    assert len(str(error)) < 1_000


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (nested(5000, b'{"choices":', b"}"), llm.BadReply),
        (nested(900, b'{"error":', b"}"), llm.StreamFailed),
        (nested(900, b'{"error":{"message":', b"}}"), llm.StreamFailed),
    ],
)
def test_an_event_nested_beyond_sense(data, kind):
    stream = fault.streams(b"data: " + data + b"\n\n")
    error, _ = failing(stream, call=lambda client: anext(client.stream("x")))
    assert type(error) is kind


@pytest.mark.parametrize(
    ("written", "read"),
    [('"\\ud83d and on"', "\ufffd and on"), ('"\\ud83d\\ude00"', "\U0001f600"), ('"x", "odd": 1e400', "x")],
)  # fmt: skip
def test_json_that_only_some_parsers_take_is_an_answer(written, read):
    whole = f'{{"choices":[{{"message":{{"content":{written}}}}}]}}'.encode()
    piece = f'data: {{"choices":[{{"delta":{{"content":{written}}}}}]}}\n\n'.encode()

    async def main():
        async with (
            FaultServer(fault.sends(whole), fault.streams(piece, fault.DONE)) as server,
            Client(server.url, "kitchen-1") as client,
        ):
            reply = await client.chat("x")
            pieces = [chunk.text async for chunk in client.stream("x")]
            return reply.text, "".join(pieces)

    assert asyncio.run(main()) == (read, read)


KEY = "sk-CANARY/7d9f+x"
SPELLINGS = {
    "JSON": KEY.replace("/", "\\/"),
    "JSON twice": KEY.replace("/", "\\\\\\/"),
    "HTML": KEY.replace("/", "&#x2F;"),
    "HTML in figures": KEY.replace("/", "&#47;").replace("+", "&#043;"),
    "HTML by names": KEY.replace("/", "&sol;").replace("+", "&plus;"),
    "HTML twice": KEY.replace("/", "&amp;#x2F;"),
    "URL": KEY.replace("/", "%2f").replace("+", "%2B"),
    "URL twice": KEY.replace("/", "%252F"),
    "Unicode": "".join(f"\\u{ord(c):04X}" for c in KEY),
    "Unicode in part": KEY.replace("/", "\\u002f"),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("status", [200, 401])
def test_no_spelling_of_the_key_is_shown(spelling, status):
    page = f"<html>the header Bearer {spelling} is refused</html>".encode()
    body = {"error": {"message": f"{spelling} is refused", "type": spelling, "param": [spelling]}}
    for answer in (fault.sends(page, status, "text/html"), says(body, status)):
        error, _ = failing(answer, api_key=KEY)
        for text in (str(error), str(error.body), str(error.code)):
            assert "CANARY" not in text
            assert "7d9f" not in text
            assert spelling not in text
        assert "[hidden] is refused" in str(error)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"logit_bias": {"7": float("-inf")}, "stop": None}, "logit_bias.7"),
        ({"extra": [1.0, (2.0, float("inf"))]}, "extra.1.1"),
    ],
)
def test_a_number_that_json_can_not_say_is_refused(options, place):
    async def main():
        async with Client("http://127.0.0.1:1/v1", "kitchen-1") as client:
            with pytest.raises(llm.InvalidClient, match=rf"\({place} is nan or infinite"):
                await client.chat("x", **options)
            with pytest.raises(llm.InvalidClient, match="the option stream='no' is not taken"):
                await client.chat("x", stream="no")
            assert b"null" in client.encode({"messages": [{"content": None}]})

    asyncio.run(main())
