"""Faults of PostgreSQL and of those who write to it, on a real server and in real processes: nothing is lost, doubled or mixed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from ingest_samples import DIMENSIONS, embedded, unit

from tournant.ingest.errors import IndexWriteFailed, SearchFailed
from tournant.ingest.indexes.base import Counts, IndexSettings

if TYPE_CHECKING:
    import psycopg
    from postgres_server import Server

    from tournant.ingest.indexes.pgvector.index import PgvectorIndex

pytest.importorskip("psycopg", reason="psycopg is not installed")
SETTINGS = IndexSettings("an embedder", DIMENSIONS, "a chunker")
HERE = os.path.dirname(__file__)
HEAD = """
import os, sys
sys.path.insert(0, sys.argv[1])
from ingest_samples import *
from tournant.ingest.indexes.base import IndexSettings
from tournant.ingest.indexes.pgvector.index import PgvectorIndex
index = PgvectorIndex.open(sys.argv[2], IndexSettings("an embedder", DIMENSIONS, "a chunker"), write=True)
"""


@pytest.fixture
def program() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts programs that have the index of a URL open for writing; none stays behind."""
    started = []

    def start(code: str, url: str, *arguments: object) -> subprocess.Popen[str]:
        pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-c", HEAD + code, HERE, url, *map(str, arguments)]
        started.append(subprocess.Popen(command, text=True, **pipes))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        if not each.stdout.closed:
            each.communicate()


def schema_of(url: str) -> str:
    return url.rpartition("index=")[2]


def documents(version: str, count: int = 3, chunks: int = 4) -> list[Any]:
    return [
        embedded(f"/{n}", [f"apple {version} {m}" for m in range(chunks)]) for n in range(count)
    ]


def versions(index: PgvectorIndex) -> dict[str, set[str]]:
    """The versions that are in each document; more than one is a mixture."""
    found: dict[str, set[str]] = {}
    for hit in index.search("apple", None, 1_000, "text"):
        found.setdefault(hit.source, set()).add(hit.text.split()[1])
    return found


@pytest.fixture
def writer(pg_url: str) -> Iterator[PgvectorIndex]:
    """An index that holds version ``old`` of three documents."""
    from tournant.ingest.indexes.pgvector.index import PgvectorIndex

    with PgvectorIndex.open(pg_url, SETTINGS, write=True) as index:
        index.replace(documents("old"))
        yield index


@contextmanager
def gate(postgres: Server, url: str) -> Iterator[psycopg.Connection[Any]]:
    """Stops every write in its middle: after the documents' rows, before the last of the chunks. Leaving lets them go on."""
    schema = schema_of(url)
    with postgres.connect() as owner:
        owner.execute(
            f"CREATE OR REPLACE FUNCTION {schema}.wait() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_advisory_xact_lock_shared(77); RETURN NEW; END'"
        )
        owner.execute(
            f"CREATE TRIGGER wait AFTER INSERT OR UPDATE ON {schema}.chunks FOR EACH STATEMENT "
            f"EXECUTE FUNCTION {schema}.wait()"
        )
        owner.execute("SELECT pg_advisory_lock(77)")
        yield owner


def waiting(postgres: Server) -> Callable[[], bool]:
    """Tells whether a write stands before the gate."""

    def look() -> bool:
        with postgres.connect() as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted"
            ).fetchone()
        return bool(row and row[0])

    return look


class Write(threading.Thread):
    """A replace on a thread of its own."""

    def __init__(self, index: PgvectorIndex, version: str) -> None:
        super().__init__()
        self._index, self._version = index, version
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._index.replace(documents(self._version))
        except BaseException as error:
            self.error = error

    def ended(self) -> BaseException | None:
        self.join(60)
        assert not self.is_alive()
        return self.error


OLD = {f"/{n}": {"old"} for n in range(3)}
NEW = {f"/{n}": {"new"} for n in range(3)}


