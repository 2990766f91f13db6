from __future__ import annotations

import asyncio
import pickle

import pytest

from tournant.limits import SYSTEM, VirtualClock


def test_sleeping_costs_no_time_and_keeps_its_order() -> None:
    clock = VirtualClock()
    seen: list[tuple[float, str]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((clock.now(), name))

    async def main() -> str:
        await asyncio.gather(sleeper("b", 3_600), sleeper("a", 60), sleeper("c", 86_400))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.sleep(11)
        return "done"

    wall = clock.wall()
    assert clock.run(main()) == "done"
    assert seen == [(60.0, "a"), (3_600.0, "b"), (86_400.0, "c")]
    assert clock.now() == pytest.approx(86_410)
    assert clock.wall() - wall == pytest.approx(86_410)


def test_a_hang_is_an_error() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="hang for ever"):
        VirtualClock().run(main())


def test_a_wake_up_on_another_loop_is_refused() -> None:
    async def main() -> None:
        VirtualClock().call_at(1.0, lambda: None)

    with pytest.raises(RuntimeError, match=r"clock\.run"):
        asyncio.run(main())


def test_there_is_one_system_clock() -> None:
    assert pickle.loads(pickle.dumps(SYSTEM)) is SYSTEM
    assert SYSTEM.now() <= SYSTEM.now()

    async def main() -> None:
        rung = asyncio.Event()
        SYSTEM.call_at(SYSTEM.now(), rung.set)
        await rung.wait()

    asyncio.run(main())
