"""Bodies: bounded in size, depth and length, whatever a client sends; and what a wrong one is told."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import CHAT, ask, asking, read_head, run, send, serving, talk, upstream

from tournant.serve import HTTPError, ServeSettings
from tournant.serve.bodies import ON_THE_LOOP, an_object, field, one_of, parse_json, whole

LIMITS = ServeSettings(max_nesting=8, max_text_chars=100)


def parse(data: bytes, limits: ServeSettings = LIMITS):
    return asyncio.run(parse_json(data, limits))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"nul", b'{"a":1}x', b"[NaN]", b"[Infinity]", b'{"a":"\xff"}', b'{"a":"\\ud800"}', b'{"a":1e999}',
        b'{"a":-' + b"9" * 5_000 + b"}", b"[" * 100_000, b'{"a":' * 50_000, b"\xef\xbb\xbf{}", b"\x00", b'{"a":01}', b"{'a':1}",
    ],
)  # fmt: skip
def test_what_is_no_json_is_a_400(data):
    with pytest.raises(HTTPError) as refused:
        parse(data)
    assert refused.value.status == 400
    assert len(refused.value.message) < 400


@pytest.mark.parametrize("pad", [0, ON_THE_LOOP])
def test_nesting_is_bounded_wherever_it_is_parsed(pad):
    wide = ServeSettings(max_nesting=8)
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        inner = b'"' + b" " * pad + b'"'
        assert parse(opening * 8 + inner + closing * 8, wide)
        with pytest.raises(HTTPError, match="nests deeper than 8"):
            parse(opening * 9 + inner + closing * 9, wide)


def test_brackets_inside_of_texts_do_not_nest():
    assert parse(b'{"a":"' + b"[" * 90 + b'"}')


def test_texts_are_bounded():
    assert parse(json.dumps({"a": "x" * 100}).encode())
    for value in ({"a": "x" * 101}, [["x" * 101]], "x" * 101):
        with pytest.raises(HTTPError, match="101 characters") as refused:
            parse(json.dumps(value).encode())
        assert refused.value.status == 413


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_refusal(data):
    try:
        parse(data)
    except HTTPError as error:
        assert error.status in (400, 413)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)
NAMES = st.sampled_from(
    [
        "model",
        "messages",
        "prompt",
        "stream",
        "stream_options",
        "max_tokens",
        "n",
        "retrieve",
        "role",
        "content",
    ]
)


def test_no_json_makes_the_server_fail(tmp_path):
    """Whatever the body, the answer is an answer or a refusal, never a 500."""

    @settings(max_examples=150, deadline=None)
    @given(
        st.dictionaries(NAMES, VALUES, max_size=6) | VALUES,
        st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]),
    )
    def check(body, path):
        try:
            data = json.dumps(body, allow_nan=True).encode()
        except UnicodeEncodeError:
            return
        status, _, said = loop.run(ask(server, path, data))
        assert status in (200, 400, 404, 413, 429, 502), (status, said)
        assert server.app.state.figures.faults == 0

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:

        async def start():
            up = upstream(talk)
            found = await up.__aenter__()
            ours = serving(llm=found.url)
            return up, ours, await ours.__aenter__()

        up, ours, server = loop.run(start())
        try:
            check()
        finally:
            loop.run(ours.__aexit__(None, None, None))
            loop.run(up.__aexit__(None, None, None))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ([], "must be a JSON object"),
        ({}, "messages is missing"),
        ({"messages": []}, "messages is missing or empty"),
        ({"messages": "hi"}, "messages='hi' must be a list"),
        ({"messages": ["hi"]}, "messages[0] must be an object"),
        ({"messages": [{"content": "hi"}]}, "messages[0] must be an object with a role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content must be a string"),
        ({**CHAT, "stream": "yes"}, "stream='yes' must be true or false"),
        ({**CHAT, "stream": 1}, "stream=1 must be true or false"),
        ({**CHAT, "model": 5}, "model=5 must be a string"),
        ({**CHAT, "max_tokens": 0}, "max_tokens=0 must be from 1"),
        ({**CHAT, "max_tokens": 10**30}, "max_tokens="),
        ({**CHAT, "max_tokens": True}, "max_tokens=True must be a whole number"),
        ({**CHAT, "n": -1}, "n=-1 must be from 1"),
        ({**CHAT, "stream_options": []}, "stream_options=[] must be an object"),
        ({**CHAT, "retrieve": {"k": 3}}, "this server has no index"),
        ({"messages": [{"role": "user"}] * 3_000}, "messages has 3,000 entries"),
    ],
)
def test_a_wrong_field_is_named(body, says):
    async def main():
        async with upstream(talk) as up, serving(llm=up.url) as server:
            status, _, said = await ask(server, "/v1/chat/completions", body)
            assert status == 400
            assert says in said["error"]["message"]
            assert said["error"]["type"] == "invalid_request_error"
            assert not up.calls

    run(main())


def test_fields_are_read_with_their_types():
    body = {"a": 1, "b": True, "c": 1.5, "d": None, "e": "x"}
    assert field(body, "a", float) == 1
    assert field(body, "d", int, 7) == 7
    assert field(body, "missing", str, "y") == "y"
    assert whole(body, "a", None, 1, 1) == 1
    assert one_of(body, "e", ("x",), "z") == "x"
    for wrong in (
        lambda: field(body, "b", int),
        lambda: field(body, "c", int),
        lambda: field(body, "a", bool),
        lambda: whole(body, "a", None, 2, 3),
        lambda: one_of(body, "e", ("y", "z"), "z"),
        lambda: an_object([]),
    ):
        with pytest.raises(HTTPError):
            wrong()


def test_a_body_that_is_too_large_is_refused_before_it_is_read():
    async def main():
        async with upstream(talk) as up, serving(llm=up.url, max_body_bytes=10_000) as server:
            reader, writer = await send(
                server, "/v1/chat/completions", b"{", content_length="10000000"
            )
            response = await read_head(reader, writer)
            assert response.status == 413
            assert response.headers["connection"] == "close"
            assert (await response.json())["error"]["code"] == "body_too_large"
            writer.close()

    run(main())


def test_a_body_of_unknown_length_that_grows_too_large_is_refused():
    async def main():
        async with upstream(talk) as up, serving(llm=up.url, max_body_bytes=10_000) as server:
            reader, writer = await send(
                server, "/v1/chat/completions", b"", transfer_encoding="chunked", content_length=""
            )
            for _ in range(20):
                writer.write(b"400\r\n" + b"x" * 1_024 + b"\r\n")
            response = await read_head(reader, writer)
            assert response.status == 413
            writer.close()

    run(main())


def test_a_large_body_is_parsed_off_the_loop():
    async def main():
        import threading

        from tournant.serve import bodies

        seen = []
        parse = bodies._parse

        def watched(*args):
            seen.append(threading.current_thread() is threading.main_thread())
            return parse(*args)

        bodies._parse = watched
        try:
            async with upstream(talk) as up, serving(llm=up.url) as server:
                for size in (100, 300_000):
                    body = {"messages": [{"role": "user", "content": "x" * size}]}
                    assert (await ask(server, "/v1/chat/completions", body))[0] == 200
        finally:
            bodies._parse = parse
        assert seen == [True, False]

    run(main())


def test_an_unknown_address_and_a_wrong_method_are_told():
    async def main():
        async with serving() as server:
            assert (await ask(server, "/v1/nothing"))[0] == 404
            status, headers, _ = await ask(server, "/v1/chat/completions")
            assert (status, headers["allow"]) == (405, "POST")
            async with asking(server, "/healthz", {"a": 1}) as response:
                assert response.status == 405

    run(main())


def test_without_anybody_who_answers_the_answer_is_404():
    async def main():
        async with serving() as server:
            for path, body in (
                ("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "x"}), ("/v1/embeddings", {"input": "x"}),
            ):  # fmt: skip
                status, _, said = await ask(server, path, body)
                assert status == 404
                assert "--llm" in said["error"]["message"]

    run(main())
