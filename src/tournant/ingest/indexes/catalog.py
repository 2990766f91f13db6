"""What can be known about an index without importing LanceDB, whose import costs a second.

Two JSON files stand beside the table. ``index.json`` is the index's identity and never changes.
``catalog.json`` lists the sources and how many chunks each has, together with the state of the table
that it describes. The table is the truth: where its state is another (a writer was killed before it could
write the catalog), the catalog is no use and the table has to be asked.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from tournant.ingest.errors import IndexDamaged, IndexMismatch, IndexMissing
from tournant.ingest.indexes.base import IndexSettings
from tournant.ingest.indexes.files import read_json, write_failed, write_json
from tournant.ingest.sources import from_store, to_store

FORMAT = 1
TABLE = "chunks"


def read_settings(directory: str) -> IndexSettings:
    """Read what an index was created with.

    Raises:
        IndexMissing: there is no index in the folder.
        IndexDamaged: there is something that can't be understood.
    """
    path = os.path.join(directory, "index.json")
    if not os.path.exists(path):
        if os.path.isdir(os.path.join(directory, f"{TABLE}.lance")):
            raise IndexDamaged(
                directory,
                "index.json is missing beside its table; delete the folder and ingest again",
            )
        raise IndexMissing(directory, "there is no index here; make one with `tournant ingest`")
    value = read_json(path)
    try:
        if value["format"] != FORMAT:
            raise IndexDamaged(
                directory,
                f"has format {value['format']!r}, this version of tournant reads {FORMAT}; ingest into a new folder",
            )
        return IndexSettings(**value["settings"])
    except (TypeError, KeyError, ValueError) as error:
        raise IndexDamaged(
            directory, f"{path!r} can't be understood; delete the folder and ingest again"
        ) from error


def write_settings(directory: str, settings: IndexSettings) -> None:
    """Give a new index its identity.

    Raises:
        IndexWriteFailed: the file can't be written.
    """
    try:
        write_json(
            os.path.join(directory, "index.json"),
            {"format": FORMAT, "settings": asdict(settings)},
        )
    except OSError as error:
        raise write_failed(directory, error) from error


def require_same(directory: str, have: IndexSettings, want: IndexSettings) -> None:
    """Refuse to use an index with other settings than it was built with.

    Raises:
        IndexMismatch: naming what differs, and the mend.
    """
    differing = [
        f"{what} {getattr(have, what)!r}, not {getattr(want, what)!r}"
        for what in ("embedder", "dimensions", "chunker")
        if getattr(have, what) != getattr(want, what)
    ]
    if differing:
        raise IndexMismatch(
            directory,
            f"was built with {'; '.join(differing)}. Use the settings it was built with, "
            f"or ingest into {'another index' if '://' in directory else 'a new folder'}",
        )


def table_state(directory: str) -> list[str]:
    """Name the manifests of the table: another commit, another list."""
    try:
        return sorted(os.listdir(os.path.join(directory, f"{TABLE}.lance", "_versions")))
    except FileNotFoundError:
        return []


def write_catalog(directory: str, sources: dict[str, int]) -> None:
    """Describe the table as it is now. The caller is its only writer.

    Raises:
        OSError: it could not be written. Nothing but speed is lost.
    """
    write_json(
        os.path.join(directory, "catalog.json"),
        {
            "format": FORMAT,
            "state": table_state(directory),
            "sources": {to_store(source): chunks for source, chunks in sources.items()},
        },
    )


def read_catalog(directory: str) -> dict[str, int] | None:
    """Read the sources and their numbers of chunks; None where the table has to be asked."""
    value: Any = read_json(os.path.join(directory, "catalog.json"))
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        return None
    if value.get("state") != table_state(directory):
        return None
    return {from_store(source): chunks for source, chunks in value["sources"].items()}
