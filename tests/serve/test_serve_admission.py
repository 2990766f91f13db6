"""Admission and its queue, without HTTP: fair between callers by tokens, bounded, and nothing lost when somebody leaves."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tournant.serve.admission import Admission, Caller, Ticket
from tournant.serve.errors import HTTPError
from tournant.serve.fairness import FairQueue, Share
from tournant.serve.keys import Grant
from tournant.serve.settings import ServeSettings


def admission(**options) -> Admission:
    return Admission(ServeSettings(**options))


def caller(found: Admission, name: str, **grant) -> Caller:
    return found.caller(Grant(name, **grant))


async def settle_down() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_callers_take_turns_by_tokens_and_not_by_requests():
    async def main():
        queue = FairQueue()
        greedy, modest = Share(), Share()
        for _ in range(50):
            queue.join(greedy, 100, 0)
        for _ in range(5):
            queue.join(modest, 100, 0)
        order = [queue.pop().share for _ in range(10)]
        assert Counter(order) == {greedy: 5, modest: 5}

    asyncio.run(main())


def test_large_requests_of_one_do_not_crowd_out_small_ones_of_another():
    async def main():
        queue = FairQueue()
        large, small = Share(), Share()
        for _ in range(10):
            queue.join(large, 1_000, 0)
        for _ in range(100):
            queue.join(small, 10, 0)
        first = [queue.pop().share for _ in range(60)]
        assert first.count(small) >= 55

    asyncio.run(main())


def test_a_caller_who_has_used_nothing_for_long_has_saved_up_nothing():
    async def main():
        queue = FairQueue()
        busy, late = Share(), Share()
        for _ in range(100):
            queue.join(busy, 100, 0)
        for _ in range(50):
            queue.pop()
        for _ in range(50):
            queue.join(late, 100, 0)
        order = [queue.pop().share for _ in range(20)]
        assert 9 <= order.count(late) <= 11

    asyncio.run(main())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 500)), max_size=60), st.data())
def test_the_queue_keeps_its_sums(requests, data):
    async def main():
        queue = FairQueue()
        shares = [Share() for _ in range(4)]
        waiting = []
        for who, tokens in requests:
            waiting.append(queue.join(shares[who], tokens, 0))
            if data.draw(st.booleans()):
                gone = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
                queue.leave(gone)
            elif data.draw(st.booleans()):
                waiting.remove(queue.pop())
            assert len(queue) == len(waiting)
            assert queue.tokens == pytest.approx(sum(one.tokens for one in waiting))
            for share in shares:
                assert share.queued == pytest.approx(
                    sum(one.tokens for one in waiting if one.share is share)
                )
        while (one := queue.pop()) is not None:
            waiting.remove(one)
        assert not waiting

    asyncio.run(main())


def test_when_the_queue_is_full_the_newest_of_the_greediest_goes():
    async def main():
        found = admission(max_streams=1, max_queued_tokens=1_000)
        greedy, modest = caller(found, "greedy"), caller(found, "modest")
        running = await found.enter(greedy, 1)
        held = [asyncio.create_task(found.enter(greedy, 250)) for _ in range(4)]
        await settle_down()
        assert found.queue.tokens == 1_000
        late = asyncio.create_task(found.enter(modest, 250))
        await settle_down()
        assert [task.done() for task in held] == [False, False, False, True]
        with pytest.raises(HTTPError) as refused:
            held[3].result()
        assert refused.value.status == 503
        # The greedy one itself finds no more room.
        with pytest.raises(HTTPError):
            await found.enter(greedy, 250)
        running.close()
        await settle_down()
        order = []
        for _ in range(4):
            (ticket,) = [t.result() for t in [*held[:3], late] if t.done() and t not in order]
            order += [t for t in [*held[:3], late] if t.done() and t not in order]
            ticket.close()
            await settle_down()
        assert order.index(late) <= 1, "it goes almost at once, though it came last"
        assert found.running == 0

    asyncio.run(main())


def test_a_request_larger_than_the_queue_passes_when_it_is_empty():
    async def main():
        found = admission(max_streams=1, max_queued_tokens=100)
        who = caller(found, "a")
        first = await found.enter(who, 1)
        second = asyncio.create_task(found.enter(who, 5_000))
        await settle_down()
        first.close()
        (await second).close()

    asyncio.run(main())


def test_a_waiter_cancelled_in_the_moment_it_is_let_in_gives_its_place_back():
    async def main():
        found = admission(max_streams=1)
        who = caller(found, "a")
        first = await found.enter(who, 1)
        second = asyncio.create_task(found.enter(who, 1))
        await settle_down()
        first.close()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert found.running == 0
        assert who.running == 0
        (await found.enter(who, 1)).close()

    asyncio.run(main())


def test_a_refusal_for_want_of_room_gives_the_rate_back():
    async def main():
        found = admission(
            max_streams=1,
            max_queued_tokens=0,
            requests_per_key="5/hour",
            tokens_per_key="1000/hour",
        )
        who = caller(found, "a")
        first = await found.enter(who, 100)
        for _ in range(20):
            with pytest.raises(HTTPError) as refused:
                await found.enter(who, 100)
            assert refused.value.status == 503
        now = who.limit.snapshot()
        assert now.requests.level >= 3.9
        assert now.tokens.level >= 899
        first.close()

    asyncio.run(main())


def test_closing_sends_away_who_waits_and_who_comes():
    async def main():
        found = admission(max_streams=1)
        who = caller(found, "a")
        first = await found.enter(who, 1)
        second = asyncio.create_task(found.enter(who, 1))
        await settle_down()
        found.close(HTTPError(503, "the server is stopping", "stopping"))
        for waiting in (second, found.enter(who, 1)):
            with pytest.raises(HTTPError, match="stopping"):
                await waiting
        first.close()
        assert (found.running, who.running) == (0, 0)

    asyncio.run(main())


def test_a_ticket_closed_twice_frees_one_place():
    async def main():
        found = admission(max_streams=2)
        who = caller(found, "a")
        tickets: list[Ticket] = [await found.enter(who, 1) for _ in range(2)]
        tickets[0].close()
        tickets[0].close()
        assert found.running == 1

    asyncio.run(main())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["enter", "cancel", "close", "settle", "refund"]), max_size=60),
    st.data(),
)
def test_whatever_happens_the_places_add_up(steps, data):
    async def main():
        found = admission(max_streams=3, max_queued_tokens=500)
        callers = [caller(found, name) for name in "abc"]
        waiting: list[asyncio.Task[Ticket]] = []
        running: list[Ticket] = []
        for step in steps:
            if step == "enter":
                who = data.draw(st.sampled_from(callers))
                waiting.append(
                    asyncio.create_task(found.enter(who, data.draw(st.integers(1, 300))))
                )
            elif step == "cancel" and waiting:
                data.draw(st.sampled_from(waiting)).cancel()
            elif step != "cancel" and running:
                ticket = data.draw(st.sampled_from(running))
                if step == "settle":
                    ticket.settle(data.draw(st.integers(0, 500)))
                elif step == "refund":
                    ticket.refund()
                else:
                    running.remove(ticket)
                    ticket.close()
            await settle_down()
            for task in [task for task in waiting if task.done()]:
                waiting.remove(task)
                if not task.cancelled() and task.exception() is None:
                    running.append(task.result())
            assert found.running == len(running) <= 3
            assert len(found.queue) == len(waiting)
            assert sum(one.running for one in callers) == len(running) + len(waiting)
            assert not waiting or found.running == 3, "nobody waits while there is room"
        for ticket in running:
            ticket.close()
        while waiting:
            await settle_down()
            for task in [task for task in waiting if task.done()]:
                waiting.remove(task)
                task.result().close()
        assert found.running == 0

    asyncio.run(main())
