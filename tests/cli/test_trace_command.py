from __future__ import annotations

import argparse
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tournant.cli import trace
from tournant.observe.recording import (
    Counter,
    InputSpan,
    Lane,
    Mark,
    Recording,
    Slice,
    Stage,
)
from tournant.observe.trace import save_trace

RECORDING = Recording(
    title="ingest of\n\x1b[2Jdocs",
    began=1_790_000_000.0,
    duration=10.0,
    cores=2,
    stages=(Stage("fetch", "loop"), Stage("parse", "processes")),
    lanes=(Lane("loop", "fetch"), Lane("process", "process 1", 7), Lane("process", "process 2", 8)),
    slices=tuple(
        sorted(
            [Slice(0, 0, n / 10, n / 10 + 0.1, (n,)) for n in range(50)]
            + [Slice(1 + n % 2, 1, n // 2 * 0.2, n // 2 * 0.2 + 0.19, (n,), 4) for n in range(100)]
            + [Slice(0, 0, 5.0, 5.5, (50,), 1, "failed")],
            key=lambda one: one.began,
        )
    ),
    inputs={
        n: InputSpan(f"docs/{n}\x1b.txt", n / 100, 9.9, "failed" if n == 50 else "done")
        for n in range(100)
    },
    counters=(
        Counter("queue: parse", "items", ((0.0, 9.0),)),
        Counter("limit: fetch", "calls", ((0.0, float("inf")),)),
    ),
    marks=(Mark("gc", 1.0, "collected", 1, 0.1), Mark("blocked", 2.0, "x", 0, 0.1)),
)


def main(*argv: str) -> int:
    """The command by itself, as the whole command line calls it."""
    parser = argparse.ArgumentParser(prog="tournant")
    common = argparse.ArgumentParser(add_help=False)
    trace.add_to(parser.add_subparsers(required=True), common)
    args = parser.parse_args(["trace", *argv])
    code: int = args.run(args)
    return code


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(save_trace(RECORDING, tmp_path / "run.json.gz"))


def test_it_prints_figures_chart_and_advice(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(file) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "ingest of \ufffd[2Jdocs, 10.0 s, 100 inputs (99 done, 1 failed)"
    assert lines[2].split()[:4] == ["stage", "on", "calls", "items"]
    assert any(line.startswith("process 1    │█") for line in lines)
    assert any(line.startswith("queue: parse │█") for line in lines)
    assert lines[-1] == "parse is the bottleneck at 95% of two cores: more cores help, more concurrency does not."  # fmt: skip
    assert all(len(line) <= 100 for line in lines)
    assert all(line.isprintable() for line in lines)
    assert said.err == ""


def test_one_stage_with_its_slowest_calls(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(file, "--stage", "fetch") == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "process 1" in line or "queue: parse" in line]
    assert [line for line in lines if line.startswith("limit: fetch")]
    at = lines.index("slowest of 51:")
    assert lines[at + 1].split() == ["0.5000", "s", "at", "5.000", "s,", "failed", "docs/50\ufffd.txt"]  # fmt: skip
    assert len(lines) == at + 11
    assert main(file, "--stage", "parse") == 0
    assert "s at     0.000 s, 4 items  docs/0" in capsys.readouterr().out


def test_json_is_one_document(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(file, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["bottleneck"], found["cores"]) == ("cores", "parse", 2)
    assert found["sentence"].startswith("parse is the bottleneck")
    assert [stage["name"] for stage in found["stages"]] == ["fetch", "parse"]
    assert found["marks"][0]["kind"] == "gc"
    assert "slowest" not in found
    assert main(file, "--json", "--stage", "fetch") == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in found["stages"]] == ["fetch"]
    assert found["slowest"][0]["outcome"] == "failed"


def test_html_is_the_timeline(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tournant.observe.timeline")
    monkeypatch.chdir(tmp_path)
    assert main(file, "--html", str(tmp_path / "run.html")) == 0
    assert (tmp_path / "run.html").read_text().lstrip()[:9].lower() == "<!doctype"
    assert capsys.readouterr().err == "Timeline written to run.html\n"
    assert main(file, "--html", str(tmp_path / "no" / "run.html")) == 2
    said = capsys.readouterr()
    assert (said.out, "can't be written: No such file or directory; give --html another place" in said.err) == ("", True)  # fmt: skip


def test_a_terminal_without_block_characters_gets_ascii(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(file) == 0
    out.flush()
    text = out.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert "process 1    |@" in text
    assert "\\u25" not in text


def test_a_terminal_gets_colour_unless_nobody_wants_it(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for variable, colour in ((None, True), ("NO_COLOR", False)):
        if variable:
            monkeypatch.setenv(variable, "1")
        out = Terminal()
        monkeypatch.setattr(sys, "stdout", out)
        assert main(file) == 0
        assert ("\x1b[33m" in out.getvalue()) == colour


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no trace "),
        (b"", "is empty, no trace; write one with report.save_trace(path)"),
        (b"\x7fELF\0\0", "is no trace: it isn't JSON"),
        (b'[{"ph": "X"}]', "is a trace that something else wrote: it opens in https://ui.perfetto"),
        (b'{"displayTimeUnit":"ms","otherData":{"tournant":1,', "is cut short or damaged"),
    ],
)
def test_a_file_that_is_no_trace_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, said: str
) -> None:
    path = tmp_path / "a\nb.json"
    if content is not None:
        path.write_bytes(content)
    assert main(str(path)) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert said in found.err
    assert found.err.startswith("tournant: ")
    assert found.err.count("\n") == 1


def test_a_folder_and_a_stage_that_is_not_there_are_wrong_usage(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(str(tmp_path)) == 2
    assert "can't be read: Is a directory" in capsys.readouterr().err
    assert main(file, "--stage", "x") == 2
    assert "--stage 'x': the trace has no such stage; its stages are 'fetch', 'parse'" in capsys.readouterr().err  # fmt: skip
    assert main("a\0b") == 2
    assert "can't be read" in capsys.readouterr().err


def test_without_anything_recorded_it_still_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_trace(Recording(), tmp_path / "a.json")
    assert main(str(path)) == 0
    assert "nothing was recorded" in capsys.readouterr().out


def test_the_trace_is_not_overwritten_by_its_own_timeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_trace(RECORDING, tmp_path / "run.json")
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    for name in ("run.json", "link"):
        assert main(str(path), "--html", str(tmp_path / name)) == 2
        assert "is the trace itself" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize("options", [[], ["--stage", "parse"], ["--json"]])
def test_without_a_standard_output_nothing_is_said_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    path = save_trace(RECORDING, tmp_path / "run.json")
    monkeypatch.setattr(sys, "stdout", None)  # as after `>&-`
    assert main(str(path), *options) == 0


def test_names_keep_their_letters_and_do_not_stretch_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = (Stage("fetch", "loop"), Stage("parse" * 100, "processes"))
    path = save_trace(replace(RECORDING, stages=stages, title="x" * 900), tmp_path / "run.json")
    assert main(str(path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 200
    assert lines[-1].startswith("parseparse")
