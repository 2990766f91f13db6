"""A consumer that takes its time over each result."""

import asyncio

import tournant as tn


async def twice(number):
    await asyncio.sleep(0.001)
    return 2 * number


async def main():
    async with tn.Pipeline(range(8)).map(twice).open() as run:
        async for _ in run:
            await asyncio.sleep(0.15)
    print(run.report.findings, run.report.warnings)


asyncio.run(main())
