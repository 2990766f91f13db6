"""What an expert writes in a day: `python -m benchmarks.expert CORPUS --index DIR`.

An event loop, one process a core that takes documents in lots, parses, splits and embeds them, and one
thread that writes. It knows its workload, and it has neither resume nor lineage nor statistics.
"""

import asyncio
import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import accumulate, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import parts
from benchmarks.harness import cores

LOT = 16
WORKER: dict[str, Any] = {}


class Lot(NamedTuple):
    """What a worker returns for the documents of one lot."""

    keys: list[tuple[str, int]]
    texts: list[str]
    vectors: Any
    documents: int
    errors: list[str]


def start_worker(onnx: Path | None, tuned: bool) -> None:
    """Load the model once in every worker process."""
    WORKER["model"] = (
        parts.OnnxEmbedder(onnx, threads=1, sort=True, batch=4 if tuned else 32)
        if onnx
        else parts.static_embedder()
    )
    WORKER["cutter"] = parts.Cutter()
    WORKER["tuned"] = tuned


def work(paths: list[Path]) -> Lot:
    """Parse, split and embed a lot of documents."""
    keys: list[tuple[str, int]] = []
    texts: list[str] = []
    errors: list[str] = []
    lengths: list[int] = []
    for path in paths:
        try:
            pieces = WORKER["cutter"].pieces(path)
        except Exception as error:
            errors.append(f"{path}: {error}")
            continue
        keys.extend((str(path), position) for position in range(len(pieces)))
        texts.extend(pieces)
        lengths.append(len(pieces))
    vectors = embed(texts, lengths) if texts else None
    return Lot(keys, texts, vectors, len(paths) - len(errors), errors)


def embed(texts: list[str], lengths: list[int]) -> Any:
    """Embed the lot with one call, or, tuned, each document with a call of its own."""
    import numpy

    if not WORKER["tuned"]:
        return WORKER["model"].embed(texts, norm=True)
    ends = list(accumulate(lengths))
    each = [texts[end - length : end] for end, length in zip(ends, lengths, strict=True) if length]
    return numpy.concatenate([WORKER["model"].embed(one, norm=True) for one in each])


async def ingest(given: Any) -> dict[str, Any]:
    """Keep every core busy, and write while they are."""
    import numpy

    loop = asyncio.get_running_loop()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core is parallel enough
    lot_size = 2 if given.onnx else LOT
    counts = {"documents": 0, "chunks": 0}
    finished: asyncio.Queue[Lot | None] = asyncio.Queue(2 * cores())

    processes = ProcessPoolExecutor(
        cores(),
        mp_context=get_context("spawn"),
        initializer=start_worker,
        initargs=(given.onnx, given.tuned),
    )
    writer_thread = ThreadPoolExecutor(1)
    with processes, writer_thread:
        opening = loop.run_in_executor(writer_thread, parts.Table, given.index)
        source = iter(parts.documents(given.corpus))

        async def lane() -> None:
            while lot := list(islice(source, lot_size)):
                await finished.put(await loop.run_in_executor(processes, work, lot))

        async def write() -> parts.Table:
            table: parts.Table = await opening
            waiting: list[Lot] = []
            rows = 0
            while True:
                lot = await finished.get()
                if lot is not None:
                    counts["documents"] += lot.documents
                    counts["chunks"] += len(lot.texts)
                    rows += len(lot.texts)
                    for error in lot.errors:
                        parts.say(error)
                    if lot.texts:
                        waiting.append(lot)
                if waiting and (lot is None or rows >= parts.WRITE_ROWS):
                    keys = [key for each in waiting for key in each.keys]
                    texts = [text for each in waiting for text in each.texts]
                    vectors = numpy.concatenate([each.vectors for each in waiting])
                    await loop.run_in_executor(writer_thread, table.add, keys, texts, vectors)
                    waiting, rows = [], 0
                if lot is None:
                    return table

        writing = asyncio.create_task(write())
        await asyncio.gather(*(lane() for _ in range(2 * cores())))
        await finished.put(None)
        table = await writing
        full_text = await loop.run_in_executor(writer_thread, table.finish)
    return {**counts, "full_text": round(full_text, 3)}


def main() -> None:
    """Ingest a folder."""
    started = time.perf_counter()
    facts = asyncio.run(ingest(parts.arguments()))
    parts.report(started, **facts)


if __name__ == "__main__":
    main()
