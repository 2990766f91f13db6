"""The server as a gateway, beside a relay written by hand: time to first token, time between tokens, CPU for a token.

Upstream, gateway and load generator are one process each and share the machine's cores; only the gateway differs. The
gateways run by turns.
"""

import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from benchmarks import harness, serve_lag, serve_load, serve_memory, serve_upstream
from benchmarks.harness import Result

OURS = "tournant serve"
LITELLM = "litellm"
LITELLM_COMMAND = os.environ.get("LITELLM") or which("litellm")
ROOT = Path(__file__).parent.parent
LAUNCH = (
    "import sys; from tournant.serve import ServeSettings, run; "
    "run(ServeSettings(llm=sys.argv[1], port=0), lambda url: print(url.rpartition(':')[2], flush=True))"
)
SCENES = {
    # name: (streams, tokens, seconds between tokens, seconds over which the streams begin)
    "steady": (1_000, 64, 0.05, 1.0),
    "burst": (1_000, 64, 0.05, 0.0),
    "saturation": (64, 5_000, 0.0, 0.0),
}


@contextmanager
def process(*arguments):
    """Start a process that prints its port; yield it and the port."""
    child = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        line = child.stdout.readline()
        if not line.strip():
            raise RuntimeError(f"{arguments[:3]} did not start")
        yield child, int(line)
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()


@contextmanager
def gateway(name, upstream_port):
    """Start a gateway; yield its process (``None`` for none at all) and the port to ask."""
    url = f"http://127.0.0.1:{upstream_port}/v1"
    if name == "direct":
        yield None, upstream_port
    elif name == OURS:
        with process("-c", LAUNCH, url) as found:
            yield found
    elif name == LITELLM:
        with litellm(url) as found:
            yield found
    else:
        with process("-m", "benchmarks.serve_peers", name, url) as found:
            yield found


