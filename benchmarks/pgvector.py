"""The index in PostgreSQL beside the one in LanceDB: `python -m benchmarks pgvector --corpus DIR [--chunks N] [--url URL]`.

Both take the very same chunks, in the same commits, through the same interface: chunks of real documents, embedded by the static model
(256 dimensions). What is searched for are words out of chunks of the same documents that are not in the index, embedded by the same
model. Recall is against an exact search with numpy over all vectors.

Without a URL, PostgreSQL is the one that the tests start (its settings are its defaults but for those listed), on the same machine and
the same cores. The search structures are built when a writer closes. What that takes has a table of its own and is not in the first one;
the third has both together.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Result, print_machine
from benchmarks.parts import documents

DIMENSIONS = 256
SIZE = 600  # characters of a chunk, at most: so 10,000 documents give 100,000 chunks
COMMIT = 4096  # chunks, as an ingest makes them
QUERIES = 300
WORDS = 10  # of a query
K = 10
SERVER = {"synchronous_commit": "on", "fsync": "on", "shared_buffers": "512MB", "autovacuum": "on"}
LANCE, POSTGRES = "LanceDB", "PostgreSQL"


def cut(path: str) -> Any:
    """Read and cut one document; None when it can't be read."""
    from tournant.ingest.chunkers import ChunkSettings, SemanticChunker
    from tournant.ingest.errors import UnreadableFile
    from tournant.ingest.readers.registry import read

    try:
        return SemanticChunker(ChunkSettings(SIZE)).chunk(read(path, 1 << 30))
    except UnreadableFile:
        return None


