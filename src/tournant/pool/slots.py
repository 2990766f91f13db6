"""Slots: how many CPU-bound calls may run at once in this process, and how runs share them."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import Protocol

from tournant.errors import TournantError


class Waiter(Protocol):
    """Who waits for a slot: told when one is kept for it, from any thread."""

    def slot_freed(self) -> None:
        """A slot is kept: call `Slots.acquire` or `Slots.give_up`."""


class Slots:
    """A count of cores that several runs draw on fairly.

    A run that finds no slot is remembered. A slot that comes free while runs wait is kept for one of them: the one that
    holds fewest, and of those the one that has waited longest. So nobody overtakes and nobody starves.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._lock = threading.Lock()
        self._held: dict[Waiter, int] = {}
        self._kept: dict[Waiter, int] = {}
        self._waiting: dict[Waiter, None] = {}
        #: Held and kept together.
        self._taken = 0

    def acquire(self, run: Waiter) -> bool:
        """Take a slot for `run` if one is kept for it or free; otherwise remember that it waits."""
        with self._lock:
            kept = self._kept.pop(run, 0)
            if kept > 1:
                self._kept[run] = kept - 1
            elif not kept:
                if self._taken >= self.count:
                    self._waiting[run] = None
                    return False
                self._taken += 1
            self._held[run] = self._held.get(run, 0) + 1
            return True

    def release(self, run: Waiter) -> None:
        """Give a slot of `run` back."""
        with self._lock:
            held = self._held.pop(run) - 1
            if held:
                self._held[run] = held
            told = self._hand_on(1)
        for waiter in told:
            waiter.slot_freed()

    def give_up(self, run: Waiter) -> None:
        """Stop waiting: `run` has nothing for a slot to do."""
        with self._lock:
            self._waiting.pop(run, None)
            told = self._hand_on(self._kept.pop(run, 0))
        for waiter in told:
            waiter.slot_freed()

    def forget(self, run: Waiter) -> None:
        """Drop `run`, which has ended, with whatever it still holds."""
        with self._lock:
            self._waiting.pop(run, None)
            told = self._hand_on(self._kept.pop(run, 0) + self._held.pop(run, 0))
        for waiter in told:
            waiter.slot_freed()

    def _hand_on(self, slots: int) -> list[Waiter]:
        """Keep slots that have come free for those who wait; return whom to tell."""
        told = []
        for _ in range(slots):
            if not self._waiting:
                self._taken -= 1
                continue
            waiter = min(self._waiting, key=lambda w: self._held.get(w, 0) + self._kept.get(w, 0))
            del self._waiting[waiter]
            self._kept[waiter] = self._kept.get(waiter, 0) + 1
            told.append(waiter)
        return told


def cores() -> int:
    """Return how many cores this process may use.

    That is the smallest of the CPU affinity, the cgroup's CPU quota (v1 and v2, rounded up) and the machine's cores.
    ``TOURNANT_CORES`` overrides it.

    Raises:
        TournantError: ``TOURNANT_CORES`` is no whole number of 1 or more.
    """
    said = os.environ.get("TOURNANT_CORES")
    if said is not None:
        if not said.isdecimal() or int(said) < 1:
            raise TournantError(
                f"TOURNANT_CORES={said!r}: give a whole number of 1 or more, or unset it"
            )
        return int(said)
    return usable_cores()


def usable_cores() -> int:
    """Return how many cores the system lets this process use, whatever ``TOURNANT_CORES`` says."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity.
        count = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(count, math.ceil(quota))) if quota is not None else max(1, count)


def _cgroup_quota(
    root: Path = Path("/sys/fs/cgroup"), self_file: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Return the CPU quota in cores of this process's cgroup or the tightest of its ancestors."""
    quotas: list[float] = []
    try:
        lines = self_file.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root
        elif "cpu" in controllers.split(","):
            base = root / "cpu"
        else:
            continue
        folder = base / path.lstrip("/")
        while True:
            quota = _quota_of(folder)
            if quota is not None:
                quotas.append(quota)
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent
    return min(quotas, default=None)


def _quota_of(folder: Path) -> float | None:
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit = (folder / "cpu.cfs_quota_us").read_text()
        period = (folder / "cpu.cfs_period_us").read_text()
        return int(limit) / int(period) if int(limit) > 0 else None
    except (OSError, ValueError):
        return None
