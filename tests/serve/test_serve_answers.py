"""Answers by a model in this process: the same bodies and events, cut when the client leaves, failed as a status where possible."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from serving import CHAT, ask, asking, metric, run, send, serving, until

from tournant.llm.errors import BadRequest, LLMError, Overloaded, StreamFailed
from tournant.llm.model import Chunk, Reply, Usage

sys.path.append(str(Path(__file__).parent.parent / "llm"))
STREAM = {**CHAT, "stream": True}


class Words:
    """A model that says the words it was given; it waits for `go` before the one called WAIT, and raises what is an error."""

    name = "words"

    def __init__(self, *words: str | LLMError) -> None:
        self.words = words
        self.go = asyncio.Event()
        self.options: dict[str, Any] = {}
        self.asked: Any = None
        self.closed = 0
        self.waiting = 0

    async def _pieces(self) -> AsyncIterator[Chunk]:
        try:
            for number, word in enumerate(self.words):
                if isinstance(word, LLMError):
                    raise word
                if word == "WAIT":
                    self.waiting += 1
                    await self.go.wait()
                    continue
                last = number == len(self.words) - 1
                yield Chunk(
                    word, "stop" if last else None, Usage(5, len(self.words)) if last else None
                )
        finally:
            self.closed += 1

    def stream(self, messages: Any, **options: Any) -> Any:
        self.asked, self.options = messages, options
        return self._pieces()

    def stream_completion(self, prompt: str, **options: Any) -> Any:
        return self.stream(prompt, **options)

    async def chat(self, messages: Any, **options: Any) -> Reply:
        chunks = [chunk async for chunk in self.stream(messages, **options)]
        return Reply("".join(c.text for c in chunks), "stop", chunks[-1].usage, self.name)

    async def complete(self, prompt: str, **options: Any) -> Reply:
        return await self.chat(prompt, **options)

    async def aclose(self) -> None:
        pass


def test_a_whole_answer():
    async def main():
        model = Words("good ", "day")
        async with serving(answered_by=model) as server:
            status, _, body = await ask(
                server, "/v1/chat/completions", {**CHAT, "temperature": 0.5, "seed": None}
            )
            assert status == 200
            assert body["object"] == "chat.completion"
            assert body["model"] == "words"
            assert body["choices"] == [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": "good day"},
                }
            ]
            assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
            assert model.options == {"temperature": 0.5}
            assert model.asked == CHAT["messages"]

    run(main())


def test_a_streamed_answer():
    async def main():
        async with serving(answered_by=Words("good ", "day")) as server:
            body = {**STREAM, "stream_options": {"include_usage": True}}
            async with asking(server, "/v1/chat/completions", body) as response:
                events = [data async for _, data in response.events()]
            assert events[-1] == "[DONE]"
            chunks = [json.loads(data) for data in events[:-1]]
            assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
            assert len({chunk["id"] for chunk in chunks}) == 1
            assert [c["choices"][0]["delta"] for c in chunks[:-1]] == [
                {"role": "assistant", "content": "good "},
                {"content": "day"},
            ]
            assert chunks[1]["choices"][0]["finish_reason"] == "stop"
            assert chunks[-1]["choices"] == []
            assert chunks[-1]["usage"]["total_tokens"] == 7
            assert server.app.state.figures.answers == {"complete": 1}
            assert server.app.state.figures.tokens_written == 2

    run(main())


def test_completions_too():
    async def main():
        model = Words("and ", "so on")
        async with serving(answered_by=model) as server:
            _, _, body = await ask(server, "/v1/completions", {"prompt": "once"})
            assert (body["object"], body["choices"][0]["text"]) == ("text_completion", "and so on")
            _, _, text = await ask(server, "/v1/completions", {"prompt": ["once"], "stream": True})
            assert text.count('"text":') == 2
            assert model.asked == "once"
            status, _, said = await ask(server, "/v1/completions", {"prompt": ["a", "b"]})
            assert (status, said["error"]["param"]) == (400, "prompt")
            status, _, said = await ask(server, "/v1/completions", {"prompt": "a", "n": 2})
            assert (status, said["error"]["param"]) == (400, "n")

    run(main())


@pytest.mark.parametrize("words", [["WAIT", "x"], ["x", "WAIT", "y"]])
@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "streamed"])
def test_the_model_stops_when_the_client_leaves(words, body):
    async def main():
        model = Words(*words)
        async with serving(answered_by=model) as server:
            _, writer = await send(server, "/v1/chat/completions", body)
            await until(lambda: model.waiting == 1)
            writer.transport.abort()
            await until(lambda: model.closed == 1)
            await until(lambda: server.app.state.admission.running == 0)
            assert server.app.state.figures.answers == {"left": 1}

    run(main())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BadRequest("no", code="odd"), 400),
        (Overloaded("busy", retry_after=9), 503),
        (StreamFailed("broke"), 502),
    ],
)
@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "streamed"])
def test_a_model_that_fails_at_once_is_a_status(error, status, body):
    async def main():
        async with serving(answered_by=Words(error)) as server:
            got, headers, said = await ask(server, "/v1/chat/completions", body)
            assert got == status
            assert said["error"]["message"] == str(error)
            if status == 503:
                assert headers["retry-after"] == "9"

    run(main())


def test_a_model_that_fails_midway_ends_the_stream_with_an_error_event():
    async def main():
        async with serving(answered_by=Words("good ", StreamFailed("out of memory"))) as server:
            async with asking(server, "/v1/chat/completions", STREAM) as response:
                events = [event async for event in response.events()]
            assert events[-1][0] == "error"
            assert "out of memory" in events[-1][1]
            assert len(events) == 2
            assert server.app.state.figures.answers == {"failed": 1}

    run(main())


def test_a_fault_of_ours_is_a_500_that_tells_nothing(caplog):
    class Broken(Words):
        async def chat(self, messages: Any, **options: Any) -> Reply:
            raise RuntimeError("secret path /etc/x")

        async def _pieces(self) -> AsyncIterator[Chunk]:
            yield Chunk("x")
            raise RuntimeError("secret path /etc/x")

    async def main():
        async with serving(answered_by=Broken()) as server:
            status, _, body = await ask(server, "/v1/chat/completions", CHAT)
            assert status == 500
            assert "secret" not in str(body)
            # In the middle of a stream: the connection breaks, so that nobody takes a part for the whole.
            with pytest.raises(asyncio.IncompleteReadError):
                await ask(server, "/v1/chat/completions", STREAM)
            assert server.app.state.figures.faults == 2
            assert server.app.state.admission.running == 0

    run(main())
    assert "secret path" in caplog.text


def test_a_stream_of_a_model_is_closed_however_it_ends():
    """Closing it is what ends the writing; a stream need not be a generator, which Python would close by itself."""

    class Flood:
        def __init__(self) -> None:
            self.closed = 0
            self.written = 0

        def __aiter__(self) -> Flood:
            return self

        async def __anext__(self) -> Chunk:
            self.written += 1
            await asyncio.sleep(0)
            return Chunk("x" * 10_000)

        async def aclose(self) -> None:
            self.closed += 1

    class Flooding(Words):
        def stream(self, messages: Any, **options: Any) -> Any:
            return flood

    flood = Flood()

    async def main():
        async with serving(answered_by=Flooding()) as server:
            _, writer = await send(server, "/v1/chat/completions", STREAM)
            writer.transport.pause_reading()
            (connection,) = await connections(server)
            await until(lambda: connection.blocked)
            written = flood.written
            for _ in range(20):
                await asyncio.sleep(0)
            assert flood.written <= written + 1, "the model waits for its reader"
            writer.transport.abort()
            await until(lambda: flood.closed == 1)

    async def connections(server) -> list[Any]:
        await until(lambda: bool(server.server_state.connections))
        return list(server.server_state.connections)

    run(main())


def test_another_model_than_ours_is_a_404():
    async def main():
        async with serving(answered_by=Words("x")) as server:
            for asked, status in (("words", 200), (None, 200), ("other", 404), ("rag", 404)):
                body = {**CHAT, "model": asked}
                got, _, said = await ask(server, "/v1/chat/completions", body)
                assert got == status, said
            _, _, models = await ask(server, "/v1/models")
            assert [model["id"] for model in models["data"]] == ["words"]
            assert (await ask(server, "/v1/models/words"))[2]["id"] == "words"
            assert (await ask(server, "/v1/models/other"))[0] == 404

    run(main())


@pytest.mark.slow
def test_a_real_model_from_a_file():
    from local_samples import gemma

    async def main():
        path = str(gemma())
        async with serving(llm=f"local:{path}") as server:
            _, _, models = await ask(server, "/v1/models")
            assert [model["id"] for model in models["data"]] == [Path(path).stem]
            body = {**CHAT, "max_tokens": 6, "temperature": 0, "seed": 1}
            status, _, whole = await ask(server, "/v1/chat/completions", body)
            assert status == 200
            assert 1 <= whole["usage"]["completion_tokens"] <= 7
            async with asking(server, "/v1/chat/completions", {**body, "stream": True}) as response:
                events = [data async for _, data in response.events()]
            assert events[-1] == "[DONE]"
            text = "".join(
                json.loads(d)["choices"][0]["delta"].get("content", "") for d in events[:-1]
            )
            assert text.strip() == whole["choices"][0]["message"]["content"].strip()
            # The client leaves: the writing ends.
            async with asking(
                server, "/v1/chat/completions", {**STREAM, "max_tokens": 2_000, "temperature": 0}
            ) as response:
                await anext(response.events())
                response.leave()
            await until(lambda: server.app.state.admission.running == 0)
            assert server.app.state.figures.answers["left"] == 1

    run(main())


def test_a_model_file_that_is_not_there_is_refused(tmp_path):
    from tournant.serve import InvalidSettings, ServeSettings, make_app

    with pytest.raises(InvalidSettings, match="there is no file"):
        make_app(ServeSettings(llm=f"local:{tmp_path}/none.gguf"))


def test_what_blocks_the_loop_is_named(caplog):
    class Blocking(Words):
        async def chat(self, messages: Any, **options: Any) -> Reply:
            time.sleep(0.8)  # this line
            return await super().chat(messages, **options)

    async def main():
        async with serving(answered_by=Blocking("x")) as server:
            assert (await ask(server, "/v1/chat/completions", CHAT))[0] == 200
            _, _, stats = await ask(server, "/v1/stats")
            assert stats["loop"]["blocked"] >= 1
            assert await metric(server, "tournant_loop_blocked") >= 1

    run(main())
    lines = Path(__file__).read_text().splitlines()
    (line,) = [number for number, text in enumerate(lines, 1) if text.endswith("# this line")]
    assert re.search(rf"chat \(\S*{Path(__file__).name}:{line}\)", caplog.text)
    assert f'File "{__file__}", line {line}' in caplog.text
    assert "asyncio.to_thread" in caplog.text
