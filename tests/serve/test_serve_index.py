"""A server with an index: answers with sources, and the doors of embeddings, search and documents."""

from __future__ import annotations

import json

import pytest
from data_samples import make_index
from serving import CHAT, Call, ask, asking, provider, run, send, serving, talk, until, upstream

QUESTION = {"messages": [{"role": "user", "content": "How long does the dough rise?"}]}
KEY = "sk-alice-0123456789abcdef"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return str(make_index(tmp_path_factory.mktemp("index")))


def test_the_sources_come_in_the_first_event_and_the_last(index):
    async def main():
        async with upstream(talk) as up, serving(llm=up.url, index=index) as server:
            body = {**QUESTION, "stream": True, "retrieve": {"k": 2}}
            async with asking(server, "/v1/chat/completions", body) as response:
                events = [data async for _, data in response.events()]
            assert events[-1] == "[DONE]"
            first, *middle, last = [json.loads(data) for data in events[:-1]]
            assert first["sources"] == last["sources"]
            assert "bread.md" in first["sources"][0]["source"]
            assert all(chunk["choices"][0]["index"] == 0 for chunk in (first, last)), (
                "clients look at the first choice"
            )
            assert not any("sources" in chunk for chunk in middle)
            assert [chunk["choices"][0]["delta"]["content"] for chunk in middle] == [
                "t0 ",
                "t1 ",
                "t2 ",
            ]
            asked = up.calls[0].json
            assert "retrieve" not in asked
            assert "let it rise for two hours" in str(asked["messages"])

    run(main())


def test_the_sources_come_with_a_whole_answer_and_with_the_model_rag(index):
    async def main():
        async with upstream(provider) as up, serving(llm=up.url, index=index) as server:
            for body in ({**QUESTION, "retrieve": {"k": 1}}, {**QUESTION, "model": "rag"}):
                status, _, said = await ask(server, "/v1/chat/completions", body)
                assert status == 200, said
                assert said["choices"][0]["message"]["content"] == "hello"
                assert "bread.md" in said["sources"][0]["source"]
            assert up.calls[-1].json["model"] == "m", (
                "rag stands for the first model that the upstream lists"
            )
            _, _, models = await ask(server, "/v1/models")
            assert [model["id"] for model in models["data"]] == ["m", "rag", "static"]

    run(main())


def test_what_to_retrieve_is_checked(index):
    async def main():
        async with upstream(talk) as up, serving(llm=up.url, index=index) as server:
            for wrong in (
                {"k": 0},
                {"k": 1_000},
                {"k": "5"},
                {"mode": "magic"},
                {"top": 5},
                [],
                "yes",
            ):
                status, _, said = await ask(
                    server, "/v1/chat/completions", {**QUESTION, "retrieve": wrong}
                )
                assert status == 400, wrong
                assert said["error"]["message"]
            assert not up.calls

    run(main())


def test_leaving_while_it_is_retrieved_reaches_nobody(index):
    async def main():
        async with upstream(talk) as up, serving(llm=up.url, index=index) as server:
            import asyncio

            begun = asyncio.Event()
            ended = []

            async def search(query, k=5, mode="hybrid"):
                begun.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    ended.append(True)
                    raise

            server.app.state.searcher.search = search
            _, writer = await send(server, "/v1/chat/completions", {**QUESTION, "retrieve": {}})
            await begun.wait()
            writer.transport.abort()
            await until(lambda: ended == [True])
            await until(lambda: server.app.state.admission.running == 0)
            assert not up.calls

    run(main())


def test_without_an_llm_it_is_a_server_for_search_and_embeddings(index):
    async def main():
        async with serving(index=index) as server:
            status, _, found = await ask(server, "/v1/search", {"query": "dough", "k": 1})
            assert status == 200
            assert "bread.md" in json.dumps(found)
            status, _, vectors = await ask(server, "/v1/embeddings", {"input": ["dough", "dog"]})
            assert status == 200
            assert len(vectors["data"]) == 2
            assert (await ask(server, "/v1/chat/completions", CHAT))[0] == 404
            _, _, models = await ask(server, "/v1/models")
            assert [model["id"] for model in models["data"]] == ["static"]
            _, _, stats = await ask(server, "/v1/stats")
            assert stats["embedding"]["workers"] >= 1
            assert stats["documents"] is not None
            _, _, text = await ask(server, "/metrics")
            assert "tournant_embedding_texts" in text

    run(main())


def test_the_doors_ask_for_a_key_and_count_what_goes_through(index, tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"alice {KEY} requests=2/hour\n")

    async def main():
        async with serving(index=index, api_keys=str(path)) as server:
            mine = {"authorization": f"Bearer {KEY}"}
            for route, body in (
                ("/v1/search", {"query": "x"}),
                ("/v1/embeddings", {"input": "x"}),
                ("/v1/documents", b"x"),
            ):
                assert (await ask(server, route, body))[0] == 401
            assert (await ask(server, "/v1/search", {"query": "x"}, **mine))[0] == 200
            assert (await ask(server, "/v1/embeddings", {"input": "x"}, **mine))[0] == 200
            for route, body in (
                ("/v1/search", {"query": "x"}),
                ("/v1/embeddings", {"input": "x"}),
                ("/v1/documents", b"x"),
            ):
                status, headers, _ = await ask(server, route, body, **mine)
                assert status == 429, route
                assert int(headers["retry-after"]) > 1_000

    run(main())


def test_a_file_that_is_uploaded_can_be_found(index, tmp_path):
    async def main():
        async with serving(index=str(make_index(tmp_path)), grace_seconds=20) as server:
            mark = "frontier"
            part = f'--{mark}\r\ncontent-disposition: form-data; name="files"; filename="tea.md"\r\n\r\nSteep the tea for four minutes.'
            body = f"{part}\r\n--{mark}--\r\n".encode()
            kind = f"multipart/form-data; boundary={mark}"
            async with asking(server, "/v1/documents", body, content_type=kind) as response:
                assert response.status == 200
                events = [name async for name, _ in response.events()]
            assert events[-1] == "summary"
            assert "done" in events
            _, _, found = await ask(server, "/v1/search", {"query": "steep the tea", "k": 1})
            assert "tea.md" in json.dumps(found)

    run(main())


def test_embeddings_are_relayed_where_nobody_here_embeds():
    async def main():
        async with upstream(provider) as up, serving(llm=up.url) as server:
            status, _, body = await ask(server, "/v1/embeddings", {"input": "x", "model": "m"})
            assert status == 200
            assert body["data"][0]["embedding"] == [0.5, 0.25]
            assert up.calls[0].json == {"input": "x", "model": "m"}

    run(main())


def test_leaving_relayed_embeddings_cuts_the_upstream():
    async def hang(call: Call) -> None:
        await call.go.wait()

    async def main():
        async with upstream(hang) as up, serving(llm=up.url) as server:
            _, writer = await send(server, "/v1/embeddings", {"input": "x"})
            await until(lambda: bool(up.calls))
            writer.transport.abort()
            await up.calls[0].gone.wait()

    run(main())
