from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kitchen_commands import alive, kitchen_parser, run_kitchen

from tournant.cli import kitchen as command
from tournant.kitchen import WAYS, WORKS, KitchenError

FIGURES = re.compile(r"^(\w+) +\d+\.\d\d s   at once \d+ +cores \d+\.\d\d$", re.MULTILINE)


def test_the_command_line_knows_the_works_and_ways() -> None:
    assert tuple(WORKS) == command.WORKS
    assert tuple(WAYS) == command.WAYS


def test_the_command_line_loads_no_kitchen_before_it_runs() -> None:
    program = (
        "import sys, argparse; from tournant.cli import kitchen; "
        "print(*(name for name in sys.modules if name.startswith('tournant.kitchen')), 'asyncio' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["False"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kitchen") / "kitchen.html"


def test_it_shows_each_way_with_its_time_its_lanes_and_why(
    capsys: pytest.CaptureFixture[str], page: Path
) -> None:
    assert run_kitchen("--waits", "0.3", "--only", "waiting", "--html", str(page)) == 0
    said = capsys.readouterr()
    text = said.out
    assert text.startswith("The kitchen: 6 orders, ")
    assert "WAITING: a database query and a file upload" in text
    assert FIGURES.findall(text) == list(WAYS)
    assert text.count("  who: ") == text.count("  why: ") == 5
    assert "task order 6" in text
    assert "loop: upload" in text
    assert text.index("why: One step at a time") < text.index("Seconds, and beneath them")
    # On a busy machine the waits get longer, and that is said instead.
    assert ("concurrent helped: " in text) != ("not comparable, as the machine was busy" in text)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert said.err == f"The timelines are in {page}\n"


def test_the_timelines_are_in_one_page(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert "The kitchen" in html
    for way in WAYS:
        assert f"waiting, {way}" in html


def test_only_what_was_asked_for_is_cooked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_kitchen("--waits", "0", "--only", "waiting, threads", "--only=hybrid") == 0
    text = capsys.readouterr().out
    assert FIGURES.findall(text) == ["threads", "hybrid"]
    assert "one after the other" not in text, "nobody measured that"
    assert "helped" not in text


def test_json_is_one_document_with_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_kitchen("--waits=0.1", "--only=waiting,synchronous,concurrent", "--json") == 0
    said = capsys.readouterr()
    assert said.err == ""
    document = json.loads(said.out)
    assert document["orders"] == 6
    assert document["seconds_per_answer"] == pytest.approx(0.01)
    assert [one["way"] for one in document["results"]] == ["synchronous", "concurrent"]
    for one in document["results"]:
        assert len(one["steps"]) == 12
        for step in one["steps"]:
            assert 0 <= step["began"] <= step["ended"] <= one["seconds"]
    assert document["results"][1]["tasks"] == 6
    assert document["results"][0]["speedup"] == 1
    assert document["results"][1]["speedup"] > 0


@pytest.mark.parametrize(
    "argv",
    [
        ["--only", "dessert"],
        ["--only", "waiting,dessert"],
        ["--only", ",,"],
        ["--only", ""],
        ["--html", ""],
        ["--waits", "-1"],
        ["--waits", "nan"],
        ["--waits", "much"],
        ["dinner"],
    ],
)
def test_wrong_usage_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        kitchen_parser().parse_args(["kitchen", *argv])
    assert leaving.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_cooked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for page, reason in (
        (tmp_path / "none" / "page.html", "there is no folder"),
        (tmp_path, "it is a folder"),
        (tmp_path / ("x" * 300), "File name too long"),
        *([(Path("/proc/page.html"), "No such file")] if Path("/proc/self").exists() else []),
    ):
        with pytest.raises(KitchenError, match=f"can't be written: {reason}.*; name another file"):
            run_kitchen("--html", str(page))
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_cooked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(KitchenError, match="Permission denied"):
        run_kitchen("--html", str(tmp_path / "page.html"))
    assert capsys.readouterr().out == ""


def test_trying_a_page_leaves_what_was_there(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    command._check_file(str(page))
    assert list(tmp_path.iterdir()) == []
    page.write_text("kept")
    command._check_file(str(page))
    assert page.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [page]
    command._check_file(os.devnull)
    command._check_file(None)


def tournant(*argv: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tournant", *argv], stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize("moment", [0.1, 0.4, 0.7, 1.0])
def test_ctrl_c_ends_it_without_a_traceback(moment: float, tmp_path: Path) -> None:
    """At whatever moment it comes, as the children are started too; the terminal sends it to the whole group."""
    with open(tmp_path / "out", "w") as out:
        process = tournant(
            "kitchen", "--only=meal", "--waits=50", stdout=out, start_new_session=True
        )
        # Not before the command itself runs: what Python says to Ctrl-C while it imports is not ours.
        deadline = time.monotonic() + 60
        while not os.path.getsize(out.name):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(moment - 0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "Interrupted.\n")


def test_sigterm_ends_it_in_order(tmp_path: Path) -> None:
    """Else what the workers share is left, and a helper of Python's complains of it."""
    process = tournant("kitchen", "--only=meal,processes", "--waits=50", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    deadline = time.monotonic() + 60
    # Once the workers are there.
    while len(children(process.pid)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "")


def children(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        pytest.skip("the system does not say")


def test_its_processes_end_with_it_though_it_is_killed(tmp_path: Path) -> None:
    """The workers of a pool do not notice by themselves."""
    program = (
        "import os, time; from tournant.kitchen import staff\n"
        "pool = staff.hire(2)\nprint(*pool._processes, flush=True)\ntime.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(pids) == 2
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 60
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.01)


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    process = tournant("kitchen", "--only=waiting,threads", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == ""


def test_without_a_standard_output_it_cooks_all_the_same(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    command = (
        f'"$0" -m tournant kitchen --waits=0 --only=waiting,threads,processes --html {page} >&- <&-'
    )
    done = subprocess.run(
        ["sh", "-c", command, sys.executable], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, f"The timelines are in {page}\n")
    assert page.stat().st_size > 1000


def test_a_stream_without_letters_for_a_chart_gets_plain_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert run_kitchen("--waits=0.1", "--only=waiting,threads") == 0
    text = raw.getvalue().decode("ascii")
    assert "thread 2" in text
    assert "\\u" not in text


def test_a_terminal_gets_colour_unless_somebody_minds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert command._color(Terminal())
    assert not command._color(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not command._color(Terminal())
