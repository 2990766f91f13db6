from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batch_samples as samples
import pytest
from batch_samples import assert_answered, batch, read_results, text_of

import tournant as tn
from tournant.limits import RateLimit
from tournant.llm.batch import (
    BatchOptions,
    BatchRun,
    BatchSnapshot,
    InputRefused,
    InvalidBatch,
    ResultsRefused,
    run_batch,
)
from tournant.llm.mock import MockSettings, ServingThread, serving


@pytest.fixture
def server() -> Iterator[ServingThread]:
    with serving(MockSettings()) as running:
        yield running


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def test_every_request_gets_its_own_answer(
    server: ServingThread, requests: Path, results: Path
) -> None:
    samples.write_requests(requests, 300)
    outcome = batch(requests, results, server.url, price=(1.0, 10.0))
    assert_answered(requests, results)
    assert (outcome.requests, outcome.answered, outcome.unfinished) == (300, 300, 0)
    assert outcome.complete
    assert server.stats()["bodies"]["answered"] == 300
    assert outcome.completion_tokens == server.stats()["tokens_out"]
    assert outcome.prompt_tokens == server.stats()["tokens_in"]
    expected = (outcome.prompt_tokens + 10 * outcome.completion_tokens) / 1e6
    assert outcome.cost == pytest.approx(expected)
    assert (outcome.attempts, outcome.failed) == (300, {})
    assert json.dumps(outcome.as_dict(), default=str)


def test_running_it_again_sends_nothing(
    server: ServingThread, requests: Path, results: Path
) -> None:
    samples.write_requests(requests, 20)
    batch(requests, results, server.url)
    before = results.read_bytes()
    outcome = batch(requests, results, server.url)
    assert (outcome.answered, outcome.answered_before, outcome.report) == (0, 20, None)
    assert outcome.complete
    assert results.read_bytes() == before
    assert server.stats()["requests"] == 20


def test_only_what_has_no_answer_is_asked(
    server: ServingThread, requests: Path, results: Path
) -> None:
    samples.write_requests(requests, 10)
    batch(requests, results, server.url)
    lines = results.read_bytes().splitlines(keepends=True)
    results.write_bytes(b"".join(lines[:6]) + lines[6][:50])
    samples.write_requests(requests, 14)
    outcome = batch(requests, results, server.url)
    assert (outcome.answered, outcome.answered_before) == (8, 6)
    assert_answered(requests, results)
    assert server.stats()["requests"] == 18


def test_completions_embeddings_and_chat_go_to_their_endpoints(
    server: ServingThread, requests: Path, results: Path
) -> None:
    entries = [
        samples.line(0),
        samples.line(1, url="/v1/completions", body={"model": "m", "prompt": "Once", "max_tokens": 4}),
        samples.line(2, url="/v1/embeddings", body={"model": "m", "input": ["a", "b"]}),
    ]  # fmt: skip
    samples.write_lines(requests, entries)
    assert batch(requests, results, server.url).complete
    bodies = {name: result["response"]["body"] for name, result in read_results(results).items()}
    assert bodies["request-0"]["object"] == "chat.completion"
    assert bodies["request-1"]["object"] == "text_completion"
    assert [len(row["embedding"]) for row in bodies["request-2"]["data"]] == [256, 256]


