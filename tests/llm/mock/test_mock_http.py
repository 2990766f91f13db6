"""HTTP as real clients speak it, and as nobody should."""

from __future__ import annotations

import json
import socket

import pytest
from mock_calls import CHAT, ask, chat, raw, request

from tournant.llm.mock import MockSettings, answer_to, serving

BODY = json.dumps(
    {"model": "m", "messages": [{"role": "user", "content": "ping"}], "max_tokens": 3}
).encode()
CLOSE = "connection: close"


@pytest.fixture(scope="module")
def server():
    with serving(MockSettings(max_body=100_000)) as running:
        yield running


def replies(data: bytes) -> list[tuple[int, bytes]]:
    """Split what came into replies that have a length: status and body of each."""
    found = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        length = next(
            int(line.split(":")[1]) for line in lines if line.startswith("content-length")
        )
        found.append((int(lines[0].split()[1]), rest[:length]))
        data = rest[length:]
    return found


def one(data: bytes) -> tuple[int, str]:
    ((status, body),) = replies(data)
    return status, json.loads(body)["error"]["message"] if status >= 400 else body.decode()


def test_a_connection_serves_one_request_after_the_other(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for _ in range(3):
            connection.sendall(request("/healthz"))
            received = b""
            while not received.endswith(b'{"status":"ok"}'):
                received += connection.recv(4_096)
            assert b"connection: close" not in received


def test_pipelined_requests_are_answered_in_order(server):
    bodies = [BODY.replace(b"ping", b"%04d" % n) for n in range(300)]
    data = b"".join(request(CHAT, body) for body in bodies) + request("/healthz", b"", CLOSE)
    answers = replies(raw(server.port, data))
    assert [status for status, _ in answers] == [200] * 301
    texts = [json.loads(body)["choices"][0]["message"]["content"] for _, body in answers[:300]]
    assert texts == [answer_to(f"{n:04d}", 3) for n in range(300)]


def test_pipelined_requests_that_wait_are_answered_in_order():
    with serving(MockSettings(latency="uniform:0,0.002")) as server:
        # Far more than is read at once, so that reading is stopped and taken up again.
        padding = b',"user":"%b"}' % (b"u" * 10_000)
        bodies = [BODY.replace(b"ping", b"%04d" % n)[:-1] + padding for n in range(200)]
        data = b"".join(request(CHAT, body) for body in bodies) + request("/healthz", b"", CLOSE)
        answers = replies(raw(server.port, data))
        assert len(answers) == 201
        texts = [json.loads(body)["choices"][0]["message"]["content"] for _, body in answers[:200]]
        assert texts == [answer_to(f"{n:04d}", 3) for n in range(200)]


def test_a_request_may_come_byte_by_byte(server):
    data = request(CHAT, BODY, CLOSE)
    assert replies(raw(server.port, *[data[at : at + 1] for at in range(len(data))]))[0][0] == 200


def test_a_body_may_come_in_chunks(server):
    parts = [BODY[at : at + 7] for at in range(0, len(BODY), 7)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n{CLOSE}\r\ntransfer-encoding: chunked\r\n\r\n"
    assert replies(raw(server.port, head.encode(), chunks))[0][0] == 200


def test_a_client_that_asks_first_is_told_to_go_on(server):
    head, _, body = request(CHAT, BODY, CLOSE, "expect: 100-continue").partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(1_024) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(1_024).startswith(b"HTTP/1.1 200 OK")


def test_http_1_0_is_answered_without_chunks(server):
    whole = raw(server.port, request(CHAT, BODY, version="1.0"))
    assert b"connection: close" in whole
    streamed = raw(server.port, request(CHAT, BODY[:-1] + b',"stream":true}', version="1.0"))
    assert b"chunked" not in streamed
    assert streamed.endswith(b"\n\ndata: [DONE]\n\n")
    wish = request(CHAT, BODY[:-1] + b',"stream":true}', "connection: keep-alive", version="1.0")
    assert raw(server.port, wish).endswith(b"data: [DONE]\n\n"), "only its end ends such a stream"
    kept = raw(server.port, request("/healthz", b"", "connection: keep-alive", version="1.0") + request("/healthz", version="1.0"))  # fmt: skip
    assert kept.count(b'{"status":"ok"}') == 2
    assert kept.count(b"connection: keep-alive") == 1


def test_head_has_no_body(server):
    data = raw(server.port, b"HEAD /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 200 OK")
    assert data.endswith(b"content-length: 15\r\nconnection: close\r\n\r\n")


def test_whoever_would_rather_speak_http_2_is_answered_in_http_1(server):
    wish = (
        "connection: Upgrade, HTTP2-Settings",
        "upgrade: h2c",
        "http2-settings: AAMAAABkAAQAAP__",
    )
    chunked = b"POST %b HTTP/1.1\r\n%b\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
        CHAT.encode(), "\r\n".join(wish).encode(), len(BODY), BODY,
    )  # fmt: skip
    data = request(CHAT, BODY, *wish) + request("/healthz", b"", *wish) + chunked
    answers = replies(raw(server.port, data + request("/healthz", b"", CLOSE)))
    assert [status for status, _ in answers] == [200] * 4
    assert json.loads(answers[0][1])["usage"] == json.loads(answers[2][1])["usage"]
    assert one(raw(server.port, b"CONNECT example.com:443 HTTP/1.1\r\n\r\n"))[0] == 400


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"NONSENSE\r\n\r\n", 400, "no HTTP/1.1 request"),
        (b"GET /healthz HTTP/1.1\r\nbroken header\r\n\r\n", 400, "no HTTP/1.1 request"),
        (b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400, "no HTTP/1.1 request"),
        (b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400, "no HTTP/1.1"),
        (b"POST /v1/embeddings HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400, "no HTTP/1.1"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "no HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000, 431, "longer than 65536 bytes"),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000, 431, "longer than 65536 bytes"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", 431, "longer than 65536 bytes"),
        (b"GET /" + b"a" * 70_000, 431, "longer than 65536 bytes"),
        (b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: 100001\r\n\r\n", 413, "longer than 100000 bytes"),
        (b"POST /v1/embeddings HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n20000\r\n" + b"a" * 131_072, 413, "longer"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_and_the_connection_closed(server, data, status, said):
    answered, message = one(raw(server.port, data))
    assert answered == status
    assert said in message


def test_a_refused_client_that_goes_on_sending_reads_why(server):
    """Closing at once would reset the connection, and the reply would be lost."""
    head = b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: 5000000\r\n\r\n"
    status, message = one(raw(server.port, head, *[b"a" * 50_000] * 100))
    assert status == 413
    assert "send less" in message


def test_rubbish_behind_a_request_does_not_harm_it(server):
    first, second = replies(raw(server.port, request(CHAT, BODY) + b"RUBBISH\r\n\r\n"))
    assert (first[0], second[0]) == (200, 400)


def test_rubbish_behind_a_request_that_waits_does_not_harm_it():
    with serving(MockSettings(latency=0.05)) as server:
        first, second = replies(raw(server.port, request(CHAT, BODY), b"RUBBISH\r\n\r\n"))
        assert (first[0], second[0]) == (200, 400)


def test_the_longest_body_is_taken(server):
    body = BODY.replace(b"ping", b"p" * (100_000 - len(BODY) + 4))
    assert len(body) == 100_000
    assert replies(raw(server.port, request(CHAT, body, CLOSE)))[0][0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/", 404, "Invalid URL (GET /)"),
        ("POST", "/chat/completions", 404, "Did you mean /v1/chat/completions? The base URL ends in /v1."),
        ("POST", "/v1/v1/chat/completions", 404, "/v1 twice"),
        ("GET", CHAT, 405, "use POST"),
        ("POST", "/v1/models", 405, "use GET"),
        ("PUT", "/stats", 405, "use GET, DELETE"),
    ],
)  # fmt: skip
def test_a_wrong_address_is_answered_with_the_right_one(server, method, path, status, said):
    answer = ask(server, method, path, b"{}" if method != "GET" else None)
    assert answer.status == status
    assert said in answer.error["message"]
    assert set(answer.error) == {"message", "type", "param", "code"}
    if status == 405:
        assert answer.headers["allow"] in said


def test_a_query_does_not_matter(server):
    assert ask(server, "GET", "/healthz?deep=1").json == {"status": "ok"}


def test_replies_are_dated_and_numbered(server):
    first, second = chat(server), chat(server)
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.headers["date"].endswith("GMT")
    assert first.headers["content-type"] == "application/json"


def test_a_fault_of_our_own_is_a_500_and_is_logged(server, caplog, monkeypatch):
    from tournant.llm.mock import provider

    def broken(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(provider, "read_ask", broken)
    answer = chat(server)
    assert answer.status == 500
    assert "its log says why" in answer.error["message"]
    assert "a fault" in caplog.text