# The server


def test_a_restart_in_the_middle_of_a_write_is_waited_out(
    postgres: Server, pg_url: str, writer: PgvectorIndex, until: Callable[..., bool]
) -> None:
    with gate(postgres, pg_url):
        write = Write(writer, "new")
        assert until(waiting(postgres))
        assert versions(writer) == OLD
        postgres.restart()
        assert write.ended() is None
    assert versions(writer) == NEW
    assert writer.counts() == Counts(3, 12)


def test_a_crash_in_the_middle_of_a_write_is_waited_out(
    postgres: Server, pg_url: str, writer: PgvectorIndex, until: Callable[..., bool]
) -> None:
    with gate(postgres, pg_url):
        write = Write(writer, "new")
        assert until(waiting(postgres))
        postgres.crash()
        assert write.ended() is None
    assert versions(writer) == NEW
    assert writer.counts() == Counts(3, 12)


def test_connections_that_are_cut_are_replaced(
    postgres: Server, pg_url: str, writer: PgvectorIndex, until: Callable[..., bool]
) -> None:
    cut = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tournant'"
    )
    with gate(postgres, pg_url) as owner:
        write = Write(writer, "new")
        assert until(waiting(postgres))
        owner.execute(cut)
        # It stands before the gate again, so it was begun again.
        assert until(lambda: len(owner.execute(
            "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted").fetchall()) == 1)  # fmt: skip
    assert write.ended() is None
    with postgres.connect() as owner:
        for _ in range(3):
            owner.execute(cut)
            assert versions(writer) == NEW
            owner.execute(cut)
            assert writer.remove(["/nothing"]) == 0
            assert writer.counts() == Counts(3, 12)


def test_a_server_that_does_not_come_back_is_said_and_nothing_is_lost(
    postgres: Server, pg_url: str, writer: PgvectorIndex
) -> None:
    from tournant.ingest.indexes.pgvector.index import PgvectorIndex

    impatient = PgvectorIndex.open(pg_url, write=True, patience=0.2)
    reader = PgvectorIndex.open(pg_url, patience=0.2)
    postgres.stop()
    try:
        with pytest.raises(
            IndexWriteFailed, match="no database answers there; see that PostgreSQL"
        ):
            impatient.replace(documents("new"))
        with pytest.raises(SearchFailed, match="no database answers there"):
            reader.search("apple", unit(0))
    finally:
        postgres.start()
    assert versions(reader) == OLD
    impatient.replace(documents("new"))
    assert versions(reader) == NEW
    impatient.close()
    reader.close()


