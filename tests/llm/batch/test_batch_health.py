from __future__ import annotations

import asyncio

import pytest

from tournant.llm.batch import health as module
from tournant.llm.batch.health import Health, unreachable
from tournant.llm.errors import ConnectionFailed, LLMTimeout, Overloaded


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def refused() -> ConnectionFailed:
    error = ConnectionFailed("refused")
    error.sent = False
    return error


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PROBE", 0.001)
    monkeypatch.setattr(module, "_LAST_PROBE", 0.002)


def test_one_connection_that_can_not_be_made_is_an_outage_and_nobodys_fault() -> None:
    clock = Clock()
    health = Health(60, clock)
    assert not health.failed(refused(), probe=False)
    clock.now += 3
    assert (health.down, health.down_for()) == (True, 3)
    health.alive()
    assert (health.down, health.down_for(), health.error) == (False, 0, None)


def test_which_failures_mean_that_no_connection_was_made() -> None:
    connect, total = LLMTimeout("late"), LLMTimeout("late")
    connect.which = "connect"
    assert unreachable(refused())
    assert unreachable(connect)
    assert not unreachable(total)
    assert not unreachable(ConnectionFailed("reset"))
    assert not unreachable(Overloaded("503", status=503))


def test_nothing_but_failures_for_some_seconds_is_an_outage() -> None:
    clock = Clock()
    health = Health(60, clock)
    for _ in range(30):
        assert health.failed(Overloaded("503", status=503), probe=False)
    assert not health.down  # in no time: one burst
    clock.now += 2
    assert health.failed(Overloaded("503", status=503), probe=False)
    assert health.down
    assert health.down_for() == 2


def test_failures_among_answers_are_no_outage() -> None:
    clock = Clock()
    health = Health(60, clock)
    for _ in range(30):
        health.failed(Overloaded("503", status=503), probe=False)
        clock.now += 1
        health.alive()
    assert not health.down


def test_in_an_outage_one_goes_out_to_see_and_the_first_answer_lets_all_go() -> None:
    health = Health(60)
    probes, passed = [], []

    async def call(number: int) -> None:
        probe = await health.turn()
        if health.down:
            assert probe
            probes.append(number)
            assert len(probes) - len(failed) == 1
            await asyncio.sleep(0)
            if len(probes) < 3:
                failed.append(number)
                health.failed(refused(), probe)
                return
            health.alive()
        passed.append(number)

    failed: list[int] = []

    async def main() -> None:
        health.failed(refused(), probe=False)
        await asyncio.gather(*(call(number) for number in range(20)))

    asyncio.run(main())
    assert len(probes) == 3
    assert len(passed) == 18


def test_a_probe_that_is_cancelled_leaves_its_place_to_the_next() -> None:
    health = Health(60)

    async def main() -> None:
        health.failed(refused(), probe=False)
        first = asyncio.create_task(health.turn())
        second = asyncio.create_task(health.turn())
        await asyncio.sleep(0)
        first.cancel()
        assert await second
        health.left(True)
        assert await health.turn()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_stopping_lets_nobody_wait() -> None:
    health = Health(60)

    async def main() -> list[bool]:
        health.failed(refused(), probe=False)
        waiting = [asyncio.create_task(health.turn()) for _ in range(5)]
        await asyncio.sleep(0)
        health.stop()
        return await asyncio.gather(*waiting)

    assert asyncio.run(asyncio.wait_for(main(), 30)) == [False] * 5
    assert health.stopped


def test_patience_ends_sooner_with_a_provider_that_was_never_there() -> None:
    clock = Clock()
    never, once, busy = Health(300, clock), Health(300, clock), Health(300, clock)
    once.answered = True
    for health in (never, once):
        health.failed(refused(), probe=False)
    for _ in range(10):
        busy.failed(Overloaded("503", status=503), probe=False)
        clock.now += 1
    clock.now += 21
    assert never.exhausted()
    assert not once.exhausted()
    assert busy.down
    assert not busy.exhausted()  # it may be loading its model
    clock.now += 270
    assert once.exhausted()
    assert busy.exhausted()
    once.alive()
    assert not once.exhausted()


def test_silence_is_counted_while_calls_are_out_and_ends_with_any_answer() -> None:
    clock = Clock()
    health = Health(60, clock, timeout=100)
    clock.now += 1_000
    assert health.silence_left() == 160  # nothing was sent
    health.sent()
    clock.now += 100
    health.sent()
    health.ended(heard=False)
    assert health.silence_left() == 60
    clock.now += 20
    health.ended(heard=False)
    clock.now += 3_600  # nothing is out: held back here, not there
    assert health.silence_left() == 40
    health.sent()
    health.sent()
    clock.now += 39
    assert health.silence_left() == 1
    health.ended(heard=True)
    clock.now += 10
    assert health.silence_left() == 150
    clock.now += 151
    assert health.silence_left() == -1
