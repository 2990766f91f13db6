"""LangChain's classes for OpenAI work unchanged: chat whole and streamed, embeddings, and errors that say what to do."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
from serving import Call, provider, run, serving, upstream

langchain = pytest.importorskip("langchain_openai")
openai = pytest.importorskip("openai")


@asynccontextmanager
async def client(server, model, **options):
    """Make one of them. Their own connections stay open for as long as the process: these are closed."""
    async with openai.DefaultAsyncHttpxClient() as connections:
        kind = langchain.OpenAIEmbeddings if model == "static" else langchain.ChatOpenAI
        yield kind(
            base_url=f"{server.url}/v1", api_key="none", model=model, max_retries=0,
            http_async_client=connections, **options,
        )  # fmt: skip


def test_a_chat_whole_and_streamed():
    async def main():
        async with (
            upstream(provider) as up,
            serving(llm=up.url) as server,
            client(server, "m") as model,
        ):
            reply = await model.ainvoke([("system", "Be brief."), ("user", "Say something.")])
            assert reply.content == "hello"
            assert reply.usage_metadata["total_tokens"] == 7
            assert [message["role"] for message in up.calls[0].json["messages"]] == [
                "system",
                "user",
            ]
            pieces = [piece.content async for piece in model.astream("Say something.")]
            assert [piece for piece in pieces if piece] == ["t0 ", "t1 ", "t2 "]
            assert up.calls[1].json["stream"] is True

    run(main())


def test_a_stream_that_breaks_off_raises_and_one_that_is_left_cuts_the_upstream():
    async def breaks(call: Call) -> None:
        await call.start()
        await call.token("half of")
        call.cut()

    async def waits(call: Call) -> None:
        await call.start()
        await call.token("half of")
        await call.go.wait()

    async def main():
        async with (
            upstream(breaks) as up,
            serving(llm=up.url) as server,
            client(server, "m") as model,
        ):
            with pytest.raises(openai.APIError, match="cut off"):
                async for _ in model.astream("Say something."):
                    pass
        async with (
            upstream(waits) as up,
            serving(llm=up.url) as server,
            client(server, "m") as model,
        ):
            stream = model.astream("Say something.")
            assert (await anext(stream)).content == "half of"
            await stream.aclose()
            await up.calls[0].gone.wait()

    run(main())


def test_embeddings_of_texts():
    async def main():
        async with (
            serving(embedder="static") as server,
            client(server, "static", check_embedding_ctx_length=False) as texts,
        ):
            rows = await texts.aembed_documents(["a small dog", "a little dog", "tax law"])
            one = await texts.aembed_query("a small dog")
            assert one == pytest.approx(rows[0])
            near, far = (sum(a * b for a, b in zip(one, rows[n], strict=True)) for n in (1, 2))
            assert near > far

    run(main())


def test_token_ids_are_refused_with_the_option_that_mends_it(monkeypatch):
    """It sends them unless told otherwise."""
    import tiktoken

    class Encoding:
        """In place of OpenAI's own, which is downloaded when it is first used."""

        def encode(self, text, **options):
            return list(text.encode())

        encode_ordinary = encode

    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda name: Encoding())

    async def main():
        async with serving(embedder="static") as server, client(server, "static") as texts:
            with pytest.raises(
                openai.BadRequestError, match=r"check_embedding_ctx_length=False"
            ) as caught:
                await texts.aembed_documents(["a small dog"])
            assert caught.value.body["param"] == "input"

    run(main())
