from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from tournant.engine.ledger_writer import LedgerWriter
from tournant.errors import LedgerError
from tournant.ledger import Entry, Ledger


class Recorded(Ledger):
    """A ledger that says when it commits, and waits for leave where a test wants that."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.sizes: list[int] = []
        self.committed = threading.Semaphore(0)
        self.leave = threading.Event()
        self.leave.set()

    def record(self, entries: Sequence[Entry]) -> None:
        assert self.leave.wait(30)
        super().record(entries)
        self.sizes.append(len(entries))
        self.committed.release()


@pytest.fixture
def ledger(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path / "run.db")


def entry(number: int) -> Entry:
    return Entry(number, None, "1", "done")


def test_closing_commits_everything(ledger: Recorded) -> None:
    with ledger:
        writer = LedgerWriter(ledger)
        for number in range(2_345):
            writer.put(entry(number))
        writer.close()
        assert ledger.counts().done == 2_345
        assert writer.backlog == 0
        assert sum(ledger.sizes) == 2_345
        assert max(ledger.sizes) <= 1_000
        writer.close()


def test_a_lone_entry_is_committed_without_being_asked(ledger: Recorded) -> None:
    with ledger:
        writer = LedgerWriter(ledger)
        for number in range(3):
            writer.put(entry(number))
            assert ledger.committed.acquire(timeout=30)
            assert ledger.counts().done == number + 1
        writer.close()


def test_entries_from_many_threads_all_arrive(ledger: Recorded) -> None:
    with ledger:
        writer = LedgerWriter(ledger)

        def put(first: int) -> None:
            for number in range(first, first + 1_000):
                writer.put(entry(number))

        threads = [threading.Thread(target=put, args=(1_000 * part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.close()
        assert ledger.counts().done == 4_000


def test_the_backlog_is_visible_and_counts_what_is_being_written(ledger: Recorded) -> None:
    with ledger:
        ledger.leave.clear()
        writer = LedgerWriter(ledger, limit=10)
        for number in range(9):
            writer.put(entry(number))
        assert (writer.backlog, writer.full) == (9, False)
        writer.put(entry(9))
        assert (writer.backlog, writer.full) == (10, True)
        ledger.leave.set()
        writer.close()
        assert (writer.backlog, writer.full) == (0, False)


def test_a_failed_write_is_told_at_once_and_again_at_the_end(ledger: Recorded) -> None:
    told: list[LedgerError] = []
    called = threading.Event()

    def on_error(error: LedgerError) -> None:
        told.append(error)
        called.set()

    with ledger:
        assert ledger._connection is not None
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        writer = LedgerWriter(ledger, on_error=on_error)
        for number in range(5_000):
            writer.put(entry(number))
        assert called.wait(30)
        writer.put(entry(-1))
        with pytest.raises(LedgerError, match="free some space") as caught:
            writer.close()
        assert told == [caught.value]
        assert writer.error is caught.value
        assert writer.backlog == 0


def test_an_entry_that_cannot_be_stored_ends_the_writing_with_its_reason(ledger: Recorded) -> None:
    with ledger:
        writer = LedgerWriter(ledger)
        writer.put(Entry(object(), None, "1", "done"))  # type: ignore[arg-type]
        with pytest.raises(LedgerError, match="cannot be a key"):
            writer.close()


def test_an_error_of_no_known_kind_is_not_lost(ledger: Recorded) -> None:
    with ledger:
        writer = LedgerWriter(ledger)
        writer.put(None)  # type: ignore[arg-type]
        with pytest.raises(LedgerError, match="could not be written") as caught:
            writer.close()
        assert isinstance(caught.value.__cause__, AttributeError)
