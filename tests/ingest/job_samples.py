"""What the tests of the ingest job share: a corpus, ways to run an ingest, and a look at what came of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import psutil

import tournant as tn
from tournant.ingest.indexes.catalog import TABLE, table_state
from tournant.ingest.job import IngestOptions, IngestOutcome, run_ingest

#: Long enough for any machine; reached only when something hangs.
PATIENCE = 90.0

WORDS = (  # noqa: SIM905
    "tournant brigade kitchen station sauce stock fire knife service pass plate oven shelf cellar "
    "copper butter onion thyme shallot simmer reduce strain season taste serve order ticket rail"
).split()


def prose(seed: int, paragraphs: int = 6) -> str:
    """Text that is always the same for the same seed, in paragraphs that become about a chunk each."""
    chance = random.Random(seed)
    return "\n\n".join(
        f"{seed}.{n} " + " ".join(chance.choices(WORDS, k=110)) + "." for n in range(paragraphs)
    )


def make_corpus(folder: Path, documents: int, first: int = 0) -> None:
    """Write text, Markdown and HTML in a few folders."""
    for number in range(first, first + documents):
        name, text = f"part{number % 4}/doc{number:04}", prose(number, 2 + number % 7)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if number % 3 == 0:
            (folder / f"{name}.txt").write_text(text)
        elif number % 3 == 1:
            (folder / f"{name}.md").write_text(f"# Note {number}\n\n{text}\n")
        else:
            body = "".join(f"<p>{part}</p>" for part in text.split("\n\n"))
            (folder / f"{name}.html").write_text(f"<title>Page {number}</title><body>{body}</body>")


def ingest(folder: Path | str, index: Path | str, **options: Any) -> IngestOutcome:
    """Ingest in this process."""
    return run_ingest(IngestOptions((str(folder),), str(index), **options))


Rows = dict[str, list[tuple[Any, ...]]]


def rows_of(index: Path | str, below: Path | str) -> tuple[Rows, dict[tuple[str, int], Any]]:
    """Everything in an index: the rows by source, relative to a folder, and the vectors by source and ordinal."""
    rows: Rows = defaultdict(list)
    vectors = {}
    if not table_state(str(index)):
        return rows, vectors
    table = lancedb.connect(str(index)).open_table(TABLE).to_arrow().drop_columns(["id"])
    for row in table.to_pylist():
        source = os.path.relpath(row.pop("source"), below)
        vectors[source, row["ordinal"]] = row.pop("vector")
        rows[source].append(tuple(row.values()))
    for source in rows:
        rows[source].sort()
    return dict(rows), vectors


def assert_same(
    index: Path | str, below: Path | str, other: Path | str, other_below: Path | str
) -> None:
    """Two indexes hold the same documents, chunks and vectors, each once."""
    (rows, vectors), (expected, right) = rows_of(index, below), rows_of(other, other_below)
    assert sorted(rows) == sorted(expected)
    assert rows == expected
    keys = sorted(right)
    np.testing.assert_allclose(
        np.array([vectors[key] for key in keys]), np.array([right[key] for key in keys]), atol=1e-5
    )


def assert_whole(index: Path, below: Path, expected: Rows) -> set[str]:
    """Every document in an index is there whole and once, and the ledger promises none that isn't there."""
    rows, _ = rows_of(index, below)
    for source, found in rows.items():
        assert found == expected[source]
    done = {os.path.relpath(source, below) for source in done_in(index)}
    assert done <= set(rows)
    return set(rows)


def done_in(index: Path) -> set[str]:
    """What the ledger calls done."""
    path = index / "ledger.db"
    if not path.exists():
        return set()
    try:
        with tn.Ledger(path, lock=False) as ledger:
            return {str(entry.key) for entry in ledger.entries() if entry.outcome == "done"}
    except tn.LedgerError:  # being made, or killed while it was
        return set()


# In processes of their own

#: Runs the command line with small commits. It writes down what is embedded, and plays tricks on documents by name.
DRIVER = """
import json, os, sys, time
from tournant.cli import main
from tournant.ingest import job, stages

folder, weight = sys.argv[1], int(sys.argv[2])
job._COMMIT_WEIGHT = weight
embed_one, embed_many = stages.embed, stages.embed_all

def note(documents):
    for document in documents:
        name = os.path.basename(document.source if hasattr(document, "source") else document.chunks.source)
        fresh = len(document) - len(getattr(document, "rows", ()))
        line = json.dumps([name, fresh]) + "\\n"
        log = os.open(os.path.join(folder, "embedded"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, line.encode())
        os.close(log)
        if "poison" in name:
            os._exit(77)
        while "stuck" in name and not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.01)

def embed(document, embedder):
    note([document])
    return embed_one(document, embedder)

def embed_all(documents, embedder):
    note(documents)
    return embed_many(documents, embedder)

stages.embed, stages.embed_all = embed, embed_all
del sys.argv[1:3]
sys.exit(main())
"""


class Program:
    """One run of the command line, in a process group of its own.

    Args:
        notes: a folder for what the driver writes down.
        argv: the arguments.
        weight: chunks and documents per commit.
    """

    def __init__(self, notes: Path, *argv: str, weight: int = 40, **options: Any) -> None:
        self.notes = notes
        notes.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(notes), str(weight), *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        # Also after a failed assertion nothing may stay behind.
        children = self.workers() if self.process.poll() is None else []
        self.process.kill()
        self.process.communicate()
        psutil.wait_procs(children, timeout=PATIENCE)

    def workers(self) -> list[psutil.Process]:
        """The worker processes that are there now."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def reached(self, moment: Callable[[], bool]) -> bool:
        """Wait for a moment, or the program's end; say whether the moment came first."""
        until = time.monotonic() + PATIENCE
        while not moment():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < until, "the moment never came"
            time.sleep(0.002)
        return True

    def kill(self) -> None:
        """``kill -9`` the main process alone, and see that its workers end by themselves."""
        workers = self.workers()
        self.process.kill()
        self.process.communicate()
        _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
        assert not alive

    def signal(self, number: signal.Signals) -> None:
        """Signal the main process."""
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Wait for the end; return exit code and what was said to standard output and error."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err

    def embedded(self) -> list[tuple[str, int]]:
        """What was handed to the embedder so far: names of files, and how many chunks of each were new."""
        path = self.notes / "embedded"
        if not path.exists():
            return []
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()]
