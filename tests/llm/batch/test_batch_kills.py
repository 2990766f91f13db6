"""``kill -9``, signals, full disks and second batches, on real processes."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import batch_samples as samples
import pytest
from batch_samples import Program, assert_answered, read_results

from tournant.llm.batch.results import ResultsFile
from tournant.llm.mock import MockSettings, ServingThread, serving

REQUESTS = 600
MOST = 16


@pytest.fixture
def server() -> Iterator[ServingThread]:
    # So long that the kill comes midway, and 16 are in flight when it does.
    with serving(MockSettings(latency="uniform:0.005,0.03")) as running:
        yield running


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return samples.write_requests(tmp_path / "requests.jsonl", REQUESTS)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


@pytest.fixture
def argv(server: ServingThread, requests: Path, results: Path) -> tuple[str, ...]:
    options = ("--base-url", server.url, "--concurrency", f"1:{MOST}", "--quiet")
    return (str(requests), "-o", str(results), *options)


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_kill_9_loses_nothing_and_pays_for_nothing_twice_but_what_was_in_flight(
    server: ServingThread, requests: Path, results: Path, argv: tuple[str, ...]
) -> None:
    in_flight, moments = 0, (1, 100, 350)
    for moment in moments:
        with Program(*argv) as program:
            program.until(lambda moment=moment: lines_in(results) >= moment)
            program.kill()
        written, answered = lines_in(results), server.stats()["ok"]
        assert moment <= written < REQUESTS
        assert server.stats()["bodies"]["answered"] <= written + MOST
        in_flight += MOST
        assert answered <= written + in_flight
    with Program(*argv, "--json") as program:
        code, out, err = program.end()
    assert code == 0, err
    outcome = json.loads(out)
    assert outcome["answered_before"] == written
    assert outcome["answered"] == REQUESTS - written
    assert_answered(requests, results)
    bodies = server.stats()["bodies"]
    assert (bodies["distinct"], bodies["answered"]) == (REQUESTS, REQUESTS)
    assert bodies["answered_again"] <= in_flight
    assert bodies["most_answers"] <= len(moments) + 1


@pytest.mark.parametrize("moment", [0, 1, 57, 110])
def test_kill_9_when_the_provider_has_answered_so_many(
    tmp_path: Path, results: Path, moment: int
) -> None:
    requests = samples.write_requests(tmp_path / "few.jsonl", 120)
    answered: Counter[str] = Counter()
    counting, killed = threading.Lock(), threading.Event()

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        with counting:
            held = answered.total() >= moment and not killed.is_set()
            if not held:
                answered[body["messages"][0]["content"]] += 1
        if held:
            killed.wait(samples.PATIENCE)
        return 200, samples.completion(body)

    with samples.provider(answer) as url:
        argv = (str(requests), "-o", str(results), "--base-url", url, "--quiet", "--json")
        with Program(*argv, "--concurrency", "4:4") as program:
            # All that was answered is there, and the next ones are in flight.
            program.until(lambda: lines_in(results) >= moment)
            program.kill()
        killed.set()
        assert lines_in(results) == answered.total() == moment
        with Program(*argv) as program:
            code, out, err = program.end()
    assert code == 0, err
    assert json.loads(out)["answered"] == 120 - moment
    assert_answered(requests, results)
    assert set(answered.values()) == {1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_finishes_what_is_in_flight(
    server: ServingThread,
    requests: Path,
    results: Path,
    argv: tuple[str, ...],
    number: signal.Signals,
) -> None:
    with Program(*argv, "--json") as program:
        program.until(lambda: lines_in(results) >= 50)
        program.process.send_signal(number)
        code, out, err = program.end()
    assert code == 130
    assert err.startswith("Stopping: what is in flight is being finished")
    outcome = json.loads(out)
    assert outcome["interrupted"]
    assert outcome["answered"] == lines_in(results) == server.stats()["ok"] < REQUESTS
    with Program(*argv) as program:
        assert program.end()[0] == 0
    assert_answered(requests, results)
    assert server.stats()["bodies"]["answered_again"] == 0


def test_a_second_ctrl_c_drops_what_would_never_end(
    server: ServingThread, requests: Path, results: Path, argv: tuple[str, ...]
) -> None:
    server.control(hang_rate=1.0)
    with Program(*argv) as program:
        program.until(lambda: server.stats()["hung"] > 0)
        program.process.send_signal(signal.SIGINT)
        assert program.process.stderr is not None
        assert program.process.stderr.readline().startswith("Stopping")
        program.process.send_signal(signal.SIGINT)
        code, _, err = program.end()
    assert (code, err.splitlines()[0].split(":")[0]) == (130, "Cancelling")
    assert "Traceback" not in err
    server.control(hang_rate=0.0)
    with Program(*argv) as program:
        assert program.end()[0] == 0
    assert_answered(requests, results)


def test_a_full_disk_stops_the_batch_and_a_rerun_completes(
    server: ServingThread, requests: Path, results: Path, argv: tuple[str, ...]
) -> None:
    with Program(*argv, limit=100_000) as program:
        code, out, err = program.end()
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith(f"tournant: the file of results '{results}' can't be written: ")
    assert "run the batch again" in line
    kept = len(read_results(results))
    assert 100 < kept < REQUESTS
    with Program(*argv, "--json") as program:
        code, out, err = program.end()
    assert code == 0, err
    assert json.loads(out)["answered_before"] == kept
    assert_answered(requests, results)


def test_a_batch_whose_results_another_process_writes_is_refused(
    server: ServingThread, requests: Path, results: Path, argv: tuple[str, ...]
) -> None:
    with closing(ResultsFile(str(results))), Program(*argv) as second:
        code, _, err = second.end()
    assert code == 1
    assert "is being written by another batch" in err
    assert server.stats()["connections"] == 0
    with Program(*argv) as program:
        assert program.end()[0] == 0
    assert_answered(requests, results)


def test_a_provider_that_is_killed_and_started_again_costs_nothing_but_time(
    server: ServingThread, requests: Path, results: Path, argv: tuple[str, ...]
) -> None:
    with Program(*argv, "--retries", "0", "--json") as program:
        program.until(lambda: lines_in(results) >= 100)
        server.control(down=1.0)
        code, out, err = program.end()
    # A connection that breaks under a call is a failed attempt of it, and here the first is the last.
    outcome = json.loads(out)
    assert code in (0, 3), err
    assert set(outcome["failed"]) <= {"connection_failed"}
    assert sum(outcome["failed"].values()) <= MOST
    with Program(*argv) as program:
        assert program.end()[0] == 0
    assert_answered(requests, results)
