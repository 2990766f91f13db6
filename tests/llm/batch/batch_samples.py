"""What the tests of batches share: files of requests, providers of all kinds, the command in a process, and a look at the results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tournant.llm.batch import BatchOptions, BatchOutcome, run_batch

#: Long enough for any machine; reached only when something hangs.
PATIENCE = 60.0
CHAT = "/v1/chat/completions"


def line(number: int, text: str | None = None, **changes: Any) -> dict[str, Any]:
    """One request in the batch format."""
    body = {
        "model": "kitchen-1",
        "messages": [{"role": "user", "content": text or prompt(number)}],
        "max_tokens": 16,
    }
    return {
        "custom_id": f"request-{number}",
        "method": "POST",
        "url": CHAT,
        "body": body,
        **changes,
    }


def prompt(number: int) -> str:
    return f"Order {number}: two soups and a sole"


def write_lines(path: Path, lines: Iterable[Any]) -> Path:
    path.write_text(
        "".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in lines)
    )
    return path


def write_requests(path: Path, count: int) -> Path:
    return write_lines(path, map(line, range(count)))


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """The results by id; every id is there once, and every line is whole."""
    data = path.read_bytes()
    assert data.endswith(b"\n") or not data
    results: dict[str, dict[str, Any]] = {}
    for text in data.decode().splitlines():
        result = json.loads(text)
        assert result.keys() == {"id", "custom_id", "response", "error"}
        assert result["custom_id"] not in results
        results[result["custom_id"]] = result
    return results


def text_of(result: dict[str, Any]) -> str:
    return result["response"]["body"]["choices"][0]["message"]["content"]


def assert_answered(requests: Path, results: Path, but: Iterable[str] = ()) -> None:
    """Each request has one line, and its own answer; the mock provider repeats the words of the prompt."""
    found = read_results(results)
    asked = [json.loads(text) for text in requests.read_text().splitlines()]
    assert found.keys() == {entry["custom_id"] for entry in asked}
    for entry in asked:
        result = found[entry["custom_id"]]
        assert result["id"].startswith("batch_req_")
        if entry["custom_id"] in set(but):
            assert result["error"]["code"]
            continue
        assert result["error"] is None
        assert result["response"]["status_code"] == 200
        assert text_of(result).startswith(entry["body"]["messages"][0]["content"])


def batch(requests: Path, results: Path, url: str, **options: Any) -> BatchOutcome:
    """Run a batch in this process."""
    options.setdefault("patience", 5.0)
    return run_batch(BatchOptions(str(requests), str(results), base_url=url, **options))


# Providers

Answer = tuple[int, bytes] | tuple[int, bytes, dict[str, str]]


@contextmanager
def provider(answer: Callable[[dict[str, Any], dict[str, str]], Answer]) -> Iterator[str]:
    """A provider on a free port that answers each body and its headers as `answer` says; gives its base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            status, body, *more = answer(json.loads(data), dict(self.headers.items()))
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                **(more[0] if more else {}),
            }.items():  # type: ignore[dict-item]
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, address: Any) -> None:
            pass  # the client has left

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def completion(body: dict[str, Any], text: str | None = None) -> bytes:
    content = body["messages"][-1]["content"] if text is None else text
    return json.dumps(
        {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": content}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }
    ).encode()


def refusal(message: str, **more: Any) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


# The command in a process of its own

#: The command line under a limit on the size of files, which the kernel enforces as it does a full disk.
LIMITED = """
import resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from tournant.cli import main
sys.exit(main(sys.argv[2:]))
"""


class Program:
    """``tournant batch`` in a process. Use it with ``with``: it ends with the block."""

    def __init__(self, *argv: str, limit: int | None = None, **environment: str) -> None:
        start = ["-m", "tournant"] if limit is None else ["-c", LIMITED, str(limit)]
        self.process = subprocess.Popen(
            [sys.executable, *start, "batch", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self) -> tuple[int, str, str]:
        """Wait for its end; return the exit code, what it printed, and what it complained of."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
