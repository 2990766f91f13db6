"""The official client works against the provider: whole and streamed, and its errors are the right ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tournant.llm.mock import MockServer, MockSettings, answer_to, serving, vector_of

pytestmark = pytest.mark.usefixtures("nothing_left")
HELLO = [{"role": "user", "content": "hello big world"}]


def test_the_synchronous_client():
    with serving(MockSettings(api_key="right")) as server:
        with OpenAI(base_url=server.url, api_key="right", max_retries=0) as client:
            whole = client.chat.completions.create(model="m", messages=HELLO, max_tokens=9)
            assert whole.choices[0].message.content == answer_to("hello big world", 9)
            assert whole.choices[0].finish_reason == "length"
            assert whole.usage is not None
            assert whole.usage.total_tokens == 4 + 9
            stream = client.chat.completions.create(
                model="m", messages=HELLO, max_tokens=9, stream=True
            )
            parts = [chunk.choices[0].delta.content or "" for chunk in stream]
            assert "".join(parts) == whole.choices[0].message.content
        with (
            OpenAI(base_url=server.url, api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            client.models.list()
        assert caught.value.code == "invalid_api_key"


@asynccontextmanager
async def client_of(
    settings: MockSettings, **options: Any
) -> AsyncIterator[tuple[Any, MockServer]]:
    async with (
        MockServer(settings) as server,
        AsyncOpenAI(base_url=server.url, api_key="key", **{"max_retries": 0, **options}) as client,
    ):
        yield client, server


def test_the_asynchronous_client():
    async def main() -> None:
        async with client_of(MockSettings(dimensions=64, models=("m",))) as (client, server):
            stream = await client.chat.completions.create(
                model="m",
                messages=HELLO,
                max_tokens=9,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == answer_to("hello big world", 9)
            assert chunks[-1].usage.completion_tokens == 9
            assert chunks[-2].choices[0].finish_reason == "length"
            whole = await client.completions.create(model="m", prompt=["one", "two"], max_tokens=3)
            assert [choice.text for choice in whole.choices] == [
                answer_to("one", 3),
                answer_to("two", 3),
            ]
            parts = await client.completions.create(
                model="m", prompt="one two", max_tokens=8, stream=True
            )
            assert "".join([c.choices[0].text async for c in parts]) == answer_to("one two", 8)
            for form in (openai.omit, "float", "base64"):
                vectors = await client.embeddings.create(
                    model="m", input=["one", "two"], encoding_format=form
                )
                first = vectors.data[0].embedding
                if form == "base64":
                    assert isinstance(first, str)
                else:
                    assert first == pytest.approx(vector_of("one", 64))
            assert [model.id async for model in client.models.list()] == ["m"]
            assert (await client.models.retrieve("m")).id == "m"
            assert server.stats()["ok"] == 6

    asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "error", "code"),
    [
        (MockSettings(rpm=1e-9), openai.RateLimitError, "rate_limit_exceeded"),
        (MockSettings(quota=0), openai.RateLimitError, "insufficient_quota"),
        (MockSettings(api_key="other"), openai.AuthenticationError, "invalid_api_key"),
        (MockSettings(context=3), openai.BadRequestError, "context_length_exceeded"),
        (MockSettings(models=("other",)), openai.NotFoundError, "model_not_found"),
        (MockSettings(error_rate=1), openai.InternalServerError, None),
        (MockSettings(overload_rate=1), openai.InternalServerError, "overloaded"),
        (MockSettings(reset_rate=1), openai.APIConnectionError, None),
        (MockSettings(stream_error_rate=1), openai.APIError, None),
    ],
)  # fmt: skip
def test_its_errors_are_the_right_ones(settings, error, code):
    async def main() -> None:
        async with client_of(settings) as (client, _):
            if settings.rpm:
                await client.chat.completions.create(model="m", messages=HELLO)
            with pytest.raises(error) as caught:
                async for _ in await client.chat.completions.create(
                    model="m", messages=HELLO, stream=bool(settings.stream_error_rate)
                ):
                    pass
            assert caught.value.code == code

    asyncio.run(main())


def test_its_own_retries_find_their_way():
    """It waits for `retry-after-ms`."""

    async def main() -> None:
        settings = MockSettings(rpm=6_000, burst=0.001)
        async with client_of(settings, max_retries=12) as (client, server):
            calls = [
                client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": f"{n}"}]
                )
                for n in range(12)
            ]
            answers = await asyncio.gather(*calls)
            assert [a.choices[0].message.content for a in answers] == [
                answer_to(f"{n}", 16) for n in range(12)
            ]
            stats = server.stats()
            assert stats["refused"] > 0
            assert stats["bodies"]["answered_again"] == 0
            assert stats["ok"] == 12

    asyncio.run(main())


def test_leaving_a_stream_early_is_seen():
    async def main() -> None:
        async with client_of(MockSettings(token_interval=0.001)) as (client, server):
            stream = await client.chat.completions.create(
                model="m", messages=HELLO, max_tokens=100_000, stream=True
            )
            async for _ in stream:
                break
            await stream.close()
            while server.stats()["left_streams"] == 0:
                await asyncio.sleep(0.001)
            assert server.stats()["open"] == 0

    asyncio.run(main())
