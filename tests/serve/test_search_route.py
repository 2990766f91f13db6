"""Searching through the server."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from data_samples import Client, make_index, make_minilm, post

from tournant.ingest.errors import IndexMismatch
from tournant.ingest.job import IngestOptions, run_ingest
from tournant.serve.embedding import Embeddings
from tournant.serve.errors import HTTPError
from tournant.serve.search import Searcher
from tournant.serve.settings import ServeSettings


@pytest.fixture
def minilm(tmp_path: Path) -> str:
    return make_minilm(tmp_path / "minilm")


def serving(index: Path, scenario: Callable[[Searcher], Awaitable[None]], **changes: Any) -> None:
    async def run() -> None:
        settings = ServeSettings(index=str(index), **changes)
        embeddings = Embeddings(settings, workers=1)
        await embeddings.start()
        searcher = Searcher(settings, embeddings)
        try:
            await searcher.start()
            await scenario(searcher)
        finally:
            await searcher.aclose()
            await embeddings.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
def test_passages_are_found_in_every_mode(tmp_path: Path, mode: str) -> None:
    async def scenario(searcher: Searcher) -> None:
        answer = await post(searcher, {"query": "a dog in the park", "k": 2, "mode": mode})
        assert answer.status == 200
        body = answer.json()
        assert (body["query"], body["mode"]) == ("a dog in the park", mode)
        assert len(body["hits"]) <= 2
        hit = body["hits"][0]
        assert hit["source"].endswith("/source/dogs.md")
        assert "barks at the postman" in hit["text"]
        assert (hit["ordinal"], hit["start"]) == (0, 0)
        assert hit["end"] == len(hit["text"])
        assert hit["score"] > 0
        assert hit["media_type"] == "text/markdown"

    serving(make_index(tmp_path), scenario)


def test_the_index_is_found_by_its_own_embedder(tmp_path: Path, minilm: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "dogs.md").write_text("A small dog runs in the park.")
    run_ingest(IngestOptions((str(tmp_path / "source"),), str(tmp_path / "index"), minilm))

    async def scenario(searcher: Searcher) -> None:
        hits = await searcher.search("puppy outside", 1, "vector")
        assert hits[0].score > 0.3

    serving(tmp_path / "index", scenario)


def test_what_is_written_meanwhile_is_found_by_the_next_search(tmp_path: Path) -> None:
    index = make_index(tmp_path)

    async def scenario(searcher: Searcher) -> None:
        assert not await searcher.search("zebra", 5, "text")
        written = asyncio.to_thread(
            make_index, tmp_path, {f"zebra{n}.md": f"The zebra number {n}." for n in range(30)}
        )
        task = asyncio.ensure_future(written)
        searches = 0
        while not task.done():
            hits = await searcher.search("dog in the park", 1)
            assert hits[0].source.endswith("dogs.md")
            searches += 1
        await task
        assert searches > 3
        assert len(await searcher.search("zebra", 50, "text")) == 30

    serving(index, scenario)


def test_a_deleted_index_is_told_and_one_that_is_built_anew_is_found(tmp_path: Path) -> None:
    index = make_index(tmp_path)

    async def scenario(searcher: Searcher) -> None:
        assert await searcher.search("dog", 5, "text")
        shutil.rmtree(index)
        answer = await post(searcher, {"query": "dog"})
        assert answer.status == 503
        assert answer.json()["error"]["code"] == "index_missing"
        assert "tournant ingest" in answer.json()["error"]["message"]
        await asyncio.to_thread(make_index, tmp_path, {"cat.md": "A cat sleeps."})
        (hit,) = await searcher.search("cat", 5, "text")
        assert hit.source.endswith("cat.md")
        assert not await searcher.search("nothing of the kind", 5, "text")

    serving(index, scenario)


def test_an_index_built_anew_between_two_searches_is_the_one_that_is_searched(
    tmp_path: Path,
) -> None:
    index = make_index(tmp_path)

    async def scenario(searcher: Searcher) -> None:
        assert await searcher.search("dog", 5, "text")
        # Of the same size, so that the table has the same versions.
        texts = {"one.md": "A cat sleeps.", "two.md": "A cow eats.", "three.md": "A bee flies."}

        def build() -> None:
            shutil.rmtree(index)
            shutil.rmtree(tmp_path / "source")
            make_index(tmp_path, texts)

        await asyncio.to_thread(build)
        assert not await searcher.search("dog", 5, "text")
        (hit,) = await searcher.search("cat", 5, "text")
        assert hit.text == "A cat sleeps."

    serving(index, scenario)


def test_an_index_deleted_while_it_is_searched_never_breaks_the_server(tmp_path: Path) -> None:
    index = make_index(tmp_path)

    async def scenario(searcher: Searcher) -> None:
        async def ask(n: int) -> str:
            try:
                await searcher.search(f"dog {n}", 5)
            except HTTPError as error:
                assert error.status == 503
                assert error.code in ("index_missing", "index_unusable")
                return error.code
            return "found"

        asking = [asyncio.ensure_future(ask(n)) for n in range(40)]
        await asking[0]
        await asyncio.to_thread(shutil.rmtree, index, ignore_errors=True)
        await asyncio.gather(*asking)
        assert await ask(0) == "index_missing"

    serving(index, scenario)


def test_a_damaged_index_is_told(tmp_path: Path) -> None:
    index = make_index(tmp_path)

    async def scenario(searcher: Searcher) -> None:
        for file in (index / "chunks.lance" / "data").iterdir():
            file.write_bytes(b"damaged")
        answer = await post(searcher, {"query": "dog"})
        assert answer.status == 503
        assert answer.json()["error"]["code"] == "index_unusable"

    serving(index, scenario)


def test_without_an_index_the_server_starts_and_says_so(tmp_path: Path) -> None:
    async def scenario(searcher: Searcher) -> None:
        answer = await post(searcher, {"query": "dog"})
        assert answer.status == 503
        assert answer.json()["error"]["code"] == "index_missing"
        await asyncio.to_thread(make_index, tmp_path)
        assert (await post(searcher, {"query": "dog"})).json()["hits"]

    serving(tmp_path / "index", scenario)


def test_another_embedder_than_the_index_is_refused_at_the_start(
    tmp_path: Path, minilm: str
) -> None:
    with pytest.raises(IndexMismatch, match="was built with the embedder"):
        serving(make_index(tmp_path), None, embedder=minilm)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "query"),
        ({"query": ""}, "query"),
        ({"query": " \n"}, "query"),
        ({"query": 5}, "query"),
        ({"query": "dog", "k": 0}, "k"),
        ({"query": "dog", "k": 51}, "k"),
        ({"query": "dog", "k": "5"}, "k"),
        ({"query": "dog", "k": True}, "k"),
        ({"query": "dog", "k": 10**30}, "k"),
        ({"query": "dog", "mode": "magic"}, "mode"),
        ([], None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_bad_requests_are_told_what_is_wrong(tmp_path: Path, body: Any, param: str | None) -> None:
    class Silent:
        name = ""

    searcher = Searcher(ServeSettings(index=str(tmp_path)), Silent())  # type: ignore[arg-type]
    answer = asyncio.run(post(searcher, body))
    assert answer.status == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "query", ['"; DROP', "AND OR NOT (", "日本語 😀", "*", "a" * 100_000, "\x00"]
)
def test_any_query_is_answered(tmp_path: Path, query: str) -> None:
    async def scenario(searcher: Searcher) -> None:
        assert (await post(searcher, {"query": query})).status == 200

    serving(make_index(tmp_path), scenario)


def test_a_search_of_a_client_that_left_never_runs(tmp_path: Path) -> None:
    async def scenario(searcher: Searcher) -> None:
        import threading

        release = threading.Event()
        ran: list[str] = []
        inner = searcher._search

        def held(query: str, *args: Any) -> Any:
            ran.append(query)
            release.wait()
            return inner(query, *args)

        searcher._search = held  # type: ignore[method-assign]
        blocking = [asyncio.ensure_future(searcher.search(f"dog {n}", 1, "text")) for n in range(4)]
        while len(ran) < 4:
            await asyncio.sleep(0.001)
        client = Client(searcher, [b'{"query": "left", "mode": "text"}'])
        task = asyncio.ensure_future(client.send())
        while searcher.waiting < 5:
            await asyncio.sleep(0)
        client.leave()
        assert (await task).status == 0
        release.set()
        await asyncio.gather(*blocking)
        await searcher.search("after", 1, "text")
        assert "left" not in ran
        assert searcher.waiting == 0

    serving(make_index(tmp_path), scenario)


def test_too_many_searches_are_told_to_come_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tournant.serve.search._WAITING", 0)

    async def scenario(searcher: Searcher) -> None:
        answer = await post(searcher, {"query": "dog"})
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1

    serving(make_index(tmp_path), scenario)


def test_names_that_are_no_unicode_are_shown(tmp_path: Path) -> None:
    import os

    source = tmp_path / "source"
    source.mkdir()
    with open(os.fsencode(source) + b"/caf\xe9.md", "w") as file:
        file.write("A dog.")
    index = make_index(tmp_path, {})

    async def scenario(searcher: Searcher) -> None:
        (hit,) = (await post(searcher, {"query": "dog"})).json()["hits"]
        assert hit["source"].endswith("/caf?.md")

    serving(index, scenario)
