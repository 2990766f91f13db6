"""The client: what it sends, what it makes of the answers, and what it refuses before anything is sent."""

from __future__ import annotations

import asyncio
import base64
import struct

import pytest
from fault_server import CHAT, FaultServer, says

import tournant as tn
from tournant.limits import Adaptive, InvalidLimit, RateLimit
from tournant.llm import (
    BadReply,
    Client,
    InvalidClient,
    Model,
    Reply,
    Timeouts,
    Usage,
    model,
)
from tournant.llm.addresses import base_of, join


def asked(answers, work, **options):
    """Run ``work(client, server)`` against a server with these answers."""

    async def main():
        async with FaultServer(*answers) as server:
            options.setdefault("model", "kitchen-1")
            async with Client(server.url, **options) as client:
                return await work(client, server)

    return asyncio.run(main())


# Whole answers


def test_a_text_is_one_message_of_the_user():
    async def work(client, server):
        reply = await client.chat("What is a tournant?", max_tokens=9, temperature=None)
        return reply, server.requests

    reply, [request] = asked([says()], work)
    assert reply == Reply("The swing cook.", "stop", Usage(7, 5), "kitchen-1")
    assert reply.usage.total_tokens == 12
    assert reply.raw == CHAT
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.body == {
        "model": "kitchen-1",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "What is a tournant?"}],
    }
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("tournant/")
    assert "authorization" not in request.headers
    assert "cookie" not in request.headers


def test_a_conversation_is_sent_as_it_is_and_a_call_may_name_another_model():
    talk = [
        {"role": "system", "content": "é"},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
    ]

    async def work(client, server):
        await client.chat(talk, model="kitchen-2")
        return server.requests[0].body

    assert asked([says()], work) == {"model": "kitchen-2", "messages": talk}


def test_the_key_is_sent_as_a_bearer(monkeypatch):
    monkeypatch.setenv("KITCHEN_KEY", " sk-1234\n")

    async def work(client, server):
        await client.chat("x")
        return server.requests[0].headers

    headers = asked([says()], work, api_key_env="KITCHEN_KEY", headers={"X-Title": "kitchen"})
    assert headers["authorization"] == "Bearer sk-1234"
    assert headers["x-title"] == "kitchen"


def test_no_key_is_taken_from_a_variable_that_was_not_named(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1234")

    async def work(client, server):
        await client.chat("x")
        return server.requests[0].headers

    assert "authorization" not in asked([says()], work)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("", ""),
        (
            [{"type": "thinking"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "ab",
        ),
    ],
)
def test_a_message_may_have_no_text_or_parts_of_it(content, text):
    body = {"choices": [{"message": {"content": content, "tool_calls": [{"id": "1"}]}}]}
    reply = asked([says(body)], lambda client, _: client.chat("x"))
    assert reply == Reply(text, None, None, "")
    assert reply.raw["choices"][0]["message"]["tool_calls"] == [{"id": "1"}]


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        ({"prompt_tokens": 3, "total_tokens": 3}, Usage(3)),
        ({"input_tokens": 3, "output_tokens": 4}, Usage(3, 4)),
        ({"prompt_tokens": "3"}, None),
        ({"prompt_tokens": True}, None),
        ({}, None),
        (None, None),
        ("7", None),
    ],
)
def test_usage_is_read_where_it_can_be(usage, read):
    body = {**CHAT, "usage": usage}
    assert asked([says(body)], lambda client, _: client.chat("x")).usage == read


def test_a_text_is_continued():
    body = {"choices": [{"text": " soup", "finish_reason": "length"}], "model": "kitchen-1"}

    async def work(client, server):
        return await client.complete("Hot", max_tokens=1), server.requests[0]

    reply, request = asked([says(body)], work)
    assert reply == Reply(" soup", "length", None, "kitchen-1")
    assert request.path == "/v1/completions"
    assert request.body == {"model": "kitchen-1", "prompt": "Hot", "max_tokens": 1}


def test_vectors_come_in_the_order_of_their_texts():
    rows = [{"index": 1, "embedding": [3, 4.5]}, {"index": 0, "embedding": [1.0, 2.0]}]

    async def work(client, server):
        return await client.embed(("a", "b"), dimensions=2), server.requests[0]

    vectors, request = asked([says({"data": rows})], work)
    assert vectors == [[1.0, 2.0], [3, 4.5]]
    assert request.path == "/v1/embeddings"
    assert request.body == {"model": "kitchen-1", "input": ["a", "b"], "dimensions": 2}


def test_vectors_in_base64_are_read():
    packed = base64.b64encode(struct.pack("<2f", 0.5, -2.0)).decode()
    body = {"data": [{"embedding": packed}]}
    work = lambda client, _: client.embed(["a"], encoding_format="base64")  # noqa: E731
    assert asked([says(body)], work) == [[0.5, -2.0]]


