"""Every pitfall's programs, run once for real; several at once, as most of them sleep, but not beside what counts cores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kitchen_commands import alive, run_kitchen

from tournant.kitchen import PITFALLS, KitchenError, Trial, attempt, demonstrate
from tournant.kitchen import pitfall as table
from tournant.kitchen import trial as trial_room
from tournant.kitchen.show import trial_text
from tournant.kitchen.trial import Demonstration, silence
from tournant.pool.slots import usable_cores

NAMES = [
    "blocking-call", "sync-over-async", "fire-and-forget", "forgotten-await", "threads-and-the-gil", "unbounded-gather",
    "collected-task", "lock-while-blocking",
]  # fmt: skip


@pytest.fixture(scope="module")
def shown() -> dict[str, Demonstration]:
    alone = {name: demonstrate(pitfall) for name, pitfall in PITFALLS.items() if pitfall.cores}
    others = {name: pitfall for name, pitfall in PITFALLS.items() if not pitfall.cores}
    with ThreadPoolExecutor(4) as pool:
        return alone | dict(zip(others, pool.map(demonstrate, others.values()), strict=True))


def test_the_classics_are_all_there() -> None:
    assert list(PITFALLS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_program_and_its_mend_differ_in_little_and_fit_the_projector(name: str) -> None:
    pitfall = PITFALLS[name]
    for program in (pitfall.program, pitfall.mended):
        lines = program.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith('"""')
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 75, "it is shown with the numbers of its lines"
    wrong, right = (set(p.read_text().splitlines()) for p in (pitfall.program, pitfall.mended))
    assert len(right - wrong) <= 16


@pytest.mark.parametrize("name", NAMES)
def test_it_hangs_or_ends_as_it_should(name: str, shown: dict[str, Demonstration]) -> None:
    bare = shown[name].bare
    assert bare.hung == (name in ("sync-over-async", "lock-while-blocking"))
    if name == "unbounded-gather":
        assert bare.code == 1
        assert bare.said[-1] == "MemoryError"
        assert shown[name].guarded.code == 1, "the watchdog's thread must be able to end, too"
    elif not bare.hung:
        assert bare.code == 0, "a mistake that fails by itself needs no guard"


def test_python_alone_says_little_or_the_wrong_thing(shown: dict[str, Demonstration]) -> None:
    said = {name: "\n".join(one.bare.said) for name, one in shown.items()}
    assert said["sync-over-async"] == ""
    assert said["lock-while-blocking"] == "Ann has the knife"
    assert said["forgotten-await"].endswith("wine for Ann, 42\nwine for Tim, 9")
    assert said["fire-and-forget"].endswith("all orders are written down\nin the book: ['fish']")
    assert said["collected-task"].endswith("waiting for the bread")
    assert "the bread is done" not in said["collected-task"]
    assert said["blocking-call"].startswith("a glass of water takes 0.1 s; this one took ")


@pytest.mark.parametrize("name", NAMES)
def test_the_guards_name_the_line(name: str, shown: dict[str, Demonstration]) -> None:
    one = shown[name]
    assert one.problems == (), "\n".join(one.guarded.said)
    if one.note:  # the machine had no second core to give, which is said
        assert one.pitfall.cores
        assert one.guarded.busy or usable_cores() == 1
    else:
        assert set(one.named_lines) <= set(one.pitfall.lines), one.guarded.said
        assert one.named_lines


@pytest.mark.parametrize("name", NAMES)
def test_the_mended_program_works(name: str, shown: dict[str, Demonstration]) -> None:
    mended = shown[name].mended
    assert mended.code == 0, mended.said
    said = "\n".join(mended.said)
    expected = {
        "sync-over-async": "that makes 29",
        "fire-and-forget": "soup: there is no soup today\nin the book: ['fish', 'salad']",
        "forgotten-await": "wine for Ann, 42\njuice for Tim, 9",
        "unbounded-gather": "800000000 bytes",
        "collected-task": "waiting for the bread\nthe bread is done",
        "lock-while-blocking": "Ann has the knife\nAnn puts it back\nBen has the knife\nBen puts it back",
    }
    if name in expected:
        assert said == expected[name]
    else:
        assert len(mended.said) == 1


