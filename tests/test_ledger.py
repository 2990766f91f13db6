from __future__ import annotations

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tournant._ledger_records import decode_value, encode_value
from tournant.errors import LedgerError
from tournant.ledger import Counts, Entry, Ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def done(key: object, fingerprint: object = None, version: str = "1") -> Entry:
    return Entry(key, fingerprint, version, "done", outputs=1)  # type: ignore[arg-type]


def failed(key: object, fingerprint: object = None, version: str = "1") -> Entry:
    return Entry(
        key, fingerprint, version, "failed", stage="parse", error="ValueError: bad", attempts=3
    )  # type: ignore[arg-type]


# What runs again


def test_an_unknown_input_is_pending_and_a_done_one_is_not(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([done("a", 1)])
        assert ledger.pending(["a", "b"], [1, 1], "1") == [False, True]


@pytest.mark.parametrize(
    ("fingerprint", "version"), [(2, "1"), (1, "2"), ("1", "1"), (None, "1"), ((1,), "1")]
)
def test_a_changed_fingerprint_or_version_is_pending(
    path: Path, fingerprint: object, version: str
) -> None:
    with Ledger(path) as ledger:
        ledger.record([done("a", 1)])
        assert ledger.pending(["a"], [fingerprint], version) == [True]  # type: ignore[list-item]


def test_a_failed_input_runs_again_and_a_filtered_one_does_not(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([failed("bad"), Entry("dropped", 5, "1", "filtered")])
        assert ledger.pending(["bad", "dropped"], [None, 5], "1") == [True, False]
        assert ledger.pending(["dropped"], [6], "1") == [True]


def test_an_input_that_changes_back_after_a_kill_runs_again(path: Path) -> None:
    # The sink may hold the change although nobody recorded it.
    with Ledger(path) as ledger:
        ledger.record([done("a", "old")])
        assert ledger.pending(["a"], ["new"], "1") == [True]
    with Ledger(path) as ledger:
        assert ledger.counts() == Counts(done=0, failed=0, filtered=0, open=1)
        assert [entry.outcome for entry in ledger.entries()] == ["open"]
        assert ledger.pending(["a"], ["old"], "1") == [True]
        ledger.record([done("a", "old")])
        assert ledger.pending(["a"], ["old"], "1") == [False]


def test_looking_up_many_keys_keeps_their_order_and_their_repeats(path: Path) -> None:
    keys = [f"k{number}" for number in range(1_203)] + ["k3", "k3"]
    with Ledger(path) as ledger:
        ledger.record([done(key) for key in keys[::3]])
        settled = set(keys[::3])
        wanted = [key not in settled for key in keys]
        assert ledger.pending(keys, [None] * len(keys), "1") == wanted


def test_each_key_needs_its_fingerprint(path: Path) -> None:
    with Ledger(path) as ledger, pytest.raises(ValueError, match="argument"):
        ledger.pending(["a", "b"], [None], "1")


def test_a_forgotten_input_is_unknown(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([done("a"), done("b")])
        assert ledger.forget(["a", "never seen"]) == 1
        assert ledger.forget([]) == 0
        assert list(ledger.keys()) == ["b"]
        assert ledger.pending(["a"], [None], "1") == [True]


# Keys and fingerprints

NAMES = ["1", "new\nline", "\udce9t\udce9", "é", "\udcc3\udca9", "", "\x00", "\ud800", "s1"]


def test_keys_come_back_as_they_went_in(path: Path) -> None:
    keys: list[str | bytes | int] = [*NAMES, b"1", b"", b"\xff\x00", 1, -7, 0, 2**70]
    with Ledger(path) as ledger:
        ledger.record([done(key) for key in keys])
    with Ledger(path) as ledger:
        found = list(ledger.keys())
        assert len(found) == len(keys)
        assert {(type(key), key) for key in found} == {(type(key), key) for key in keys}


def test_keys_of_different_types_are_different_keys(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([done("1")])
        assert ledger.pending(["1", 1, b"1", PurePosixPath("1")], [None] * 4, "1") == [
            False,
            True,
            True,
            False,
        ]


def test_a_real_file_name_that_is_not_utf8_is_found_again(tmp_path: Path, path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9\n.txt"
    with open(name, "w"):
        pass
    listed = [entry for entry in tmp_path.iterdir() if entry.suffix == ".txt"]
    with Ledger(path) as ledger:
        ledger.record([done(listed[0])])
        assert ledger.pending(listed, [None], "1") == [False]
        (key,) = ledger.keys()
        assert os.fsencode(key) == name  # type: ignore[arg-type]


values = st.recursive(
    st.one_of(
        st.text(st.characters(exclude_categories=())),
        st.binary(),
        st.integers(),
        st.floats(allow_nan=False),
        st.none(),
    ),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)


@given(values)
def test_any_fingerprint_survives_being_stored(value: object) -> None:
    back = decode_value(encode_value(value))  # type: ignore[arg-type]
    assert (type(back), back) == (type(value), value)


@given(values, values)
def test_different_fingerprints_are_stored_differently(one: object, other: object) -> None:
    if repr(one) != repr(other):
        assert encode_value(one) != encode_value(other)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [None, 1.5, ("a", 1), object()])
def test_a_key_that_cannot_be_stored_is_refused_with_the_mend(path: Path, key: object) -> None:
    with Ledger(path) as ledger, pytest.raises(LedgerError, match="key=") as caught:
        ledger.pending([key], [None], "1")  # type: ignore[list-item]
    assert type(key).__name__ in str(caught.value)


def test_a_fingerprint_that_cannot_be_stored_is_refused(path: Path) -> None:
    with Ledger(path) as ledger, pytest.raises(LedgerError, match="list cannot be a fingerprint"):
        ledger.record([done("a", [1])])


# What the ledger tells


def test_failures_say_what_failed_where_and_how_often(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([done("good"), failed("bad", (1, "x"))])
        assert list(ledger.failures()) == [
            Entry("bad", (1, "x"), "1", "failed", 0, "parse", "ValueError: bad", 3)
        ]
        ledger.record([done("bad", (1, "x"))])
        assert list(ledger.failures()) == []
        assert ledger.counts() == Counts(done=2, failed=0, filtered=0, open=0)


def test_an_error_with_a_name_that_is_not_utf8_is_kept_as_text(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([Entry("a", None, "1", "failed", error="no \udce9 " + "x" * 9_000)])
        (entry,) = ledger.failures()
        assert entry.error is not None
        assert entry.error.startswith("no \\udce9 x")
        assert len(entry.error) < 5_000


def test_a_done_input_that_fails_later_is_still_in_the_sink(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([done("once done"), failed("never done")])
        ledger.record([failed("once done", "changed")])
        assert list(ledger.keys()) == ["once done"]
        assert {entry.key for entry in ledger.failures()} == {"once done", "never done"}


def test_going_through_many_inputs_while_they_are_written(path: Path) -> None:
    keys = [f"{number:05}" for number in range(2_500)]
    with Ledger(path) as ledger:
        ledger.record([done(key) for key in keys])
        seen = []
        for key in ledger.keys():  # noqa: SIM118
            seen.append(key)
            if len(seen) % 500 == 0:
                ledger.record([done(f"00000-late-{len(seen)}")])
        assert [key for key in seen if key in set(keys)] == keys


def test_a_group_is_recorded_as_a_whole_or_not_at_all(path: Path) -> None:
    with Ledger(path) as ledger:
        with pytest.raises(OverflowError):
            ledger.record([done("a"), Entry("b", None, "1", "done", outputs=2**70)])
        assert list(ledger.keys()) == []
        ledger.record([done("c")])
        assert list(ledger.keys()) == ["c"]


def test_an_outcome_that_is_none_is_refused(path: Path) -> None:
    with Ledger(path) as ledger:
        with pytest.raises(LedgerError, match="'done', 'failed' or 'filtered'"):
            ledger.record([done("good"), Entry("a", None, "1", "open")])
        assert ledger.counts().done == 0


def test_the_last_run_is_remembered(path: Path) -> None:
    with Ledger(path) as ledger:
        assert ledger.last_run() is None
        ledger.end_run(ledger.begin_run("7"), {"done": 3, "odd": Path("/x"), "name": "\udce9"})
        run = ledger.last_run()
        assert run is not None
        assert (run.id, run.version) == (1, "7")
        assert run.summary == {"done": 3, "odd": "/x", "name": "\udce9"}
        assert run.ended is not None
        assert run.started <= run.ended
        ledger.begin_run("8")
    with Ledger(path) as ledger:
        run = ledger.last_run()
        assert run is not None
        assert (run.id, run.version, run.ended, run.summary) == (2, "8", None, None)


def test_the_list_of_runs_stays_short(path: Path) -> None:
    with Ledger(path) as ledger:
        for _ in range(130):
            ledger.end_run(ledger.begin_run(), {})
        last = ledger.last_run()
        assert last is not None
        assert last.id == 130
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM runs").fetchone() == (100,)
    db.close()


# Opening, closing, sharing


def test_opens_are_counted(path: Path) -> None:
    ledger = Ledger(path)
    with ledger:
        with ledger:
            ledger.record([done("a")])
        assert ledger.counts().done == 1
    ledger.close()
    with pytest.raises(LedgerError, match="with ledger"):
        ledger.counts()
    with ledger:
        assert ledger.counts().done == 1


def test_a_ledger_object_is_only_a_path(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = Ledger("run.db")
    monkeypatch.chdir("/")
    assert ledger.path == str(path)
    assert repr(pickle.loads(pickle.dumps(ledger))) == repr(ledger) == f"Ledger({str(path)!r})"
    assert "lock=False" in repr(Ledger(path, lock=False))
    assert not path.exists()
    with pytest.raises(LedgerError, match="needs a file"):
        Ledger(":memory:")


def test_threads_may_share_an_open_ledger(path: Path) -> None:
    with Ledger(path) as ledger:

        def work(name: int) -> None:
            for number in range(20):
                key = f"{name}-{number}"
                assert ledger.pending([key], [None], "1") == [True]
                ledger.record([done(key)])

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.counts().done == 80


def test_a_second_run_of_the_same_object_is_refused_until_the_first_ends(path: Path) -> None:
    with Ledger(path) as ledger:
        run = ledger.begin_run()
        with pytest.raises(LedgerError, match="in use by run 1 of this process"):
            ledger.begin_run()
        ledger.end_run(run, {})
        ledger.begin_run()


def test_a_second_ledger_object_of_the_process_is_refused(path: Path) -> None:
    with Ledger(path) as ledger:
        with pytest.raises(LedgerError, match=f"of this process \\({os.getpid()}\\)"):
            Ledger(path).open()
        ledger.record([done("a")])
    with Ledger(path) as ledger:
        assert ledger.counts().done == 1


def test_looking_needs_no_lock_and_changes_nothing(path: Path) -> None:
    with Ledger(path) as writer, Ledger(path, lock=False) as reader:
        writer.record([done("a")])
        assert reader.counts().done == 1
        assert reader.pending(["a", "a"], [None, "changed"], "1") == [False, True]
        with pytest.raises(LedgerError, match="lock=True"):
            reader.record([done("b")])
        with pytest.raises(LedgerError, match="lock=True"):
            reader.begin_run()
        assert writer.counts() == reader.counts() == Counts(1, 0, 0, 0)


HOLD = """
import sys
from tournant.ledger import Entry, Ledger
with Ledger(sys.argv[1]) as ledger:
    print("open", flush=True)
    sys.stdin.read()
"""

WRITE = """
import sys
from tournant.ledger import Entry, Ledger
with Ledger(sys.argv[1]) as ledger:
    ledger.begin_run("1")
    for group in range(1_000_000):
        ledger.record([Entry(f"{group}-{n}", n, "1", "done") for n in range(25)])
        print(group, flush=True)
"""


@contextmanager
def child(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_another_process_is_refused_at_once_by_the_holders_number(path: Path) -> None:
    with child(HOLD, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(LedgerError, match=f"in use by process {process.pid},"):
            Ledger(path).open()
        process.kill()
        process.wait()
        with Ledger(path) as ledger:
            ledger.record([done("a")])


def test_kill_9_loses_nothing_that_was_committed(path: Path) -> None:
    groups = 0
    with child(WRITE, path) as process:
        assert process.stdout is not None
        while groups < 60:
            groups = int(process.stdout.readline()) + 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        groups += len(process.stdout.read().splitlines())
    with Ledger(path) as ledger:
        count = ledger.counts().done
        # Whole groups only, all that the child had spoken of, and at most one that it had not yet.
        assert count in (25 * groups, 25 * (groups + 1))
        keys = [f"{group}-{n}" for group in range(groups) for n in range(25)]
        assert not any(ledger.pending(keys, [n for _ in range(groups) for n in range(25)], "1"))
        run = ledger.last_run()
        assert run is not None
        assert run.ended is None
        ledger.record([done("next")])
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


# Files that are none


def refused(path: Path, match: str, *, lock: bool = True) -> str:
    with pytest.raises(LedgerError, match=match) as caught:
        Ledger(path, lock=lock).open()
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("These are my notes.\n" * 500)
    refused(path, "not a ledger, or is damaged")
    refused(path, "not a ledger, or is damaged", lock=False)
    assert path.read_text().startswith("These are my notes.")


def test_a_database_of_another_program_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE recipes (name)")
    db.close()
    refused(path, "database of another program")
    refused(path, "database of another program", lock=False)


def test_a_newer_format_is_refused(path: Path) -> None:
    Ledger(path).open().close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    assert "upgrade tournant" in refused(path, "format 2")


def test_a_damaged_ledger_says_so_when_the_damage_is_met(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([done(f"k{number}") for number in range(5_000)])
    data = bytearray(path.read_bytes())
    data[8_192:] = os.urandom(len(data) - 8_192)
    path.write_bytes(data)
    with pytest.raises(LedgerError, match="damaged"), Ledger(path) as ledger:
        list(ledger.entries())


def test_a_truncated_ledger_is_refused(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([done(f"k{number}") for number in range(5_000)])
    with open(path, "r+b") as file:
        file.truncate(6_000)
    with pytest.raises(LedgerError, match="damaged"), Ledger(path) as ledger:
        ledger.counts()


def test_an_empty_file_becomes_a_ledger(path: Path) -> None:
    path.touch()
    refused(path, "is empty", lock=False)
    with Ledger(path) as ledger:
        assert ledger.counts() == Counts(0, 0, 0, 0)


def test_a_missing_ledger_cannot_be_looked_at(path: Path) -> None:
    refused(path, "There is no ledger", lock=False)
    assert not path.exists()


def test_a_folder_or_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder")
    refused(tmp_path / "missing" / "run.db", "make '.*missing' first")
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "run.db", "no folder to lie in")


def test_a_path_with_odd_characters_works(tmp_path: Path) -> None:
    path = tmp_path / "run?mode=ro#1 %41\udce9\n.db"
    with Ledger(path) as ledger:
        ledger.record([done("a")])
        with Ledger(path, lock=False) as reader:
            assert reader.counts().done == 1
    assert path.exists()


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """Give a folder that anyone may enter, and give up root's rights while the test runs."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)


def test_a_folder_that_cannot_be_written_is_refused_but_can_be_looked_at(
    unprivileged: Path,
) -> None:
    folder = unprivileged / "closed"
    folder.mkdir()
    path = folder / "run.db"
    with Ledger(path) as ledger:
        ledger.record([done("a")])
    (folder / "run.db.lock").unlink()
    folder.chmod(0o555)
    try:
        refused(path, "cannot be written")
        with Ledger(path, lock=False) as reader:
            assert list(reader.keys()) == ["a"]
    finally:
        folder.chmod(0o755)


def test_a_file_that_cannot_be_written_is_refused_when_it_is_opened(unprivileged: Path) -> None:
    path = unprivileged / "run.db"
    Ledger(path).open().close()
    path.chmod(0o444)
    refused(path, "cannot be written")


def test_a_database_browser_that_holds_the_file_is_named_as_the_cause(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tournant._ledger_file._BUSY_SECONDS", 0.05)
    with Ledger(path) as ledger:
        browser = sqlite3.connect(path, isolation_level=None)
        browser.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="held by another program"):
            ledger.record([done("a")])
        browser.execute("ROLLBACK")
        browser.close()
        ledger.record([done("a")])
        assert ledger.counts().done == 1


# Full disks

FILL = """
import resource, sys
from tournant.errors import LedgerError
from tournant.ledger import Entry, Ledger
with Ledger(sys.argv[1]) as ledger:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    for group in range(10_000):
        try:
            ledger.record([Entry(f"{group}-{n}", n, "1", "done") for n in range(25)])
        except LedgerError as error:
            print(group, error)
            break
"""


def test_a_disk_that_takes_no_more_is_a_clear_error_and_a_rerun_goes_on(path: Path) -> None:
    with child(FILL, path) as process:
        said, _ = process.communicate()
    groups, _, message = said.partition(" ")
    assert "disk" in message
    assert "what was recorded before is kept" in message
    with Ledger(path) as ledger:
        assert ledger.counts().done == 25 * int(groups) > 0
        ledger.record([done("next")])


def test_a_full_database_rolls_back_the_whole_group(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.record([done("a")])
        assert ledger._connection is not None
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(LedgerError, match="free some space"):
            ledger.record([done(f"{number}" * 50) for number in range(2_000)])
        assert list(ledger.keys()) == ["a"]
        ledger._connection.execute("PRAGMA max_page_count = 1000000")
        ledger.record([done("b")])
        assert list(ledger.keys()) == ["a", "b"]
