"""What the tests of the core share. Its folder is on the import path, so `core_samples` can be imported by name."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest


def _until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait for something that another thread or process is about to do; for ends, never for beginnings of a race."""
    due = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > due:
            return False
        time.sleep(0.002)
    return True


def pytest_collection_finish() -> None:
    """Take what all the modules have imported out of the garbage collector's sight: there are many tests, and each collection would walk it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def until() -> Callable[..., bool]:
    return _until


@pytest.fixture(autouse=True)
def no_errors_in_callbacks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which a callback of an event loop raised: the loop only logs that, and goes on."""
    yield
    problems = [
        record.getMessage()
        for when in ("setup", "call")
        for record in caplog.get_records(when)
        if record.name == "asyncio" and record.levelname in ("ERROR", "CRITICAL")
    ]
    assert not problems, problems


def _threads() -> set[str]:
    """The threads of runs: all but those of the pool, which stay warm on purpose."""
    warm = ("tournant-threads-", "tournant-processes-", "tournant-blocking-")
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith(warm)}


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fail a test that leaves a thread, a worker process or a descriptor behind, after the pool is shut down."""
    import tournant as tn

    tn.shutdown()
    gc.collect()
    threads, descriptors = _threads(), _descriptors()
    # A thread that an earlier test left hanging on purpose can't be ended; it is not this test's.
    lanes = _lanes()
    yield
    assert _until(lambda: _threads() <= threads), f"left: {_threads() - threads}"
    tn.shutdown()
    gc.collect()
    assert _until(lambda: _lanes() <= lanes), f"left: {_lanes() - lanes}"
    assert _until(lambda: _descriptors() <= descriptors), (descriptors, _descriptors())
    assert _until(lambda: not _children()), f"left: {_children()}"


def _lanes() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("tournant-")}


def _children() -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rsplit(")", 1)[1].split()
                with open(f"/proc/{entry}/cmdline") as file:
                    command = file.read()
            except OSError:
                continue
            if int(fields[1]) == os.getpid() and "tournant.pool.worker" in command:
                found.append(int(entry))
    return found


@pytest.fixture
def worker_processes() -> Callable[[], list[int]]:
    """The pids of this process's pool workers."""
    return _children
