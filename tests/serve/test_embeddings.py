"""``/v1/embeddings`` on a real transformer in real processes."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import Client, make_minilm, post

from tournant.errors import WorkerDied
from tournant.ingest.embedders import embedder as make_embedder
from tournant.ingest.errors import EmbedderUnavailable, InvalidOption
from tournant.serve.embedding import Embeddings
from tournant.serve.errors import HTTPError
from tournant.serve.settings import ServeSettings

WORDS = ["the", "kernel", "schedules", "threads", "on", "all", "processors", "in", "the", "park"]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_minilm(tmp_path_factory.mktemp("models") / "minilm")


def text(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + f" {seed}"


def serving(
    spec: str, scenario: Callable[[Embeddings], Awaitable[None]], workers: int = 2, **changes: Any
) -> None:
    async def run() -> None:
        embeddings = Embeddings(ServeSettings(embedder=spec, **changes), workers=workers)
        await embeddings.start()
        try:
            await scenario(embeddings)
        finally:
            await embeddings.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["static", "minilm"])
def test_vectors_are_those_of_the_embedder(kind: str, minilm: str) -> None:
    spec = minilm if kind == "minilm" else "static"
    texts = ["A dog.", "naïve 日本語 \U0001f600", "word " * 2_000, "\x00", text(1, 40), "A dog."]
    model = make_embedder(spec)
    expected = model.embed(texts)

    async def scenario(embeddings: Embeddings) -> None:
        result = await embeddings.embed(texts)
        assert result.vectors.shape == (6, model.dimensions)
        assert result.vectors.dtype == np.float32
        # Dynamic quantization takes its scale from the whole batch.
        assert ((result.vectors * expected).sum(axis=1) > 0.99).all()
        again = await embeddings.embed(texts)
        assert (again.vectors == result.vectors).all()
        assert again.tokens == result.tokens > 6
        assert embeddings.depth()["cache_hits"] == 6
        assert embeddings.name == model.name
        assert embeddings.dimensions == model.dimensions

    serving(spec, scenario)


def test_a_text_beyond_the_window_is_cut_and_gives_the_same_vector(minilm: str) -> None:
    long = "".join(f"{n} park " for n in range(20_000))

    async def scenario(embeddings: Embeddings) -> None:
        assert embeddings._measure is not None
        ((cut, tokens),) = await embeddings._measure.measure([long])
        assert tokens == 128
        assert len(cut) < 2_000
        one = await embeddings.embed([long])
        assert np.dot(one.vectors[0], make_embedder(minilm).embed([long])[0]) > 0.9999
        assert one.tokens == 128

    serving(minilm, scenario, 1)


def test_the_route_answers_as_openai_does(minilm: str) -> None:
    async def scenario(embeddings: Embeddings) -> None:
        one = await post(embeddings, {"model": "minilm", "input": "A dog."})
        assert one.status == 200
        body = one.json()
        assert (body["object"], body["model"], len(body["data"])) == ("list", "minilm", 1)
        assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
        both = await post(
            embeddings, {"input": ["A cat.", "A dog."], "encoding_format": "base64", "user": "me"}
        )
        rows = both.json()["data"]
        assert [row["index"] for row in rows] == [0, 1]
        vector = np.frombuffer(base64.b64decode(rows[1]["embedding"]), "<f4")
        assert np.dot(vector, body["data"][0]["embedding"]) > 0.99
        same = await post(embeddings, {"input": "A dog.", "dimensions": 384})
        assert same.json()["data"] == body["data"]
        large = await post(embeddings, {"input": [f"{n}" for n in range(120)]})
        assert len(large.json()["data"]) == 120

    serving(minilm, scenario)


def test_static_vectors_can_be_shortened() -> None:
    async def scenario(embeddings: Embeddings) -> None:
        whole = (await post(embeddings, {"input": "A dog."})).json()["data"][0]["embedding"]
        short = (await post(embeddings, {"input": "A dog.", "dimensions": 64})).json()
        vector = np.array(short["data"][0]["embedding"])
        assert vector.shape == (64,)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert np.dot(vector, whole[:64]) / np.linalg.norm(whole[:64]) > 0.999
        refused = await post(embeddings, {"input": "A dog.", "dimensions": 100})
        assert refused.status == 400
        assert "64, 128, 256" in refused.json()["error"]["message"]

    serving("static", scenario, 1)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "input must be"),
        ({"input": []}, 400, "at least one"),
        ({"input": ""}, 400, r"input\[0\] is empty"),
        ({"input": ["a", ""]}, 400, r"input\[1\] is empty"),
        ({"input": ["a", None]}, 400, "no string"),
        ({"input": ["a", True]}, 400, "no string"),
        ({"input": 5}, 400, "input must be"),
        ({"input": [1, 2, 3]}, 400, "check_embedding_ctx_length"),
        ({"input": [[1, 2], [3]]}, 400, "token ids"),
        ({"input": ["a"] * 5}, 400, "at most 4"),
        ({"input": "a", "encoding_format": "hex"}, 400, "float, base64"),
        ({"input": "a", "dimensions": 10}, 400, "dimensions"),
        ({"input": "a", "dimensions": -1}, 400, "dimensions"),
        ({"input": "a", "dimensions": 1e300}, 400, "dimensions"),
        ({"input": "a", "model": "text-embedding-3-small"}, 404, "use 'minilm'"),
        ({"input": "a", "model": 5}, 400, "model"),
        ({"input": "a" * 2_001}, 413, "characters"),
        ([], 400, "object"),
        (b'{"input": "\xff"}', 400, "JSON"),
        (b'{"input": "a"', 400, "JSON"),
        (b"[" * 1_000, 400, "."),
    ],
)
def test_bad_requests_are_told_what_is_wrong(body: Any, status: int, said: str) -> None:
    embeddings = Embeddings(ServeSettings(max_texts=4, max_text_chars=2_000))
    embeddings.model, embeddings.dimensions = "minilm", 384
    answer = asyncio.run(post(embeddings, body))
    assert answer.status == status
    assert re.search(said, answer.json()["error"]["message"])


def test_half_a_surrogate_pair_harms_nothing() -> None:
    async def scenario(embeddings: Embeddings) -> None:
        result = await embeddings.embed(["lone \ud83d surrogate"])
        assert np.isfinite(result.vectors).all()

    serving("static", scenario, 1)


def test_many_clients_get_their_own_vectors_out_of_shared_batches(minilm: str) -> None:
    texts = [text(n, random.Random(n).choice([2, 5, 10, 30])) for n in range(160)]
    expected = make_embedder(minilm).embed(texts)

    async def scenario(embeddings: Embeddings) -> None:
        async def client(some: list[int]) -> None:
            for n in some:
                result = await embeddings.embed([texts[n]])
                assert np.dot(result.vectors[0], expected[n]) > 0.98

        await asyncio.gather(*(client(list(range(n, 160, 16))) for n in range(16)))
        assert embeddings.depth()["embedded_texts"] == 160
        assert embeddings.depth()["batches"] < 120

    serving(minilm, scenario)


def test_the_same_text_asked_for_at_once_is_embedded_once(minilm: str) -> None:
    async def scenario(embeddings: Embeddings) -> None:
        results = await asyncio.gather(*(embeddings.embed([text(7, 20)]) for _ in range(20)))
        assert len({result.vectors.tobytes() for result in results}) == 1
        assert embeddings.depth()["embedded_texts"] == 1

    serving(minilm, scenario)


def test_known_texts_are_answered_without_a_worker(minilm: str) -> None:
    async def scenario(embeddings: Embeddings) -> None:
        await embeddings.embed(["known"])
        for pid in embeddings.processes():
            os.kill(pid, signal.SIGSTOP)
        try:
            result = await embeddings.embed(["known"])
            assert result.vectors.shape == (1, 384)
        finally:
            for pid in embeddings.processes():
                os.kill(pid, signal.SIGCONT)

    serving(minilm, scenario, 1)


def test_a_worker_killed_in_the_middle_of_a_batch_costs_nobody_his_answer(minilm: str) -> None:
    async def scenario(embeddings: Embeddings) -> None:
        before = set(embeddings.processes())
        victim = min(before)
        os.kill(victim, signal.SIGSTOP)  # so that it is in the middle of its batch for certain
        requests = [
            asyncio.ensure_future(post(embeddings, {"input": [text(n, 20), text(-n, 5)]}))
            for n in range(1, 30)
        ]
        # The other one does what it can; what the stopped one holds is left.
        while embeddings.depth()["texts"] or embeddings.depth()["workers_free"] != 1:
            await asyncio.sleep(0.01)
        assert any(not request.done() for request in requests)
        os.kill(victim, signal.SIGKILL)
        answers = await asyncio.gather(*requests)
        assert [answer.status for answer in answers] == [200] * 29
        assert embeddings.depth()["workers_died"] == 1
        while embeddings.depth()["workers_free"] < 2:
            await asyncio.sleep(0.01)
        now = set(embeddings.processes())
        assert len(now) == 2
        assert victim not in now

    serving(minilm, scenario)


def test_all_workers_killed_at_once_come_back(minilm: str) -> None:
    async def scenario(embeddings: Embeddings) -> None:
        task = asyncio.ensure_future(embeddings.embed([text(n, 30) for n in range(60)]))
        while embeddings.depth()["batches"] < 3:
            await asyncio.sleep(0.001)
        for pid in embeddings.processes():
            os.kill(pid, signal.SIGKILL)
        assert (await task).vectors.shape == (60, 384)

    serving(minilm, scenario)


def test_a_text_whose_worker_dies_twice_fails_alone(minilm: str) -> None:
    async def scenario(embeddings: Embeddings) -> None:
        task = asyncio.ensure_future(post(embeddings, {"input": "poison"}))
        for _ in range(2):
            while embeddings.depth()["workers_free"] or not embeddings.processes():
                await asyncio.sleep(0.001)
            died = embeddings.depth()["workers_died"]
            os.kill(embeddings.processes()[0], signal.SIGKILL)
            while embeddings.depth()["workers_died"] == died and not task.done():
                await asyncio.sleep(0.001)
            while not embeddings.depth()["workers_free"] and embeddings.depth()["texts"]:
                await asyncio.sleep(0.001)
        answer = await task
        assert answer.status == 500
        assert answer.json()["error"]["code"] == "embedding_failed"
        assert (await post(embeddings, {"input": "fine"})).status == 200

    stopped_at_every_batch(minilm, scenario)


def stopped_at_every_batch(spec: str, scenario: Callable[[Embeddings], Awaitable[None]]) -> None:
    """Serve with one worker that stands still at the text "poison", so that it can be killed in the middle of it."""

    async def inner(embeddings: Embeddings) -> None:
        workers = embeddings._workers
        assert workers is not None
        run = workers.run

        def stopping(texts: list[str]) -> Any:
            if "poison" in texts:
                for pid in workers.processes():
                    os.kill(pid, signal.SIGSTOP)
            return run(texts)

        workers.run = stopping  # type: ignore[method-assign]
        await scenario(embeddings)

    serving(spec, inner, 1)


def test_what_a_client_that_left_had_in_the_queue_never_runs(minilm: str) -> None:
    async def scenario(embeddings: Embeddings) -> None:
        (pid,) = embeddings.processes()
        os.kill(pid, signal.SIGSTOP)
        stays = asyncio.ensure_future(embeddings.embed([text(1, 10)]))
        while embeddings.depth()["workers_free"]:
            await asyncio.sleep(0.001)
        client = Client(embeddings, [b'{"input": ["left 1", "left 2", "left 3"]}'])
        leaves = asyncio.ensure_future(client.send())
        gone = asyncio.Event()
        told = asyncio.ensure_future(embeddings.embed(["gone"], gone=gone))
        while embeddings.depth()["texts"] < 4:
            await asyncio.sleep(0.001)
        client.leave()
        gone.set()
        answer = await leaves
        with pytest.raises(asyncio.CancelledError):
            await told
        assert answer.status == 0
        assert embeddings.depth()["texts"] == 0
        os.kill(pid, signal.SIGCONT)
        await stays
        assert embeddings.depth()["embedded_texts"] == 1
        assert embeddings.depth()["dropped_texts"] == 4

    serving(minilm, scenario, 1)


def test_a_full_queue_is_a_503_with_an_honest_wait(minilm: str) -> None:
    async def scenario(embeddings: Embeddings) -> None:
        (pid,) = embeddings.processes()
        os.kill(pid, signal.SIGSTOP)
        first = [asyncio.ensure_future(post(embeddings, {"input": "with the worker"}))]
        while embeddings.depth()["workers_free"]:
            await asyncio.sleep(0.001)
        for n in range(2):
            first.append(asyncio.ensure_future(post(embeddings, {"input": f"{n} " * 20})))
        while embeddings.depth()["texts"] < 2:
            await asyncio.sleep(0.001)
        refused = await post(embeddings, {"input": "more " * 60})
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        os.kill(pid, signal.SIGCONT)
        assert [answer.status for answer in await asyncio.gather(*first)] == [200] * 3

    serving(minilm, scenario, 1, max_queued_tokens=100)


def test_closing_tells_who_waits_and_leaves_no_process(minilm: str, nothing_left: None) -> None:
    async def run() -> None:
        embeddings = Embeddings(ServeSettings(embedder=minilm), workers=1)
        await embeddings.start()
        (pid,) = embeddings.processes()
        os.kill(pid, signal.SIGSTOP)
        task = asyncio.ensure_future(post(embeddings, {"input": ["a b c", "d"]}))
        while embeddings.depth()["workers_free"]:
            await asyncio.sleep(0.001)
        await embeddings.aclose()
        answer = await task
        assert answer.status == 503
        assert (await post(embeddings, {"input": "late"})).status == 503
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("onnx:/nowhere", EmbedderUnavailable),
        ("magic", InvalidOption),
        ("damaged", EmbedderUnavailable),
    ],
)
def test_an_embedder_that_is_none_is_told_at_the_start(
    tmp_path: Path, spec: str, error: type[Exception], nothing_left: None
) -> None:
    if spec == "damaged":
        make_minilm(tmp_path / "minilm")
        (tmp_path / "minilm" / "model.onnx").unlink()
        (tmp_path / "minilm" / "model.onnx").write_bytes(b"no model")
        spec = f"onnx:{tmp_path}/minilm"

    async def run() -> None:
        with pytest.raises(error):
            await Embeddings(ServeSettings(embedder=spec), workers=2).start()

    asyncio.run(run())


def test_a_model_that_vanishes_is_told_and_found_again(minilm: str, tmp_path: Path) -> None:
    spec = make_minilm(tmp_path / "minilm")
    model = tmp_path / "minilm" / "model.onnx"

    async def scenario(embeddings: Embeddings) -> None:
        model.rename(tmp_path / "away")
        os.kill(embeddings.processes()[0], signal.SIGKILL)
        while True:  # the dead process is only noticed by the next batch
            answer = await post(embeddings, {"input": "A dog."})
            if answer.status != 200:
                break
        assert answer.status == 503
        assert "model.onnx" in answer.json()["error"]["message"]
        (tmp_path / "away").rename(model)
        assert (await post(embeddings, {"input": "A dog."})).status == 200

    serving(spec, scenario, 1)


def test_errors_of_the_embedder_reach_their_own_caller() -> None:
    from tournant.serve.embedding import _refusal

    assert _refusal(WorkerDied("x")).status == 500
    error = _refusal(ValueError("secret"))
    assert isinstance(error, HTTPError)
    assert "secret" not in error.message
