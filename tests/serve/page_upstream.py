"""A provider for the tests of the page: it writes a token when the test says so, and notices when it is cut."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiohttp import web

T = TypeVar("T")
_WAIT = 20.0


class Answer:
    """One chat request, which the test answers piece by piece."""

    def __init__(self, upstream: Upstream, body: dict[str, Any]) -> None:
        self.body = body
        self.cut = threading.Event()
        self._upstream = upstream
        self._response: web.StreamResponse | None = None
        self._over = asyncio.Event()

    @property
    def question(self) -> str:
        """The last user message, as the model gets it."""
        return str(self.body["messages"][-1]["content"])

    def say(self, text: str) -> None:
        """Write one token."""
        self.write({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})

    def write(self, event: dict[str, Any]) -> None:
        """Write one event."""
        self.write_raw(f"data: {json.dumps({'object': 'chat.completion.chunk', **event})}\n\n")

    def write_raw(self, text: str) -> None:
        """Write whatever it is."""
        self._upstream.run(self._write(text))

    def finish(self, reason: str = "stop", tokens: int = 3) -> None:
        """End the answer as a provider does."""
        self.write({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        self.write(
            {
                "choices": [],
                "usage": {
                    "prompt_tokens": 5,
                    "completion_tokens": tokens,
                    "total_tokens": tokens + 5,
                },
            }
        )
        self.write_raw("data: [DONE]\n\n")
        self.end()

    def end(self) -> None:
        """Close the connection, wherever the answer is."""
        self._upstream.run(self._end())

    async def _write(self, text: str) -> None:
        assert self._response is not None
        await self._response.write(text.encode())

    async def _end(self) -> None:
        self._over.set()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self._response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await self._response.prepare(request)
        self._upstream.answers.put(self)
        try:
            await self._over.wait()
        except asyncio.CancelledError:
            self.cut.set()
            raise
        return self._response


class Upstream:
    """The provider, in a thread of its own. Use it as a context manager.

    Attributes:
        url: Its base URL.
        models: The names it lists.
        refusals: What the next requests are refused with, as (status, headers, message).
        answers: The requests that no test has taken yet.
    """

    def __init__(self) -> None:
        self.url = ""
        self.models = ["house-model"]
        self.refusals: list[tuple[int, dict[str, str], str]] = []
        self.answers: queue.Queue[Answer] = queue.Queue()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    def __enter__(self) -> Upstream:
        self._thread.start()
        assert self._started.wait(_WAIT)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_WAIT)
        assert not self._thread.is_alive()

    def next(self) -> Answer:
        """Return the next chat request."""
        return self.answers.get(timeout=_WAIT)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the provider's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_WAIT)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        # Otherwise aiohttp does not tell a handler that its client has left.
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v1"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
        )

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.refusals:
            status, headers, message = self.refusals.pop(0)
            return web.json_response(
                {"error": {"message": message, "code": "refused"}}, status=status, headers=headers
            )
        return await Answer(self, body).serve(request)
