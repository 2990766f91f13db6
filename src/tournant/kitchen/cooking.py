"""The kitchen at work: it cooks a work in a way, times it, and sees to it that every way comes to the same dishes."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

import tournant as tn
from tournant.errors import short
from tournant.kitchen import staff, tasks, ways
from tournant.kitchen.cooked import Cooked
from tournant.kitchen.errors import KitchenError, WrongDish
from tournant.kitchen.load import Load, process_seconds
from tournant.kitchen.plates import Plate, Setting
from tournant.kitchen.servers import GUESTS, Servers
from tournant.kitchen.ways import WAYS, WORKS
from tournant.pool.slots import cores, usable_cores

#: Seconds that the database and the upload server take for an answer at ``waits=1.0``.
WAIT = 0.1
_PARTS = ("order", "rows", "image", "png", "digest")


class Kitchen:
    """A kitchen with its servers, for as long as a ``with`` block.

    Args:
        orders: how many orders there are. Default 6.
        waits: scales the waiting: at 1.0 each answer of a server takes 0.1 seconds. Default 1.0.
        side: width and height of the photographs in pixels, which scales the thinking. Default 440: about 0.1 seconds a picture.

    Raises:
        KitchenError: an argument can't be as it was given.
        ServersFailed: on entering, when the servers do not start.
    """

    def __init__(self, orders: int = 6, *, waits: float = 1.0, side: int = 440) -> None:
        if not 1 <= orders <= GUESTS:
            raise KitchenError(f"Kitchen(orders={orders!r}): give a number from 1 to {GUESTS}")
        if not (math.isfinite(waits) and waits >= 0):
            raise KitchenError(
                f"Kitchen(waits={waits!r}): give a number from 0 on; 1.0 is a wait of {WAIT} s per answer"
            )
        if not 3 <= side <= 4096:
            raise KitchenError(f"Kitchen(side={side!r}): give a number of pixels from 3 to 4096")
        self.orders, self.waits, self.side = orders, waits, side
        self.cores, self.workers = usable_cores(), cores()
        self._servers = Servers(WAIT * waits)
        self._processes: ProcessPoolExecutor | None = None
        self._warm = False
        self._first: dict[str, Cooked] = {}
        self._alone: dict[str, Cooked] = {}
        self._photographs: tuple[Plate, ...] = ()

    def __enter__(self) -> Kitchen:
        self._servers.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        pool, self._processes = self._processes, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        self._servers.__exit__()

    def compare(self, work: str, chosen: Iterable[str] = tuple(WAYS)) -> Iterator[Cooked]:
        """Cook one work in several ways, one after the other.

        Args:
            work: a key of `WORKS`.
            chosen: keys of `WAYS`. Default: all five.

        Yields:
            What came of each way, as soon as it is done.

        Raises:
            KitchenError: there is no such work or way.
            WrongDish: a way came to another result than those before it.
        """
        for way in chosen:
            yield self.cook(work, way)

    def cook(self, work: str, way: str) -> Cooked:
        """Cook one work in one way; errors as for `compare`."""
        for what, name, known in (("work", work, WORKS), ("way", way, WAYS)):
            if name not in known:
                raise KitchenError(
                    f"there is no {what} {short(name)}; choose from {', '.join(known)}"
                )
        self._servers.check()
        plates = self._plates(work)
        hiring = self._staffed(work, way)
        load, cpu = Load.now(), time.process_time()
        served_cpu = process_seconds(self._servers.pid)
        began = time.monotonic()
        try:
            served = self._serve(work, way, plates)
        except BrokenProcessPool as error:
            raise KitchenError(
                "a worker process was killed while it cooked (out of memory?); start the kitchen again, with fewer orders or a "
                "smaller side"
            ) from error
        except Exception:
            self._servers.check()
            raise
        seconds = time.monotonic() - began
        cpu = time.process_time() - cpu
        steps = [step for plate in served for step in plate.steps]
        cpu += sum(step.cpu for step in steps if step.pid != os.getpid())
        served_cpu = process_seconds(self._servers.pid) - served_cpu
        others = load.others(cpu + served_cpu, seconds)
        cooked = Cooked(
            work, way, seconds, cpu, self.cores, tuple(served), os.getpid(), began, hiring=hiring, others=others,
            crowded=load.crowded(others, cpu / seconds), gil=has_gil(), answers=self._answers(work), workers=self.workers,
        )  # fmt: skip
        if way == "synchronous":
            self._alone[work] = cooked
        alone = self._alone.get(work)
        # Who waits needs no core, so nobody can take one away.
        disturbed = any(
            not self._waited(one) and (one.crowded or one.starved)
            for one in (cooked, alone or cooked)
        )
        cooked = replace(
            cooked, alone=None if alone is None else alone.seconds, disturbed=disturbed
        )
        self._check(cooked)
        return cooked

    def as_dict(self) -> dict[str, Any]:
        """Return what it is and on what machine, as plain data that ``json.dumps`` takes."""
        return {
            "orders": self.orders,
            "waits": self.waits,
            "seconds_per_answer": WAIT * self.waits,
            "side": self.side,
            "cores": self.cores,
            "workers": self.workers,
            "python": platform.python_version(),
            "gil": has_gil(),
        }

    def _plates(self, work: str) -> list[Plate]:
        setting = Setting(self._servers.database, self._servers.uploads, self.side)
        plates = [Plate(number, setting) for number in range(1, self.orders + 1)]
        if WORKS[work].plain[0] is not tasks.compress:
            return plates
        # What is compressed has been photographed before.
        if not self._photographs:
            self._photographs = tuple(replace(tasks.blur(plate), steps=()) for plate in plates)
        return list(self._photographs)

    def _staffed(self, work: str, way: str) -> float:
        """Have what the way needs started and imported; return the seconds that it took."""
        began = time.monotonic()
        if way == "processes" and self._processes is None:
            self._processes = staff.hire(self.workers)
        elif way == "hybrid" and "processes" in WORKS[work].placed and not self._warm:
            staff.warm(self.workers)
            self._warm = True
        elif way == "hybrid":
            tn.map(abs, [0])
        else:
            return 0.0
        return time.monotonic() - began

    def _serve(self, work: str, way: str, plates: list[Plate]) -> list[Plate]:
        if way == "synchronous":
            return ways.synchronous(work, plates)
        if way == "concurrent":
            return ways.concurrent(work, plates)
        if way == "threads":
            with ThreadPoolExecutor(len(plates), "cook") as pool:
                return ways.threads(work, plates, pool)
        if way == "processes":
            assert self._processes is not None
            return ways.processes(work, plates, self._processes)
        return ways.hybrid(work, plates)

    def _answers(self, work: str) -> float:
        waits = len(WORKS[work].plain) - len(WORKS[work].thinks)
        return self.orders * waits * WAIT * self.waits

    def _waited(self, cooked: Cooked) -> bool:
        """Tell whether it was the servers' waiting that the time went to."""
        steps = sum(step.ended - step.began for step in cooked.steps)
        return not cooked.thinking and steps < 1.5 * cooked.answers

    def _check(self, cooked: Cooked) -> None:
        """Compare the dishes with those of the first way, and the digests with what was sent."""
        first = self._first.setdefault(cooked.work, cooked)
        if len(cooked.plates) != self.orders:
            raise WrongDish(
                f"{cooked.work}, {cooked.way}: {len(cooked.plates)} dishes for {self.orders} orders; this is a bug in the kitchen"
            )
        for plate, other in zip(cooked.plates, first.plates, strict=True):
            for part, mine, theirs in zip(_PARTS, plate.result, other.result, strict=True):
                if mine != theirs:
                    raise WrongDish(
                        f"{cooked.work}: order {other.order} has another {part} when cooked {cooked.way} than when cooked {first.way}: "
                        f"{short(mine)} instead of {short(theirs)}; this is a bug in the kitchen"
                    )
            if plate.digest and plate.digest != tasks.sent_digest(plate):
                raise WrongDish(
                    f"{cooked.work}, {cooked.way}: the upload of order {plate.order} arrived changed; this is a bug in the kitchen"
                )


def has_gil() -> bool:
    """Return whether this Python has a global interpreter lock; free-threaded builds have none."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())
