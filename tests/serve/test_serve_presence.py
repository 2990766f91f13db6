"""A block that ends when its client leaves, tells that from every other way in which it can end."""

from __future__ import annotations

import asyncio

import pytest

from tournant.serve.bodies import ClientLeft
from tournant.serve.presence import Presence, Running


class Client:
    """The receiving side of a request whose body has been read."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}


def test_leaving_ends_the_block():
    async def main():
        client, running = Client(), Running()
        with pytest.raises(ClientLeft):
            async with Presence(client.receive, running):
                assert len(running) == 1
                client.gone.set()
                await asyncio.Event().wait()
        assert len(running) == 0
        await asyncio.wait_for(running.idle(), 5)
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)  # nothing is left of the cancellation

    asyncio.run(main())


def test_an_interruption_ends_all_blocks_with_its_reason():
    async def main():
        running = Running()

        async def block():
            async with Presence(Client().receive, running):
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(block()) for _ in range(3)]
        await asyncio.sleep(0)
        running.interrupt(ValueError("stop"))
        running.interrupt(ValueError("only the first counts"))
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(error) for error in done] == ["stop"] * 3
        await asyncio.wait_for(running.idle(), 5)

    asyncio.run(main())


def test_a_cancellation_from_outside_stays_one_even_if_the_client_leaves_too():
    async def main():
        async def block():
            async with Presence(None) as presence:
                presences.append(presence)
                await asyncio.Event().wait()

        presences: list[Presence] = []
        task = asyncio.create_task(block())
        await asyncio.sleep(0)
        task.cancel()
        presences[0].left()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_an_error_of_the_block_is_not_hidden():
    async def main():
        client = Client()
        with pytest.raises(KeyError):
            async with Presence(client.receive):
                raise KeyError("mine")
        async with Presence(client.receive):
            pass
        assert len(asyncio.all_tasks()) <= 3
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1, "nobody watches any more"

    asyncio.run(main())
