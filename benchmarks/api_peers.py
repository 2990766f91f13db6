"""The same jobs through what people use today to call a model API.

Each is a coroutine function of an `Api` and the jobs. It calls `Api.post` or its own client; whatever is answered is counted by the
provider, so nobody keeps a count of his own. Each is used as its documentation shows, with the timeouts of all others.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import need

TIMEOUT = 8.0  # seconds; the slowest honest answer takes about two


@dataclass(frozen=True)
class Job:
    """One request: a prompt and how much may be answered."""

    number: int
    prompt: str
    max_tokens: int

    @property
    def body(self) -> dict[str, Any]:
        """The request's body."""
        return {
            "model": "mock",
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.max_tokens,
        }

    @property
    def tokens(self) -> int:
        """What everybody reckons that it costs: four characters a token, and all that may be answered."""
        return len(self.prompt) // 4 + self.max_tokens


@dataclass(frozen=True)
class Api:
    """The provider, and what the contestants are told of it.

    Attributes:
        url: its base URL, with ``/v1``.
        requests: requests a minute that it allows at first.
        tokens: tokens a minute that it allows at first.
    """

    url: str
    requests: float
    tokens: float


class Refused(Exception):
    """An answer that is no 200."""

    def __init__(self, status: int, headers: Any) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.headers = headers


Contestant = Callable[[Api, Sequence[Job]], Awaitable[None]]


async def post(session: Any, job: Job) -> Any:
    """Send one job through aiohttp."""
    async with session.post("chat/completions", json=job.body) as reply:
        body = await reply.read()
        if reply.status != 200:
            raise Refused(reply.status, reply.headers)
        return body


def new_session(api: Api) -> Any:
    """Return an aiohttp session without a limit on connections."""
    import aiohttp

    return aiohttp.ClientSession(
        base_url=api.url.rstrip("/") + "/",
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT),
    )


async def tenacity_gather(api: Api, jobs: Sequence[Job]) -> None:
    """`asyncio.gather`, a semaphore of 64, and tenacity's random exponential backoff."""
    tenacity = need("tenacity")
    import aiohttp

    gate = asyncio.Semaphore(64)

    @tenacity.retry(
        wait=tenacity.wait_random_exponential(min=1, max=60),
        stop=tenacity.stop_after_attempt(10),
        retry=tenacity.retry_if_exception_type((Refused, TimeoutError, aiohttp.ClientError)),
    )
    async def ask(job: Job) -> Any:
        return await post(session, job)

    async def one(job: Job) -> Any:
        async with gate:
            return await ask(job)

    async with new_session(api) as session:
        await asyncio.gather(*map(one, jobs), return_exceptions=True)


async def openai_gather(api: Api, jobs: Sequence[Job]) -> None:
    """The official client with the retries it has by itself, all jobs gathered."""
    openai = need("openai")

    async with openai.AsyncOpenAI(base_url=api.url, api_key="none", timeout=TIMEOUT) as client:

        async def one(job: Job) -> Any:
            return await client.chat.completions.create(**job.body)

        await asyncio.gather(*map(one, jobs), return_exceptions=True)


async def told_limiter(api: Api, jobs: Sequence[Job]) -> None:
    """`aiolimiter`, told the limit on requests, with tenacity for what fails all the same."""
    limiter_of, tenacity = need("aiolimiter").AsyncLimiter, need("tenacity")
    import aiohttp

    limiter = limiter_of(api.requests / 60, 1)

    @tenacity.retry(
        wait=tenacity.wait_random_exponential(min=1, max=60),
        stop=tenacity.stop_after_attempt(10),
        retry=tenacity.retry_if_exception_type((Refused, TimeoutError, aiohttp.ClientError)),
    )
    async def one(job: Job) -> Any:
        async with limiter:
            return await post(session, job)

    async with new_session(api) as session:
        await asyncio.gather(*map(one, jobs), return_exceptions=True)


async def cookbook(api: Api, jobs: Sequence[Job]) -> None:
    """The parallel processor of the provider's cookbook, from its description.

    A loop that looks every millisecond: capacity for requests and tokens grows with time up to one minute's worth; a job goes when
    there is capacity for both; what failed goes into a queue for another attempt, five in all; after a rate limit error everything
    rests for 15 seconds.
    """
    import aiohttp

    waiting = iter(jobs)
    again: deque[tuple[Job, int]] = deque()
    requests, tokens = api.requests, api.tokens
    seen = time.monotonic()
    rest_until = 0.0
    tasks: set[asyncio.Task[None]] = set()
    following: tuple[Job, int] | None = None
    done = False

    async def call(job: Job, attempts: int) -> None:
        nonlocal rest_until
        try:
            await post(session, job)
        except (Refused, TimeoutError, aiohttp.ClientError) as error:
            if isinstance(error, Refused) and error.status == 429:
                rest_until = time.monotonic() + 15
            if attempts > 1:
                again.append((job, attempts - 1))

    async with new_session(api) as session:
        while True:
            if following is None:
                if again:
                    following = again.popleft()
                elif not done:
                    job = next(waiting, None)
                    done = job is None
                    following = (job, 5) if job is not None else None
            now = time.monotonic()
            requests = min(api.requests, requests + api.requests * (now - seen) / 60)
            tokens = min(api.tokens, tokens + api.tokens * (now - seen) / 60)
            seen = now
            if following is not None and requests >= 1 and tokens >= following[0].tokens:
                requests -= 1
                tokens -= following[0].tokens
                task = asyncio.create_task(call(*following))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                following = None
            if following is None and done and not again and not tasks:
                return
            await asyncio.sleep(0.001)
            if (rest := rest_until - time.monotonic()) > 0:
                await asyncio.sleep(rest)
