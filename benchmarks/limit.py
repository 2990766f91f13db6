"""The limit: Tournant's own stages, one after the other on one core, timed in CPU seconds.

The sum divided by the cores is what a perfect arrangement of the same work would take.
"""

from pathlib import Path


def measure(corpus: Path, index: Path) -> dict[str, float]:
    """Return the CPU seconds of every stage over a corpus."""
    raise NotImplementedError("the stages are not there yet")


def chunk_texts(paths: list[Path]) -> list[list[str]]:
    """Return the texts of each file's chunks, cut as an ingest cuts them."""
    raise NotImplementedError("the stages are not there yet")