def test_prompts_are_made_of_a_table(server: ServingThread, tmp_path: Path, results: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text('id,text\nfirst,"a, b"\nsecond\nthird,c\n')
    outcome = batch(
        table, results, server.url, prompt="Summarise: {text}", model="m", system="Be brief.",
        max_tokens=40,
    )  # fmt: skip
    assert {name: text_of(result) for name, result in read_results(results).items()}.keys() == {
        "first",
        "third",
    }
    assert (outcome.answered, outcome.bad_count) == (2, 1)
    assert outcome.bad[0].line == 3
    assert not outcome.complete


def test_another_model_is_asked_if_one_says_so(requests: Path, results: Path) -> None:
    models = []

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        models.append(body["model"])
        return 200, samples.completion(body)

    samples.write_requests(requests, 2)
    with samples.provider(answer) as url:
        batch(requests, results, url, model="other")
    assert models == ["other", "other"]


def test_bad_lines_are_reported_and_the_rest_is_asked(
    server: ServingThread, requests: Path, results: Path
) -> None:
    samples.write_lines(requests, [samples.line(0), '{"custom_id": "half', samples.line(1)])
    outcome = batch(requests, results, server.url)
    assert read_results(results).keys() == {"request-0", "request-1"}
    assert [bad.line for bad in outcome.bad] == [2]


def test_a_doubled_id_is_refused_before_anything_is_sent(
    server: ServingThread, requests: Path, results: Path
) -> None:
    samples.write_lines(requests, [samples.line(number % 50) for number in range(51)])
    with pytest.raises(InputRefused, match="line 1 and in line 51"):
        batch(requests, results, server.url)
    assert server.stats()["requests"] == 0
    assert not results.exists()


@pytest.mark.parametrize("case", ["empty", "absent", "folder", "same", "link"])
def test_files_that_can_not_be_used_are_refused_before_anything_is_sent(
    server: ServingThread, requests: Path, results: Path, tmp_path: Path, case: str
) -> None:
    kind: type[Exception] = InputRefused
    if case == "empty":
        requests.write_text("")
    elif case != "absent":
        samples.write_requests(requests, 3)
    if case == "folder":
        kind, results = ResultsRefused, tmp_path / "absent" / "results.jsonl"
    elif case == "same":
        kind, results = InvalidBatch, requests
    elif case == "link":
        kind = InvalidBatch
        os.link(requests, results)
    before = requests.read_bytes() if requests.exists() else None
    with pytest.raises(kind):
        batch(requests, results, server.url)
    assert server.stats()["connections"] == 0
    assert (requests.read_bytes() if requests.exists() else None) == before
    assert results.exists() == (case in ("same", "link"))


def test_the_limits_are_kept_that_are_told(requests: Path, results: Path) -> None:
    samples.write_requests(requests, 60)
    with serving(MockSettings(rpm=1_200)) as server:
        outcome = batch(requests, results, server.url, rpm=1_200, concurrency=(1, 8))
        assert server.stats()["peak"] <= 8
    assert outcome.complete
    assert_answered(requests, results)


def test_limits_that_nobody_told_are_found_out(requests: Path, results: Path) -> None:
    samples.write_requests(requests, 60)
    with serving(MockSettings(rpm=1_800, headers="openai")) as server:
        outcome = batch(requests, results, server.url)
    assert outcome.complete
    assert_answered(requests, results)


def test_a_limit_can_be_shared_with_the_rest_of_a_program(
    server: ServingThread, requests: Path, results: Path
) -> None:
    limit = RateLimit("6000/min", key="test-batch-shared")
    samples.write_requests(requests, 5)
    seen = []

    def started(run: BatchRun) -> None:
        seen.append(run.snapshot().limits)

    run_batch(
        BatchOptions(str(requests), str(results), base_url=server.url, limit=limit),
        on_start=started,
    )
    assert "6_000/min (configured)" in seen[0]
    with pytest.raises(InvalidBatch, match="contradict"):
        BatchOptions(str(requests), str(results), limit=limit, rpm=5)


def test_draining_finishes_what_is_in_flight_and_a_rerun_completes(
    requests: Path, results: Path
) -> None:
    samples.write_requests(requests, 100)
    runs: list[BatchRun] = []
    snapshots: list[BatchSnapshot] = []
    asked = threading.Semaphore(0)

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        asked.release()
        if len(runs) == 1 and asked._value == 10:
            snapshots.append(runs[0].snapshot())
            runs[0].drain()
        return 200, samples.completion(body)

    with samples.provider(answer) as url:
        first = run_batch(
            BatchOptions(str(requests), str(results), base_url=url, concurrency=(2, 2)),
            on_start=runs.append,
        )
        assert 10 <= first.answered < 100
        assert first.unfinished == 100 - first.answered
        assert len(read_results(results)) == first.answered
        assert 1 <= snapshots[0].in_flight <= 2
        assert snapshots[0].run.total == 100
        second = batch(requests, results, url)
    assert (second.answered_before, second.answered) == (first.answered, first.unfinished)
    assert asked._value == 100
    assert_answered(requests, results)


def test_cancelling_drops_what_is_in_flight(requests: Path, results: Path) -> None:
    samples.write_requests(requests, 10)
    runs: list[BatchRun] = []
    with serving(MockSettings(hang_rate=1.0)) as server:

        def started(run: BatchRun) -> None:
            runs.append(run)
            threading.Thread(target=cancel).start()

        def cancel() -> None:
            while not server.stats()["open"]:
                pass
            runs[0].cancel()

        outcome = run_batch(
            BatchOptions(str(requests), str(results), base_url=server.url), on_start=started
        )
    assert (outcome.answered, outcome.unfinished) == (0, 10)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"prompt": "{text}"}, "needs a model"),
        ({"prompt": "text", "model": "m"}, "names no field"),
        ({"system": "Be brief."}, "belongs to a prompt"),
        ({"max_tokens": 5}, "belongs to a prompt"),
        ({"input": "table.csv"}, "is a table"),
        ({"input": ""}, "path of a file"),
        ({"rpm": 0}, "above 0"),
        ({"tpm": float("nan")}, "above 0"),
        ({"timeout": -1}, "above 0"),
        ({"retries": -1}, "0 or more"),
        ({"retries": 1.5}, "whole number"),
        ({"max_tokens": 0, "prompt": "{a}", "model": "m"}, "from 1 on"),
        ({"patience": -1}, "0 or more"),
        ({"price": (1,)}, "million tokens"),
        ({"price": (1, -1)}, "million tokens"),
        ({"concurrency": (0, 4)}, "limits can't be"),
        ({"concurrency": (8, 4)}, "limits can't be"),
        ({"base_url": "ftp://x"}, "http://"),
        ({"base_url": ""}, "base_url='': give a text"),
        ({"base_url": " "}, "base_url=' ': give a text"),
        ({"model": ""}, "model='': give a text"),
        ({"model": 5}, "model=5: give a text"),
        ({"prompt": "", "model": "m"}, "prompt='': give a text"),
        ({"prompt": 5, "model": "m"}, "prompt=5: give a text"),
        ({"system": "", "prompt": "{a}", "model": "m"}, "system='': give a text"),
        ({"api_key_env": ""}, "api_key_env='': give a text"),
        ({"api_key_env": 5}, "api_key_env: give a text"),
        ({"price": 5}, "million tokens"),
        ({"price": "12"}, "million tokens"),
        ({"limit": "500/min"}, "RateLimit"),
        ({"concurrency": 5}, "the fewest and the most"),
        ({"concurrency": "1:5"}, "the fewest and the most"),
        ({"concurrency": (1, 2.5)}, "the fewest and the most"),
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "variable NOT_SET_ANYWHERE that"),
    ],
)
def test_options_that_can_not_be_are_refused(
    options: dict[str, Any], why: str, requests: Path, results: Path
) -> None:
    samples.write_requests(requests, 1)
    given = {"input": str(requests), "output": str(results), "base_url": "http://127.0.0.1:9", **options}  # fmt: skip
    with pytest.raises(InvalidBatch, match=why):
        run_batch(BatchOptions(**given))
    assert not results.exists()


