"""The cooks in processes, hired before the stopwatch runs: what is compared is the work, and the hiring is told apart."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait

import tournant as tn
from tournant.kitchen.errors import KitchenError

_ENDS = {signal.SIGINT, signal.SIGTERM}
#: Seconds that new processes get to be all there.
_PATIENCE = 60.0


def hire(count: int) -> ProcessPoolExecutor:
    """Return a pool of `count` processes that have started and imported what they need.

    Raises:
        KitchenError: they did not start.
    """
    # A fork of a process with threads may hang, so they are fresh interpreters.
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), begin)

    def ask() -> list[int]:
        # The pool starts a process when it is given something to do and nobody is idle, as long as there are not enough.
        with _no_main(), _undisturbed():
            answers = pool.map(present, range(count * 2))
        return list(answers)

    try:
        _until_all(count, ask)
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    return pool


def warm(count: int) -> None:
    """Have the workers of Tournant's own pool started and ready."""
    _until_all(count, lambda: tn.map(present, range(count * 4), on="processes"))


def present(_: int) -> int:
    """Return the process's number, slowly enough that the other processes get their share of the questions."""
    from tournant.kitchen import ways  # noqa: F401 (imported so that the stopwatch does not see it)

    time.sleep(0.01)
    return os.getpid()


def begin() -> None:
    """Let Ctrl-C be the business of whoever hired us, and end when they do, however that is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
    boss = multiprocessing.parent_process()
    assert boss is not None

    def go_home() -> None:
        wait([boss.sentinel])
        os._exit(1)

    # The pool's own queue does not end with the boss: every process holds both of its ends.
    threading.Thread(target=go_home, name="kitchen-boss", daemon=True).start()


def _until_all(count: int, ask: object) -> None:
    assert callable(ask)
    due = time.monotonic() + _PATIENCE
    seen: set[int] = set()
    while len(seen) < count:
        if time.monotonic() > due:
            raise KitchenError(
                f"only {len(seen)} of {count} worker processes started within {_PATIENCE:.0f} s; TOURNANT_CORES sets how many there are"
            )
        seen.update(ask())


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Start processes with the signals blocked that end us.

    In its first milliseconds a process doesn't ignore Ctrl-C yet, and would show a traceback; and so would one that we leave half started.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Keep new processes from importing the caller's script, which would start a kitchen of its own in each of them."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
