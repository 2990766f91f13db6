"""The provider on its socket: limits, faults, changes while it runs, and what it counts."""

from __future__ import annotations

import asyncio
import http.client
import json
import resource
import socket
import time

import pytest
from mock_calls import CHAT, COMPLETIONS, EMBEDDINGS, ask, chat, raw, request

from tournant.llm.mock import (
    InvalidMockSettings,
    MockServer,
    MockSettings,
    answer_to,
    count_tokens,
    serving,
    vector_of,
)

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_a_conversation_is_answered_with_its_own_words():
    with serving() as server:
        answer = chat(server, "the quick brown fox", max_tokens=12)
        assert answer.status == 200
        choice = answer.json["choices"][0]
        assert choice["message"]["content"] == answer_to("the quick brown fox", 12)
        assert choice["finish_reason"] == "length"
        assert answer.json["usage"] == {
            "prompt_tokens": count_tokens("the quick brown fox"), "completion_tokens": 12,
            "total_tokens": count_tokens("the quick brown fox") + 12,
        }  # fmt: skip
        by_itself = chat(server, "word").json
        assert by_itself["usage"]["completion_tokens"] == 16
        assert by_itself["choices"][0]["finish_reason"] == "stop"


def test_text_of_any_kind_comes_back_as_it_is():
    with serving() as server:
        text = 'quotes " and \\ and \t tabs, ünïcödé, 漢字, 🍲'
        answer = chat(server, text, max_tokens=30)
        assert answer.json["choices"][0]["message"]["content"] == answer_to(text, 30)
        streamed = chat(server, text, max_tokens=30, stream=True)
        assert said(streamed.events) == answer_to(text, 30)


def said(events: list) -> str:
    return "".join(
        choice.get("text") or choice.get("delta", {}).get("content") or ""
        for event in events
        if event != "[DONE]"
        for choice in event["choices"]
    )


