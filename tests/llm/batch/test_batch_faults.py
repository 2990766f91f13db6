"""Providers that fail, in every way there is. Nothing is lost, nothing is answered twice, and what is hopeless stops at once."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import batch_samples as samples
import pytest
from batch_samples import assert_answered, batch, completion, provider, read_results, refusal

from tournant.llm.batch import BatchStopped, job
from tournant.llm.batch import health as health_module
from tournant.llm.mock import MockSettings, serving
from tournant.policies import Retry


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait between attempts for milliseconds in place of seconds, and in the end for nothing that never comes."""
    monkeypatch.setattr(job, "_GRACE", 3_600.0)
    monkeypatch.setattr(job, "_RETRY", Retry(1_000_000, 0.001, 0.01, on=job._RETRY.on))
    monkeypatch.setattr(health_module, "_FIRST_PROBE", 0.005)
    monkeypatch.setattr(health_module, "_LAST_PROBE", 0.05)


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return samples.write_requests(tmp_path / "requests.jsonl", 200)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


@pytest.mark.parametrize(
    "faults",
    [
        {"error_rate": 0.3},
        {"overload_rate": 0.3},
        {"reset_rate": 0.3},
        {"garbage_rate": 0.3},
        {"half_rate": 0.3},
        {"error_rate": 0.1, "overload_rate": 0.1, "reset_rate": 0.1, "garbage_rate": 0.1, "half_rate": 0.1},
    ],
    ids=lambda faults: "+".join(faults),
)  # fmt: skip
def test_what_may_pass_is_tried_again_until_it_does(
    requests: Path, results: Path, faults: dict[str, float]
) -> None:
    with serving(MockSettings(**faults, seed=3)) as server:
        outcome = batch(requests, results, server.url, retries=20)
        stats = server.stats()
    assert outcome.complete
    assert_answered(requests, results)
    assert stats["bodies"]["answered_again"] == 0
    assert outcome.attempts == stats["requests"] > 200


def test_a_call_that_hangs_is_given_up_and_tried_again(tmp_path: Path, results: Path) -> None:
    requests = samples.write_requests(tmp_path / "few.jsonl", 20)
    with serving(MockSettings(hang_rate=0.2, seed=1)) as server:
        outcome = batch(requests, results, server.url, timeout=0.3, retries=10)
        assert server.stats()["hung"] > 0
    assert outcome.complete
    assert_answered(requests, results)


