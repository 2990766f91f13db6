"""An ingest with a cache gives the index that it would give without one, whatever becomes of the cache."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import job_samples as samples
import psutil
import pytest
from test_job_faults import UNPRIVILEGED

from tournant.cache import CacheError
from tournant.ingest.errors import InvalidOption
from tournant.ingest.job import IngestOptions, default_cache

DOCUMENTS = 40


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    samples.make_corpus(folder, DOCUMENTS)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "vectors.sqlite")


@pytest.fixture
def fresh(docs: Path, tmp_path: Path) -> Path:
    """The index as it is without a cache."""
    samples.ingest(docs, tmp_path / "fresh")
    return tmp_path / "fresh"


def entries(cache: str) -> int:
    db = sqlite3.connect(cache)
    try:
        return int(db.execute("SELECT count(*) FROM entries").fetchone()[0])
    finally:
        db.close()


def test_a_second_index_embeds_nothing(
    docs: Path, fresh: Path, tmp_path: Path, cache: str, until: Callable[..., bool]
) -> None:
    first = samples.ingest(docs, tmp_path / "one", cache=cache)
    assert first.cached < first.chunks // 10  # only what occurs twice
    assert entries(cache) <= first.chunks
    second = samples.ingest(docs, tmp_path / "two", cache=cache)
    assert second.cached == second.chunks == first.chunks
    assert (second.warnings, second.rejected) == ((), ())
    assert second.as_dict()["cached"] == second.chunks
    for index in ("one", "two"):
        samples.assert_same(tmp_path / index, docs, fresh, docs)
    workers = psutil.Process().children(recursive=True)
    assert workers
    assert until(lambda: not any(f.path == cache for w in workers for f in w.open_files()))


def test_other_chunks_embed_only_what_is_new(docs: Path, tmp_path: Path, cache: str) -> None:
    samples.ingest(docs, tmp_path / "one", cache=cache)
    (docs / "short.txt").write_text("So short that it is one chunk in any case.")
    samples.ingest(docs, tmp_path / "one", cache=cache)
    other = samples.ingest(docs, tmp_path / "two", cache=cache, chunk_size=600)
    assert 0 < other.cached < other.chunks
    samples.ingest(docs, tmp_path / "plain", chunk_size=600)
    samples.assert_same(tmp_path / "two", docs, tmp_path / "plain", docs)


def test_changed_documents_find_their_vectors_in_the_index_or_in_the_cache(
    docs: Path, tmp_path: Path, cache: str
) -> None:
    index = tmp_path / "one"
    samples.ingest(docs, index, cache=cache)
    (docs / "part0/doc0000.txt").rename(docs / "renamed.txt")
    changed = docs / "part0/doc0012.txt"
    changed.write_text("Another beginning.\n\n" + changed.read_text())
    outcome = samples.ingest(docs, index, cache=cache)
    assert outcome.report.done == 2
    assert outcome.reused > 0
    assert outcome.cached > 0
    assert outcome.reused + outcome.cached < outcome.chunks
    samples.ingest(docs, tmp_path / "plain")
    samples.assert_same(index, docs, tmp_path / "plain", docs)


def test_without_a_cache_none_is_made(
    docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    outcome = samples.ingest(docs, tmp_path / "one")
    assert (outcome.cached, outcome.warnings) == (0, ())
    assert not (tmp_path / "home").exists()
    samples.ingest(docs, tmp_path / "two", cache=default_cache())
    assert entries(str(tmp_path / "home/tournant/embeddings.sqlite")) > DOCUMENTS


def test_what_is_no_cache_ends_the_run_before_it_begins(docs: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database at all " * 100)
    for path, words in ((tmp_path / "notes.txt", "is not a cache"), (docs, "is a folder")):
        with pytest.raises(CacheError, match=words):
            samples.ingest(docs, tmp_path / "one", cache=str(path))
    assert not (tmp_path / "one").exists()


def test_a_damaged_cache_is_cold_and_loses_nothing(
    docs: Path, fresh: Path, tmp_path: Path, cache: str, until: Callable[..., bool]
) -> None:
    samples.ingest(docs, tmp_path / "one", cache=cache)
    with closing(sqlite3.connect(cache)) as db:
        # Everything is in the file that is about to be damaged, and nothing beside it.
        assert until(lambda: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
    with open(cache, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(os.path.getsize(cache) - 4096))
    outcome = samples.ingest(docs, tmp_path / "two", cache=cache)
    assert (outcome.report.done, outcome.rejected) == (DOCUMENTS, ())
    assert any("damaged" in warning for warning in outcome.warnings)
    assert outcome.as_dict()["warnings"] == list(outcome.warnings)
    samples.assert_same(tmp_path / "two", docs, fresh, docs)


def test_a_locked_cache_is_cold_and_loses_nothing(
    docs: Path, fresh: Path, tmp_path: Path, cache: str
) -> None:
    half = tmp_path / "half"
    shutil.copytree(docs / "part0", half)
    known = samples.ingest(half, tmp_path / "one", cache=cache)
    holder = sqlite3.connect(cache, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    outcome = samples.ingest(docs, tmp_path / "two", cache=cache)
    holder.close()
    assert (outcome.report.done, outcome.rejected) == (DOCUMENTS, ())
    (warning,) = outcome.warnings
    assert "held by another program" in warning
    assert entries(cache) <= known.chunks
    samples.assert_same(tmp_path / "two", docs, fresh, docs)


def test_two_ingests_share_a_cache(docs: Path, fresh: Path, tmp_path: Path, cache: str) -> None:
    argv = ["ingest", str(docs), "--cache", cache, "--quiet", "--index"]
    ended = [
        subprocess.Popen([sys.executable, "-m", "tournant", *argv, str(tmp_path / name)])
        for name in ("one", "two")
    ]
    assert [process.wait(samples.PATIENCE) for process in ended] == [0, 0]
    for name in ("one", "two"):
        samples.assert_same(tmp_path / name, docs, fresh, docs)
    third = samples.ingest(docs, tmp_path / "three", cache=cache)
    assert third.cached == third.chunks


def test_what_was_embedded_before_a_kill_is_not_embedded_again(
    docs: Path, fresh: Path, tmp_path: Path, cache: str
) -> None:
    (docs / "part3").rename(docs / "zz")
    (docs / "zz/stuck.txt").write_text("This one keeps the run going.")
    index = tmp_path / "one"
    argv = ("ingest", str(docs), "--index", str(index), "--cache", cache, "--quiet")
    with samples.Program(tmp_path / "notes", *argv) as program:
        assert program.reached(lambda: len(samples.done_in(index)) >= 10)
        program.kill()
    (docs / "zz/stuck.txt").unlink()
    kept = entries(cache)
    assert kept > 10
    shutil.rmtree(index)
    outcome = samples.ingest(docs, index, cache=cache)
    assert outcome.cached >= kept - 1  # the one that is gone
    (docs / "zz").rename(docs / "part3")
    samples.ingest(docs, index)
    samples.assert_same(index, docs, fresh, docs)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="capabilities are Linux's")
def test_a_cache_that_may_not_be_written_is_read(docs: Path, fresh: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        cache = place / "closed/vectors.sqlite"
        cache.parent.mkdir()
        samples.ingest(docs, place / "one", cache=str(cache))
        (docs / "new.txt").write_text("New.")
        before = entries(str(cache))
        cache.chmod(0o444)
        cache.parent.chmod(0o555)
        argv = ["ingest", str(docs), "--index", str(place / "two"), "--cache", str(cache)]
        ended = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, *argv],
            capture_output=True,
            text=True,
            check=False,
            timeout=samples.PATIENCE,
        )
        argv[-1] = str(cache.parent / "other.sqlite")
        refused = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, *argv[:3], str(place / "three"), *argv[4:]],
            capture_output=True,
            text=True,
            check=False,
            timeout=samples.PATIENCE,
        )
        cache.parent.chmod(0o755)
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr.count("warning: the cache") == 1
        assert "can't be written" in ended.stderr
        assert f"({before:,} from the cache)" in ended.stdout
        assert entries(str(cache)) == before
        assert refused.returncode == 1
        assert "give this user leave to write" in refused.stderr
        assert not (place / "three").exists()
        (docs / "new.txt").unlink()
        samples.ingest(docs, place / "two")
        samples.assert_same(place / "two", docs, fresh, docs)


def test_a_cache_that_is_the_index_or_nothing_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "index"
    with pytest.raises(InvalidOption, match="is the index itself, which is a folder; give"):
        IngestOptions(("docs",), str(index), cache=f"{tmp_path}/other/../index/")
    with pytest.raises(InvalidOption, match="give the path of a file, or leave it out"):
        IngestOptions(("docs",), str(index), cache="")
