from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import tournant
from tournant.cli import main
from tournant.errors import LedgerError, PipelineFailed, TournantError
from tournant.ingest.errors import IndexMissing, InvalidOption


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def fails_with(job: Any, error: BaseException) -> int:
    job.during = raising(error)
    return main(["ingest", "docs", "--index", "i", "--quiet"])


@pytest.mark.parametrize("command", [[], ["ingest"], ["search"], ["status"]])
def test_help_goes_to_standard_output(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--help"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("usage: tournant")
    assert said.err == ""


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tournant {tournant.__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["cook"],
        ["ingest", "docs"],
        ["ingest", "--index", "i"],
        ["ingest", "docs", "--index", "i", "--chunk-size", "0"],
        ["ingest", "docs", "--index", "i", "--max-file-size", "big"],
        ["search", "--index", "i"],
        ["search", "word", "--index", "i", "--mode", "magic"],
        ["search", "word", "--index", "i", "-k", "-3"],
        ["status"],
    ],
)
def test_wrong_usage_is_2_with_a_word_on_standard_error(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "error:" in said.err


def test_an_error_of_ours_is_one_clear_message(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails_with(job, LedgerError("The ledger 'x' is in use: wait.")) == 1
    assert capsys.readouterr().err == "tournant: The ledger 'x' is in use: wait.\n"


def test_a_message_cannot_write_on_the_terminal_what_it_wants(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails_with(job, TournantError("no \x1b[2J\nfile caf\udce9")) == 1
    assert capsys.readouterr().err == "tournant: no \\e[2J file caf\\xe9\n"


def test_an_option_that_the_job_refuses_is_wrong_usage(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails_with(job, InvalidOption("no embedder 'x'; use 'static'")) == 2
    assert "no embedder 'x'" in capsys.readouterr().err


def test_a_group_of_errors_shows_the_first_of_them(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ValueError("bad page")
    first.add_note("in stage 'parse', input 'a.pdf'")
    rest: list[Exception] = [OSError(f"number {number}") for number in range(9)]
    nested = ExceptionGroup("inner", rest)
    assert fails_with(job, PipelineFailed("10 items failed", [first, nested])) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "tournant: 10 items failed",
        "  ValueError: bad page (in stage 'parse', input 'a.pdf')",
        "  OSError: number 0",
    ]
    assert lines[-1] == "  and 5 more"
    assert len(lines) == 7


@pytest.mark.parametrize("how", ["option before", "option after", "environment"])
def test_the_traceback_is_shown_when_asked_for(
    job: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    job.during = raising(IndexMissing("i", "there is none"))
    argv = ["ingest", "docs", "--index", "i", "--quiet"]
    if how == "environment":
        monkeypatch.setenv("TOURNANT_TRACEBACK", "1")
    elif how == "option before":
        argv.insert(0, "--traceback")
    else:
        argv.append("--traceback")
    assert main(argv) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert "IndexMissing: index 'i': there is none" in said


def test_a_bug_is_not_hidden(job: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        fails_with(job, ZeroDivisionError())


def test_ctrl_c_outside_a_run_is_130(job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails_with(job, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


# The real program


def program(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tournant", *argv],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_python_m_tournant_is_the_program() -> None:
    assert program("--version").stdout == f"tournant {tournant.__version__}\n"
    assert program("ingest").returncode == 2


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tournant.cli import main; main(['--help']);"
        "heavy = {'asyncio', 'numpy', 'lancedb', 'pyarrow', 'rich', 'sqlite3', 'multiprocessing'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


LEAVE = """
import sys, types
from tournant.ingest.indexes.base import Hit
job = types.ModuleType("tournant.ingest.job")
hit = Hit("a.txt", 0, 0, 9, "word " * 40_000, 0.5, "", "text/plain")
job.search = lambda *_, **__: [hit] * 20
sys.modules["tournant.ingest.job"] = job
from tournant.cli import main
sys.exit(main(["search", "word", "--index", "i", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("words", [4, 40_000])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_leaves_early_is_no_error_to_shout_about(form: list[str], words: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    # Buffered, as it is for most: a short output then meets the closed pipe only at the very end.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", LEAVE.replace("40_000", str(words)), *form],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=env,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_of_the_run_itself_is_not_taken_for_it(job: Any) -> None:
    with pytest.raises(BrokenPipeError):
        fails_with(job, BrokenPipeError())


def test_an_ascii_terminal_shows_every_name() -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    code = (
        LEAVE.replace('"a.txt"', '"caf\\u00e9\\udce9"').replace("* 40_000", "").replace("* 20", "")
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env
    )
    assert done.stderr == ""
    assert done.stdout.startswith("1. $'caf\\xe9\\xe9'  0.500\n")
