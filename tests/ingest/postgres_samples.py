"""A look at what lies in an index in PostgreSQL, past the code that is tested."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import job_samples as samples
import psycopg
import pytest

from tournant.ingest.errors import IndexMissing
from tournant.ingest.indexes.locations import open_index
from tournant.ingest.indexes.pgvector.address import parse

_CHUNKS = (
    "SELECT d.source, c.ordinal, c.start_at, c.end_at, c.text, d.title, d.media_type, c.hash, c.vector::text "
    "FROM {s}.chunks c LEFT JOIN {s}.documents d ON d.id = c.document"
)


def contents(url: str, below: Path) -> tuple[samples.Rows, dict[tuple[str, int], Any]]:
    """Everything in an index, in the form of `job_samples.rows_of`."""
    address = parse(url)
    rows: samples.Rows = defaultdict(list)
    vectors = {}
    with psycopg.connect(address.conninfo) as connection:
        found = connection.execute(
            psycopg.sql.SQL(_CHUNKS).format(s=psycopg.sql.Identifier(address.schema))
        ).fetchall()
    for source, ordinal, *row, vector in found:
        source = os.path.relpath(source, below)
        vectors[source, ordinal] = json.loads(vector)
        rows[source].append((ordinal, *row))
    for each in rows.values():
        each.sort()
    return dict(rows), vectors


def assert_as_from_scratch(url: str, docs: Path, room: Path) -> None:
    """An index holds what a LanceDB index has of the same documents, each chunk once.

    Args:
        url: the index.
        docs: the documents.
        room: where the other index may be made.
    """
    fresh = room / "fresh"
    samples.ingest(docs, fresh)
    (rows, vectors), (expected, right) = contents(url, docs), samples.rows_of(fresh, docs)
    assert rows == expected
    assert vectors.keys() == right.keys()
    for place, vector in right.items():
        assert vectors[place] == pytest.approx(vector, abs=1e-5)
    shutil.rmtree(fresh)


def done_in(url: str) -> int:
    """How many inputs the ledger calls done."""
    try:
        with open_index(url) as index:
            ledger = index.ledger(lock=False)
            assert ledger is not None
            return ledger.counts().done
    except IndexMissing:
        return 0
