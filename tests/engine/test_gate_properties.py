"""However a run with limits ends, no permit is lost, no input either, and the rate was never exceeded."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import tournant as tn
from tournant.engine.run import Run
from tournant.limits import Adaptive, RateLimit, VirtualClock, current

RATE, BURST = 20.0, 3


class Status(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.retry_after = 4.0 if status == 429 else None


def nothing_held(limit: RateLimit, adaptive: Adaptive) -> bool:
    rate, slots = limit.snapshot(), adaptive.snapshot()
    return (rate.waiting, rate.in_flight, slots.waiting, slots.running) == (0, 0, 0, 0)


def never_above_the_rate(times: list[float]) -> bool:
    # Who has passed the rate may wait a tenth of a second for a place in the concurrency.
    return all(
        later - earlier >= (n + 1 - BURST) / RATE - 0.1 - 1e-6
        for at, earlier in enumerate(times)
        for n, later in enumerate(times[at + 1 :])
    )


@settings(max_examples=150)
@given(
    kind=st.sampled_from(["map", "flat_map", "map_batches", "for_each"]),
    inputs=st.integers(1, 60),
    most=st.integers(1, 12),
    retry=st.booleans(),
    on_error=st.sampled_from(["stop", "skip"]),
    inline=st.booleans(),
    memory=st.booleans(),
    faults=st.sampled_from([0.0, 0.05, 0.4]),
    ending=st.sampled_from(["none", "halt", "cancel", "halt and cancel", "drain"]),
    when=st.floats(0, 8),
    seed=st.integers(0, 1000),
)
def test_no_permit_is_lost_on_the_loop(
    kind: str,
    inputs: int,
    most: int,
    retry: bool,
    on_error: Any,
    inline: bool,
    memory: bool,
    faults: float,
    ending: str,
    when: float,
    seed: int,
) -> None:
    clock, rng = VirtualClock(), random.Random(seed)
    limit = RateLimit(requests=f"{RATE:.0f}/s", burst=BURST, tokens="500/s", clock=clock)
    adaptive = Adaptive(1, most, clock=clock)
    begun: list[float] = []

    async def ask(item: Any) -> Any:
        begun.append(clock.now())
        call = current()
        assert call is not None
        await asyncio.sleep(rng.random() / 2)
        chance = rng.random()
        if chance < faults:
            raise Status(429)
        if chance < 2 * faults:
            raise Status(500)
        if chance < 3 * faults:
            await asyncio.sleep(3600)
        call.settle(rng.randrange(40))
        return item

    async def stream(item: Any) -> Any:
        await ask(item)
        for n in range(3):
            await asyncio.sleep(0.05)
            yield n

    p = tn.Pipeline(range(inputs), on_error=on_error, memory_limit=2000 if memory else None)
    p = getattr(p, kind)(
        stream if kind == "flat_map" else ask,
        limit=limit,
        concurrency=adaptive,
        cost=lambda what: 10 * len(what) if isinstance(what, list) else 10,
        retry=tn.Retry(attempts=3) if retry else None,
        timeout=2,
        **({"size": 4} if kind == "map_batches" else {}),
    )

    async def main() -> None:
        run = Run(p, inline=inline)
        await run.start()

        async def end() -> None:
            await asyncio.sleep(when)
            if "halt" in ending:
                run._halt()
            if "cancel" in ending:
                run._cancel()
            if ending == "drain":
                run._drain()

        ender = asyncio.ensure_future(end())
        await run.wait()
        if "halt" in ending and not ender.done():
            ender.cancel()
        elif "halt" in ending or "cancel" in ending:
            # What had begun ends within its timeout; a freeze or a backoff is not waited for.
            assert clock.now() <= when + 2.1 or not ender.done()
        ender.cancel()
        try:
            report = await run.close()
        except tn.PipelineFailed as failed:
            assert failed.report is not None
            report = failed.report
        assert report.sourced == report.done + report.failed + report.interrupted
        if ending == "none" and on_error == "skip":
            assert report.interrupted == 0
        assert nothing_held(limit, adaptive)

    clock.run(main())
    assert never_above_the_rate(begun)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["map", "flat_map", "map_batches"]),
    most=st.integers(1, 6),
    retry=st.booleans(),
    faults=st.sampled_from([0.0, 0.1]),
    stop_after=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_no_permit_is_lost_in_threads(
    kind: str, most: int, retry: bool, faults: float, stop_after: int, seed: int
) -> None:
    rng = random.Random(seed)
    limit = RateLimit(requests="2000/s", burst=3)
    adaptive = Adaptive(1, most)

    def ask(item: Any) -> Any:
        assert current() is not None
        chance = rng.random()
        if chance < faults:
            error = Status(429)
            error.retry_after = 0.01
            raise error
        if chance < 2 * faults:
            time.sleep(0.001)
            raise Status(500)
        return [item, item] if kind == "flat_map" else item

    p = getattr(tn.Pipeline(range(30), on_error="skip"), kind)(
        ask,
        blocking=True,
        limit=limit,
        concurrency=adaptive,
        retry=tn.Retry(attempts=3, delay=0.001) if retry else None,
    )

    async def main() -> None:
        seen = 0
        async with p.open() as run:
            async for _ in run:
                seen += 1
                if seen > stop_after:
                    break

    asyncio.run(main())
    assert nothing_held(limit, adaptive)
