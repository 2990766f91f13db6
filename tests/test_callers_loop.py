"""A run never blocks or re-enters the loop of whoever starts it: a Tk window, a notebook's kernel, an asyncio program of one's own."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import core_samples as samples
import tournant as tn
from tournant.background import BackgroundRun
from tournant.errors import RunClosed


async def same(value):
    return value


# In the background.


def test_a_run_in_the_background_is_there_at_once_and_gives_its_report():
    go = threading.Event()

    def waits(value):
        go.wait(60)
        return value

    run = tn.Pipeline(["a", "b"]).map(waits).start()
    assert isinstance(run, tn.BackgroundRun)
    assert not run.done
    assert run.snapshot().total == 2
    assert "running" in repr(run)
    assert "of 2 inputs done" in repr(run)
    with pytest.raises(RunClosed, match="not ended yet"):
        run.report
    with pytest.raises(TimeoutError, match="it goes on"):
        run.wait(0.01)
    go.set()
    assert run.wait().done == 2
    assert run.wait(1) is run.report
    assert run.done
    assert "ended" in repr(run)
    run.drain()
    run.cancel()


def test_it_can_be_drained_and_cancelled_from_any_thread(nothing_left):
    for how in ("drain", "cancel"):
        run = tn.Pipeline(range(10**9)).map(same).start()
        while not run.snapshot().done:
            time.sleep(0.001)
        getattr(run, how)()
        report = run.wait(60)
        assert report.sourced < 10**9
        assert (report.interrupted == 0) == (how == "drain") or how == "cancel"


def test_leaving_its_block_cancels_it(nothing_left):
    with tn.Pipeline(range(10**9)).map(same).start() as run:
        pass
    assert run.done
    with tn.Pipeline(range(3)).map(same).start() as run:
        run.wait()
    assert run.report.done == 3


def test_callbacks_hear_of_the_end():
    heard = []
    run = tn.Pipeline([1]).map(same).start()
    run.add_done_callback(lambda ended: heard.append(ended.report.done))
    run.wait()
    run.add_done_callback(lambda ended: heard.append(ended.wait().done))
    assert heard == [1, 1]


def test_what_it_ends_with_is_raised_to_whoever_asks_and_logged_if_nobody_does(caplog, until):
    run = tn.Pipeline([7]).map(samples.fail_on_seven).start()
    with pytest.raises(tn.PipelineFailed):
        run.wait()
    with pytest.raises(tn.PipelineFailed):
        run.report
    assert "failed" in repr(run)
    del run
    gc.collect()
    assert caplog.records == []
    run = tn.Pipeline([7]).map(samples.fail_on_seven).start()
    ended = threading.Event()
    run.add_done_callback(lambda _: ended.set())
    assert ended.wait(20)
    del run
    assert until(lambda: gc.collect() >= 0 and bool(caplog.records))
    assert "nobody asked for its outcome: PipelineFailed" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR
    caplog.clear()


def test_what_can_not_even_start_is_raised_at_once(monkeypatch):
    tn.shutdown()
    monkeypatch.setenv("TOURNANT_CORES", "none")
    with pytest.raises(tn.TournantError, match="TOURNANT_CORES"):
        tn.Pipeline([1]).map(samples.inc).start()


# Inside somebody else's loop.


def test_a_running_loop_is_neither_borrowed_nor_blocked():
    async def main():
        loop, me = asyncio.get_running_loop(), threading.get_ident()
        ran_on = set()

        async def stage(value):
            ran_on.add((asyncio.get_running_loop() is loop, threading.get_ident() == me))
            return value

        # The synchronous form has a loop of its own, here and everywhere.
        assert tn.Pipeline([1]).map(stage).run().done == 1
        assert ran_on == {(False, False)}
        beats = 0
        run = tn.Pipeline(range(200)).map(samples.spin, on="processes").start()
        while not run.done:
            beats += 1
            await asyncio.sleep(0.001)
        assert run.wait().done == 200
        assert beats > 3
        assert len(asyncio.all_tasks()) == 1
        assert loop.get_task_factory() is None

    asyncio.run(main())


# A window.

WINDOW = """
import sys, threading, time, tkinter
from pathlib import Path

sys.path.insert(0, {tests!r})
import core_samples as samples
import tournant as tn

def longest_gap(until):
    "The longest time between two beats of the window, until `until` is true; in seconds."
    longest, last = [0.0], [time.perf_counter()]

    def beat():
        now = time.perf_counter()
        longest[0] = max(longest[0], now - last[0])
        last[0] = now
        if until():
            window.quit()
        else:
            window.after(5, beat)

    window.after(0, beat)
    window.mainloop()
    return longest[0]

def idle():
    begun = time.perf_counter()
    return longest_gap(lambda: time.perf_counter() - begun > 0.4)

def pipeline():
    run = tn.Pipeline(range(40)).flat_map(samples.upto, on="processes").map(samples.spin, on="processes").start()
    return lambda: run.done, lambda: run.wait().done == 40

