"""``--trace FILE``: written however the run ended, refused before it begins where it could not be written."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import tournant as tn
from tournant.cli import main
from tournant.cli.traces import TraceFile, TraceRefused
from tournant.errors import LedgerError

trace = pytest.importorskip("tournant.observe.trace")
pytest.importorskip("tournant.observe.timeline")

INGEST = ["ingest", "docs", "--index", "i", "--trace"]


def same(value: Any) -> Any:
    return value


@pytest.fixture(scope="module")
def report() -> tn.Report:
    return tn.Pipeline([f"file-{n}" for n in range(5)]).map(same, on="loop").run()


@pytest.fixture
def ran(job: Any, report: tn.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The job, with a run that has ended behind it, in a folder of its own."""
    job.handle.report = report
    monkeypatch.chdir(tmp_path)
    return job


def test_a_trace_is_written_and_the_last_line_says_how_to_open_it(
    ran: Any, report: tn.Report, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*INGEST, "run.json"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 documents in 1.2 s, 40 chunks, 1 unchanged, 1 removed.",
        "Trace: run.json ('tournant trace run.json', or https://ui.perfetto.dev, shows it).",
    ]
    loaded = trace.load_trace("run.json")
    assert len(loaded.slices) == len(report.recording.slices) == 5
    assert {span.key for span in loaded.inputs.values()} == {f"file-{n}" for n in range(5)}


def test_an_html_file_is_a_timeline(ran: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*INGEST, "run.HTML"]) == 0
    assert capsys.readouterr().out.endswith("\nTimeline: run.HTML (open it in a browser).\n")
    assert "<html" in Path("run.HTML").read_text(encoding="utf-8")[:200]


def test_json_keeps_standard_output_for_itself_and_quiet_says_nothing(
    ran: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*INGEST, "run.json", "--json"]) == 0
    said = capsys.readouterr()
    assert said.out.count("\n") == 1
    assert said.err.splitlines()[-1].startswith("Trace: run.json (")
    os.unlink("run.json")
    assert main([*INGEST, "run.json", "--quiet"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    assert trace.load_trace("run.json").slices


@pytest.mark.parametrize("times", [0, 1, 2])
def test_it_is_written_when_the_run_fails_or_is_interrupted(
    ran: Any, capsys: pytest.CaptureFixture[str], times: int
) -> None:
    def stopped() -> None:
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
        if times != 1:
            raise LedgerError("disk full")

    ran.during = stopped
    assert main([*INGEST, "run.json"]) == (130 if times else 1)
    assert trace.load_trace("run.json").slices
    assert capsys.readouterr().out.splitlines()[-1].startswith("Trace: run.json (")


def test_where_nothing_ran_nothing_is_written(ran: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ran.handle.report = None
    assert main([*INGEST, "run.json"]) == 0
    assert "No trace was written" in capsys.readouterr().err
    assert not os.path.exists("run.json")


@pytest.mark.parametrize(
    "name", ["nowhere/run.json", "folder", "", "x" * 300, "there.json/run.json"]
)
def test_what_could_not_be_written_is_refused_before_the_run(
    ran: Any, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    os.mkdir("folder")
    with open("there.json", "w", encoding="ascii"):
        pass
    assert main([*INGEST, name]) == 1
    assert f"--trace {name}" in capsys.readouterr().err
    assert ran.options is None


def test_recording_that_is_switched_off_is_refused(
    ran: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOURNANT_EVENTS", "0")
    assert main([*INGEST, "run.json"]) == 1
    assert "TOURNANT_EVENTS=0" in capsys.readouterr().err
    assert ran.options is None


def test_what_can_no_longer_be_written_is_said(
    ran: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkdir("there")

    def gone() -> None:
        os.rmdir("there")

    ran.during = gone
    assert main([*INGEST, "there/run.json"]) == 1
    said = capsys.readouterr()
    assert "can't be written to there/run.json: No such file or directory" in said.err
    assert said.out, "the outcome was told first"

    def gone_and_failed() -> None:
        gone()
        raise LedgerError("disk full")

    os.mkdir("there")
    ran.during = gone_and_failed
    assert main([*INGEST, "there/run.json"]) == 1
    said = capsys.readouterr()
    assert "there/run.json" in said.err
    assert said.err.endswith("tournant: disk full\n")


def test_without_the_option_nothing_is_looked_at(ran: Any) -> None:
    del ran.handle.report
    assert main(INGEST[:-1]) == 0


def test_what_was_overwritten_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOURNANT_EVENTS", "10")
    report = tn.Pipeline(range(100)).map(same, on="loop").run()
    with TraceFile(str(tmp_path / "run.json"), lambda: report):
        pass
    assert "lacks the oldest" in capsys.readouterr().err


def test_a_batch_writes_one_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tournant.llm.mock import MockSettings, serving

    requests = tmp_path / "in.csv"
    requests.write_text("word\n" + "\n".join("abcdefgh"), encoding="utf-8")
    out = tmp_path / "run.json"
    with serving(MockSettings()) as server:
        code = main(
            ["batch", str(requests), "-o", str(tmp_path / "out.jsonl"), "--prompt", "Say {word}", "--model", "m",
             "--base-url", server.url, "--trace", str(out)]
        )  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.err
    assert said.out.splitlines()[-1].startswith("Trace: ")
    loaded = trace.load_trace(out)
    assert len(loaded.inputs) == 8
    assert {span.outcome for span in loaded.inputs.values()} == {"done"}
    # Nothing is left to do: there is no run, and so no trace.
    os.unlink(out)
    with serving(MockSettings()) as server:
        again = main(
            ["batch", str(requests), "-o", str(tmp_path / "out.jsonl"), "--prompt", "Say {word}", "--model", "m",
             "--base-url", server.url, "--trace", str(out)]
        )  # fmt: skip
    assert again == 0
    assert not out.exists()


def test_the_error_is_one_of_ours() -> None:
    with pytest.raises(TraceRefused), TraceFile("/nowhere/at/all.json", lambda: None):
        sys.exit("not reached")
