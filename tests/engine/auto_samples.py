"""Callables for the tests of ``on="auto"``: module-level, so that worker processes can import them."""

from __future__ import annotations

import collections
import os
import signal
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import tournant as tn

COUNTER = 0
SEEN: list[int] = []
TABLE = {1: "one"}
LOCK = threading.Lock()


def where(value):
    """The value, and the process that worked on it."""
    time.sleep(0.0005)
    return value, os.getpid()


def computes(value):
    total = 0
    for i in range(8_000):
        total += i * value
    return value


def compresses(data):
    return len(zlib.compress(data, 6))


def waits(value):
    time.sleep(0.005)
    return value


def children(n):
    for i in range(n % 4):
        yield n, i, os.getpid()


def batch(values):
    return [(value, os.getpid()) for value in values]


def with_name(value, state):
    time.sleep(0.0005)
    return value, state.name


def lock_for_some(value):
    """A result that can't travel, for a value late in the run."""
    time.sleep(0.0005)
    return (value, threading.Lock()) if value == 150 else (value, None)


def batch_with_lock(values):
    return [(value, threading.Lock() if value == 150 else None) for value in values]


def fails_once(folder, value):
    mark = Path(folder, str(value))
    if value % 10 == 3 and not mark.exists():
        mark.touch()
        raise OSError(f"first time {value}")
    return value, os.getpid()


def dies_once(folder, value):
    """Kill a worker process (never this one) for some values, the first time that they come there."""
    mark = Path(folder, str(value))
    if value % 37 == 5 and os.getpid() != int(Path(folder, "parent").read_text()):
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return value
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def sets_a_global(value):
    global COUNTER
    COUNTER += 1
    return value


def appends_to_a_global(value):
    SEEN.append(value)
    return value


def calls_what_appends(value):
    return appends_to_a_global(value)


def writes_into_a_global(value):
    TABLE[value] = "x"
    return value


def only_looks_up(value):
    return TABLE.get(value)


def takes_a_lock(value):
    with LOCK:
        return value


def has_a_mutable_default(value, seen=[]):
    return value


def has_a_constant_default(value, base=16, names=("a", "b")):
    return value


@dataclass(frozen=True)
class Frozen:
    number: int
    names: tuple = ("a",)

    def method(self, value):
        return value

    def __call__(self, value):
        return value


class Mutable:
    def __init__(self):
        self.seen = collections.Counter()

    def method(self, value):
        self.seen[value] += 1
        return value

    def __call__(self, value):
        return value

    @classmethod
    def of_class(cls, value):
        return value


def broken_elsewhere():
    """A state that can only be built in the process that runs the tests."""
    if "PYTEST_CURRENT_TEST" in os.environ and _in_worker():
        raise RuntimeError("no such device")
    return tn


def _in_worker():
    import sys

    worker = sys.modules.get("tournant.pool.worker")
    return bool(worker is not None and worker.inside)


def with_state(value, state):
    time.sleep(0.0005)
    return value, os.getpid()


class Local:
    """What can't leave its process."""

    def __reduce__(self):
        raise TypeError("it stays")


class Odd(Exception):
    """An exception that can't leave its process either."""

    def __init__(self, number, local):
        super().__init__(number)
        self.number = number
        self.local = local


def children_that_stay(n):
    """Six children; late in the run, the fourth can't travel."""
    time.sleep(0.0005)
    for i in range(6):
        yield n, i, Local() if n >= 400 and n % 7 == 0 and i == 3 else None, os.getpid()


class Transient(Exception):
    pass


class Failed:
    """Who has failed in this process; out of sight of those who look for globals that change."""

    numbers: set[int] = set()

    @classmethod
    def first(cls, n):
        known = n in cls.numbers
        cls.numbers.add(n)
        return not known


def children_at_the_second_try(n):
    """The same, and in the end it fails, the first time that this process makes the children."""
    yield from children_that_stay(n)
    if n % 7 == 0 and Failed.first(n):
        raise Transient(n)


def many_children_that_stay(n):
    """So many that they come in several parts."""
    for i in range(300):
        if i % 60 == 0:
            time.sleep(0.001)
        yield n, i, Local() if n >= 40 and i == 200 else None, os.getpid()


def children_then_error(n):
    """Two children, and late in the run an exception that can't travel."""
    time.sleep(0.0005)
    yield n, 0
    yield n, 1
    if n >= 400 and n % 7 == 0:
        raise Odd(n, Local())


def inputs_that_stay(n):
    """A value for the next stage; late in the run it can't travel."""
    time.sleep(0.0005)
    return n, Local() if n >= 400 and n % 7 == 0 else None


def pair(value):
    time.sleep(0.0005)
    for i in range(2):
        yield value[0], i
