"""How a batch ends before its end: asked to, because the provider says nothing, or because its file of results is gone."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import batch_samples as samples
import pytest
from batch_samples import completion, provider, read_results, refusal

from tournant.llm.batch import BatchOptions, BatchRun, BatchStopped, ResultsRefused, job, run_batch
from tournant.llm.mock import MockSettings, serving
from tournant.policies import Retry


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return samples.write_requests(tmp_path / "requests.jsonl", 40)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


@pytest.mark.parametrize("concurrency", [(1, 1), (4, 4)])
def test_draining_sends_nothing_more(
    requests: Path, results: Path, concurrency: tuple[int, int]
) -> None:
    runs: list[BatchRun] = []
    together = threading.Barrier(concurrency[0])
    sent: list[str] = []

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        sent.append(body["messages"][0]["content"])
        # All are under way when the first of them is answered.
        if together.wait(samples.PATIENCE) == 0:
            runs[0].drain()
        together.wait(samples.PATIENCE)
        return 200, completion(body)

    with provider(answer) as url:
        options = BatchOptions(str(requests), str(results), base_url=url, concurrency=concurrency)
        outcome = run_batch(options, on_start=runs.append)
    assert len(sent) == concurrency[0]
    assert (outcome.answered, outcome.unfinished) == (len(sent), 40 - len(sent))
    assert len(read_results(results)) == len(sent)


def test_draining_does_not_wait_for_a_limit(requests: Path, results: Path) -> None:
    runs: list[BatchRun] = []
    refused = threading.Event()

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        refused.set()
        return 429, refusal("come back in an hour"), {"retry-after": "3600"}

    def drain() -> None:
        refused.wait(samples.PATIENCE)
        while runs[0].snapshot().in_flight:
            pass
        runs[0].drain()

    thread = threading.Thread(target=drain)

    def started(run: BatchRun) -> None:
        runs.append(run)
        thread.start()

    with provider(answer) as url:
        options = BatchOptions(str(requests), str(results), base_url=url, concurrency=(1, 1))
        outcome = run_batch(options, on_start=started)
    thread.join()
    assert (outcome.answered, outcome.unfinished, outcome.failed) == (0, 40, {})


@pytest.mark.parametrize("concurrency", [(1, 1), (16, 16)])
def test_a_provider_that_takes_requests_and_answers_none_is_given_up(
    requests: Path, results: Path, monkeypatch: pytest.MonkeyPatch, concurrency: tuple[int, int]
) -> None:
    monkeypatch.setattr(job, "_GRACE", 0.01)
    monkeypatch.setattr(job, "_RETRY", Retry(1_000_000, 0.001, 0.01, on=job._RETRY.on))
    with (
        serving(MockSettings(hang_rate=1.0)) as server,
        pytest.raises(BatchStopped, match="took requests and answered none of them"),
    ):
        samples.batch(
            requests, results, server.url, timeout=0.3, patience=0.2, concurrency=concurrency, retries=99
        )  # fmt: skip
    assert not results.exists()


def test_a_provider_that_is_slower_than_patience_is_waited_for(
    requests: Path, results: Path
) -> None:
    samples.write_requests(requests, 3)
    with serving(MockSettings(latency=0.3)) as server:
        outcome = samples.batch(requests, results, server.url, patience=0.01, concurrency=(1, 1))
    assert outcome.complete


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_of_results_that_goes_away_stops_the_batch(
    requests: Path, results: Path, count: int, replaced: bool
) -> None:
    samples.write_requests(requests, count)

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        if body["messages"][0]["content"] == samples.prompt(0):
            if replaced:
                results.with_name("other").write_bytes(b"mine")
                os.replace(results.with_name("other"), results)
            else:
                results.unlink()
        return 200, completion(body)

    with provider(answer) as url, pytest.raises(ResultsRefused, match="was deleted, moved or"):
        samples.batch(requests, results, url)
    assert (results.read_bytes() if results.exists() else None) == (b"mine" if replaced else None)
