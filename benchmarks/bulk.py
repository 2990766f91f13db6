"""100,000 prompts against a provider that answers at once: `python -m benchmarks api --only bulk`.

The provider is a process of its own on the same machine, so both share the cores. Each contestant reads the requests from a file in OpenAI's
batch format and appends each answer to another as it arrives. Time includes start-up. Memory is the resident memory of the contestant's
process after a tenth of the requests and at its highest.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import Missing, Result
from benchmarks.peers import need
from benchmarks.provider import Provider, provider

COUNT = 100_000
WIDTH = 64
MIB = 1 << 20
OURS = "tournant batch"
BARE = "bare aiohttp, 64 workers by hand"
OFFICIAL = "openai client, 64 at once"


def write_requests(path: Path, count: int) -> None:
    """Write `count` requests in the batch format."""
    with path.open("w", encoding="utf-8") as out:
        for number in range(count):
            body = {
                "model": "mock",
                "messages": [
                    {"role": "user", "content": f"Summarise document {number} in a word."}
                ],
                "max_tokens": 8,
            }
            request = {
                "custom_id": f"request-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            out.write(json.dumps(request) + "\n")


async def bare(url: str, requests: Path, results: Path) -> None:
    """64 workers that pull lines, post them through aiohttp and write what comes back."""
    import aiohttp

    with requests.open("rb") as lines, results.open("wb") as out:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def worker() -> None:
                for line in lines:
                    request = json.loads(line)
                    async with session.post(
                        url + "/chat/completions", json=request["body"]
                    ) as reply:
                        body = await reply.json()
                    answer = {"custom_id": request["custom_id"], "response": body}
                    out.write(json.dumps(answer).encode() + b"\n")

            await asyncio.gather(*(worker() for _ in range(WIDTH)))


async def official(url: str, requests: Path, results: Path) -> None:
    """The same through the official client."""
    openai = need("openai")
    with requests.open("rb") as lines, results.open("wb") as out:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:

            async def worker() -> None:
                for line in lines:
                    request = json.loads(line)
                    body = await client.chat.completions.create(**request["body"])
                    answer = {"custom_id": request["custom_id"], "response": body.model_dump()}
                    out.write(json.dumps(answer).encode() + b"\n")

            await asyncio.gather(*(worker() for _ in range(WIDTH)))


BY_HAND: dict[str, Callable[[str, Path, Path], Any]] = {"bare": bare, "official": official}


def command(who: str, url: str, requests: Path, results: Path) -> list[str]:
    """Return the command that runs a contestant."""
    if who == OURS:
        return [
            *(sys.executable, "-m", "tournant", "batch", str(requests), "-o", str(results)),
            *("--base-url", url, "--model", "mock", "--concurrency", "1:256"),
        ]  # fmt: skip
    name = "bare" if who == BARE else "official"
    return [sys.executable, "-m", "benchmarks.bulk", name, url, str(requests), str(results)]


def run(who: str, api: Provider, count: int, folder: Path) -> tuple[float, float, float]:
    """Run one contestant; return its seconds, and its resident MiB after a tenth of the work and at its highest."""
    import psutil

    requests, results = folder / "requests.jsonl", folder / f"{who.split(maxsplit=1)[0]}.jsonl"
    results.unlink(missing_ok=True)
    write_requests(requests, count)
    api.reset()
    begun = time.perf_counter()
    early = highest = 0.0
    with subprocess.Popen(
        command(who, api.url, requests, results),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                resident = watched.memory_info().rss / MIB
            except psutil.Error:
                break
            highest = max(highest, resident)
            if not early and api.stats()["ok"] >= count / 10:
                early = resident
            time.sleep(0.2)
        _, errors = process.communicate(timeout=30)
        seconds = time.perf_counter() - begun
    if process.returncode:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        raise (Missing if "Missing" in last else RuntimeError)(last)
    with results.open("rb") as lines:
        answered = sum(1 for line in lines if b'"custom_id"' in line)
    if answered != count:
        raise RuntimeError(f"{who}: {answered} of {count} answered")
    return seconds, early, highest


def main(quick: bool) -> int:
    """Run all and print the table."""
    count = COUNT // 10 if quick else COUNT
    result = Result("bulk", "requests/s", higher_is_better=True, targets={OURS: ">= 3,000"})
    result.facts["requests"] = count
    with tempfile.TemporaryDirectory() as folder, provider(latency=0) as api:
        for who, share in ((OURS, 1.0), (BARE, 1.0), (OFFICIAL, 0.05)):
            part = int(count * share)
            try:
                seconds, early, highest = run(who, api, part, Path(folder))
            except Missing as error:
                result.skipped[who] = str(error)
                continue
            result.values[who] = [part / seconds]
            result.facts[f"{who}: resident MiB after a tenth / highest"] = (
                f"{early:.0f} / {highest:.0f}"
            )
    result.print()
    return 0


if __name__ == "__main__":
    name, url, source, target = sys.argv[1:5]
    asyncio.run(BY_HAND[name](url, Path(source), Path(target)))
