"""Callables for the tests of the core: module-level, so that worker processes can import them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import tournant as tn

#: How to say each place; "inline" runs the whole pipeline in one thread.
PLACES = {
    "loop": {"on": "loop"},
    "threads": {"on": "threads"},
    "blocking": {"on": "threads", "blocking": True},
    "processes": {"on": "processes"},
    "inline": {},
}


def same(value):
    return value


def inc(value):
    return value + 1


def even(value):
    return value % 2 == 0


def nothing(_value):
    return None


def upto(n):
    yield from range(n)


def as_list(n):
    return list(range(n))


def inc_all(values):
    return [value + 1 for value in values]


def one_short(values):
    return values[1:]


def size_and_value(values):
    return [(len(values), value) for value in values]


def fail_on_seven(value):
    if value == 7:
        raise ValueError("seven")
    return value


def batch_fails_on_seven(values):
    if 7 in values:
        raise ValueError("seven is in it")
    return [value + 1 for value in values]


def fail_on_odd(value):
    if value % 2:
        raise ValueError(f"odd {value}")
    return value


def yields_then_fails(n):
    yield (n, 0)
    yield (n, 1)
    if n % 2:
        raise ValueError(f"odd {n}")


class Unpicklable(Exception):
    def __init__(self, first, second):
        super().__init__("two arguments became one")


class Stubborn:
    """An object that pickles and does not come back."""

    def __reduce__(self):
        return _never_back, ()


def _never_back():
    raise RuntimeError("this one does not unpickle")


def returns_lock(value):
    return threading.Lock() if value == 3 else value


def yields_lock(value):
    yield value
    if value == 3:
        yield threading.Lock()


def returns_stubborn(value):
    return Stubborn() if value == 3 else value


def raises_unpicklable(value):
    if value == 3:
        raise Unpicklable(1, 2)
    return value


def exits_on_three(value):
    if value == 3:
        os._exit(9)
    return value


def exits_in_batch(values):
    if 3 in values:
        os._exit(9)
    return values


def segfaults_on_three(value):
    if value == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return value


def exits_while_yielding(n):
    for i in range(200):
        if n == 3 and i == 100:
            os._exit(9)
        yield (n, i)


def dies_once(folder, value):
    """Kill the worker the first time that item 5 is met."""
    if value == 5:
        mark = Path(folder, "died")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return value


def each_of_some_dies_once(folder, value):
    """Kill the worker at the first attempt of each of four neighbours."""
    if value in (300, 301, 302, 303):
        mark = Path(folder, f"died-{value}")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return value


def dies_once_while_yielding(folder, n):
    for i in range(400):
        if n == 2 and i == 250:
            mark = Path(folder, "died")
            if not mark.exists():
                # What was made so far has been passed on when the worker dies: that is what the rerun must skip.
                time.sleep(0.1)
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        yield (n, i)


def pid(_value):
    return os.getpid()


def thread_name(_value):
    return threading.current_thread().name


def surroundings(name):
    return os.getcwd(), os.environ.get(name), sys.path[:]


def logs(value):
    logging.getLogger("core.samples").warning(
        "item %s", value, extra={"pid_of_worker": os.getpid()}
    )
    return value


def logs_debug(value):
    logging.getLogger("core.samples.deep").debug("deep %s", value)
    return value


def prints(value):
    print(f"printed {value}")
    return value


def sigint_is_ignored(_value):
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def waits_for_file(path):
    while not os.path.exists(path):
        time.sleep(0.005)
    return os.path.basename(path)


def waits_then(pair):
    """Wait for a file if one is named."""
    path, value = pair
    if path:
        while not os.path.exists(path):
            time.sleep(0.005)
    return value


def touches_then_hangs(path):
    Path(path).touch()
    time.sleep(60)


def hangs_on_three(value):
    if value == 3:
        threading.Event().wait(60)
    return value


def hangs_while_yielding(value):
    yield value
    if value == 3:
        time.sleep(60)


def with_state(value, state):
    return value, state


class Counted:
    """A state that says in a folder when it is built and closed."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.name = f"{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}"
        self.folder.joinpath(f"built-{self.name}").touch()

    def close(self):
        self.folder.joinpath(f"closed-{self.name}").touch()


def state_name(_value, state):
    return state.name


def broken_factory():
    raise RuntimeError("no model here")


def nested_threads(n):
    return sum(tn.Pipeline(range(n)).map(inc).collect())


def nested_processes(n):
    return sum(tn.Pipeline(range(n)).map(inc, on="processes").collect())


def nested_blocking(n):
    return sum(tn.Pipeline([n, n]).map(nested_threads, blocking=True).collect())


def spin(_value):
    total = 0
    for i in range(20_000):
        total += i
    return total


def big(n):
    return b"x" * n


def numbers(array):
    return array * 2


def doubles_bytes(data):
    return data + data


def coroutine_by_mistake(value):
    async def work():
        return value

    return work()