@contextmanager
def litellm(url):
    """Start LiteLLM's proxy, from wherever it is installed: its pins and ours don't fit into one environment."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        model = {"model": "openai/m", "api_base": url, "api_key": "none"}
        # JSON is YAML.
        config.write_text(
            json.dumps({"model_list": [{"model_name": "m", "litellm_params": model}]})
        )
        child = subprocess.Popen(
            [LITELLM_COMMAND, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
            env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
        )  # fmt: skip
        try:
            for _ in range(600):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            else:
                raise RuntimeError("litellm did not listen within 60 s")
            yield child, port
        finally:
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(name, streams, tokens, interval, ramp):
    """Return what the load generator saw, with the gateway's CPU and memory."""
    upstream = ("-m", "benchmarks.serve_upstream", str(tokens), str(interval))
    with process(*upstream) as (_, upstream_port), gateway(name, upstream_port) as (child, port):
        time.sleep(0.5)
        load = (sys.executable, "-m", "benchmarks.serve_load", "127.0.0.1", str(port))
        # One stream first: what is loaded or compiled on first use is not what is measured.
        if interval:
            subprocess.run(
                [*load, "2", str(tokens), "0"], check=True, capture_output=True, cwd=ROOT
            )
        before = cpu_seconds(child.pid) if child else 0.0
        done = subprocess.run(
            [*load, str(streams), str(tokens), str(ramp)],
            check=True, capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        seen = json.loads(done.stdout)
        seen["cpu"] = (
            1e6 * (cpu_seconds(child.pid) - before) / max(1, seen["tokens"]) if child else 0.0
        )
        seen["rate"] = seen["tokens"] / seen["seconds"]
        return seen


def measure_in_calm(*arguments):
    """Measure; again where other programs turned out to be busy. Return what was seen, and how many cores the others took."""
    for _ in range(harness.ATTEMPTS if harness.PATIENCE else 1):
        harness.wait_for_calm(harness.PATIENCE)
        neighbours = harness.Neighbours()
        seen = measure(*arguments)
        others, _ = neighbours.since()
        if others < harness.BUSY:
            break
    return seen, others


class Leaving:
    """An upstream that says one token and then nothing, and notes when it is cut off."""

    def __init__(self):
        self.cut = asyncio.Event()
        self.cut_at = 0.0

    async def answer(self, reader, writer):
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: *(\d+)", head.lower())[1])
            await reader.readexactly(length)
            writer.write(serve_upstream.HEAD + serve_upstream.TOKEN)
            await reader.read()
        self.cut_at = time.perf_counter()
        self.cut.set()
        writer.close()


async def leave(name, times):
    """Return the milliseconds from a client's leaving to the end of the upstream's call."""
    found = []
    script = Leaving()
    upstream = await asyncio.start_server(script.answer, "127.0.0.1", 0)
    url_port = upstream.sockets[0].getsockname()[1]
    with gateway(name, url_port) as (_, port):
        for _ in range(times):
            script.cut.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(serve_load.request())
            await reader.readuntil(b"data: ")
            left_at = time.perf_counter()
            writer.transport.abort()
            await asyncio.wait_for(script.cut.wait(), 30)
            found.append(1_000 * (script.cut_at - left_at))
    upstream.close()
    return found


def leaving(quick):
    """How soon the upstream is cut when a client leaves in the middle of its answer."""
    result = Result("serve leaving: from the client's leaving to the upstream's end", "ms")
    result.skipped.update(missing())
    for name in contestants()[1:]:
        try:
            result.values[name] = asyncio.run(leave(name, 20 if quick else 100))
        except TimeoutError:
            result.skipped[name] = "not within 30 s"
    result.targets[OURS] = "below 100"
    result.print()
    return int(max(result.values.get(OURS, [1e9])) > 100)


PACKAGES = {"starlette+aiohttp": ("starlette", "aiohttp"), "fastapi+httpx": ("fastapi", "httpx")}


def missing():
    """Return the peers that can't run, and why."""
    alone = (
        {} if LITELLM_COMMAND else {LITELLM: "set LITELLM to the command, or have it on the PATH"}
    )
    return alone | {
        name: f"{package} is not installed"
        for name, packages in PACKAGES.items()
        for package in packages
        if find_spec(package) is None
    }


def contestants():
    return ["direct", OURS, *(name for name in [*PACKAGES, LITELLM] if name not in missing())]


FIGURES = {
    "first_p50": ("time to first token, p50", "ms"),
    "first_p99": ("time to first token, p99", "ms"),
    "gap_p99": ("time between tokens, p99", "ms"),
    "cpu": ("CPU of the gateway", "us a token"),
}


def main(only=(), quick=False, runs=3):
    """Run the scenes; return the exit code."""
    code = 0
    runs = 1 if quick else runs
    for scene, (whole, tokens, interval, ramp) in SCENES.items():
        if only and scene not in only:
            continue
        streams = whole // 4 if quick else whole
        seen = {name: [] for name in contestants()}
        skipped, busy = missing(), []
        for _ in range(runs):
            for name, all_seen in seen.items():
                try:
                    found, others = measure_in_calm(name, streams, tokens, interval, ramp)
                except (RuntimeError, subprocess.SubprocessError) as error:
                    skipped[name] = str(error)[:200]
                    continue
                if found["complete"] != streams:
                    code = code or (name == OURS)
                    skipped[f"{name} (complete)"] = f"{found['complete']} of {streams}"
                busy.append(others)
                all_seen.append(found)
        figures = {"rate": ("tokens relayed", "tokens/s")} if not interval else {}
        figures |= FIGURES if interval else {"cpu": FIGURES["cpu"]}
        for key, (what, unit) in figures.items():
            result = Result(f"serve {scene}: {what}", unit, higher_is_better=key == "rate")
            result.facts["streams"] = (
                f"{streams} of {tokens} tokens, {interval * 1000:g} ms apart, begun within {ramp:g} s"
            )
            for name, all_seen in seen.items():
                values = [one[key] for one in all_seen if one[key] is not None]
                if values and not (name == "direct" and key == "cpu"):
                    result.values[name] = values
            result.skipped.update(skipped)
            result.print()
        if busy:
            print(
                f"   other programs meanwhile: {statistics.mean(busy):.2f} of {harness.cores()} cores"
            )
    if not only or "leaving" in only:
        code |= leaving(quick)
    if not only or "abandoned" in only:
        code |= serve_memory.abandoned(quick, process, gateway)
    if not only or "lag" in only:
        code |= serve_lag.lag(quick, process)
    return int(code)


if __name__ == "__main__":
    names = [word for word in sys.argv[1:] if not word.startswith("-")]
    harness.PATIENCE = 60.0 if "--calm" in sys.argv else 0.0
    sys.exit(main(names, "--quick" in sys.argv, 1 if "--once" in sys.argv else 3))
