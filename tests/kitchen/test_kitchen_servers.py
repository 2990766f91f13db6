from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from kitchen_commands import alive

from tournant.kitchen import Plate, Servers, ServersFailed, Setting, tasks


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers(0.0) as servers:
        yield servers


def ask(servers: Servers, *lines: bytes) -> list[dict[str, Any]]:
    with socket.create_connection(servers.database, 10) as connection:
        connection.sendall(b"".join(lines))
        with connection.makefile("rb") as replies:
            return [json.loads(replies.readline()) for _ in lines]


def test_a_connection_answers_one_question_after_the_other(servers: Servers) -> None:
    lines = [
        json.dumps({"sql": "SELECT ? + 1", "parameters": [n]}).encode() + b"\n" for n in (1, 2)
    ]
    assert ask(servers, *lines) == [{"rows": [[2]]}, {"rows": [[3]]}]


@pytest.mark.parametrize(
    "line",
    [
        b"no json\n",
        b"[]\n",
        b"{}\n",
        b'{"sql": "SELECT nonsense"}\n',
        b'{"sql": "DROP TABLE menu"}\n',
        b'{"sql": "DELETE FROM wanted"}\n',
    ],
)
def test_a_bad_question_is_answered_with_the_reason(servers: Servers, line: bytes) -> None:
    good = b'{"sql": "SELECT count(*) > 0 FROM wanted"}\n'
    bad, after = ask(servers, line, good)
    assert bad["error"]
    assert after == {"rows": [[1]]}


def test_an_upload_comes_back_with_its_length_and_digest(servers: Servers) -> None:
    connection = http.client.HTTPConnection(*servers.uploads, timeout=10)
    for _ in range(2):  # on one connection
        connection.request("POST", "/uploads/x", b"abc" * 100_000)
        reply = connection.getresponse()
        assert reply.status == 201
        assert json.loads(reply.read()) == {
            "bytes": 300_000,
            "sha256": hashlib.sha256(b"abc" * 100_000).hexdigest(),
        }
    connection.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n",
    ],
)
def test_what_is_no_upload_is_refused(servers: Servers, head: bytes) -> None:
    with socket.create_connection(servers.uploads, 10) as connection:
        connection.sendall(head)
        assert connection.makefile("rb").readline() == b"HTTP/1.1 400 Bad Request\r\n"


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], tuple[str, int]]]:
    """Make servers that answer every connection with the same bytes, and then close it."""
    listeners = []

    def serve(listener: socket.socket, answer: bytes) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

    def make(answer: bytes) -> tuple[str, int]:
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=serve, args=(listener, answer))
        thread.start()
        listeners.append((listener, thread))
        return listener.getsockname()

    yield make
    for listener, thread in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def both(plain: Any, awaited: Any, plate: Plate) -> Iterator[Callable[[], Any]]:
    yield lambda: plain(plate)
    yield lambda: asyncio.run(awaited(plate))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(b"", "before it had answered"), (b'{"error": "no"}\n', "refused the query: no")],
)
def test_a_query_that_fails_says_why(answering: Any, answer: bytes, reason: str) -> None:
    plate = Plate(1, Setting(answering(answer), ("127.0.0.1", 1), 8))
    for ask in both(tasks.query, tasks.async_query, plate):
        with pytest.raises(ServersFailed, match=reason):
            ask()


def test_an_upload_that_fails_says_why(answering: Any) -> None:
    answer = b"HTTP/1.1 507 Full\r\nContent-Length: 0\r\n\r\n"
    plate = Plate(1, Setting(("127.0.0.1", 1), answering(answer), 8))
    for send in both(tasks.upload, tasks.async_upload, plate):
        with pytest.raises(ServersFailed, match="answered 507 instead of 201"):
            send()


def test_the_servers_end_with_whoever_started_them() -> None:
    with Servers(0.0) as servers:
        pid = servers.pid
        assert pid
        servers.check()
    assert not os.path.exists(f"/proc/{pid}")
    with pytest.raises(ServersFailed, match="start the kitchen again"):
        servers.check()


def test_servers_that_end_while_somebody_waits_say_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Servers(30.0) as servers:
        connection = socket.create_connection(servers.database, 10)
        connection.sendall(b'{"sql": "SELECT 1"}\n')
        # An answer to another connection shows that the loop has taken up the first.
        with socket.create_connection(servers.uploads, 10) as other:
            other.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert other.recv(100).startswith(b"HTTP/1.1 400")
    with connection:
        assert connection.recv(100) == b""
    assert capfd.readouterr().err == ""


def test_the_servers_end_with_their_owner_though_it_is_killed() -> None:
    program = (
        "import time; from tournant.kitchen import Servers\n"
        "with Servers(0.0) as servers:\n    print(servers.pid, flush=True)\n    time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert os.getsid(pid) != os.getsid(0), "the terminal's Ctrl-C is not for them"
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < deadline, "the servers live on"
        time.sleep(0.01)


def test_servers_whose_owner_ended_before_they_had_started_say_nothing() -> None:
    read, write = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "tournant.kitchen.servers", "0"],
        stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(write)
    os.close(read)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (0, b"")


def test_servers_that_cannot_start_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ServersFailed, match="did not start"), Servers(0.0):
        pass
