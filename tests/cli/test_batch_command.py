from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import tournant.llm.batch
from tournant.cli import main, make_parser
from tournant.llm.batch import (
    BatchOptions,
    BatchOutcome,
    BatchSnapshot,
    BatchStopped,
    InvalidBatch,
)
from tournant.llm.batch.progress import BatchDisplay, money, notes
from tournant.llm.batch.requests import BadLine
from tournant.llm.batch.summary import problems, totals
from tournant.llm.mock import MockSettings, serving
from tournant.report import RunSnapshot

BATCH = ["batch", "in.jsonl", "-o", "out.jsonl"]
RUN = RunSnapshot(60.0, 1_000, 300, 200, 4, 0, 0)
SNAPSHOT = BatchSnapshot(RUN, 32, 90_000, 1.5, "requests 480/min (configured); 32 of 64 at once")


@dataclass
class Job:
    """Stands in for the job, so that the command is tested apart from it."""

    outcome: BatchOutcome = field(default_factory=lambda: BatchOutcome(3, 3, seconds=1.25))
    error: Exception | None = None
    options: BatchOptions | None = None
    asked: list[str] = field(default_factory=list)
    during: Callable[[], None] = lambda: None

    def run_batch(self, options: BatchOptions, on_start: Callable[[Any], None]) -> BatchOutcome:
        self.options = options
        on_start(self)
        self.during()
        if self.error is not None:
            raise self.error
        return self.outcome

    def snapshot(self) -> BatchSnapshot:
        return SNAPSHOT

    def drain(self) -> None:
        self.asked.append("drain")

    def cancel(self) -> None:
        self.asked.append("cancel")


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    stand_in = Job()
    monkeypatch.setattr(tournant.llm.batch, "run_batch", stand_in.run_batch, raising=False)
    return stand_in


def test_options_reach_the_job_and_the_others_are_left_to_it(job: Job) -> None:
    assert main([*BATCH, "--quiet"]) == 0
    assert job.options == BatchOptions("in.jsonl", "out.jsonl")
    argv = "--system S --max-tokens 50 --model m --base-url http://h/v1 --api-key-env K --rpm 500 --tpm 200_000"
    argv += (
        " --concurrency 2:40 --retries 3 --timeout 30 --patience 60 --price 0.15:0.6 --retry-failed"
    )
    assert main([*BATCH, "--quiet", "--prompt", "Summarise: {text}", *argv.split()]) == 0
    assert job.options == BatchOptions(
        "in.jsonl", "out.jsonl", prompt="Summarise: {text}", system="S", max_tokens=50, model="m",
        base_url="http://h/v1", api_key_env="K", rpm=500, tpm=200_000, concurrency=(2, 40), retries=3,
        timeout=30, patience=60, price=(0.15, 0.6), retry_refused=True,
    )  # fmt: skip
    assert main([*BATCH, "--concurrency", "7", "--quiet"]) == 0
    assert job.options is not None
    assert job.options.concurrency == (7, 7)


@pytest.mark.parametrize(
    "argv",
    [
        ["batch", "in.jsonl"],
        ["batch", "-o", "out.jsonl"],
        [*BATCH, "--concurrency", "8:4"],
        [*BATCH, "--concurrency", "0:4"],
        [*BATCH, "--rpm", "0"],
        [*BATCH, "--rpm", "many"],
        [*BATCH, "--tpm", "inf"],
        [*BATCH, "--price", "1"],
        [*BATCH, "--price", "1:x"],
        [*BATCH, "--retries", "-1"],
        [*BATCH, "--timeout", "-1"],
        [*BATCH, "--prompt", "{text}"],
        [*BATCH, "--system", "S"],
        ["batch", "in.csv", "-o", "out.jsonl"],
        [*BATCH, "--base-url", ""],
        [*BATCH, "--model", ""],
        [*BATCH, "--model", "m", "--prompt", ""],
        [*BATCH, "--api-key-env", ""],
        [*BATCH, "--api-key", "sk-canary"],
        [*BATCH, "--api-key=sk-canary"],
    ],
)
def test_wrong_usage_is_code_2(
    argv: list[str], job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    assert "sk-canary" not in said.err
    assert said.err.startswith(("tournant: ", "usage: "))
    assert job.options is None


def test_the_outcome_goes_to_standard_output_and_the_progress_to_standard_error(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(BATCH) == 0
    said = capsys.readouterr()
    assert said.out == "3 of 3 requests answered, 1.2 s.\n"
    assert said.err.startswith("1:00  204 of 1,000 requests (20%)")
    assert "32 in flight, requests 480/min (configured); 32 of 64 at once" in said.err


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (BatchOutcome(3, 1, 2), 0),
        (BatchOutcome(3, 2, failed={"timeout": 1}), 3),
        (BatchOutcome(3, 2, refused_before=1), 3),
        (BatchOutcome(3, 3, bad=(BadLine(4, "it is not JSON"),), bad_count=1), 3),
    ],
)
def test_the_code_is_3_where_not_all_is_answered(
    job: Job, outcome: BatchOutcome, code: int
) -> None:
    job.outcome = outcome
    assert main([*BATCH, "--quiet"]) == code


