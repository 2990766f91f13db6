"""`watch`, `Loopwatch`, the command and the pytest plugin: what they leave as it was, and whom they tell."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from asyncio import base_events, runners

import pytest

import tournant as tn
from tournant.guards import patrol
from tournant.guards.loopwatch import Loopwatch

# The watchdog needs a core within the 0.4 s that these programs block for.
pytestmark = pytest.mark.alone

BLOCK = """
import asyncio, sys, time
async def main():
    time.sleep(0.4)  # here
asyncio.run(main())
print("ended", *sys.argv[1:])
sys.exit(3)
"""


@pytest.fixture(autouse=True, scope="module")
def small_heap():
    """A collection of all that the test suite has loaded may take as long as what is to be found here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def block():
    time.sleep(0.4)


async def blocking():
    await asyncio.sleep(0.06)
    block()
    await asyncio.sleep(0.06)


def test_everything_is_as_it_was_afterwards():
    before = (
        base_events.BaseEventLoop.run_forever,
        runners._cancel_all_tasks,
        runners.Runner._lazy_init,
        warnings._warn_unawaited_coroutine,
        sys.get_coroutine_origin_tracking_depth(),
        list(gc.callbacks),
    )
    with tn.watch(report=None):
        with tn.watch(report=None):
            asyncio.run(asyncio.sleep(0))
        assert before[0] is not base_events.BaseEventLoop.run_forever
        asyncio.run(asyncio.sleep(0))
    after = (
        base_events.BaseEventLoop.run_forever,
        runners._cancel_all_tasks,
        runners.Runner._lazy_init,
        warnings._warn_unawaited_coroutine,
        sys.get_coroutine_origin_tracking_depth(),
        list(gc.callbacks),
    )
    assert before == after


def test_the_watchdog_thread_is_gone_when_nobody_is_watched():
    with tn.watch(report=None):
        assert patrol.on_patrol()
    end = time.monotonic() + 20
    while patrol.on_patrol() and time.monotonic() < end:
        time.sleep(0.01)
    assert not patrol.on_patrol()


#: A program that is watched to its very end, and has no memory left when it ends; the end takes longer than the watchdog sleeps.
NO_MEMORY = """
import resource, time
import tournant as tn
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(0.3)
tn.watch(report=None).__enter__()
time.sleep(0.2)
import builtins
builtins.slow = Slow()
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size, size))
"""


def test_the_watchdog_thread_is_gone_before_the_interpreter_is():
    child = subprocess.run(
        [sys.executable, "-c", NO_MEMORY], capture_output=True, text=True, timeout=60
    )
    assert (child.returncode, child.stderr) == (0, "")


def test_watching_begins_after_the_end_too():
    program = (
        "import atexit, asyncio, tournant as tn\n"
        "def late():\n    with tn.watch():\n        asyncio.run(asyncio.sleep(0.01))\n    print('well')\n"
        "atexit.register(late)\nwith tn.watch():\n    pass\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (child.returncode, child.stdout, child.stderr) == (0, "well\n", "")


def test_inside_a_coroutine_the_running_loop_is_watched_and_then_no_more():
    async def main():
        with tn.watch(report=None) as guards:
            await blocking()
        await blocking()
        assert "call_exception_handler" not in vars(asyncio.get_running_loop())
        return guards

    (finding,) = asyncio.run(main()).findings
    assert (finding.kind, finding.function, finding.count) == ("blocked-loop", "block", 1)
    assert finding.file == __file__
    assert finding.verdict == "blocking call"


def test_a_block_that_lasts_until_the_end_of_the_with_is_counted():
    async def main():
        with tn.watch(report=None) as guards:
            block()
        return guards

    (finding,) = asyncio.run(main()).findings
    assert finding.function == "block"


def test_a_place_is_told_once_and_counted_every_time(caplog):
    async def main():
        for _ in range(3):
            await blocking()

    with caplog.at_level(logging.WARNING, "tournant.guards"), tn.watch() as guards:
        asyncio.run(main())
    (finding,) = guards.findings
    assert finding.count == 3
    (record,) = caplog.records
    assert "block (" in record.message


def test_a_program_that_handles_exceptions_itself_is_still_heard():
    said = []

    async def fail():
        raise ValueError("lost")

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        asyncio.create_task(fail())  # noqa: RUF006
        await asyncio.sleep(0.02)

    with tn.watch(report=None) as guards:
        asyncio.run(main())
    assert [finding.kind for finding in guards.findings] == ["lost-exception"]
    assert len(said) == 1


def test_a_coroutine_never_awaited_still_warns_as_it_does_without_us():
    async def forgotten():
        pass

    with (
        tn.watch(report=None) as guards,
        pytest.warns(RuntimeWarning, match="never awaited") as seen,
    ):
        forgotten()
    assert [finding.kind for finding in guards.findings] == ["never-awaited"]
    (warning,) = seen
    assert (warning.filename, "created at" in str(warning.message)) == (__file__, False)


def test_two_who_watch_one_loop_are_both_told():
    async def main():
        first, second = Loopwatch().start(), Loopwatch(threshold=10).start()
        third = Loopwatch().start()
        await blocking()
        third.stop()
        second.stop()
        first.stop()
        await asyncio.sleep(0)
        return first, second, third

    first, second, third = asyncio.run(main())
    assert len(first.findings) == len(third.findings) == 1
    assert second.findings == []


def test_a_run_tells_of_its_stage_and_others_on_its_loop_are_not_to_blame():
    async def guilty(value):
        if value == 1:
            block()
        return value

    async def innocent(value):
        await asyncio.sleep(0.01)
        return value

    async def main():
        return await asyncio.gather(
            tn.Pipeline(range(3)).map(guilty).arun(),
            tn.Pipeline(range(60)).map(innocent, concurrency=1).arun(),
        )

    bad, good = asyncio.run(main())
    (finding,) = bad.findings
    assert finding.stage == "guilty"
    assert finding.text in bad.warnings
    assert good.findings == ()
    assert bad.as_dict()["findings"][0]["line"] == finding.line


def test_guards_can_be_switched_off(monkeypatch):
    async def guilty(value):
        block()
        return value

    monkeypatch.setenv("TOURNANT_GUARDS", "0")
    assert tn.Pipeline(range(1)).map(guilty).run().findings == ()


def test_a_guard_that_fails_is_switched_off_and_the_others_go_on(caplog):
    class Broken:
        def look(self, tick):
            raise RuntimeError("broken")

        def hurry(self):
            return False

    seen = threading.Event()

    class Good:
        def look(self, tick):
            seen.set()

        def hurry(self):
            return False

    broken, good = Broken(), Good()
    patrol.join(broken)
    patrol.join(good)
    assert seen.wait(20)
    patrol.leave(good)
    assert "a guard failed" in caplog.text


def test_a_report_that_fails_takes_nothing_along(caplog):
    def report(finding):
        raise RuntimeError("no printer")

    async def forgotten():
        pass

    async def main():
        await blocking()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            forgotten()
        await asyncio.sleep(0.06)

    with tn.watch(report=report) as guards:
        asyncio.run(main())
        asyncio.run(blocking())
    assert {f.kind: f.count for f in guards.findings} == {"blocked-loop": 2, "never-awaited": 1}
    assert "no printer" in caplog.text
    assert "a guard failed" not in caplog.text


def test_sources_that_another_thread_parses_too_do_no_harm(monkeypatch, caplog):
    from tournant.guards import places

    def parse(source):
        raise SystemError("AST constructor recursion depth mismatch (before=39, after=60)")

    monkeypatch.setattr(places, "_trees", {})
    monkeypatch.setattr(places.ast, "parse", parse)
    with tn.watch(report=None) as guards:
        asyncio.run(blocking())
    monkeypatch.undo()
    assert [finding.function for finding in guards.findings] == ["block"]
    assert "a guard failed" not in caplog.text
    assert places.tree(__file__).body


def watched(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "tournant", "watch", *arguments],
        capture_output=True, text=True, timeout=60, cwd=cwd,
    )  # fmt: skip


