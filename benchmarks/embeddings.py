"""Embeddings served to many clients: `python -m benchmarks embeddings --onnx FOLDER [--quick]`.

32 clients ask one server for one text at a time, questions of 4 to 20 words and passages of 30 to 130, on the machine's cores together with
the server. Beside Tournant: the server that anybody writes first (an endpoint that calls the tokenizer and the session, unbatched, both as
they come; this model's tokenizer pads every text to 128 tokens), the same without padding, and the *offline limit*, which serves nobody: two
sessions of one thread each that are given all texts at once, sorted by length. The contestants run by turns.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import Neighbours, Result, print_machine, wait_for_calm

CLIENTS = 32
TEXTS = 800
OURS, LIMIT = "tournant serve", "offline limit"
UNBATCHED, UNPADDED = "unbatched", "unbatched, without padding"
ROOT = Path(__file__).parent.parent
SENTENCE = (
    "the kernel schedules threads on every processor of a machine and moves pages of memory to disk when a process "
    "needs more than there is while the file system writes its journal before it changes anything"
)
WORDS = SENTENCE.split()
KINDS = [(4, 20), (30, 130)]  # words
LAUNCH = (
    "import sys; from tournant.serve import ServeSettings, run; "
    "run(ServeSettings(embedder='onnx:' + sys.argv[1], port=0), lambda url: print(url.rpartition(':')[2], flush=True))"
)


def make_texts(count: int, seed: int) -> list[str]:
    """Return questions and passages, three to seven, none twice."""
    draw = random.Random(seed)
    return [
        f"{seed} {number} "
        + " ".join(draw.choices(WORDS, k=draw.randint(*draw.choices(KINDS, (3, 7))[0])))
        for number in range(count)
    ]


class Plain:
    """A tokenizer and a session, called as their documentation says."""

    def __init__(self, folder: str, *, padding: bool) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        self.session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
        self.inputs = {each.name for each in self.session.get_inputs()}
        self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        if not padding:
            self.tokenizer.no_padding()

    def embed(self, text: str) -> list[float]:
        import numpy as np

        encoded = self.tokenizer.encode(text)
        ids = np.array([encoded.ids], dtype=np.int64)
        mask = np.array([encoded.attention_mask], dtype=np.int64)
        feeds = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),
        }
        (states,) = self.session.run(None, {k: v for k, v in feeds.items() if k in self.inputs})[:1]
        vector = (states[0] * mask[0][:, None]).sum(axis=0) / mask.sum()
        return (vector / np.linalg.norm(vector)).tolist()


def serve_plain(folder: str, *, padding: bool) -> None:
    """Serve unbatched: FastAPI where it is installed, else Starlette, which is what it stands on."""
    import socket

    import uvicorn

    model = Plain(folder, padding=padding)

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        vector = model.embed(body["input"])
        return {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": vector}],
        }

    try:
        from fastapi import FastAPI

        app: Any = FastAPI()

        @app.post("/v1/embeddings")
        def embeddings(body: dict) -> dict:  # type: ignore[type-arg]
            return answer(body)
    except ImportError:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        async def endpoint(request: Any) -> Any:
            return JSONResponse(await run_in_threadpool(answer, await request.json()))

        app = Starlette(routes=[Route("/v1/embeddings", endpoint, methods=["POST"])])
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


def offline(folder: str, texts: list[str]) -> tuple[float, float]:
    """Return the seconds that two single-thread sessions need for all texts, sorted by length and shared out evenly, and the CPU's."""
    from tournant.ingest.embedders.onnx import OnnxEmbedder

    models = [OnnxEmbedder(folder) for _ in range(2)]
    for model in models:
        model.embed(["ready"])
    texts = sorted(texts, key=len)
    threads = [threading.Thread(target=m.embed, args=(texts[n::2],)) for n, m in enumerate(models)]
    began, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, time.process_time() - cpu


