"""What is particular to the index in LanceDB: files, kills, full disks, upkeep, imports."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from ingest_samples import DIMENSIONS, embedded, unit

from tournant.ingest.errors import IndexDamaged, IndexWriteFailed, InvalidOption, SearchFailed
from tournant.ingest.indexes import searching
from tournant.ingest.indexes.base import Counts, IndexSettings
from tournant.ingest.indexes.lance import LanceIndex, preload
from tournant.ingest.indexes.upkeep import UpkeepPolicy

SETTINGS = IndexSettings("an embedder", DIMENSIONS, "a chunker")
HERE = os.path.dirname(__file__)


def files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def open_writer(folder: Path, **policy: float) -> LanceIndex:
    return LanceIndex.open(folder, SETTINGS, write=True, upkeep=UpkeepPolicy(**policy))  # type: ignore[arg-type]


def run(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    head = "import os, sys; sys.path.insert(0, sys.argv[1])\nfrom ingest_samples import *\n"
    command = [sys.executable, "-c", head + code, HERE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload, no-any-return]


def test_looking_at_an_index_does_not_import_lancedb(tmp_path: Path) -> None:
    with open_writer(tmp_path) as index:
        index.replace([embedded("/a", ["x", "y"])])
        index.optimize()
    code = """
from tournant.ingest.indexes.base import IndexSettings
from tournant.ingest.indexes.lance import LanceIndex
index = LanceIndex.open(sys.argv[2])
print(index.settings.embedder, index.counts(), index.sources(), index.size_bytes() > 0)
with LanceIndex.open(sys.argv[2], index.settings, write=True) as index:
    print(index.counts(), index.remove(["/nothing"]))
assert not {"lancedb", "pyarrow"} & set(sys.modules)
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "an embedder Counts(documents=1, chunks=2) {'/a'} True",
        "Counts(documents=1, chunks=2) 0",
    ]


def test_a_catalog_that_is_behind_is_not_believed(tmp_path: Path) -> None:
    with open_writer(tmp_path) as index:
        index.replace([embedded("/a", ["x"])])
    old = (tmp_path / "catalog.json").read_bytes()
    with open_writer(tmp_path) as index:
        index.replace([embedded("/b", ["y"])])
    (tmp_path / "catalog.json").write_bytes(old)
    assert LanceIndex.open(tmp_path).counts() == Counts(2, 2)
    for broken in (b"", b"{", b"[]", b'{"format": 99}'):
        (tmp_path / "catalog.json").write_bytes(broken)
        with open_writer(tmp_path) as index:
            assert index.sources() == {"/a", "/b"}


def test_a_writer_that_is_killed_loses_nothing_it_committed(tmp_path: Path) -> None:
    code = """
import signal
from tournant.ingest.indexes.base import IndexSettings
from tournant.ingest.indexes.lance import LanceIndex
index = LanceIndex.open(sys.argv[2], IndexSettings("an embedder", DIMENSIONS, "a chunker"), write=True)
index.replace([embedded("/a", ["apple", "pear"])])
index.replace([embedded("/a", ["apple"]), embedded("/b", ["apple pie"])])
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = run(code, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert LanceIndex.open(tmp_path).counts() == Counts(2, 2)
    with open_writer(tmp_path) as index:  # the lock went with its holder
        index.replace([embedded("/a", ["apple"]), embedded("/b", ["apple pie"])])
        assert index.counts() == Counts(2, 2)
        assert len(index.search("apple", unit(0), 9)) == 2


def test_a_creation_that_was_killed_half_way_is_started_again(tmp_path: Path) -> None:
    open_writer(tmp_path).close()
    (tmp_path / "chunks.lance" / "_versions").mkdir(parents=True)
    (tmp_path / "chunks.lance" / "data").mkdir()
    assert LanceIndex.open(tmp_path).counts() == Counts(0, 0)
    with open_writer(tmp_path) as index:
        index.replace([embedded("/a", ["apple"])])
        assert index.counts() == Counts(1, 1)


def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    with open_writer(tmp_path) as index:
        index.replace([embedded("/a", ["apple"])])
    # No file may grow beyond 64 KiB: what a full disk does, without filling one.
    code = """
from tournant.ingest.errors import IndexWriteFailed
from tournant.ingest.indexes.lance import LanceIndex
index = LanceIndex.open(sys.argv[2], write=True)
try:
    index.replace([embedded("/a", [os.urandom(50_000).hex()]), embedded("/b", [os.urandom(50_000).hex()])])
except IndexWriteFailed as error:
    print(error)
