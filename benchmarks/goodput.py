"""How much of what a provider allows is got out of it: `python -m benchmarks api --only goodput`.

3,000 jobs wait for a provider that limits requests and tokens, slows down beyond a knee, fails 1 % of the calls, sometimes never answers, and
halves its limits midway without saying so beforehand. Each contestant has 40 seconds, in a process of its own, against a provider of
its own. The provider counts: what it answered with 200 and with 429.
"""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import api_peers
from benchmarks.api_peers import Api, Job
from benchmarks.harness import Missing, Result
from benchmarks.provider import provider

JOBS = 3_000
SECONDS = 40.0
REQUESTS = 3_000.0  # a minute
TOKENS = 600_000.0
ERRORS, HANGS = 0.01, 0.002
KNEE = 64
SETTINGS = {
    "rpm": REQUESTS,
    "tpm": TOKENS,
    "latency": "lognormal:0.4,0.3",
    "knee": KNEE,
    "error_rate": ERRORS,
    "hang_rate": HANGS,
}

TOLD, UNTOLD = "tournant, told the limits", "tournant, told nothing"
BLIND = "tournant, told nothing, no headers"
CONTESTANTS = {
    TOLD: "tournant_told",
    UNTOLD: "tournant_untold",
    BLIND: "tournant_blind",
    "gather + semaphore + tenacity": "tenacity_gather",
    "openai client, its own retries": "openai_gather",
    "aiolimiter, told the limit": "told_limiter",
    "cookbook's processor, told the limits": "cookbook",
}


def make_jobs(count: int = JOBS) -> list[Job]:
    """Return jobs of mixed sizes: about 190 tokens on average, so that now requests and now tokens bind."""
    draw = random.Random(7)
    return [
        Job(
            number,
            f"job {number}: " + "word " * draw.randint(20, 250),
            draw.choice([8, 16, 24]),
        )
        for number in range(count)
    ]


def allowed(jobs: Sequence[Job], stats: dict[str, Any]) -> float:
    """Return how many jobs the provider would have answered for someone who always asks in time.

    Its rate is the lower of the two limits for jobs of this size; the errors and hangs that it made are nobody's fault.
    """
    size = sum(job.tokens for job in jobs) / len(jobs)
    rate = min(REQUESTS, TOKENS / size) / 60
    burst = stats["burst"]
    start = min(burst["requests"], burst["tokens"] / size) * 2  # told after the limits were halved
    before, after = stats["lasted"]
    return start + rate * before + rate / 2 * after - stats["errors"] - stats["hung"]


async def tournant_told(api: Api, jobs: Sequence[Job]) -> None:
    """Run the jobs as a pipeline that is told the limits."""
    from tournant.limits import RateLimit

    await _tournant(api, jobs, RateLimit(f"{api.requests:g}/min", f"{api.tokens:g}/min", "bench"))


async def tournant_untold(api: Api, jobs: Sequence[Job]) -> None:
    """Run the jobs as a pipeline that is told nothing."""
    from tournant.limits import RateLimit

    await _tournant(api, jobs, RateLimit(key="bench"))


tournant_blind = tournant_untold


async def _tournant(api: Api, jobs: Sequence[Job], limit: Any) -> None:
    import tournant as tn
    from tournant.limits import Adaptive
    from tournant.llm import TRANSIENT, Client

    async with Client(api.url, "mock") as client:

        async def ask(job: Job) -> Any:
            return await client.chat(job.prompt, max_tokens=job.max_tokens)

        pipeline = tn.Pipeline(jobs, key=lambda job: str(job.number), on_error="skip").map(
            ask,
            concurrency=Adaptive(1, 256),
            limit=limit,
            cost=lambda job: job.tokens,
            timeout=api_peers.TIMEOUT,
            retry=tn.Retry(attempts=10, delay=1.0, on=(*TRANSIENT, TimeoutError)),
        )
        await pipeline.arun()


def contestant(name: str, api: Api, seconds: float, count: int) -> None:
    """Run one contestant for some seconds; in a process of its own."""
    run = globals().get(name) or getattr(api_peers, name)

    async def main() -> None:
        task = asyncio.ensure_future(run(api, make_jobs(count)))
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            task.result()
        task.cancel()
        await asyncio.wait({task}, timeout=5)

    asyncio.run(main())


def main(only: Sequence[str], quick: bool) -> int:
    """Give every contestant its turn, and print what the provider counted."""
    seconds = 10.0 if quick else SECONDS
    jobs = make_jobs()
    goodput = Result("goodput", "% of what the provider allowed", higher_is_better=True)
    refused = Result("refused", "% of requests answered 429")
    goodput.targets = {TOLD: ">= 97", UNTOLD: ">= 85", BLIND: ">= 85"}
    refused.targets = {TOLD: "< 1", UNTOLD: "< 1", BLIND: "< 1"}
    lost: dict[str, str] = {}
    for who, name in CONTESTANTS.items():
        if only and name not in only:
            continue
        try:
            stats = _watched(name, seconds)
        except Missing as error:
            goodput.skipped[who] = refused.skipped[who] = str(error)
            continue
        best = allowed(jobs, stats)
        goodput.values[who] = [100 * stats["ok"] / best]
        refused.values[who] = [100 * stats["refused"] / max(1, stats["requests"])]
        lost[who] = (
            f"{stats['ok']} answered, {stats['refused']} times 429, peak {stats['peak']} at once"
        )
    goodput.facts = {"seconds": seconds, "jobs": len(jobs), "provider": SETTINGS, **lost}
    goodput.print()
    refused.print()
    return 0


def _watched(name: str, seconds: float) -> dict[str, Any]:
    """Run one contestant against a provider of its own, and return what the provider saw."""
    headers = "none" if name == "tournant_blind" else "openai"
    with provider(**SETTINGS, headers=headers) as api:
        command = [sys.executable, "-m", "benchmarks.goodput", name, api.url, str(seconds)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            while api.stats()["requests"] == 0 and process.poll() is None:
                time.sleep(0.02)
            begun = time.perf_counter()
            time.sleep(seconds / 2)
            api.control(rpm=REQUESTS / 2, tpm=TOKENS / 2)
            halved = time.perf_counter()
            time.sleep(seconds / 2)
            seen: dict[str, Any] = api.stats()
            seen["lasted"] = (halved - begun, time.perf_counter() - halved)
            _, errors = process.communicate(timeout=60)
        if process.returncode:
            last = (errors.strip().splitlines() or ["no message"])[-1]
            raise (Missing if "Missing" in last else RuntimeError)(f"{name}: {last}")
        return seen


if __name__ == "__main__":
    who, url, lasting = sys.argv[1:4]
    contestant(who, Api(url, REQUESTS, TOKENS), float(lasting), JOBS)