def test_the_guards_find_nothing_in_the_mended_programs() -> None:
    mended = [pitfall.mended for pitfall in PITFALLS.values()]
    with ThreadPoolExecutor(4) as pool:
        for program, trial in zip(
            mended, pool.map(lambda path: attempt(path, guarded=True), mended), strict=True
        ):
            assert trial.code == 0, (program, trial.said)
            assert f"{program.name}:" not in "\n".join(trial.said), trial.said


def test_nobody_sees_where_this_machine_keeps_its_files(shown: dict[str, Demonstration]) -> None:
    for one in shown.values():
        for trial in (one.bare, one.guarded, one.mended):
            for line in trial.said:
                assert str(one.pitfall.program.parent) not in line
                assert os.path.dirname(os.__file__) not in line


# Running programs.


def script(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_text(textwrap.dedent(text))
    return path


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)
        print("hanging")
        time.sleep(60)
        """,
    )
    trial = attempt(path, hangs=True)
    assert trial.hung
    assert trial.end.startswith("hung, and was ended after ")
    assert trial.said[-1] == "hanging"
    deadline = time.monotonic() + 60
    while alive(int(trial.said[0])):
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.01)


def test_a_program_that_computes_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_room, "HANGS", 0.4)
    path = script(
        tmp_path,
        """
        import time
        print("begins")
        while time.process_time() < 0.8:
            pass
        print("ends")
        """,
    )
    trial = attempt(path, hangs=True)
    assert (trial.code, trial.said) == (0, ("begins", "ends"))


def test_a_program_that_takes_too_long_is_ended_whatever_it_does(tmp_path: Path) -> None:
    trial = attempt(script(tmp_path, "while True: pass"), timeout=0.5)
    assert trial.hung
    closed = attempt(script(tmp_path, "import os, time; os.close(1); os.close(2); time.sleep(0.3)"))
    assert (closed.code, closed.said) == (0, ())


def test_how_a_program_ended_is_told(tmp_path: Path) -> None:
    ended = attempt(
        script(tmp_path, "import sys; print('a'); print('b', file=sys.stderr); sys.exit(3)")
    )
    assert (ended.code, ended.said) == (3, ("a", "b"))
    assert ended.end.startswith("exit code 3 after ")
    killed = attempt(script(tmp_path, "import os; os.kill(os.getpid(), 9)"))
    assert killed.end.startswith("killed by signal 9 after ")
    assert not killed.hung


def test_a_program_sees_nothing_of_the_callers_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    path = script(
        tmp_path,
        """
        import sys, warnings
        warnings.warn("harmless")
        print(sys.stdin.read() == "", sys.flags.dev_mode)
        """,
    )
    trial = attempt(path)
    assert trial.code == 0
    assert trial.said[-1] == "True False"


def test_what_went_wrong_with_a_demonstration_is_said() -> None:
    pitfall = PITFALLS["blocking-call"]
    good = Trial(0, (f"{pitfall.program.name}:{pitfall.lines[0]}: the loop was blocked",), 0.1)
    assert Demonstration(pitfall, good, good, good).problems == ()
    hung, failed = Trial(None, (), 2.0), Trial(1, (), 0.1)
    assert Demonstration(pitfall, hung, good, good).problems == ("the program hung",)
    assert Demonstration(pitfall, good, failed, good).problems == (
        "the guards did not name the line",
    )
    assert (
        "the mended program failed: exit code 1"
        in Demonstration(pitfall, good, good, failed).problems[0]
    )
    hanging = PITFALLS["sync-over-async"]
    assert "the program did not hang" in Demonstration(hanging, good, good, good).problems


def test_silence_of_the_guards_is_explained_where_threads_have_no_core() -> None:
    pitfall, quiet = PITFALLS["threads-and-the-gil"], Trial(0, ("tournant watch: 0 findings",), 1.0)
    busy = Trial(0, quiet.said, 1.0, 1.8, True)
    fine = Trial(0, (), 0.1)
    assert "other programs left no core for a second thread: 1.8 " in silence(pitfall, busy)
    assert "1.8 cores" in trial_text(pitfall, "guarded", busy, 80)
    shown = Demonstration(pitfall, fine, busy, fine)
    assert shown.problems == ()
    assert shown.as_dict()["note"] == shown.note == silence(pitfall, busy)
    told = Trial(0, (f"tournant watch: {pitfall.program.name}:{pitfall.lines[0]}",), 1.0, 1.8, True)
    assert Demonstration(pitfall, fine, told, fine).note == ""
    assert silence(PITFALLS["blocking-call"], busy) == "", "that one needs no core"
    if usable_cores() > 1:
        assert Demonstration(pitfall, fine, quiet, fine).problems
    for name in ("bare", "mended"):
        assert "The times are not comparable: 1.8 cores" in trial_text(pitfall, name, busy, 80)
        assert "comparable" not in trial_text(pitfall, name, quiet, 80)


# The command.


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_kitchen("pitfalls", "--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == NAMES
    assert run_kitchen("pitfalls", "--list", "forgotten-await", "blocking-call") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "blocking-call",
        "forgotten-await",
    ]


def test_they_are_listed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_kitchen("pitfalls", "--list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["pitfalls"]
    assert [one["name"] for one in listed] == NAMES
    assert all(Path(one["program"]).exists() and one["lines"] for one in listed)


def test_options_of_the_kitchen_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--html=page.html", "--only=meal", "--waits=2"):
        assert run_kitchen(option, "pitfalls", "forgotten-await") == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert "are for the kitchen" in said.err


def test_an_unknown_pitfall_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_kitchen("pitfalls", "burnt-toast") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "there is no pitfall 'burnt-toast'; choose from blocking-call, " in said.err
    with pytest.raises(KitchenError):
        table.choose(["burnt-toast"])


def test_a_pitfall_is_shown_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_kitchen("pitfalls", "forgotten-await", "--source") == 0
    said = capsys.readouterr()
    text = said.out
    assert text.startswith("\nFORGOTTEN-AWAIT: a coroutine that nobody awaits\n")
    line = PITFALLS["forgotten-await"].lines[0]
    parts = (
        f" {line}          if is_of_age(guest):",
        "          if await is_of_age(guest):",
        "Python alone, forgotten_await.py: exit code 0",
        "  | wine for Tim, 9",
        "under the guards, tournant watch: ",
        "mended, forgotten_await_mended.py: exit code 0",
        "  | juice for Tim, 9",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 80
    assert said.err == ""


def test_pitfalls_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_kitchen("pitfalls", "forgotten-await", "--json") == 0
    (one,) = json.loads(capsys.readouterr().out)["pitfalls"]
    assert one["name"] == "forgotten-await"
    assert one["bare"]["code"] == 0
    assert one["mended"]["said"] == ["wine for Ann, 42", "juice for Tim, 9"]
    assert one["problems"] == []


def test_a_pitfall_that_does_not_hold_fails_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tournant.kitchen.trial.attempt", lambda *args, **options: Trial(1, ("no",), 0.1)
    )
    assert run_kitchen("pitfalls", "forgotten-await") == 1
    assert capsys.readouterr().err.startswith("tournant: forgotten-await: the guards did not name")


def test_much_output_is_cut_at_its_beginning() -> None:
    trial = Trial(1, tuple(f"line {n}" for n in range(30)), 0.1)
    text = trial_text(PITFALLS["blocking-call"], "mended", trial, 80)
    assert "  | ... 24 lines\n  | line 24\n" in text
    assert "  | line 29\n" in text


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_program_ends_with_whoever_runs_it(tmp_path: Path, how: signal.Signals) -> None:
    """The program has a session of its own, so that the terminal's Ctrl-C does not reach it."""
    note = tmp_path / "pids"
    path = script(
        tmp_path,
        f"""
        import os, pathlib, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path({str(note)!r}).write_text(f"{{os.getpid()}} {{child.pid}}\\n")
        time.sleep(600)
        """,
    )
    caller = "import pathlib, sys; from tournant.kitchen import attempt; attempt(pathlib.Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", caller, str(path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (note.exists() and note.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    process.wait(60)
    for pid in note.read_text().split():
        while alive(int(pid)):
            assert time.monotonic() < deadline + 60, "the program lives on"
            time.sleep(0.01)
