"""The limit: Tournant's own stages, one after the other on one thread, in CPU seconds.

The sum divided by the cores is what a perfect arrangement of the same work would take. Imports and the
loading of the model are done before the clock starts. It runs in a process of its own
(`python -m benchmarks.limit CORPUS INDEX`), since the store leaves threads behind.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMIT_CHUNKS = 4096


def measure(corpus: Path, index: Path) -> dict[str, float]:
    """Return the CPU seconds of every stage over a corpus."""
    command = [sys.executable, "-m", "benchmarks.limit", str(corpus), str(index)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def chunk_texts(paths: list[Path]) -> list[list[str]]:
    """Return the texts of each file's chunks, cut as an ingest cuts them."""
    from tournant.ingest import stages
    from tournant.ingest.chunkers import ChunkSettings

    chunker = stages.make_chunker(ChunkSettings())
    return [
        stages.cut(stages.read(found, max_bytes=1 << 30), chunker).texts for found in files(paths)
    ]


def files(paths: list[Path]) -> Iterator[Any]:
    """Yield the files of the walk that an ingest makes."""
    from tournant.ingest.readers.registry import SUFFIXES
    from tournant.ingest.walk import walk

    return walk([str(path) for path in paths], on_problem=lambda _: None, suffixes=SUFFIXES)


def main() -> None:
    """Run the stages and print their CPU seconds as one JSON line."""
    corpus, folder = Path(sys.argv[1]), sys.argv[2]
    from tournant.ingest import stages
    from tournant.ingest.chunkers import ChunkSettings
    from tournant.ingest.embedders import embedder
    from tournant.ingest.errors import UnreadableFile
    from tournant.ingest.indexes.base import IndexSettings
    from tournant.ingest.indexes.lance import LanceIndex, preload

    settings = ChunkSettings()
    model = embedder("static")
    chunker = stages.make_chunker(settings)
    found = list(files([corpus]))
    spent = dict.fromkeys(("read", "chunk", "embed", "index"), 0.0)

    # Everything is imported and loaded before the clock starts.
    preload()
    for suffix in {Path(each.path).suffix for each in found}:
        one = next(each for each in found if each.path.endswith(suffix))
        stages.embed(stages.cut(stages.read(one, max_bytes=1 << 30), chunker), model)

    with LanceIndex.open(
        folder, IndexSettings(model.name, model.dimensions, settings.name), write=True
    ) as index:
        writer = stages.Writer(index)
        waiting: list[Any] = []
        weight = 0
        begun = time.process_time()
        clock = time.thread_time
        for each in found:
            start = clock()
            try:
                document = stages.read(each, max_bytes=1 << 30)
            except UnreadableFile:
                continue
            was_read = clock()
            chunks = stages.cut(document, chunker)
            was_cut = clock()
            waiting.append(stages.embed(chunks, model))
            embedded = clock()
            spent["read"] += was_read - start
            spent["chunk"] += was_cut - was_read
            spent["embed"] += embedded - was_cut
            weight += len(chunks) + 1
            if weight >= COMMIT_CHUNKS:
                writer(waiting)
                waiting, weight = [], 0
        if waiting:
            writer(waiting)
    # The store works on threads of its own: what the other stages did not use is its part.
    spent["index"] = time.process_time() - begun - sum(spent.values())
    print(json.dumps({name: round(seconds, 3) for name, seconds in spent.items()}))


if __name__ == "__main__":
    main()