def test_a_failure_that_stays_is_in_the_results_once_and_asked_again_next_time(
    requests: Path, results: Path
) -> None:
    broken = {samples.prompt(7), samples.prompt(150)}
    mended = False
    seen: Counter[str] = Counter()

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        text = body["messages"][0]["content"]
        seen[text] += 1
        if text in broken and not mended:
            return 500, refusal("no luck", code="bad_luck")
        return 200, completion(body)

    with provider(answer) as url:
        outcome = batch(requests, results, url, retries=2)
        assert outcome.failed == {"provider_failed": 2}
        assert "no luck" in outcome.examples["provider_failed"]
        assert (outcome.answered, outcome.unfinished) == (198, 0)
        assert {seen[text] for text in broken} == {3}
        assert_answered(requests, results, but=["request-7", "request-150"])
        error = read_results(results)["request-7"]
        assert error["error"]["code"] == "provider_failed"
        assert error["response"]["status_code"] == 500
        assert error["response"]["body"]["error"]["message"] == "no luck"
        assert batch(requests, results, url, retries=0).failed == {"provider_failed": 2}
        assert_answered(requests, results, but=["request-7", "request-150"])
        mended = True
        outcome = batch(requests, results, url)
    assert (outcome.answered, outcome.answered_before) == (2, 198)
    assert_answered(requests, results)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, refusal("temperature is too high"), "bad_request"),
        (400, refusal("maximum context length is 8", code="context_length_exceeded"), "context_too_long"),
        (422, b'{"detail": "no such field"}', "bad_request"),
    ],
)  # fmt: skip
def test_a_request_that_is_refused_fails_alone_and_is_not_asked_again_unasked(
    requests: Path, results: Path, status: int, body: bytes, kind: str
) -> None:
    calls = itertools.count()

    def answer(asked: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        next(calls)
        if asked["messages"][0]["content"] == samples.prompt(9) and not mended:
            return status, body
        return 200, completion(asked)

    mended = False
    with provider(answer) as url:
        outcome = batch(requests, results, url)
        assert outcome.failed == {kind: 1}
        assert outcome.answered == 199
        assert next(calls) == 200
        assert_answered(requests, results, but=["request-9"])
        before = results.read_bytes()
        outcome = batch(requests, results, url)
        assert (outcome.refused_before, outcome.report, outcome.complete) == (1, None, False)
        assert results.read_bytes() == before
        mended = True
        outcome = batch(requests, results, url, retry_refused=True)
        assert (outcome.answered, outcome.answered_before) == (1, 199)
    assert_answered(requests, results)


def test_the_context_of_the_mock_provider_is_understood(tmp_path: Path, results: Path) -> None:
    entries = [samples.line(0), samples.line(1, "word " * 2_000), samples.line(2)]
    requests = samples.write_lines(tmp_path / "in.jsonl", entries)
    with serving(MockSettings(context=500)) as server:
        outcome = batch(requests, results, server.url)
    assert (outcome.answered, outcome.failed) == (2, {"context_too_long": 1})


def test_a_401_stops_at_once_and_names_the_variable(
    requests: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KITCHEN_KEY", "sk-wrong-key-1234")
    with serving(MockSettings(api_key="sk-right-key-1234")) as server:
        with pytest.raises(BatchStopped, match=r"variable KITCHEN_KEY.*0 of 200") as caught:
            batch(requests, results, server.url, api_key_env="KITCHEN_KEY", concurrency=(4, 4))
        assert server.stats()["requests"] <= 8
        assert "sk-wrong" not in str(caught.value)
        assert not results.exists()
        monkeypatch.setenv("KITCHEN_KEY", "sk-right-key-1234")
        batch(requests, results, server.url, api_key_env="KITCHEN_KEY")
    assert_answered(requests, results)


def test_a_key_that_is_withdrawn_midway_stops_and_keeps_what_was_answered(
    requests: Path, results: Path
) -> None:
    answered = itertools.count()

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        if next(answered) >= 50:
            return 401, refusal("revoked")
        return 200, completion(body)

    with provider(answer) as url, pytest.raises(BatchStopped, match="50 of 200 requests answered"):
        batch(requests, results, url)
    found = read_results(results)
    assert len(found) == 50
    assert all(result["error"] is None for result in found.values())
    assert next(answered) < 200


def test_answers_that_are_under_way_when_it_stops_are_kept(tmp_path: Path, results: Path) -> None:
    requests = samples.write_requests(tmp_path / "few.jsonl", 8)
    refused = threading.Event()

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        if body["messages"][0]["content"] == samples.prompt(7):
            refused.set()
            return 401, refusal("revoked")
        refused.wait(samples.PATIENCE)
        return 200, completion(body)

    with provider(answer) as url, pytest.raises(BatchStopped):
        batch(requests, results, url, concurrency=(8, 8))
    assert read_results(results).keys() == {f"request-{number}" for number in range(7)}


def test_stopping_does_not_wait_for_what_waits_for_another_attempt(
    tmp_path: Path, results: Path
) -> None:
    requests = samples.write_requests(tmp_path / "few.jsonl", 3)
    failed, refused = threading.Event(), threading.Event()

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        text = body["messages"][0]["content"]
        if text == samples.prompt(0):
            failed.set()
            return 500, refusal("come back in an hour"), {"retry-after": "3600"}
        failed.wait(samples.PATIENCE)
        if text == samples.prompt(1):
            refused.set()
            return 401, refusal("revoked")
        refused.wait(samples.PATIENCE)
        return 200, completion(body)

    with provider(answer) as url, pytest.raises(BatchStopped, match="revoked"):
        batch(requests, results, url, concurrency=(3, 3))
    assert read_results(results).keys() <= {"request-2"}


def test_a_quota_that_is_used_up_stops(requests: Path, results: Path) -> None:
    with serving(MockSettings(quota=1_500)) as server:
        with pytest.raises(BatchStopped, match="quota") as caught:
            batch(requests, results, server.url, concurrency=(4, 4))
        answered = len(read_results(results))
        assert 0 < answered < 200
        assert f"{answered:,} of 200 requests answered" in str(caught.value)
        server.control(quota=None)
        batch(requests, results, server.url)
        assert server.stats()["bodies"]["answered_again"] == 0
    assert_answered(requests, results)


def test_a_403_to_one_prompt_is_that_ones_failure(requests: Path, results: Path) -> None:
    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        if body["messages"][0]["content"] == samples.prompt(100):
            return 403, refusal("flagged")
        return 200, completion(body)

    with provider(answer) as url:
        outcome = batch(requests, results, url, concurrency=(1, 1))
    assert outcome.failed == {"authentication_failed": 1}
    closed = provider(lambda body, headers: (403, refusal("no access")))
    with closed as url, pytest.raises(BatchStopped, match="no access"):
        batch(requests, results.with_name("other"), url)


def test_a_model_that_nobody_knows_stops_before_everything_has_failed(
    requests: Path, results: Path
) -> None:
    with serving(MockSettings(models=("other",))) as server:
        with pytest.raises(BatchStopped, match="kitchen-1"):
            batch(requests, results, server.url, concurrency=(2, 2))
        assert server.stats()["requests"] < 20
        assert batch(requests, results, server.url, model="other").complete
    assert_answered(requests, results)


# Providers that are not there


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_provider_that_is_down_at_the_start_is_waited_for_and_then_given_up(
    requests: Path, results: Path
) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(BatchStopped, match=r"could not be reached for .*0 of 200") as caught:
        batch(requests, results, url, patience=0.2)
    assert url in str(caught.value)
    assert not results.exists()
    with serving(MockSettings()) as server:
        batch(requests, results, server.url)
    assert_answered(requests, results)


def test_a_provider_that_comes_late_is_waited_for(requests: Path, results: Path) -> None:
    with serving(MockSettings()) as server:
        server.control(down=0.5)
        assert batch(requests, results, server.url, patience=samples.PATIENCE).complete
        assert server.stats()["bodies"]["answered_again"] == 0
    assert_answered(requests, results)


def test_a_provider_that_is_down_midway_loses_nothing_and_costs_nothing_twice(
    requests: Path, results: Path
) -> None:
    samples.write_requests(requests, 2_000)
    with serving(MockSettings(latency=0.001)) as server:

        def cut() -> None:
            while server.stats()["ok"] < 300:
                pass
            server.control(down=1.0)

        cutting = threading.Thread(target=cut)
        cutting.start()
        # No retries: an outage is nobody's fault.
        outcome = batch(
            requests, results, server.url, retries=1, patience=samples.PATIENCE, concurrency=(1, 32)
        )
        cutting.join()
        stats = server.stats()
    assert outcome.complete
    assert_answered(requests, results)
    # What was in flight at the cut had been answered, and the answer was lost on the way.
    assert stats["bodies"]["answered_again"] <= 32
    assert outcome.attempts < 2_500


def test_a_gateway_that_answers_503_for_a_while_is_waited_for(
    requests: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "_ROW_SECONDS", 0.0)
    calls = itertools.count()

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        if 50 <= next(calls) < 70:
            return 503, b"<html>try later</html>"
        return 200, completion(body)

    with provider(answer) as url:
        outcome = batch(requests, results, url, retries=5, concurrency=(1, 8))
    assert outcome.complete
    assert_answered(requests, results)
    # Held back while it was down: each of these calls was one of the first few, or went out to see.
    assert next(calls) == outcome.attempts == 220


def test_draining_does_not_wait_for_a_provider_that_is_gone(requests: Path, results: Path) -> None:
    runs: list[job.BatchRun] = []

    def drain() -> None:
        while not runs[0].snapshot().trouble:
            pass
        runs[0].drain()

    def started(run: job.BatchRun) -> None:
        runs.append(run)
        thread.start()

    thread = threading.Thread(target=drain)
    options = job.BatchOptions(
        str(requests), str(results), base_url=f"http://127.0.0.1:{free_port()}/v1", patience=3_600
    )
    # The start has a patience of its own, which must not be what ends this.
    outcome = job.run_batch(options, on_start=started)
    thread.join()
    assert (outcome.answered, outcome.unfinished, outcome.failed) == (0, 200, {})


def test_a_page_in_place_of_an_api_is_not_taken_for_answers(
    requests: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "_ROW_SECONDS", 0.0)
    page = (200, b"<html>Welcome</html>", {"Content-Type": "text/html"})
    portal = provider(lambda body, headers: page)
    with portal as url, pytest.raises(BatchStopped, match="base_url"):
        batch(requests, results, url, patience=0.2)
    other = provider(lambda body, headers: (200, b'{"hello": "world"}'))
    with other as url, pytest.raises(BatchStopped, match="no answer"):
        batch(requests, results, url, patience=0.2)


def test_too_many_requests_are_no_failures(tmp_path: Path, results: Path) -> None:
    requests = samples.write_requests(tmp_path / "few.jsonl", 20)
    refusals = iter([True] * 3)

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        if next(refusals, False):
            return 429, refusal("slow down"), {"retry-after-ms": "5"}
        return 200, completion(body)

    with provider(answer) as url:
        outcome = batch(requests, results, url, retries=0)
    assert outcome.complete
    assert_answered(requests, results)


def test_a_request_that_no_minute_has_room_for_fails_in_the_end(
    tmp_path: Path, results: Path
) -> None:
    requests = samples.write_requests(tmp_path / "few.jsonl", 10)

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        if body["messages"][0]["content"] == samples.prompt(3):
            return 429, refusal("Request too large"), {"retry-after-ms": "1"}
        return 200, completion(body)

    with provider(answer) as url:
        outcome = batch(requests, results, url)
    assert outcome.failed == {"rate_limited": 1}
    assert_answered(requests, results, but=["request-3"])


def test_the_limits_see_failures_that_the_results_hold(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tournant.limits import Controller

    outcomes: Counter[str] = Counter()
    leave = Controller.leave
    monkeypatch.setattr(
        Controller,
        "leave",
        lambda self, outcome, seconds: outcomes.update([outcome]) or leave(self, outcome, seconds),
    )
    requests = samples.write_requests(tmp_path / "few.jsonl", 6)
    answers = {0: (400, refusal("no")), 1: (503, refusal("busy")), 2: (500, refusal("oops"))}

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        number = int(body["messages"][0]["content"].split()[1].rstrip(":"))
        return answers.get(number, (200, completion(body)))

    with provider(answer) as url:
        outcome = batch(requests, results, url, retries=0)
    assert sum(outcome.failed.values()) == 3
    assert (outcomes["ok"], outcomes["failed"], outcomes["throttled"]) == (3, 2, 1)


def test_a_failure_of_the_program_itself_is_no_failure_of_a_request(
    requests: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tournant import PipelineFailed
    from tournant.llm.batch import asking

    def broken(*args: Any) -> bytes:
        raise KeyError("a bug")

    monkeypatch.setattr(asking, "answer_line", broken)
    with serving(MockSettings()) as server, pytest.raises(PipelineFailed, match="stage ask"):
        batch(requests, results, server.url)
    assert read_results(results) == {} if results.exists() else True


def test_an_input_that_changes_midway_stops_with_what_was_answered_kept(
    requests: Path, results: Path
) -> None:
    from tournant.llm.batch import InputRefused

    changed = threading.Event()

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        if not changed.is_set():
            changed.set()
            with requests.open("a") as more:
                more.write(json.dumps(samples.line(9_999)) + "\n")
        return 200, completion(body)

    samples.write_requests(requests, 5_000)
    with provider(answer) as url, pytest.raises(InputRefused, match="was changed"):
        batch(requests, results, url)
    assert len(read_results(results)) >= 1
