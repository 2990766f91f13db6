"""Worker processes: what they inherit, what travels, how they end."""

from __future__ import annotations

import functools
import logging
import os
import signal
import subprocess
import sys
import textwrap

import pytest

import core_samples as samples
import tournant as tn
from tournant.errors import WorkerDied
from tournant.pool import lanes, processes


def test_an_item_never_runs_in_the_callers_process():
    pids = tn.Pipeline(range(50)).map(samples.pid, on="processes").collect()
    assert os.getpid() not in pids
    assert len(set(pids)) <= lanes.shared().slots.count


def test_workers_stay_warm_between_runs():
    tn.shutdown()
    first = set(tn.Pipeline(range(200)).map(samples.pid, on="processes").collect())
    second = set(tn.Pipeline(range(200)).map(samples.pid, on="processes").collect())
    assert first & second


def test_workers_take_over_the_surroundings_of_each_run(tmp_path, monkeypatch):
    ask = tn.Pipeline(["TOURNANT_TEST_WORD"]).map(samples.surroundings, on="processes")
    ask.run()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOURNANT_TEST_WORD", "said")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    ((cwd, word, path),) = ask.collect()
    assert (cwd, word) == (str(tmp_path), "said")
    assert path == [entry or os.curdir for entry in sys.path]
    monkeypatch.delenv("TOURNANT_TEST_WORD")
    assert ask.collect()[0][1] is None


def test_modules_of_the_working_directory_dont_stand_in_for_the_standard_library(tmp_path):
    """Somebody works in a folder of documents, in which lies a pickle.py."""
    for name in ("pickle", "struct", "selectors", "logging"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    script = (
        "import sys; sys.path[:] = [p for p in sys.path if p];"
        f"sys.path.append({os.path.dirname(samples.__file__)!r});"
        "import core_samples, tournant as tn;"
        "print(tn.Pipeline([1]).map(core_samples.inc, on='processes').collect())"
    )
    out = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (out.stdout.strip(), out.returncode) == ("[2]", 0), out.stderr


def test_a_worker_ignores_sigint():
    assert tn.Pipeline([1]).map(samples.sigint_is_ignored, on="processes").collect() == [True]


def test_log_records_reach_the_parents_loggers(caplog):
    with caplog.at_level(logging.INFO):
        tn.Pipeline(range(3)).map(samples.logs, on="processes").run()
    records = [r for r in caplog.records if r.name == "core.samples"]
    assert sorted(r.getMessage() for r in records) == ["item 0", "item 1", "item 2"]
    assert all(r.pid_of_worker != os.getpid() for r in records)


def test_a_workers_loggers_have_the_levels_of_the_parents(caplog):
    with caplog.at_level(logging.WARNING):
        tn.Pipeline([1]).map(samples.logs_debug, on="processes").run()
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, logger="core.samples.deep"):
        tn.Pipeline([2]).map(samples.logs_debug, on="processes").run()
    assert [r.getMessage() for r in caplog.records] == ["deep 2"]


def test_large_values_travel_both_ways():
    sizes = [0, 1, 100, 1 << 16, (1 << 20) + 1, 5 << 20]
    values = (
        tn.Pipeline(sizes)
        .map(samples.big, on="processes")
        .map(samples.doubles_bytes, on="processes", retry=tn.Retry(1))
        .collect()
    )
    assert sorted(len(v) for v in values) == [2 * n for n in sizes]


def test_arrays_travel_out_of_band():
    np = pytest.importorskip("numpy")
    arrays = [np.arange(n, dtype=np.float32) for n in (0, 10, 100_000, 1_000_000)]
    results = tn.Pipeline(arrays).map(samples.numbers, on="processes").ordered().collect()
    for array, result in zip(arrays, results, strict=True):
        assert (result == array * 2).all()
        # Read into place, and the reader's own: it may be written to.
        result += 1


def test_closures_lambdas_and_partials_travel_by_value():
    added = 3
    out = (
        tn.Pipeline(range(5))
        .map(lambda n: n + added, on="processes")
        .map(functools.partial(max, 5), on="processes")
        .collect()
    )
    assert sorted(out) == [5, 5, 5, 6, 7]


def test_a_worker_that_cant_be_started_is_told_and_not_waited_for(monkeypatch):
    tn.shutdown()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    try:
        with pytest.raises(tn.PipelineFailed) as caught:
            tn.Pipeline(range(3)).map(samples.inc, on="processes").run()
    finally:
        tn.shutdown()
    assert all(isinstance(error, WorkerDied) for error in caught.value.exceptions)
    assert "/nowhere/python" in str(caught.value.exceptions[0])


def test_a_worker_that_ends_at_once_is_told_and_not_waited_for(monkeypatch):
    tn.shutdown()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    try:
        report = tn.Pipeline(range(3), on_error="skip").map(samples.inc, on="processes").run()
    finally:
        tn.shutdown()
    assert report.failed == 3
    assert {type(f.error) for f in report.failures} == {WorkerDied}


def test_state_that_cant_be_built_in_a_worker_says_where():
    report = (
        tn.Pipeline([1], on_error="skip")
        .map(samples.with_state, on="processes", state=tn.PerWorker(samples.broken_factory))
        .run()
    )
    notes = "\n".join(report.failures[0].error.__notes__)
    assert "built its PerWorker state" in notes


def test_a_module_the_worker_cant_import_fails_the_items_with_its_name(tmp_path, monkeypatch):
    (tmp_path / "passing.py").write_text("def fn(value):\n    return value\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import passing  # type: ignore[import-not-found]

    sys.path.remove(str(tmp_path))
    report = tn.Pipeline(range(3), on_error="skip").map(passing.fn, on="processes").run()
    assert report.failed == 3
    assert all(isinstance(f.error, ModuleNotFoundError) for f in report.failures)


def test_shutdown_ends_every_worker(nothing_left, worker_processes, until):
    tn.Pipeline(range(20)).map(samples.inc, on="processes").map(samples.inc, on="threads").run()
    assert worker_processes()
    tn.shutdown()
    assert until(lambda: not worker_processes())
    # And the next run starts new ones.
    assert tn.Pipeline([1]).map(samples.inc, on="processes").collect() == [2]


def test_idle_workers_end_by_themselves(until, worker_processes):
    pool = lanes.Pool(1, idle=0.01)
    before = set(worker_processes())
    lane = pool.lane("processes")
    assert until(lambda: set(worker_processes()) - before)
    pool.put_back(lane)
    assert until(lambda: not lane.thread.is_alive())
    assert until(lambda: not set(worker_processes()) - before)
    assert isinstance(lane, processes.ProcessLane)
    pool.close()


def test_workers_end_when_their_parent_is_killed(tmp_path, until):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, sys, time
            import tournant as tn
            def hang(path):
                with open(path, "w") as file:
                    file.write(str(os.getpid()))
                os.rename(path, path + ".there")
                time.sleep(120)
            tn.Pipeline([{str(tmp_path / "a")!r}, {str(tmp_path / "b")!r}]).map(hang, on="processes").run()
            """
        )
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        assert until(lambda: (tmp_path / "a.there").exists(), 30)
        worker = int((tmp_path / "a.there").read_text())
        parent.send_signal(signal.SIGKILL)
        parent.wait(30)
        assert until(lambda: not _runs(worker))
    finally:
        parent.kill()
        parent.wait()


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
