"""Real clients work unchanged: the official one for Python, and curl."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest
from serving import CHAT, Call, provider, run, serving, token, until, upstream

KEY = "sk-alice-0123456789abcdef"


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"alice {KEY} requests=100/min\n")
    return str(path)


def test_the_official_client_for_python(keys):
    openai = pytest.importorskip("openai")

    async def main():
        async with upstream(provider) as up, serving(llm=up.url, api_keys=keys) as server:
            base = f"{server.url}/v1"
            async with openai.AsyncOpenAI(base_url=base, api_key=KEY, max_retries=0) as client:
                messages = CHAT["messages"]
                reply = await client.chat.completions.create(model="m", messages=messages)
                assert reply.choices[0].message.content == "hello"
                assert reply.usage.total_tokens == 7
                stream = await client.chat.completions.create(
                    model="m", messages=messages, stream=True
                )
                assert "".join([c.choices[0].delta.content async for c in stream]) == "t0 t1 t2 "
                assert [model.id async for model in client.models.list()] == ["m"]
                assert (await client.models.retrieve("m")).id == "m"
                vectors = await client.embeddings.create(
                    model="m", input="x", encoding_format="float"
                )
                assert vectors.data[0].embedding == [0.5, 0.25]
                with pytest.raises(openai.BadRequestError, match="messages is missing"):
                    await client.chat.completions.create(model="m", messages=[])
            async with openai.AsyncOpenAI(
                base_url=base, api_key="sk-wrong", max_retries=0
            ) as stranger:
                with pytest.raises(openai.AuthenticationError):
                    await stranger.models.list()

    run(main())


def test_the_official_client_sees_that_a_stream_broke_off(keys):
    """Without the error event it would take what came for the whole answer."""
    openai = pytest.importorskip("openai")

    async def script(call: Call) -> None:
        await call.start()
        await call.token("half of")
        call.cut()

    async def main():
        async with (
            upstream(script) as up,
            serving(llm=up.url) as server,
            openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
        ):
            stream = await client.chat.completions.create(
                model="m", messages=CHAT["messages"], stream=True
            )
            with pytest.raises(openai.APIError, match="cut off"):
                async for _ in stream:
                    pass

    run(main())


def test_the_official_client_leaving_cuts_the_upstream():
    openai = pytest.importorskip("openai")

    async def script(call: Call) -> None:
        await call.start()
        await call.token("a")
        await call.go.wait()

    async def main():
        async with upstream(script) as up, serving(llm=up.url) as server:
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
                stream = await client.chat.completions.create(
                    model="m", messages=CHAT["messages"], stream=True
                )
                await anext(aiter(stream))
                await stream.close()
                await asyncio.wait_for(up.calls[0].gone.wait(), 10)
            await until(lambda: server.app.state.admission.running == 0)

    run(main())


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not there")
def test_curl_sees_the_tokens_one_by_one():
    async def script(call: Call) -> None:
        await call.start()
        await call.token("first")
        await call.go.wait()
        await call.event("[DONE]")
        await call.end()

    async def main():
        async with upstream(script) as up, serving(llm=up.url) as server:
            process = await asyncio.create_subprocess_exec(
                "curl", "-sN", f"{server.url}/v1/chat/completions", "-d", json.dumps({**CHAT, "stream": True}),
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            line = await process.stdout.readline()
            assert json.loads(line.removeprefix(b"data: ")) == token("first")
            up.calls[0].go.set()
            rest, _ = await process.communicate()
            assert rest == b"\ndata: [DONE]\n\n"
            # Killed, it leaves like any client.
            process = await asyncio.create_subprocess_exec(
                "curl", "-sN", f"{server.url}/v1/chat/completions", "-d", json.dumps({**CHAT, "stream": True}),
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            await process.stdout.readline()
            process.kill()
            await asyncio.wait_for(up.calls[1].gone.wait(), 10)
            await process.wait()

    run(main())
