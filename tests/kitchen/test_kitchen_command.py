from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kitchen_commands import kitchen_parser, run_kitchen

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
    assert "concurrent helped: " in text
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
    with pytest.raises(KitchenError, match="there is no folder"):
        run_kitchen("--html", str(tmp_path / "none" / "page.html"))
    with pytest.raises(KitchenError, match="it is a folder"):
        run_kitchen("--html", str(tmp_path))
    assert capsys.readouterr().out == ""


def test_a_page_that_turns_out_to_be_unwritable_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(KitchenError, match=r"can't be written: .*; name another file"):
        run_kitchen("--waits=0", "--only=waiting,threads", "--html", str(tmp_path / ("x" * 300)))


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
