"""How late the server's loop is while it relays streams and the cores are full of an ingest."""

import asyncio
import json
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path

from benchmarks import serve_load
from benchmarks.harness import Result

ROOT = Path(__file__).parent.parent
STREAMS, INTERVAL = 200, 0.05
LAUNCH = (
    "import sys; from tournant.serve import ServeSettings, run; "
    "run(ServeSettings(llm=sys.argv[1], index=sys.argv[2], port=0), lambda url: print(url.rpartition(':')[2], flush=True))"
)


def documents(folder, count):
    """Write text files of a few thousand characters each."""
    words = (Path(__file__).read_text() + serve_load.__doc__).split()
    for number in range(count):
        turn = number % len(words)
        text = " ".join(words[turn:] + words[:turn])
        path = Path(folder, f"{number % 100:02}", f"{number}.txt")
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"Document {number}.\n\n{text}\n")


def upload(port, folder):
    """Send every file of a folder to the server in requests of 500; return how many documents went in."""
    done = 0
    paths = sorted(Path(folder).rglob("*.txt"))
    for first in range(0, len(paths), 500):
        parts = []
        for path in paths[first : first + 500]:
            parts.append(
                b'--frontier\r\ncontent-disposition: form-data; name="files"; filename="%b"\r\n'
                b"content-type: text/plain\r\n\r\n%b\r\n" % (path.name.encode(), path.read_bytes())
            )
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/documents",
            b"".join(parts) + b"--frontier--\r\n",
            {"content-type": "multipart/form-data; boundary=frontier"},
        )
        with urllib.request.urlopen(request) as response:
            done += response.read().count(b"event: done\n")
    return done


async def streams(port, over):
    """Keep the streams going until `over` is set; return the gaps between tokens."""
    gaps, broken = [], 0

    async def one():
        nonlocal broken
        while not over.is_set():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(serve_load.request())
            last, ended = None, False
            while data := await reader.read(65_536):
                now = time.perf_counter()
                if last is not None:
                    gaps.append(now - last)
                last = now
                if b"[DONE]" in data:
                    ended = True
                    break
            broken += not ended
            writer.close()

    await asyncio.gather(*(one() for _ in range(STREAMS)))
    return gaps, broken


def lags(port):
    """Return the server's own figures: the 99th percentile of its loop's lateness over half a minute, in milliseconds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/stats") as response:
        return 1e3 * json.load(response)["loop"]["lag_p99"]


async def measure(port, folder, count):
    """Relay streams, first alone and then while the documents are ingested."""
    over = asyncio.Event()
    running = asyncio.create_task(streams(port, over))
    await asyncio.sleep(10)
    alone = await asyncio.to_thread(lags, port)
    seen = []
    ingest = asyncio.create_task(asyncio.to_thread(upload, port, folder))
    while not ingest.done():
        await asyncio.wait({ingest}, timeout=5)
        seen.append(await asyncio.to_thread(lags, port))
    over.set()
    gaps, broken = await running
    return alone, seen, gaps, broken, ingest.result()


def lag(quick, process):
    """Print the loop's lateness; return the exit code."""
    count = 1_000 if quick else 10_000
    result = Result(
        f"serve lag: the loop's lateness, p99, during an ingest of {count:,} documents and {STREAMS} streams",
        "ms",
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        process("-m", "benchmarks.serve_upstream", "64", str(INTERVAL)) as (_, upstream),
    ):
        sources, index = Path(folder, "sources"), Path(folder, "index")
        sources.mkdir()
        documents(sources, count)
        url = f"http://127.0.0.1:{upstream}/v1"
        with process("-c", LAUNCH, url, str(index)) as (_, port):
            alone, seen, gaps, broken, done = asyncio.run(measure(port, sources, count))
    result.values["during the ingest"] = seen
    result.values["streams alone"] = [alone]
    result.targets["during the ingest"] = "below 20"
    gaps.sort()
    result.facts["documents"] = f"{done:,} ingested"
    result.facts["gap between tokens"] = (
        f"p50 {1e3 * statistics.median(gaps):.0f} ms, p99 {1e3 * gaps[int(len(gaps) * 0.99)]:.0f} ms"
    )
    result.facts["broken streams"] = broken
    result.print()
    return int(result.median("during the ingest") > 20 or broken > 0)
