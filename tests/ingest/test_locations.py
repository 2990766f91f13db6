"""Where an index lies: folders, ``file://``, object stores, and what none can lie in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import job_samples as samples
import pytest
from ingest_samples import DIMENSIONS, embedded

from tournant.ingest import job
from tournant.ingest.errors import (
    IndexBusy,
    IndexDamaged,
    IndexMissing,
    IndexWriteFailed,
    InvalidOption,
    SearchFailed,
)
from tournant.ingest.indexes.base import Counts, IndexSettings
from tournant.ingest.indexes.locations import folder_of, is_url, needs_lance, open_index, shown

SETTINGS = IndexSettings("an embedder", DIMENSIONS, "a chunker")


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    url = folder.as_uri()
    assert "%20" in url
    with open_index(url, SETTINGS, write=True) as index:
        index.replace([embedded("/a", ["apple"])])
        assert index.folder == index.directory == str(folder)
    with open_index(str(folder)) as index:
        assert index.counts() == Counts(1, 1)
    assert folder_of(url) == folder_of(f"file://localhost{folder}") == str(folder)


def test_an_ingest_into_a_file_url_is_one_into_its_folder(tmp_path: Path) -> None:
    samples.make_corpus(tmp_path / "docs", 5)
    url = (tmp_path / "docs" / "index").as_uri()
    for done, skipped in ((5, 0), (0, 5)):
        outcome = samples.ingest(tmp_path / "docs", url)
        # The index lies among the documents, and is not one.
        assert (outcome.report.done, outcome.report.skipped) == (done, skipped)
    assert job.status(url).documents == job.status(str(tmp_path / "docs" / "index")).documents == 5
    assert job.search(url, "kitchen")


@pytest.mark.parametrize(
    ("index", "what"),
    [
        ("file://machine/folder", "names the machine 'machine'; write file:///absolute/path"),
        ("file://", "write file:///absolute/path"),
        ("mysql://ann:s3cr3t@db/work", "no index can lie there; give a folder, or a URL that begins with postgresql://"),
        ("http://127.0.0.1/x", "no index can lie there"),
    ],
)  # fmt: skip
def test_where_no_index_can_lie(index: str, what: str) -> None:
    with pytest.raises(InvalidOption, match=what) as caught:
        open_index(index, SETTINGS, write=True)
    assert "s3cr3t" not in str(caught.value)


def test_a_path_is_no_url() -> None:
    for path in ("index", "/tmp/index", "C:/index", "a:b", "./s3:/x", "~/index"):
        assert not is_url(path)
        assert shown(path) == path
        assert needs_lance(path)
    assert folder_of("~/index") == os.path.expanduser("~/index")
    assert not needs_lance("postgres://db")
    assert folder_of("s3://bucket/x") is folder_of("postgresql://db") is None


class TestObjectStores:
    """LanceDB's own stand-in for one: a folder that is read and written as an object store is."""

    @pytest.fixture
    def url(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        return f"file-object-store://{tmp_path}/store"

    def test_an_ingest_is_as_one_into_a_folder(self, url: str, tmp_path: Path) -> None:
        docs = tmp_path / "docs"
        samples.make_corpus(docs, 12)
        assert samples.ingest(docs, url).report.done == 12
        (docs / "part0/doc0000.txt").unlink()
        (docs / "part1/doc0001.md").write_text("A zebrafish.")
        outcome = samples.ingest(docs, url)
        assert (outcome.report.done, outcome.report.skipped, outcome.removed) == (1, 10, 1)
        assert job.search(url, "zebrafish")[0].source == str(docs / "part1/doc0001.md")
        status = job.status(url)
        assert status.documents == 11
        assert status.bytes > 1_000
        assert (status.busy, status.failures) == (False, ())
        samples.ingest(docs, tmp_path / "fresh")
        assert status.chunks == job.status(str(tmp_path / "fresh")).chunks

    def test_a_machine_that_has_no_ledger_of_it_can_search(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        samples.make_corpus(tmp_path / "docs", 3)
        samples.ingest(tmp_path / "docs", url)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
        assert job.search(url, "kitchen brigade")
        assert job.status(url).documents == 3
        assert job.status(url).last_run is None
        # It begins with a ledger of its own, and what was embedded once is not embedded again.
        outcome = samples.ingest(tmp_path / "docs", url)
        assert outcome.report.done == 3
        assert outcome.reused == outcome.chunks

    def test_one_writes_at_a_time(self, url: str) -> None:
        with open_index(url, SETTINGS, write=True) as index:
            assert index.is_being_written()
            with pytest.raises(
                IndexBusy, match=f"{url}.*is being written by process {os.getpid()}"
            ):
                open_index(url, SETTINGS, write=True)
        assert not open_index(url).is_being_written()

    def test_a_newer_format_is_refused(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from tournant.ingest.indexes import remote

        with monkeypatch.context() as patch:
            patch.setattr(remote, "FORMAT", 99)
            open_index(url, SETTINGS, write=True).close()
        for write in (False, True):
            with pytest.raises(IndexDamaged, match="has format 99, this version of tournant reads"):
                open_index(url, SETTINGS, write=write)

    def test_a_store_that_cannot_be_reached_is_said_with_what_to_look_at(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tournant.ingest.indexes import remote

        monkeypatch.setattr(remote, "_OPTIONS", {**remote._OPTIONS, "client_max_retries": "0"})
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        for name, value in {
            "AWS_ENDPOINT": "http://127.0.0.1:1", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s3cr3t",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        for write, error in ((False, SearchFailed), (True, IndexWriteFailed)):
            with pytest.raises(
                error, match="the object store can't be reached, or refuses:"
            ) as caught:
                open_index("s3://bucket/index", SETTINGS, write=write)
            assert "AWS_ACCESS_KEY_ID" in str(caught.value)
            assert "s3cr3t" not in str(caught.value)
        # The refusal left no lock.
        with pytest.raises(IndexWriteFailed):
            open_index("s3://bucket/index", SETTINGS, write=True)

    def test_there_is_none(self, url: str) -> None:
        with pytest.raises(IndexMissing, match="there is no index here"):
            open_index(url)
        with pytest.raises(IndexMissing, match="there is no index here"):
            open_index(url, write=True)


def test_a_search_in_postgres_loads_no_lancedb(pg_url: str) -> None:
    """Its import takes a second."""
    code = """
import sys
from ingest_samples import *
from tournant.ingest.indexes.base import IndexSettings
from tournant.ingest.indexes.locations import open_index
with open_index(sys.argv[1], IndexSettings("e", DIMENSIONS, "c"), write=True) as index:
    index.replace([embedded("/a", ["apple"])])
    assert index.search("apple", unit(0))
assert not {"lancedb", "pyarrow"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, pg_url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