def test_the_command_runs_a_program_as_it_is(tmp_path):
    (tmp_path / "program.py").write_text(BLOCK)
    child = watched("program.py", "one", "--two", cwd=tmp_path)
    assert child.stdout == "ended one --two\n"
    assert child.returncode == 3
    assert "tournant watch: 1 finding\n" in child.stderr
    assert "main (program.py:4)" in child.stderr


def test_the_command_runs_a_module_and_can_fail_on_findings(tmp_path):
    (tmp_path / "program.py").write_text(BLOCK.replace("sys.exit(3)", ""))
    assert watched("--fail", "-m", "program", cwd=tmp_path).returncode == 1
    assert watched("-m", "program", cwd=tmp_path).returncode == 0


def test_an_error_of_the_program_looks_as_it_does_without_the_command(tmp_path):
    (tmp_path / "program.py").write_text("def f():\n    1 / 0\nf()\n")
    child = watched("program.py", cwd=tmp_path)
    assert child.returncode == 1
    assert "ZeroDivisionError" in child.stderr
    assert "cli/watch.py" not in child.stderr
    assert watched("none.py", cwd=tmp_path).returncode == 2


def test_the_pytest_plugin_fails_the_test_that_made_the_mistake(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import asyncio, time\n"
        "def test_bad():\n    async def main():\n        time.sleep(0.4)\n    asyncio.run(main())\n"
        "def test_good():\n    asyncio.run(asyncio.sleep(0.01))\n"
    )
    # Plugins that have nothing to do with it take seconds to load.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null", "-q"]
    command += ["-p", "tournant.guards.pytest_plugin", "-p", "xdist.plugin"]

    def run(*options):
        return subprocess.run(
            [*command, *options, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        )

    failing = run("--tournant-guards")
    assert "1 failed, 1 passed" in failing.stdout, failing.stdout + failing.stderr
    assert "test_it.py:4" in failing.stdout
    reporting = run("--tournant-guards-report")
    assert "2 passed" in reporting.stdout
    assert "test_bad: " in reporting.stdout
    assert "2 passed" in run().stdout
    # In processes of pytest-xdist it is not they who write the summary.
    shared = run("--tournant-guards-report", "-n", "2").stdout
    assert "2 passed" in shared
    assert "test_bad: " in shared


def test_pytest_finds_the_plugin_where_it_is_installed():
    from importlib.metadata import entry_points

    assert "tournant.guards.pytest_plugin" in {one.value for one in entry_points(group="pytest11")}


def test_the_plugin_imports_nothing_while_it_is_off():
    program = "import sys; import tournant.guards.pytest_plugin; print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not {"pytest", "asyncio", "tournant.guards.watch"} & set(out.stdout.split())