print(index.counts(), [hit.text for hit in index.search("", unit(0), 9, "vector")])
index.replace([embedded("/c", ["pear"])])
index.close()
"""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))  # noqa: E731
    done = run(code, tmp_path, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    message, state = done.stdout.splitlines()
    assert f"index {str(tmp_path)!r}" in message
    assert "raise it and run again" in message
    assert state == "Counts(documents=1, chunks=1) ['apple']"
    with open_writer(tmp_path) as index:
        assert index.sources() == {"/a", "/c"}
        before = index.size_bytes()
        index.replace([embedded("/d", ["plum"])])
        index.optimize()
        assert index.size_bytes() < before + 20_000  # what the refused write left is gone, too


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            OSError("LanceError(IO): No space left on device (os error 28)"),
            "the disk is full; free some space",
        ),
        (
            RuntimeError("lance error: Permission denied"),
            "permission denied; make the folder writable",
        ),
        (RuntimeError("something else\nwith details"), "the store refused a write: something else"),
    ],
)
def test_the_stores_errors_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    with open_writer(tmp_path) as index:
        index.replace([embedded("/a", ["x"])])

        def refuse(*_: object) -> None:
            raise error

        monkeypatch.setattr(index._handle, "add", refuse)
        with pytest.raises(IndexWriteFailed, match=reason):
            index.replace([embedded("/b", ["y"])])
        monkeypatch.undo()
        assert index.counts() == Counts(1, 1)
        index.replace([embedded("/b", ["y"])])
        assert index.counts() == Counts(2, 2)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(IndexWriteFailed, match="can't write: Not a directory"):
        open_writer(tmp_path / "file" / "index")
    with pytest.raises(InvalidOption, match="not UTF-8"):
        open_writer(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")))


@pytest.mark.parametrize("name", ["with space", "100%20", "a#b?c", "näme", "semi;colon'quote"])
def test_the_folder_may_have_any_valid_name(tmp_path: Path, name: str) -> None:
    with open_writer(tmp_path / name) as index:
        index.replace([embedded("/a", ["x"])])
    assert LanceIndex.open(tmp_path / name).counts() == Counts(1, 1)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_files_that_are_damaged_are_named(tmp_path: Path) -> None:
    with open_writer(tmp_path) as index:
        index.replace([embedded("/a", ["x"])])
    identity = tmp_path / "index.json"
    good = json.loads(identity.read_text())
    for content in (
        "",
        "{}",
        '{"format": 1, "settings": {}}',
        '{"format": 1, "settings": 3}',
        "null",
    ):
        identity.write_text(content)
        with pytest.raises(IndexDamaged, match="can't be understood"):
            LanceIndex.open(tmp_path)
    identity.write_text(json.dumps(good | {"format": 2}))
    with pytest.raises(IndexDamaged, match="has format 2"):
        LanceIndex.open(tmp_path)
    identity.unlink()
    with pytest.raises(IndexDamaged, match=r"index\.json is missing"):
        open_writer(tmp_path)


def test_files_stay_few_over_many_commits(tmp_path: Path) -> None:
    with open_writer(tmp_path, commits=8) as index:
        for n in range(60):
            index.replace([embedded(f"/{n % 20}", [f"apple {n}", "pear"], n)])
        index.optimize()
        assert files(tmp_path) < 40
        assert index.counts() == Counts(20, 40)
        assert len(index.search("apple", None, 50, "text")) == 20


def test_appends_go_on_while_upkeep_runs(tmp_path: Path) -> None:
    with open_writer(tmp_path, rows=1, share=0) as index:
        for n in range(40):
            index.replace([embedded(f"/{n}", [f"apple {n}"], n)])
            if n % 10 == 9:
                index.replace([embedded(f"/{n}", [f"apple again {n}"], n)])
        index.optimize()
        assert index.counts() == Counts(40, 40)
        assert len(index.search("apple", None, 50, "text")) == 40


def test_searches_see_a_document_whole_while_it_is_replaced(tmp_path: Path) -> None:
    """Every chunk carries its version; a search that saw two versions, or none, would show it."""
    chunks = 5
    with open_writer(tmp_path, commits=4) as index:
        versions = iter(range(1, 1_000))
        index.replace([embedded("/a", [f"apple v0 {n}" for n in range(chunks)])])
        reader = LanceIndex.open(tmp_path)
        done = threading.Event()
        seen: list[set[str]] = []
        errors: list[BaseException] = []

        def search() -> None:
            try:
                while not done.is_set():
                    hits = reader.search("apple", unit(0), 50)
                    assert len(hits) == chunks
                    seen.append({hit.text.split()[1] for hit in hits})
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=search)
        thread.start()
        for _ in range(25):
            version = next(versions)
            index.replace([embedded("/a", [f"apple v{version} {n}" for n in range(chunks)])])
        done.set()
        thread.join()
    assert not errors
    assert seen
    assert all(len(versions_seen) == 1 for versions_seen in seen)


def test_a_search_that_lost_its_files_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_writer(tmp_path) as index:
        index.replace([embedded("/a", ["apple"])])
        real, failures = searching._answer, [RuntimeError("lance error: Not found: x.lance")] * 2

        def losing(*arguments: object) -> object:
            if failures:
                raise failures.pop()
            return real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(searching, "_answer", losing)
        assert len(index.search("apple", unit(0))) == 1
        failures += [RuntimeError("lance error: Not found: x.lance")] * 3
        with pytest.raises(SearchFailed, match="could not be searched: lance error: Not found"):
            index.search("apple", unit(0))
        failures[:] = [RuntimeError("out of luck")]
        with pytest.raises(SearchFailed, match="out of luck"):
            index.search("apple", unit(0))


def test_closing_waits_for_upkeep(tmp_path: Path) -> None:
    preload()
    index = open_writer(tmp_path, rows=1, share=0)
    index.replace([embedded(f"/{n}", [f"apple {n}"], n) for n in range(500)])
    index.close()
    assert not [thread for thread in threading.enumerate() if "upkeep" in thread.name]
    with pytest.raises(IndexWriteFailed, match="closed"):
        index.replace([embedded("/a", ["x"])])