def test_closing_without_a_server_is_no_error(
    postgres: Server, pg_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    from tournant.ingest.indexes.pgvector.index import PgvectorIndex

    index = PgvectorIndex.open(pg_url, SETTINGS, write=True)
    index.replace(documents("new"))
    postgres.stop()
    try:
        index.close()
    finally:
        postgres.start()
    assert "upkeep of an index failed and will be tried again" in caplog.text


def test_a_full_disk_that_the_server_reports_is_said_once_and_nothing_changes(
    postgres: Server, pg_url: str, writer: PgvectorIndex
) -> None:
    """The server's own error for a full disk, raised by a trigger; `test_pgvector_job_faults` fills a disk."""
    schema = schema_of(pg_url)
    with postgres.connect() as owner:
        owner.execute(f"CREATE SEQUENCE {schema}.tries")
        owner.execute(
            f"CREATE FUNCTION {schema}.full_disk() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
            f"PERFORM nextval('{schema}.tries'); "
            "RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END$$"
        )
        owner.execute(
            f"CREATE TRIGGER full_disk AFTER INSERT ON {schema}.chunks EXECUTE FUNCTION {schema}.full_disk()"
        )
        with pytest.raises(IndexWriteFailed, match="the database's disk is full; free some space"):
            writer.replace(documents("new"))
        assert owner.execute(f"SELECT last_value FROM {schema}.tries").fetchone() == (1,)
        assert versions(writer) == OLD
        owner.execute(f"DROP TRIGGER full_disk ON {schema}.chunks")
    writer.replace(documents("new"))
    assert versions(writer) == NEW


# The writers


def test_writers_in_two_processes_never_mix_a_document(
    pg_url: str, writer: PgvectorIndex, program: Callable[..., subprocess.Popen[str]]
) -> None:
    code = """
import random
chance = random.Random(sys.argv[3])
sys.stdin.readline()
for n in range(25):
    sources = chance.sample(range(12), 8)
    index.replace([
        embedded(f"/{s}", [f"apple {sys.argv[3]}.{n} {m}" for m in range(chance.randint(1, 5))]) for s in sources
    ])
    index.remove([f"/{s}" for s in chance.sample(range(12), 3)])
index.replace([embedded(f"/{s}", [f"apple {sys.argv[3]}.last {m}" for m in range(4)]) for s in range(12)])
index.close()
"""
    programs = [program(code, pg_url, name) for name in ("one", "two")]
    for each in programs:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    seen = 0
    while any(each.poll() is None for each in programs):
        assert all(len(found) == 1 for found in versions(writer).values())
        seen += 1
    for each in programs:
        _, err = each.communicate(timeout=60)
        assert each.returncode == 0, err
        assert err == ""
    assert seen > 3
    found = versions(writer)
    assert set(found) == {f"/{n}" for n in range(12)}
    assert all(version in ({"one.last"}, {"two.last"}) for version in found.values())
    assert writer.counts() == Counts(12, 48)
    assert len(writer.search("", unit(0), 100, "vector")) == 48


def test_two_who_make_the_same_index_make_one(
    pg_url: str, program: Callable[..., subprocess.Popen[str]]
) -> None:
    code = """
index.replace([embedded("/" + sys.argv[3], ["apple"])])
index.close()
"""
    programs = [program(code, pg_url, name) for name in ("one", "two", "three")]
    for each in programs:
        _, err = each.communicate(timeout=60)
        assert each.returncode == 0, err
    from tournant.ingest.indexes.pgvector.index import PgvectorIndex

    with PgvectorIndex.open(pg_url) as index:
        assert index.sources() == {"/one", "/two", "/three"}


def test_kill_9_in_the_middle_of_a_write_leaves_what_was_there(
    postgres: Server,
    pg_url: str,
    writer: PgvectorIndex,
    until: Callable[..., bool],
    program: Callable[..., subprocess.Popen[str]],
) -> None:
    code = """
index.replace([embedded(f"/{n}", [f"apple new {m}" for m in range(2)]) for n in range(3)])
"""
    with gate(postgres, pg_url):
        killed = program(code, pg_url)
        assert until(waiting(postgres), 30)
        killed.kill()
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        assert versions(writer) == OLD
    # Whether the server still does what the dead one had asked for is its own matter: it is whole either way.
    writer.replace(documents("new"))
    assert versions(writer) == NEW
    assert writer.counts() == Counts(3, 12)


def test_searches_see_a_document_whole_while_it_is_replaced(
    pg_url: str, writer: PgvectorIndex
) -> None:
    from tournant.ingest.indexes.pgvector.index import PgvectorIndex

    done = threading.Event()
    errors: list[BaseException] = []
    seen = 0
    with PgvectorIndex.open(pg_url) as reader:

        def search() -> None:
            nonlocal seen
            try:
                while not done.is_set():
                    hits = reader.search("apple", unit(0), 50)
                    assert len(hits) == 12
                    for source in OLD:
                        assert len({h.text.split()[1] for h in hits if h.source == source}) == 1
                    seen += 1
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=search)
        thread.start()
        for version in range(40):
            writer.replace(documents(f"v{version}"))
        done.set()
        thread.join()
    assert not errors
    assert seen