def corpus(folders: list[Path], chunks: int) -> tuple[list[Any], list[tuple[str, Any]]]:
    """Return embedded documents with this many chunks, and queries out of documents that are not among them."""
    import tournant as tn
    from tournant.ingest.documents import EmbeddedDocument
    from tournant.ingest.embedders import embedder

    model = embedder("static")
    paths = [str(path) for folder in folders for path in documents(folder)]
    np.random.default_rng(1).shuffle(paths)
    taken: list[Any] = []
    queries: list[tuple[str, Any]] = []
    count = 0
    with contextlib.closing(tn.Pipeline(paths).map(cut, on="processes").iter()) as cutting:
        for document in cutting:
            if document is None or not len(document):
                continue
            if len(queries) < QUERIES:
                # One query a document, from the middle of its middle chunk.
                words = document.texts[len(document) // 2].split()
                middle = max(0, len(words) // 2 - WORDS)
                text = " ".join(words[middle : middle + WORDS])
                queries.append((text, model.embed([text])[0]))
            elif count < chunks:
                taken.append(EmbeddedDocument(document, model.embed(document.texts)))
                count += len(document)
            else:
                break
    return taken, queries


def commits(taken: list[Any]) -> Iterator[list[Any]]:
    """Deal documents out as the ingest does."""
    part: list[Any] = []
    weight = 0
    for document in taken:
        part.append(document)
        weight += len(document.chunks)
        if weight >= COMMIT:
            yield part
            part, weight = [], 0
    if part:
        yield part


@contextmanager
def postgres_url(given: str | None) -> Iterator[str]:
    """Yield the URL of a database that may be written to."""
    if given is not None:
        yield given
        return
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "ingest"))
    from postgres_server import Server

    server = Server()
    try:
        with open(server.data / "postgresql.conf", "a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in SERVER.items())
        server.restart()
        yield server.url("bench")
    finally:
        server.close()


def searched(
    index: Any, queries: list[tuple[str, Any]], mode: str
) -> tuple[list[float], list[Any]]:
    """Return the milliseconds of every search, and the hits."""
    for text, vector in queries[:20]:
        index.search(text, vector, K, mode)
    times, found = [], []
    for text, vector in queries:
        begin = time.perf_counter()
        hits = index.search(text, vector, K, mode)
        times.append((time.perf_counter() - begin) * 1e3)
        found.append(hits)
    return times, found


def recall(taken: list[Any], queries: list[tuple[str, Any]], found: list[Any]) -> float:
    """Return the share of the exact best that was found; one that is as near as the last of them counts."""
    vectors = np.concatenate([document.vectors for document in taken])
    right = 0
    for (_, vector), hits in zip(queries, found, strict=True):
        scores = np.partition(vectors @ vector, -K)[-K:]
        least = scores.min() - 1e-5
        right += sum(hit.score >= least for hit in hits)
    return right / (K * len(queries))


def run(folders: list[Path], chunks: int, url: str | None, rounds: int) -> list[Result]:
    """Fill and search both; return what was found."""
    from tournant.ingest.indexes.base import IndexSettings
    from tournant.ingest.indexes.lance import LanceIndex, preload
    from tournant.ingest.indexes.pgvector.index import PgvectorIndex

    preload()
    taken, queries = corpus(folders, chunks)
    total = sum(len(document.chunks) for document in taken)
    settings = IndexSettings("static", DIMENSIONS, "bench")
    facts = {
        "chunks": f"{total:,} of {len(taken):,} documents, {SIZE} characters at most",
        "vectors": "static embeddings of the corpus, 256 dimensions",
    }
    ingest = Result("replace", "chunks/s", facts=facts, higher_is_better=True)
    build = Result("build structures / upkeep at the end", "s")
    whole = Result("replace and build together", "chunks/s", higher_is_better=True)
    again = Result(
        "replace a hundredth of the documents, changed", "chunks/s", higher_is_better=True
    )
    times = {mode: Result(f"search by {mode}", "ms") for mode in ("vector", "text", "hybrid")}
    ingest.targets[POSTGRES] = ">= 5,000"
    times["vector"].targets[POSTGRES] = "p50 < 5"
    with postgres_url(url) as where, tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            openers: dict[str, Callable[..., Any]] = {
                LANCE: lambda n=number, **more: LanceIndex.open(f"{folder}/{n}", settings, **more),
                POSTGRES: lambda n=number, **more: PgvectorIndex.open(
                    where.replace("index=bench", f"index=bench{n}"), settings, **more
                ),
            }
            for name, opener in openers.items():
                index = opener(write=True)
                begin = time.perf_counter()
                for part in commits(taken):
                    index.replace(part)
                took = time.perf_counter() - begin
                ingest.values.setdefault(name, []).append(total / took)
                begin = time.perf_counter()
                index.optimize()
                built = time.perf_counter() - begin
                build.values.setdefault(name, []).append(built)
                whole.values.setdefault(name, []).append(total / (took + built))
                index.close()
            for name, opener in openers.items():
                with opener() as index:
                    for mode, result in times.items():
                        taken_ms, found = searched(index, queries, mode)
                        result.values.setdefault(name, []).append(statistics.median(taken_ms))
                        p95 = statistics.quantiles(taken_ms, n=20)[-1]
                        result.facts[f"p95, {name}"] = f"{p95:.2f} ms"
                        if mode == "vector":
                            share = recall(taken, queries, found)
                            result.facts[f"recall@{K}, {name} (target > 0.95)"] = f"{share:.4f}"
                    result.facts["bytes, " + name] = f"{index.size_bytes():,}"
            for name, opener in openers.items():
                with opener(write=True) as index:
                    some = [_changed(document) for document in taken[::100]]
                    begin = time.perf_counter()
                    for part in commits(some):
                        index.replace(part)
                    count = sum(len(document.chunks) for document in some)
                    took = time.perf_counter() - begin
                    again.values.setdefault(name, []).append(count / took)
    return [ingest, build, whole, again, *times.values()]


def _changed(document: Any) -> Any:
    """The same document with other vectors and texts."""
    from dataclasses import replace

    from tournant.ingest.documents import ChunkedDocument, EmbeddedDocument

    chunks = document.chunks
    other = replace(chunks.document, text=chunks.document.text[::-1])
    return EmbeddedDocument(
        ChunkedDocument(other, chunks.starts, chunks.ends), document.vectors[::-1].copy()
    )


def main() -> int:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pgvector", description=__doc__)
    parser.add_argument("--corpus", type=Path, action="append", required=True)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--url", help="a database, with index=bench in it; made and left there")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    print_machine()
    for result in run(given.corpus, given.chunks, given.url, given.runs):
        result.print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
