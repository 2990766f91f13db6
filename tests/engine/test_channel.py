from __future__ import annotations

import asyncio

from tournant.engine.channel import Attempt, Channel
from tournant.engine.lineage import Input, Item


def item(n=0):
    return Item(n, Input(n, n, None, None))


def test_one_wake_up_reaches_one_reader_and_the_next_is_passed_on():
    async def main():
        channel = Channel(asyncio.get_running_loop(), 10)
        woken = []

        async def read(name):
            await channel.wait_items()
            woken.append(name)

        tasks = [asyncio.create_task(read(n)) for n in range(3)]
        await asyncio.sleep(0)
        assert channel.readers_idle
        channel.items.append(item())
        channel.added()
        channel.items.append(item())
        channel.added()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(woken) == 1
        channel.pass_on()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(woken) == 2
        channel.close()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_a_reader_that_wants_several_is_not_woken_for_fewer_but_for_what_comes_back():
    async def main():
        channel = Channel(asyncio.get_running_loop(), 10)
        channel.threshold = 3
        reader = asyncio.create_task(channel.wait_items())
        await asyncio.sleep(0)
        for n in range(2):
            channel.items.append(item(n))
            channel.added()
        await asyncio.sleep(0)
        assert not reader.done()
        channel.again.append(Attempt(item()))
        channel.added()
        await asyncio.wait_for(reader, 5)

    asyncio.run(main())


def test_a_wait_for_items_may_be_limited():
    async def main():
        channel = Channel(asyncio.get_running_loop(), 10)
        await asyncio.wait_for(channel.wait_items(0.001), 5)
        assert not channel.readers_idle

    asyncio.run(main())


def test_a_writer_that_was_cancelled_does_not_swallow_the_wake_up():
    async def main():
        channel = Channel(asyncio.get_running_loop(), 2)
        channel.items.extend([item(), item()])
        gone, stays = (asyncio.create_task(channel.wait_room()) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        channel.items.clear()
        channel.removed()
        await asyncio.wait_for(stays, 5)

    asyncio.run(main())


def test_producers_are_woken_when_half_is_free_and_wake_each_other():
    async def main():
        channel = Channel(asyncio.get_running_loop(), 4)
        channel.items.extend([item()] * 4)
        writers = [asyncio.create_task(channel.wait_room()) for _ in range(3)]
        await asyncio.sleep(0)
        channel.items.popleft()
        channel.removed()
        await asyncio.sleep(0)
        assert not any(w.done() for w in writers)
        channel.items.popleft()
        channel.removed()
        await asyncio.wait_for(asyncio.gather(*writers), 5)

    asyncio.run(main())


def test_a_producer_that_is_no_coroutine_is_called_once_there_is_room():
    async def main():
        channel = Channel(asyncio.get_running_loop(), 2)
        calls = []
        channel.on_room = lambda: calls.append("room")
        channel.removed()
        assert calls == []
        channel.room_wanted = True
        channel.removed()
        channel.removed()
        assert calls == ["room"]

    asyncio.run(main())


def test_closing_wakes_everybody():
    async def main():
        channel = Channel(asyncio.get_running_loop(), 1)
        channel.items.append(item())
        channel.threshold = 5
        waiting = [asyncio.create_task(w) for w in (channel.wait_items(), channel.wait_room())]
        await asyncio.sleep(0)
        channel.close()
        await asyncio.wait_for(asyncio.gather(*waiting), 5)

    asyncio.run(main())