def test_no_texts_are_no_call():
    async def work(client, server):
        return await client.embed([]), server.requests

    assert asked([says()], work) == ([], [])


@pytest.mark.parametrize(
    "rows",
    [
        None,
        [],
        [{"embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 2, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": -1, "embedding": [1.0]}],
        [{"embedding": [1.0]}, {"embedding": ["1.0"]}],
        [{"embedding": [1.0]}, {"embedding": "???"}],
        [{"embedding": [1.0]}, {"embedding": []}],
        [{"embedding": [1.0]}, [1.0]],
    ],
)
def test_a_vector_is_never_given_to_the_wrong_text(rows):
    with pytest.raises(BadReply, match="base_url"):
        asked([says({"data": rows})], lambda client, _: client.embed(["a", "b"]))


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"choices": []},
        {"choices": [7]},
        {"choices": [{}]},
        {"choices": [{"message": {"content": 7}}]},
        7,
    ],
)
def test_json_of_another_shape_is_no_answer(body):
    with pytest.raises(BadReply, match="POST http"):
        asked([says(body)], lambda client, _: client.chat("x"))


def test_post_gives_the_answer_as_it_is():
    async def work(client, server):
        raw = await client.post("/v1/rerank", b'{"query": 1}')
        again = await client.post("/responses", {"input": "x"})
        return raw, again, server.requests

    body = {"results": [1], "usage": {"input_tokens": 3, "output_tokens": 1}}
    raw, _, requests = asked([says(body, x_request_id="req-1")], work)
    assert (raw.status, raw.body, raw.usage) == (200, body, Usage(3, 1))
    assert raw.headers["X-Request-Id"] == "req-1"
    assert raw.text == raw.data.decode()
    assert [request.path for request in requests] == ["/v1/rerank", "/v1/responses"]
    assert [request.body for request in requests] == [{"query": 1}, {"input": "x"}]


def test_a_prompt_of_megabytes_is_sent_whole():
    async def work(client, server):
        await client.chat("é" * 2**20)
        return server.requests[0].body["messages"][0]["content"]

    assert asked([says()], work) == "é" * 2**20


def test_calls_share_connections():
    async def work(client, server):
        for _ in range(5):
            await client.chat("x")
        await asyncio.gather(*(client.chat("x") for _ in range(3)))
        return server.connections

    assert asked([says()], work) <= 3


def test_the_number_of_connections_can_be_bounded():
    async def work(client, server):
        await asyncio.gather(*(client.chat("x") for _ in range(20)))
        return server.connections, len(server.requests)

    connections, requests = asked([says()], work, connections=2)
    assert connections <= 2
    assert requests == 20


def test_a_redirect_is_not_followed():
    """The key would go with it."""

    async def work(client, server):
        with pytest.raises(tn.llm.NotFound, match="https://elsewhere/v1"):
            await client.chat("x")
        return len(server.requests)

    answer = says({}, 307, location="https://elsewhere/v1")
    assert asked([answer], work, api_key="sk-1234") == 1


def test_it_is_a_stage():
    async def main():
        async with FaultServer(says()) as server, Client(server.url, "kitchen-1") as client:
            return await tn.Pipeline(["a", "b", "c"]).map(client.chat, concurrency=2).acollect()

    assert [reply.text for reply in asyncio.run(main())] == ["The swing cook."] * 3


def test_it_is_a_model():
    client = Client("http://localhost", "kitchen-1")
    assert isinstance(client, Model)
    assert isinstance(client.stream("x"), model.ChunkStream)
    assert client.name == "kitchen-1"
    assert Client("http://localhost:8000?key=1").name == "http://localhost:8000/v1"