async def load(port: int, texts: list[str]) -> tuple[float, list[float]]:
    """Have the clients ask for all texts; return the seconds that took, and those of each request."""
    import aiohttp

    waiting = iter(texts)
    seconds: list[float] = []
    url = f"http://127.0.0.1:{port}/v1/embeddings"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CLIENTS)) as session:

        async def client() -> None:
            for text in waiting:
                began = time.perf_counter()
                async with session.post(
                    url, json={"input": text, "model": Path(FOLDER).name}
                ) as response:
                    body = await response.read()
                    assert response.status == 200, body[:300]
                seconds.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        return time.perf_counter() - began, seconds


FOLDER = ""


@contextmanager
def server(name: str):
    """Start a server; yield its port."""
    if name == OURS:
        command = ["-c", LAUNCH, FOLDER]
    else:
        command = ["-m", "benchmarks.embeddings", "--serve", name, "--onnx", FOLDER]
    child = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        yield int(child.stdout.readline())
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()


def main() -> int:
    """Run what the command line says."""
    global FOLDER
    parser = argparse.ArgumentParser(prog="python -m benchmarks embeddings", description=__doc__)
    parser.add_argument("--onnx", required=True, help="a folder with model.onnx and tokenizer.json")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--offline", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a fifth of the texts, once")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--calm", type=float, default=0.0, help="seconds to wait while others are busy"
    )
    arguments = parser.parse_args()
    FOLDER = arguments.onnx
    if arguments.serve is not None:
        serve_plain(FOLDER, padding=arguments.serve == UNBATCHED)
        return 0
    if arguments.offline is not None:
        print(*offline(FOLDER, make_texts(*arguments.offline)))
        return 0
    print_machine()
    count = TEXTS // 5 if arguments.quick else TEXTS
    rate = Result("embeddings: 32 clients, one text a request", "texts/s", higher_is_better=True)
    slow = Result("embeddings: the slowest of 100 requests", "ms, p99")
    cpu = Result("embeddings: CPU of server and clients", "ms a text")
    rate.targets = {OURS: ">= 1.7 x unbatched, >= 90 % of the limit"}
    others = []
    for run in range(1 if arguments.quick else arguments.runs):
        for name in (LIMIT, UNBATCHED, UNPADDED, OURS):
            texts = make_texts(count, run)
            wait_for_calm(arguments.calm)
            if name == LIMIT:
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.embeddings",
                    "--onnx",
                    FOLDER,
                    "--offline",
                ]
                neighbours = Neighbours()
                found = subprocess.run(
                    [*command, str(count), str(run)],
                    capture_output=True,
                    text=True,
                    check=True,
                    cwd=ROOT,
                )
                others.append(neighbours.since()[0])
                took, own = map(float, found.stdout.split())
                rate.values.setdefault(name, []).append(count / took)
                cpu.values.setdefault(name, []).append(own / count * 1e3)
                continue
            with server(name) as port:
                asyncio.run(load(port, make_texts(2 * CLIENTS, 1_000 + run)))  # warm
                neighbours = Neighbours()
                took, seconds = asyncio.run(load(port, texts))
                busy, own = neighbours.since()
            others.append(busy)
            rate.values.setdefault(name, []).append(count / took)
            slow.values.setdefault(name, []).append(statistics.quantiles(seconds, n=100)[98] * 1e3)
            cpu.values.setdefault(name, []).append(own / count * 1e3)
    best = {name: max(values) for name, values in rate.values.items()}
    used = {name: cpu.median(name) for name in cpu.values}
    rate.facts = {
        "cores that others used": round(statistics.mean(others), 2),
        "ours / unbatched": round(rate.median(OURS) / rate.median(UNBATCHED), 2),
        "ours / limit": round(rate.median(OURS) / rate.median(LIMIT), 2),
        "ours / limit, best runs": round(best[OURS] / best[LIMIT], 2),
        "by CPU a text: unbatched / ours": round(used[UNBATCHED] / used[OURS], 2),
        "by CPU a text: limit / ours": round(used[LIMIT] / used[OURS], 2),
    }
    for result in (rate, slow, cpu):
        result.print()
    print(json.dumps({"texts": count, "characters": sum(map(len, make_texts(count, 0))) // count}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
