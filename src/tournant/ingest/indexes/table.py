"""The LanceDB table below an index: opening and making it, and what its errors mean."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tournant.ingest.errors import IndexWriteFailed
from tournant.ingest.indexes.catalog import TABLE, table_state

_INDEX_CACHE = 128 << 20  # bytes; the library's own defaults are gigabytes
_METADATA_CACHE = 32 << 20
_REASONS = {
    "No space left on device": "the disk is full; free some space and run again, what is done is kept",
    "Disk quota exceeded": "the disk quota is used up; free some space and run again, what is done is kept",
    "File too large": "a file would grow beyond the allowed size (see `ulimit -f`); raise it and run again",
    "Read-only file system": "the file system is read-only; choose another folder",
    "Permission denied": "permission denied; make the folder writable or choose another",
    "Too many open files": "too many open files; raise `ulimit -n` and run again",
}


def open_table(directory: str) -> Any:
    """Open the newest version of the table. The handle stays on that version."""
    return connect(directory).open_table(TABLE)


def make_table(directory: str, dimensions: int) -> Any:
    """Open the table for writing, with the table and its search structures made where they are missing.

    Both are made while the table is empty; from then on upkeep brings them up to date.
    """
    # The package before its module: a thread that asks for the module first can break the import of the whole
    # in another thread, such as that of `preload`.
    import lancedb  # noqa: F401

    from tournant.ingest.indexes.rows import schema

    if table_state(directory):
        table = open_table(directory)
    else:
        # What a kill left before the first version was complete holds nothing.
        shutil.rmtree(os.path.join(directory, f"{TABLE}.lance"), ignore_errors=True)
        table = connect(directory).create_table(TABLE, schema=schema(dimensions))
    make_structures(table)
    return table


def make_structures(table: Any) -> None:
    """Make the search structures of a table where they are missing."""
    from lancedb.index import FTS, BTree

    indexed = {index.columns[0] for index in table.list_indices()}
    if "text" not in indexed:
        table.create_index("text", config=FTS(with_position=False))
    if "source" not in indexed:
        table.create_index("source", config=BTree())


def text_rows(table: Any) -> tuple[int, int]:
    """How many rows are in the full-text structure, and how many are not yet."""
    for index in table.list_indices():
        if index.columns == ["text"]:
            return index.num_indexed_rows or 0, index.num_unindexed_rows or 0
    return 0, 0


@contextmanager
def writing(directory: str) -> Iterator[None]:
    """Turn what the store raises during a write into an `IndexWriteFailed` with the mend."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        message = str(error)
        reason = next((reason for sign, reason in _REASONS.items() if sign in message), None)
        if reason is None:
            first = (message.splitlines() or [type(error).__name__])[0]
            reason = f"the store refused a write: {first[:300]}"
        raise IndexWriteFailed(directory, reason) from error


def connect(place: str, options: dict[str, str] | None = None) -> Any:
    """Connect to what lies in a folder or behind a URL.

    Args:
        place: the folder or the URL.
        options: for the object store.
    """
    import lancedb

    session = lancedb.Session(_INDEX_CACHE, _METADATA_CACHE)
    return lancedb.connect(place, session=session, storage_options=options)
