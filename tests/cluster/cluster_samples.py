"""Stages for the tests on a cluster: the nodes import them by name."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any


def double(value: int) -> int:
    return 2 * value


def where(value: int) -> tuple[int, int]:
    """The value and the node's process, from a worker process of it."""
    return value, os.getppid()


def spin(value: int) -> tuple[int, int]:
    """A few milliseconds of work, and the node's process that did it, from a thread of it."""
    due = time.perf_counter() + 0.003
    while time.perf_counter() < due:
        pass
    return value, os.getpid()


class Meet:
    """Lets nobody on before two nodes work on it; returns the value and the node's process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, value: int) -> tuple[int, int]:
        (self.folder / f"met-{os.getpid()}").touch()
        due = time.monotonic() + 60
        while len(list(self.folder.glob("met-*"))) < 2 and time.monotonic() < due:
            time.sleep(0.01)
        return value, os.getpid()


def pieces(value: int) -> list[int]:
    return [value] * (value % 4)


def odd_fails(value: int) -> int:
    if value % 10 == 7:
        raise ValueError(f"no sevens: {value}")
    return value


async def stamp(value: int) -> float:
    return time.time()


class Model:
    """State that says which process built it, and writes down that it was built."""

    def __init__(self, folder: Path) -> None:
        self.meet = Meet(folder)
        with open(folder / "built", "a") as built:
            built.write(f"{os.getpid()}\n")


def with_model(value: int, model: Model) -> tuple[int, int]:
    return model.meet(value)


class Sink:
    """Writes each input to a file of its own: again is the same as once. Beside it, one line for each time.

    Args:
        folder: where.
        seconds: what each input takes.
    """

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.folder = folder
        self.seconds = seconds

    def __call__(self, value: int) -> None:
        if self.seconds:
            time.sleep(self.seconds)
        with open(self.folder / "log", "a") as log:
            log.write(f"{value} {os.getpid()}\n")
        (self.folder / f"item-{value}").write_text(str(value))


class KillsOnce(Sink):
    """Kills its process at one input, the first time."""

    def __init__(self, folder: Path, value: int) -> None:
        super().__init__(folder, 0.002)
        self.value = value

    def __call__(self, value: int) -> None:
        super().__call__(value)
        if value == self.value:
            try:
                (self.folder / "killed").touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


def deadly(value: int) -> int:
    if value == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


class SlowOnOne(Meet):
    """Ten times slower in the process that came to make the file first."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.mark = folder / "slow"

    def __call__(self, value: int) -> tuple[int, int]:
        super().__call__(value)
        try:
            self.mark.touch(exist_ok=False)
            self.mark.write_text(str(os.getpid()))
        except FileExistsError:
            pass
        slow = self.mark.read_text() == str(os.getpid())
        time.sleep(0.05 if slow else 0.005)
        return value, os.getpid()


class Gate:
    """Waits until a file is there, so that a test can act in the middle of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def __call__(self, value: int) -> int:
        if value >= 20:
            while not (self.folder / "open").exists():
                await asyncio.sleep(0.01)
        return value


def written(folder: Path) -> list[int]:
    """What the sink holds."""
    return sorted(int(path.read_text()) for path in folder.glob("item-*"))


def log(folder: Path) -> list[list[int]]:
    """Each time that the sink was called: value and process."""
    path = folder / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [[int(part) for part in line.split()] for line in lines]


def unpicklable() -> Any:
    lock = threading.Lock()

    def stage(value: int) -> int:
        with lock:
            return value

    return stage