# Addresses


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        (" http://localhost:8000/v1// ", "http://localhost:8000/v1"),
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1"),
        ("https://host/v1beta/openai/", "https://host/v1beta/openai"),
        ("https://host/openai/?api-version=1", "https://host/openai?api-version=1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_a_base_is_taken_with_and_without_v1_and_slashes(given, base):
    assert base_of(given) == base


def test_an_endpoint_keeps_the_bases_path_and_query():
    assert join("https://h/api/v1", "/v1/embeddings") == "https://h/api/v1/embeddings"
    assert join("https://h/v1", "/embeddings") == "https://h/v1/embeddings"
    assert (
        join("https://h/o?api-version=1", "/v1/embeddings")
        == "https://h/o/embeddings?api-version=1"
    )


@pytest.mark.parametrize(
    ("given", "says_so"),
    [
        ("", "give an address"),
        (None, "give an address"),
        ("localhost:8000", "http://"),
        ("ftp://h", "http://"),
        ("http://", "host"),
        ("http://h:99999", "can't be read"),
        ("http://h/v1/chat/completions", "what stands before"),
        ("http://h/v1/embeddings/", "what stands before"),
        ("http://h/v1#x", "#"),
    ],
)
def test_an_address_that_cant_be_is_refused(given, says_so):
    with pytest.raises(InvalidClient, match=says_so):
        Client(given)


def test_a_password_in_an_address_is_refused_and_not_shown():
    with pytest.raises(InvalidClient, match="api_key_env") as caught:
        Client("http://me:hunter2@host/v1")
    assert "hunter2" not in str(caught.value)


# What is refused


@pytest.mark.parametrize(
    ("options", "says_so"),
    [
        ({"model": ""}, "model's name"),
        ({"model": 7}, "model's name"),
        ({"api_key": ""}, "not empty"),
        ({"api_key": "a b"}, "spaces"),
        ({"api_key": "schlüssel"}, "ASCII"),
        ({"api_key": "x", "api_key_env": "X"}, "one of the two"),
        ({"api_key_env": "NO_SUCH_VARIABLE_HERE"}, "NO_SUCH_VARIABLE_HERE.*not set.*export"),
        ({"api_key_env": "EMPTY_VARIABLE_HERE"}, "EMPTY_VARIABLE_HERE.*is empty"),
        ({"limit": "500/min"}, "RateLimit"),
        ({"concurrency": 0}, "whole number"),
        ({"concurrency": True}, "whole number"),
        ({"timeouts": 30}, "Timeouts"),
        ({"connections": 0}, "whole number"),
        ({"headers": [("a", "b")]}, "mapping"),
        ({"headers": {"a": 1}}, "as str"),
        ({"headers": {"a": "1\r\nb: 2"}}, "line break"),
        ({"headers": {"Content-Type": "x"}}, "itself"),
        ({"headers": {"authorization": "x"}, "api_key": "x"}, "one of the two"),
    ],
)
def test_wrong_arguments_are_refused_with_the_mend(options, says_so, monkeypatch):
    monkeypatch.setenv("EMPTY_VARIABLE_HERE", " ")
    with pytest.raises(InvalidClient, match=says_so):
        Client("http://localhost", **options)


def test_a_key_given_as_the_name_of_its_variable_is_refused_and_not_shown():
    with pytest.raises(InvalidClient, match="not the key itself") as caught:
        Client("http://localhost", api_key_env="sk-canary-0123")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, "5", True, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["connect", "first_token", "between_tokens", "total"])
def test_timeouts_that_cant_be_are_refused(name, value):
    with pytest.raises(InvalidClient, match=name):
        Timeouts(**{name: value})


@pytest.mark.parametrize(
    ("call", "says_so"),
    [
        (lambda c: c.chat([]), "at least one"),
        (lambda c: c.chat({"role": "user"}), "list of messages"),
        (lambda c: c.chat(7), "list of messages"),
        (lambda c: c.chat(["x"]), "message 0"),
        (lambda c: c.chat([{"content": "x"}]), "message 0"),
        (lambda c: c.chat("x", stream=True), r"stream\(\)"),
        (lambda c: c.chat("x", seed=object()), "JSON"),
        (lambda c: c.chat("x", model=""), "no model"),
        (lambda c: c.complete(["x"]), "give a text"),
        (lambda c: c.embed("x"), r"embed\(\[text\]\)"),
        (lambda c: c.embed(["x", 7]), "give a text"),
        (lambda c: c.post("chat", {}), "endpoint"),
        (lambda c: c.post("/chat?key=1", {}), "endpoint"),
        (lambda c: c.post(None, {}), "endpoint"),
    ],
)
def test_wrong_calls_are_refused_before_anything_is_sent(call, says_so):
    async def work(client, server):
        with pytest.raises(InvalidClient, match=says_so):
            await call(client)
        return server.requests

    assert asked([says()], work) == []


def test_a_stream_that_cant_be_is_refused_at_once():
    client = Client("http://localhost", "kitchen-1")
    with pytest.raises(InvalidClient, match="one answer"):
        client.stream("x", n=2)
    with pytest.raises(InvalidClient, match="give a text"):
        client.stream_completion(7)
    with pytest.raises(InvalidClient, match="no model is named"):
        Client("http://localhost").stream("x")


def test_limits_are_taken_as_they_are():
    limit, adaptive = RateLimit("5/s"), Adaptive(1, 4)
    client = Client("http://localhost", limit=limit, concurrency=adaptive)
    assert client.limit is limit
    assert client.concurrency is adaptive
    assert Client("http://localhost", concurrency=3).concurrency.limit == 3
    with pytest.raises(InvalidLimit):
        RateLimit("nonsense")