def ingest():
    from tournant.ingest.job import IngestOptions, run_ingest

    outcomes = []
    folder = Path({folder!r})
    options = IngestOptions((str(folder / "files"),), str(folder / f"index-{{time.monotonic_ns()}}"))
    thread = threading.Thread(target=lambda: outcomes.append(run_ingest(options)))
    thread.start()
    return lambda: not thread.is_alive(), lambda: outcomes[0].report.done == {files}

window = tkinter.Tk()
tkinter.Label(window, text="working").pack()
window.update()
start = {{"pipeline": pipeline, "ingest": ingest}}[{what!r}]
for _ in range({tries}):
    quiet = idle()
    clicked = time.perf_counter()
    done, well = start()
    took = time.perf_counter() - clicked
    busy = longest_gap(done)
    assert well()
    print(quiet, busy, took, flush=True)
window.destroy()
"""


@pytest.fixture(scope="module")
def display():
    """An X display: the present one, or one of our own."""
    pytest.importorskip("tkinter")
    if os.environ.get("DISPLAY"):
        yield os.environ["DISPLAY"]
        return
    if shutil.which("Xvfb") is None:
        pytest.skip("there is neither a display nor Xvfb")
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "320x240x24", "-nolisten", "tcp"],
        pass_fds=(write,),
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    try:
        with os.fdopen(read) as said:
            number = said.readline().strip()
        if not number:
            pytest.skip("Xvfb did not start")
        yield f":{number}"
    finally:
        server.terminate()
        server.wait()


def in_window(display, what, folder, tries=3):
    """Per try: the window's longest gap when idle and while a run goes on, and the seconds that starting it took."""
    program = WINDOW.format(
        tests=str(Path(__file__).parent), tries=tries, what=what, folder=str(folder), files=FILES
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "DISPLAY": display},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(map(float, line.split())) for line in done.stdout.splitlines()]


FILES = 60


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("what", ["pipeline", "ingest"])
def test_a_window_beats_on_while_a_run_goes_on(display, what, tmp_path):
    """Held against the same window when idle, in the best of a few tries, since the machine may be busy with other things."""
    if what == "ingest":
        pytest.importorskip("lancedb")
        tmp_path.joinpath("files").mkdir()
        for n in range(FILES):
            text = f"Document {n}. " + "The swing cook works wherever the work is piling up. " * 40
            tmp_path.joinpath("files", f"{n}.txt").write_text(text)
    tries = in_window(display, what, tmp_path)
    assert min(busy - idle for idle, busy, _ in tries) < 0.05, tries
    assert min(took for *_, took in tries) < 0.2, tries


# A notebook.


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A real Jupyter kernel: a function that executes a cell and returns what it printed."""
    manager_module = pytest.importorskip("jupyter_client.manager")
    pytest.importorskip("ipykernel")
    folder = tmp_path_factory.mktemp("jupyter")
    environ = {
        **os.environ,
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    spec = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager = manager_module.KernelManager(ip="127.0.0.1")
    manager.kernel_spec.argv = spec
    manager.start_kernel(env=environ)
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)

        def execute(cell):
            printed = []

            def output(message):
                kind, content = message["msg_type"], message["content"]
                if kind == "stream":
                    printed.append(content["text"])
                elif kind == "error":
                    printed.append("\n".join(content["traceback"]))

            client.execute_interactive(
                textwrap.dedent(cell), timeout=60, output_hook=output, allow_stdin=False
            )
            return "".join(printed)

        yield execute
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


@pytest.mark.slow
def test_cells_of_a_notebook_run_pipelines_in_every_way(kernel):
    printed = kernel(
        """
        import asyncio, threading
        import tournant as tn

        loop = asyncio.get_running_loop()

        async def ask(value):
            assert asyncio.get_running_loop() is not loop
            return value * 2

        def work(value):
            return sum(range(value))

        pipeline = tn.Pipeline(range(10)).map(ask).map(work, on="processes")
        print(pipeline.run().done, sorted(pipeline.collect())[:3], len(list(pipeline.iter())))
        """
    )
    assert printed == "10 [0, 1, 6] 10\n"
    # On the kernel's own loop, which goes on beside it.
    printed = kernel(
        """
        beats = []

        async def beat():
            while True:
                beats.append(1)
                await asyncio.sleep(0.001)

        beating = asyncio.create_task(beat())

        async def ask_here(value):
            assert asyncio.get_running_loop() is loop
            await asyncio.sleep(0.001)
            return value

        report = await tn.Pipeline(range(30)).map(ask_here, concurrency=3).arun()
        beating.cancel()
        print(report.done, len(beats) > 3, loop.get_task_factory() is None)
        """
    )
    assert printed == "30 True True\n"
    # From cell to cell, in the background.
    assert kernel("run = tn.Pipeline(range(1000)).map(work, on='processes').start()") == ""
    assert kernel("print(run.wait().done, run.done)") == "1000 True\n"


def test_the_class_is_the_public_one():
    assert tn.BackgroundRun is BackgroundRun