def test_what_went_wrong_is_said_even_when_quiet(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    job.outcome = BatchOutcome(
        3, 2, failed={"timeout": 1}, examples={"timeout": "'a': \x1b[31mlate"}
    )
    assert main([*BATCH, "--quiet"]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "1 request(s) failed:",
        "  timeout: 1, first 'a': \ufffd[31mlate",
        "Run it again to ask again those that may succeed.",
    ]


def test_json_is_the_only_thing_on_standard_output(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    job.outcome = BatchOutcome(3, 2, failed={"timeout": 1}, bad=(BadLine(4, "no"),), bad_count=1)
    assert main([*BATCH, "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["answered"], found["failed"], found["interrupted"]) == (2, {"timeout": 1}, False)
    assert found["bad"] == [{"line": 4, "reason": "no"}]
    assert found["report"] is None


def test_a_batch_that_was_stopped_is_code_1(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.error = BatchStopped("the key is refused")
    assert main([*BATCH, "--quiet"]) == 1
    assert capsys.readouterr().err == "tournant: the key is refused\n"


def test_signals_drain_and_then_cancel(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.during = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert main([*BATCH, "--quiet"]) == 130
    assert job.asked == ["drain"]

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    job.during, job.error, job.asked = twice, BatchStopped("cut off"), []
    assert main([*BATCH, "--quiet"]) == 130
    assert job.asked == ["drain", "cancel"]
    assert "cut off" not in capsys.readouterr().err


# What is shown


def test_the_notes_say_limits_tokens_cost_and_trouble() -> None:
    assert notes(SNAPSHOT, 90_000.4) == [
        "32 in flight, requests 480/min (configured); 32 of 64 at once",
        "90,000 tokens/min, 90,000 so far, cost 1.50",
    ]
    bare = BatchSnapshot(RUN, 0, 0, None, "no limit known", "the provider does not answer")
    assert notes(bare, 0) == ["0 in flight, no limit known", "the provider does not answer"]


def test_money_has_as_many_digits_as_tell_something() -> None:
    assert [money(amount) for amount in (0, 0.00123, 0.5, 1, 1234.5)] == [
        "0.0000",
        "0.0012",
        "0.5000",
        "1.00",
        "1,234.50",
    ]


def test_lines_come_seldom_and_the_last_in_any_case() -> None:
    stream = io.StringIO()
    states = iter([1.0, 2.0, 6.0, 7.0, 12.0, 12.5, 13.0])

    def snapshot() -> BatchSnapshot:
        run = RunSnapshot(next(states), 1_000, 300, 200, 4, 0, 0)
        return BatchSnapshot(run, 1, 100, None, "no limit known")

    display = BatchDisplay(snapshot, stream=stream, style="lines")
    for _ in range(6):
        display.tick()
    display.tick(last=True)
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["0:06", "0:12", "0:13"]


def test_a_terminal_shows_a_live_table() -> None:
    stream = io.StringIO()
    display = BatchDisplay(lambda: SNAPSHOT, stream=stream, style="live")
    with display:
        display.tick()
        display.say("a message")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "requests 204/1,000" in shown
    assert "32 of 64 at once" in shown
    assert "cost 1.50" in shown
    assert "a message" in shown


def test_before_anything_is_asked_it_says_that_it_starts() -> None:
    stream = io.StringIO()
    with BatchDisplay(lambda: None, stream=stream, style="live"):
        pass
    assert "starting" in stream.getvalue()


def test_the_summary_counts_failures_by_kind() -> None:
    outcome = BatchOutcome(
        1_000, 600, 200, {"timeout": 2, "bad_request": 1}, {"timeout": "'a': late", "bad_request": "'b': no"},
        refused_before=5, bad=tuple(BadLine(n, "it is not JSON") for n in range(1, 26)), bad_count=25,
        prompt_tokens=1_000, completion_tokens=500, cost=0.25, seconds=12.34,
    )  # fmt: skip
    said = problems(outcome)
    assert said[0] == "25 line(s) of the input are no requests:"
    assert said[1] == "  line 1: it is not JSON"
    assert said[21] == "  and 5 more"
    assert said[22:] == [
        "3 request(s) failed:",
        "  timeout: 2, first 'a': late",
        "  bad_request: 1, first 'b': no",
        "Run it again to ask again those that may succeed.",
        "5 request(s) had been refused in an earlier run.",
        "What the provider refuses is not asked again: mend these requests, and run with --retry-failed.",
    ]
    assert problems(BatchOutcome(1, 1)) == []
    assert totals(outcome, interrupted=True).endswith("12.3 s.")  # the signal came too late to stop
    assert totals(replace(outcome, unfinished=7), interrupted=True) == (
        "800 of 1,000 requests answered, 200 of them before, 3 failed, 1,500 tokens, cost 0.2500, 12.3 s, "
        "stopped before the end; run it again to go on."
    )


def test_only_refusals_need_no_second_run() -> None:
    said = problems(BatchOutcome(2, 1, failed={"bad_request": 1}))
    assert "Run it again to ask again those that may succeed." not in said
    assert "--retry-failed" in said[-1]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Client(base_url='ftp://x'): give an address", "--base-url 'ftp://x': give an address"),
        ("allow more with Timeouts(total=...)", "allow more with --timeout"),
        ("try again (retry=tn.Retry(on=llm.TRANSIENT))", "try again (--retries)"),
        ("give api_key_env='NAME', the variable", "give --api-key-env NAME, the variable"),
        ("check base_url and the model's name", "check --base-url and the model's name"),
        ("base_url='': give a text", "--base-url='': give a text"),
    ],
)
def test_messages_name_the_options_of_the_command_line(
    job: Job, capsys: pytest.CaptureFixture[str], said: str, told: str
) -> None:
    for error, code in ((BatchStopped(said), 1), (InvalidBatch(said), 2)):
        job.error = error
        assert main([*BATCH, "--quiet"]) == code
        assert capsys.readouterr().err == f"tournant: {told}\n"
    job.error, job.outcome = None, BatchOutcome(1, failed={"x": 1}, examples={"x": said})
    assert main([*BATCH, "--quiet"]) == 3
    assert told in capsys.readouterr().err


# With the real job


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--json"], 0), (["--quiet"], 0)])
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_without_an_output_the_work_is_done_in_silence(
    tmp_path: Path, options: list[str], code: int, closed: str
) -> None:
    with serving(MockSettings()) as server:
        done = in_a_shell(tmp_path, server.url, closed, options)
    assert (done.returncode, done.stdout, done.stderr.count("Traceback")) == (code, "", 0)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("options", "to", "code"),
    [([], ">/dev/full", 1), (["--json"], ">/dev/full", 1), ([], "2>/dev/full", 0)],
)
def test_an_output_that_is_full_is_said_in_one_line(
    tmp_path: Path, options: list[str], to: str, code: int
) -> None:
    with serving(MockSettings()) as server:
        done = in_a_shell(tmp_path, server.url, to, options)
    assert done.returncode == code, done.stderr
    if code:
        assert done.stderr.splitlines()[-1].startswith(
            "tournant: the output can't be written: No space"
        )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


def in_a_shell(
    tmp_path: Path, url: str, to: str, options: list[str]
) -> subprocess.CompletedProcess[str]:
    """Run the command with its output redirected."""
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "{n}"}}\n' for n in range(3)))
    argv = [sys.executable, "-m", "tournant", "batch", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]  # fmt: skip
    argv += ["--base-url", url, "--model", "m", "--prompt", "{text}", *options]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {to}', "sh", *argv],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_prompts_of_a_table_are_answered_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, results = tmp_path / "in.csv", tmp_path / "out.jsonl"
    table.write_text("id,text\nfirst,a sole\nsecond\nthird,two soups\n")
    with serving(MockSettings()) as server:
        argv = ["batch", str(table), "-o", str(results), "--base-url", server.url, "--model", "m"]
        assert main([*argv, "--prompt", "Cook: {text}", "--max-tokens", "8"]) == 3
    said = capsys.readouterr()
    assert said.out.startswith("2 of 2 requests answered, ")
    assert "line 3: it has 1 cells" in said.err
    found = [json.loads(line) for line in results.read_text().splitlines()]
    assert {line["custom_id"] for line in found} == {"first", "third"}


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from tournant.cli import main; main(['batch', '--help']); "
        "heavy = {'aiohttp', 'msgspec', 'rich', 'asyncio', 'tournant.llm.batch.job'} & set(sys.modules); "
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tournant.llm.batch import job as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setattr(tournant.llm.batch, "run_batch", module.run_batch, raising=False)
    assert main([*BATCH, "--quiet"]) == 1
    assert "pip install 'tournant[llm]'" in capsys.readouterr().err


def test_every_option_is_in_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "batch.md"
    text = page.read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        make_parser().parse_args(["batch", "--help"])
    options = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out))
    assert {option for option in options if f"`{option}" not in text} <= {"-h", "--help"}


def test_the_stand_in_is_like_the_job() -> None:
    assert isinstance(tournant.llm.batch, types.ModuleType)
    import inspect

    from tournant.llm.batch.job import BatchRun, run_batch

    assert list(inspect.signature(Job().run_batch).parameters) == list(
        inspect.signature(run_batch).parameters
    )
    assert all(hasattr(BatchRun, name) for name in ("snapshot", "drain", "cancel"))
