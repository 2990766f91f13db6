"""Read, chunk, embed, index: the pipeline of the README, written by hand over a small index in memory.

``tournant ingest`` is the same pipeline with readers for many kinds of file and a LanceDB index on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import tournant as tn
from tournant.ingest.embedders.static import StaticEmbedder

Passage = tuple[str, np.ndarray]


async def read(path: Path) -> str:
    return await asyncio.to_thread(path.read_text, encoding="utf-8")


def chunk(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        if paragraph.strip():
            yield paragraph.strip()


def embed(texts: list[str], model: StaticEmbedder) -> list[Passage]:
    return list(zip(texts, model.embed(texts), strict=True))


class Index:
    """The passages of every document, and a search by cosine similarity."""

    def __init__(self) -> None:
        self.documents: dict[str, tn.Group] = {}

    def replace(self, passages: tn.Group) -> None:
        """Take all passages of one document in place of what it had."""
        self.documents[passages.key] = passages

    def search(self, query: np.ndarray) -> tuple[str, str]:
        """Return the path and the text of the passage closest to the query."""
        rows = [(key, *passage) for key, group in self.documents.items() for passage in group]
        path, text, _ = max(rows, key=lambda row: float(row[2] @ query))
        return path, text


index = Index()
paths = sorted((Path(__file__).resolve().parent.parent / "docs").glob("*.md"))
report = (
    tn.Pipeline(paths)
    .map(read, concurrency=64)
    .flat_map(chunk, on="processes")
    .map_batches(embed, size=32, on="processes", state=tn.PerWorker(StaticEmbedder))
    .gather()
    .for_each(index.replace)
    .run()
)
print(report)
print(f"{report.done} documents, {sum(map(len, index.documents.values()))} passages")
question = "a worker process is killed and dies twice"
source, passage = index.search(StaticEmbedder().embed([question])[0])
print(f"{question!r} -> {Path(source).name}: {passage[:160]}")