def test_the_api_lies_where_the_environment_says(
    server: ServingThread, requests: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    samples.write_requests(requests, 2)
    assert run_batch(BatchOptions(str(requests), str(results))).complete


def test_a_reply_over_several_lines_becomes_one(requests: Path, results: Path) -> None:
    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        return 200, json.dumps(json.loads(samples.completion(body)), indent=2).encode() + b"\n"

    samples.write_requests(requests, 2)
    with samples.provider(answer) as url:
        batch(requests, results, url)
    assert_answered(requests, results)


@pytest.mark.parametrize("odd", [b'"\\ud83d"', b"NaN", b"-Infinity"])
def test_a_reply_that_only_some_parsers_take_does_not_spoil_the_results(
    requests: Path, results: Path, odd: bytes
) -> None:
    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        return 200, samples.completion(body).replace(b'"usage"', b'"odd": ' + odd + b', "usage"')

    samples.write_requests(requests, 2)
    with samples.provider(answer) as url:
        first = batch(requests, results, url, retries=0)
        second = batch(requests, results, url, retries=0)
    assert second.answered_before == first.answered
    assert len(read_results(results)) == 2


def test_it_runs_inside_a_program_that_has_a_loop(
    server: ServingThread, requests: Path, results: Path
) -> None:
    import asyncio

    samples.write_requests(requests, 3)

    async def main() -> None:
        await asyncio.to_thread(batch, requests, results, server.url)

    asyncio.run(main())
    assert_answered(requests, results)


def test_the_public_names_are_there() -> None:
    import tournant.llm.batch as room

    assert {name for name in room.__all__ if getattr(room, name) is None} == set()
    assert set(room.__all__) <= set(dir(room))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        room.nothing
    assert issubclass(room.BatchError, tn.TournantError)