def test_a_stream_is_its_answer_in_pieces():
    with serving() as server:
        answer = chat(
            server,
            "one two three",
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
        assert answer.headers["content-type"] == "text/event-stream"
        events = answer.events
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert said(events) == answer_to("one two three", 5)
        assert [event["choices"][0]["finish_reason"] for event in events[:-2]] == [None] * 6 + [
            "length"
        ]
        assert events[-2]["usage"] == {
            "prompt_tokens": 4,
            "completion_tokens": 5,
            "total_tokens": 9,
        }
        assert events[-2]["choices"] == []
        assert events[-1] == "[DONE]"
        assert all(event["usage"] is None for event in events[:-2])


def test_completions_of_several_prompts():
    with serving() as server:
        body = {"model": "m", "prompt": ["first prompt", "second prompt"], "max_tokens": 4}
        whole = ask(server, "POST", COMPLETIONS, body).json
        assert [choice["text"] for choice in whole["choices"]] == [
            answer_to("first prompt", 4), answer_to("second prompt", 4),
        ]  # fmt: skip
        assert [choice["index"] for choice in whole["choices"]] == [0, 1]
        assert whole["usage"]["completion_tokens"] == 8
        events = ask(server, "POST", COMPLETIONS, {**body, "stream": True}).events
        for index, choice in enumerate(whole["choices"]):
            parts = [e["choices"][0] for e in events[:-1] if e["choices"][0]["index"] == index]
            assert "".join(part["text"] for part in parts) == choice["text"]
            assert parts[-1]["finish_reason"] == "length"


def test_embeddings_belong_to_their_texts():
    with serving(MockSettings(dimensions=32)) as server:
        body = {"model": "m", "input": ["one", "other"]}
        answer = ask(server, "POST", EMBEDDINGS, body).json
        assert [item["embedding"] for item in answer["data"]] == [
            pytest.approx(vector_of("one", 32)), pytest.approx(vector_of("other", 32)),
        ]  # fmt: skip
        assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
        longer = ask(server, "POST", EMBEDDINGS, {**body, "dimensions": 50}).json
        assert len(longer["data"][0]["embedding"]) == 50


def test_too_many_requests_are_refused_with_the_limits():
    with serving(MockSettings(rpm=0.6, tpm=600_000, burst=300)) as server:  # three at once
        answers = [chat(server, f"call {n}") for n in range(5)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
        assert answers[0].headers["x-ratelimit-remaining-requests"] == "2"
        refused = answers[-1]
        assert refused.error["code"] == "rate_limit_exceeded"
        assert refused.error["type"] == "requests"
        assert "requests per min (RPM)" in refused.error["message"]
        assert 0 < float(refused.headers["retry-after"]) <= 100
        stats = server.stats()
        assert (stats["requests"], stats["admitted"], stats["ok"], stats["refused"]) == (5, 3, 3, 2)
        assert stats["burst"] == {"requests": 3.0, "tokens": 3_000_000.0}


def test_too_many_tokens_are_refused():
    with serving(MockSettings(tpm=60, burst=60)) as server:
        assert chat(server, "x" * 80, max_tokens=30).status == 200
        refused = chat(server, "x" * 80, max_tokens=30)
        assert (refused.status, refused.error["type"]) == (429, "tokens")
        never = chat(server, "x" * 80, max_tokens=50)
        assert (never.status, "retry-after" in never.headers) == (429, False)
        assert "Request too large" in never.error["message"]


def test_a_key_is_asked_for_and_never_told():
    with serving(MockSettings(api_key="canary-key")) as server:
        right = chat(server, key="canary-key")
        assert right.status == 200
        for answer in (chat(server), chat(server, key="canary-kex"), chat(server, key="")):
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert b"canary" not in answer.data
        assert ask(server, "GET", "/v1/models").status == 401
        for path in ("/control", "/stats"):
            assert b"canary" not in ask(server, "GET", path).data
        assert ask(server, "GET", "/healthz").status == 200
        assert server.stats()["by_status"] == {"200": 1, "401": 4}


def test_a_context_that_is_too_long_is_refused():
    with serving(MockSettings(context=20)) as server:
        assert chat(server, "x" * 40, max_tokens=10).status == 200
        refused = chat(server, "x" * 40, max_tokens=11)
        assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")
        assert "maximum context length is 20 tokens" in refused.error["message"]
        cut_short = chat(server, "x" * 60)
        assert cut_short.json["usage"]["completion_tokens"] == 5
        assert cut_short.json["choices"][0]["finish_reason"] == "length"
        texts = {"model": "m", "input": ["x" * 80, "x" * 80]}
        assert ask(server, "POST", EMBEDDINGS, texts).status == 200, "each text has its own"
        texts["input"].append("x" * 81)
        assert ask(server, "POST", EMBEDDINGS, texts).error["code"] == "context_length_exceeded"


def test_a_quota_is_used_up():
    with serving(MockSettings(quota=30)) as server:
        assert chat(server, "x" * 40, max_tokens=10).status == 200
        refused = chat(server, "x" * 40, max_tokens=10)
        assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
        server.control(reset="limits")
        assert chat(server, "x" * 40, max_tokens=10).status == 200


def test_models_are_listed_and_others_are_not_there():
    with serving(MockSettings(models=("small", "org/large"))) as server:
        listed = ask(server, "GET", "/v1/models").json
        assert [model["id"] for model in listed["data"]] == ["small", "org/large"]
        assert ask(server, "GET", "/v1/models/org%2Flarge").json["id"] == "org/large"
        assert ask(server, "GET", "/v1/models/other").error["code"] == "model_not_found"
        refused = chat(server)
        assert (refused.status, refused.error["code"]) == (404, "model_not_found")
        assert "There is: small, org/large." in refused.error["message"]
    with serving() as server:
        assert [model["id"] for model in ask(server, "GET", "/v1/models").json["data"]] == ["mock"]


def test_bodies_that_cannot_be_are_refused():
    with serving() as server:
        for body in (b"", b"{", b'{"model":"m","messages":[]}', b'{"model":"m","messages":3}'):
            answer = ask(server, "POST", CHAT, body)
            assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
        assert server.stats()["admitted"] == 0


@pytest.mark.parametrize(
    ("rate", "status", "counter"),
    [("error_rate", 500, "errors"), ("overload_rate", 503, "overloads")],
)
def test_errors(rate, status, counter):
    with serving(MockSettings(**{rate: 1})) as server:
        answer = chat(server)
        assert answer.status == status
        assert answer.error["message"]
        assert server.stats()[counter] == 1


def test_html_with_status_200():
    with serving(MockSettings(garbage_rate=1)) as server:
        for answer in (chat(server), chat(server, stream=True)):
            assert (answer.status, answer.headers["content-type"]) == (
                200,
                "text/html; charset=utf-8",
            )
            assert answer.data.startswith(b"<!DOCTYPE html>")
        assert (server.stats()["garbage"], server.stats()["ok"]) == (2, 0)


def test_half_an_answer_with_status_200():
    with serving(MockSettings(half_rate=1)) as server:
        answer = chat(server)
        assert answer.status == 200
        with pytest.raises(json.JSONDecodeError):
            answer.json
        streamed = chat(server, stream=True)
        with pytest.raises(json.JSONDecodeError):
            streamed.events
        assert (server.stats()["half"], server.stats()["ok"]) == (2, 0)


def test_connections_are_reset():
    with serving(MockSettings(reset_rate=1)) as server:
        with pytest.raises(ConnectionResetError):
            chat(server)
        assert server.stats()["resets"] == 1


def test_streams_are_cut_in_two_ways():
    with serving(MockSettings(cut_rate=1)) as server:
        ends, broken = 0, 0
        for n in range(20):
            try:
                events = chat(server, f"call {n}", stream=True, max_tokens=40).events
            except http.client.IncompleteRead:
                broken += 1
            else:
                assert events[-1] != "[DONE]"
                assert all(not event["choices"][0]["finish_reason"] for event in events)
                ends += 1
        assert ends > 2
        assert broken > 2
        assert chat(server).status == 200, "only streams are cut"
        stats = server.stats()
        assert (stats["cut"], stats["ok"], stats["left"]) == (20, 1, 0)


def test_streams_end_with_an_error_event():
    with serving(MockSettings(stream_error_rate=1)) as server:
        events = chat(server, stream=True).events
        assert "error" in events[-1]
        assert server.stats()["stream_errors"] == 1


def test_some_calls_are_never_answered(until):
    with serving(MockSettings(hang_rate=1)) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
            connection.sendall(request(CHAT, body))
            assert until(lambda: server.stats()["hung"] == 1)
            assert server.stats()["open"] == 1
        assert until(lambda: server.stats()["left"] == 1)
        assert server.stats()["open"] == 0


def test_a_client_that_leaves_a_stream_is_counted(until):
    with serving(MockSettings(token_interval=0.01)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": "x"}],
            "stream": True,
            "max_tokens": 100_000,
        }
        connection.request("POST", CHAT, json.dumps(body))
        reply = connection.getresponse()
        reply.read(10)
        reply.close()
        connection.close()
        assert until(lambda: server.stats()["left_streams"] == 1)
        stats = server.stats()
        assert (stats["left"], stats["open"], stats["ok"]) == (1, 0, 0)


def test_settings_change_while_it_runs():
    with serving() as server:
        changed = ask(server, "POST", "/control", {"error_rate": 1, "latency": "uniform:0,0.001"})
        assert (changed.status, changed.json["error_rate"], changed.json["rpm"]) == (200, 1, None)
        assert chat(server).status == 500
        assert ask(server, "GET", "/control").json == changed.json
        assert server.control(error_rate=0, rpm=0.001)["rpm"] == 0.001
        assert [chat(server).status for _ in range(2)] == [200, 429]
        assert server.control(reset="limits")["rpm"] == 0.001
        assert chat(server).status == 200
        assert server.control(reset="settings") == MockSettings().as_dict()
        assert [chat(server).status for _ in range(3)] == [200] * 3


@pytest.mark.parametrize(
    ("orders", "said"),
    [
        ({"error_rate": 2}, "error_rate=2"),
        ({"eror_rate": 1}, "did you mean 'error_rate'"),
        ({"rpm": 60, "port": 1}, "port can't change"),
        ({"rpm": 60, "api_key": "x"}, "api_key can't change"),
        ({"rpm": 60, "down": -1}, "down=-1: give seconds from 0 to 3600"),
        ({"rpm": 60, "down": "long"}, "down='long'"),
        ({"rpm": 60, "reset": "everything"}, "reset='everything': give one or a list of stats, limits"),
        ({"rpm": 60, "reset": ["stats", 1]}, "reset="),
        ([1], "send a JSON object"),
        (b"{", "the body is no JSON"),
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_changes_nothing(orders, said):
    with serving() as server:
        answer = ask(server, "POST", "/control", orders)
        assert answer.status == 400
        assert said in answer.error["message"]
        assert ask(server, "GET", "/control").json == MockSettings().as_dict()
        if isinstance(orders, dict):
            with pytest.raises(InvalidMockSettings):
                server.control(**orders)


def test_counters_are_reset():
    with serving() as server:
        chat(server)
        counted = ask(server, "DELETE", "/stats").json
        assert (counted["requests"], counted["tokens_out"]) == (1, 16)
        again = ask(server, "GET", "/stats").json
        assert (again["requests"], again["tokens_out"], again["bodies"]["distinct"]) == (0, 0, 0)
        chat(server)
        server.control(reset=["stats", "limits"])
        assert server.stats()["requests"] == 0


def test_it_counts_what_was_paid_twice():
    with serving() as server:
        for text in ("a", "b", "a", "c", "a"):
            chat(server, text)
        bodies = server.stats()["bodies"]
        assert bodies == {
            "distinct": 3,
            "answered": 3,
            "answered_again": 1,
            "most_answers": 3,
            "untracked": 0,
        }
        server.control(error_rate=1)
        chat(server, "d")
        assert server.stats()["bodies"]["answered"] == 3


def test_answers_are_counted_apart_from_admissions():
    from tournant.llm.mock.stats import Bodies

    bodies = Bodies()
    assert bodies.admitted(b"a") == 0
    bodies.answered(b"a")
    assert bodies.admitted(b"a") == 1
    bodies.answered(b"a")
    assert bodies.as_dict()["most_answers"] == 2


def test_it_remembers_a_bounded_number_of_bodies():
    from tournant.llm.mock.stats import Bodies

    bodies = Bodies(most=2)
    assert [bodies.admitted(digest) for digest in (b"a", b"b", b"a", b"c", b"d")] == [0, 0, 1, 0, 1]
    bodies.answered(b"c")
    assert bodies.as_dict() == {
        "distinct": 2,
        "answered": 0,
        "answered_again": 0,
        "most_answers": 0,
        "untracked": 2,
    }


def test_it_is_down_for_a_while_and_back_on_the_same_port(until):
    with serving(MockSettings(hang_rate=1)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as waiting:
            waiting.sendall(
                request(CHAT, b'{"model":"m","messages":[{"role":"user","content":"x"}]}')
            )
            assert until(lambda: server.stats()["hung"] == 1)
            reply = ask(server, "POST", "/control", {"down": 3600, "hang_rate": 0})
            assert reply.json["hang_rate"] == 0, "the order itself is answered"
            with pytest.raises(ConnectionResetError):
                waiting.recv(1)
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                chat(server)
        server.control(down=0.01)
        assert until(lambda: _answers(server))
        assert chat(server).status == 200


def _answers(server) -> bool:
    try:
        return ask(server, "GET", "/healthz").status == 200
    except ConnectionError:
        return False


def test_all_connections_are_cut_and_new_ones_taken():
    with serving() as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(request("/healthz"))
            assert connection.recv(1_024)
            assert ask(server, "POST", "/control", {"reset": "connections"}).status == 200
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        assert chat(server).status == 200


def test_a_port_that_is_taken_is_an_error_with_the_mend():
    with (
        serving() as server,
        pytest.raises(
            InvalidMockSettings, match=f"port {server.port}: Address already in use; give another"
        ),
        serving(MockSettings(port=server.port)),
    ):
        pass
    with (
        pytest.raises(InvalidMockSettings, match="can't listen on nowhere"),
        serving(MockSettings(host="nowhere.invalid")),
    ):
        pass


def test_it_runs_in_the_loop_of_its_caller():
    async def main() -> None:
        server = MockServer()
        with pytest.raises(RuntimeError, match="enter it first"):
            server.stats()
        async with server:
            answer = await asyncio.to_thread(chat, server)
            assert answer.status == 200
            assert server.stats()["ok"] == 1
            assert server.url == f"http://127.0.0.1:{server.port}/v1"
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", server.port)

    asyncio.run(main())


def test_it_ends_while_calls_are_open(until):
    with serving(MockSettings(latency=3600, token_interval=3600)) as server:
        body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
        connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        for connection in connections:
            connection.sendall(request(CHAT, body))
        assert until(lambda: server.stats()["open"] == 20)
        assert server.stats()["peak"] == 20
    for connection in connections:
        with pytest.raises(ConnectionResetError), connection:
            if connection.recv(1) == b"":
                raise ConnectionResetError


async def _stream(port: int, number: int, gate: asyncio.Event) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await gate.wait()
    body = json.dumps(
        {
            "model": "m",
            "messages": [{"role": "user", "content": f"call {number}"}],
            "stream": True,
            "max_tokens": 64,
        }
    ).encode()
    writer.write(request(CHAT, body))
    data = await reader.readuntil(b"\r\n0\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return data


def test_a_thousand_streams_at_once():
    async def main() -> None:
        async with MockServer(MockSettings(latency=0.2, token_interval=0.005)) as server:
            gate = asyncio.Event()
            tasks = [asyncio.create_task(_stream(server.port, n, gate)) for n in range(1_000)]
            gate.set()
            streams = await asyncio.gather(*tasks)
            for number, data in enumerate(streams):
                assert b"data: [DONE]" in data
                events = [
                    json.loads(line[6:])
                    for line in data.split(b"\n")
                    if line.startswith(b"data: {")
                ]
                assert said(events) == answer_to(f"call {number}", 64)
            stats = server.stats()
            assert (stats["ok"], stats["tokens_out"], stats["open"]) == (1_000, 64_000, 0)
            assert stats["peak"] > 100

    asyncio.run(main())


def test_without_descriptors_it_says_so_and_goes_on(caplog, until):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving() as server:
        held: list[socket.socket] = []
        spare = [socket.socket() for _ in range(6)]
        bound = max(connection.fileno() for connection in spare) + 1
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (bound, hard))
            # Each end is a descriptor of this process, so the listener runs out of them.
            for connection in spare:
                connection.connect(("127.0.0.1", server.port))
                held.append(connection)
            assert until(lambda: "no further connection can be accepted" in caplog.text)
            assert "ulimit -n" in caplog.text
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for connection in held:
                connection.close()
        assert until(lambda: _answers(server))
        assert caplog.text.count("no further connection") == 1


def test_ipv6():
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        with serving(MockSettings(host="::1")) as server:
            assert server.url == f"http://[::1]:{server.port}/v1"
    except InvalidMockSettings:
        pytest.skip("no IPv6 here")


def test_raw_bytes_of_a_stream_are_well_formed_chunks():
    with serving() as server:
        body = (
            b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":3}'
        )
        data = raw(server.port, request(CHAT, body, "connection: close"))
        head, _, rest = data.partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        content = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            content += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
        assert content.endswith(b"data: [DONE]\n\n")


def test_time_is_only_for_ids():
    with serving() as server:
        assert abs(chat(server).json["created"] - time.time()) < 100
