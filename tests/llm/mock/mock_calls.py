"""Calls to the provider as plain HTTP, without any client library between."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The events of a stream; the last is the string ``[DONE]`` if it is complete."""
        parts = [part for part in self.data.split(b"\n\n") if part.startswith(b"data: ")]
        return [
            "[DONE]" if part == b"data: [DONE]" else json.loads(part.removeprefix(b"data: "))
            for part in parts
        ]


def ask(server: Any, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, data, headers)
        reply = connection.getresponse()
        names = {name.lower(): value for name, value in reply.getheaders()}
        return Answer(reply.status, names, reply.read())
    finally:
        connection.close()


def chat(
    server: Any, text: str = "hello world", *, key: str | None = None, **options: Any
) -> Answer:
    body = {"model": "mock", "messages": [{"role": "user", "content": text}], **options}
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return ask(server, "POST", CHAT, body, **headers)


def raw(port: int, *parts: bytes) -> bytes:
    """Send bytes as they are, each part by itself, and return all that comes until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            connection.sendall(part)
        received = b""
        while data := connection.recv(65_536):
            received += data
        return received


def request(path: str, body: bytes = b"", *headers: str, version: str = "1.1") -> bytes:
    method = "POST" if body else "GET"
    lines = [f"{method} {path} HTTP/{version}", "host: test", *headers]
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body
