from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tournant import _cache_file
from tournant.cache import CacheError
from tournant.ingest.embedders import embedder
from tournant.ingest.embedders.cached import (
    CachedEmbedder,
    default_cache,
    notes_of_cache,
    open_cache,
)

TEXTS = [
    f"The {word} is kept in the third drawer." for word in ("saffron", "ladle", "knife", "salt")
]


class Counted:
    """The static embedder; counts what it is given."""

    def __init__(self) -> None:
        self.inner = embedder("static")
        self.name, self.dimensions = self.inner.name, self.inner.dimensions
        self.seen: list[str] = []

    def embed(self, texts: Sequence[str]) -> Any:
        self.seen += texts
        return self.inner.embed(texts)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return open_cache(str(tmp_path / "vectors.sqlite"))


def cached(path: str, counted: Counted | None = None, **options: Any) -> CachedEmbedder:
    """Without a counted embedder, having to make one is a failure."""

    def make() -> Counted:
        assert counted is not None, "a text was not found"
        return counted

    static = Counted()
    options = {"name": static.name, "dimensions": static.dimensions, **options}
    return CachedEmbedder(make, path=path, **options)


def fill(path: str, texts: Sequence[str] = TEXTS) -> Any:
    first = cached(path, Counted())
    vectors = first.embed(texts)
    first.close()
    return vectors


def assert_right(path: str, seen: int) -> CachedEmbedder:
    """Every vector is what it would be without a cache; so many texts had to be embedded."""
    counted = Counted()
    one = cached(path, counted)
    np.testing.assert_array_equal(one.embed(TEXTS), Counted().embed(TEXTS))
    assert len(counted.seen) == seen
    assert one.known.count(False) == seen
    return one


def test_what_was_embedded_once_is_not_embedded_again(path: str) -> None:
    vectors = fill(path)
    again = cached(path)
    found = again.embed([*TEXTS[::-1], TEXTS[0]])
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, vectors[[3, 2, 1, 0, 0]])
    assert again.known == [True] * 5
    found[0] = 0  # as with any embedder, the result is the caller's
    np.testing.assert_array_equal(again.embed(TEXTS), vectors)
    assert again.embed([]).shape == (0, again.dimensions)


def test_only_what_is_missing_is_embedded_and_each_text_once(path: str) -> None:
    fill(path, TEXTS[:2])
    counted = Counted()
    one = cached(path, counted)
    texts = [TEXTS[2], TEXTS[0], TEXTS[2], "", "\udcff lone", TEXTS[3], TEXTS[2]]
    np.testing.assert_array_equal(one.embed(texts), Counted().embed(texts))
    assert counted.seen == [TEXTS[2], "", "\udcff lone", TEXTS[3]]
    assert one.known == [False, True, False, False, False, False, False]
    one.close()
    assert cached(path).embed(texts).shape == (7, 256)


def test_vectors_of_another_model_are_never_found(path: str) -> None:
    fill(path)
    counted = Counted()
    other = cached(path, counted, name="static:other")
    other.embed(TEXTS)
    assert counted.seen == TEXTS
    assert (other.name, other.dimensions) == ("static:other", 256)


def test_vectors_of_another_length_are_computed_again(path: str) -> None:
    """A name that lies about its model: as after an embedder of one's own was changed and kept its name."""

    class Short(Counted):
        def embed(self, texts: Sequence[str]) -> Any:
            return np.ascontiguousarray(super().embed(texts)[:, :64])

    short = Short()
    one = CachedEmbedder(lambda: short, short.name, 64, path)
    assert one.embed(TEXTS).shape == (4, 64)
    one.close()
    assert_right(path, 4).close()
    assert_right(path, 0)


# A file that is not as it should be


def test_a_damaged_vector_is_computed_again(path: str, caplog: pytest.LogCaptureFixture) -> None:
    fill(path)
    with sqlite3.connect(path) as db:
        ((key, data),) = db.execute("SELECT key, data FROM entries LIMIT 1").fetchall()
        flipped = bytes([data[0] ^ 1]) + data[1:]
        db.execute("UPDATE entries SET data = ? WHERE key = ?", (flipped, key))
    db.close()
    assert_right(path, 1).close()
    assert "damaged" in caplog.text
    assert_right(path, 0)


def test_a_vector_under_the_key_of_another_is_computed_again(path: str) -> None:
    fill(path)
    with sqlite3.connect(path) as db:
        (a, b) = [key for (key,) in db.execute("SELECT key FROM entries LIMIT 2")]
        for old, new in ((a, b"x"), (b, a), (b"x", b)):
            db.execute("UPDATE entries SET key = ? WHERE key = ?", (new, old))
    db.close()
    assert_right(path, 2)


@pytest.mark.parametrize(
    "content", [b"garbage " * 1000, b"%PDF-1.7", b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_what_is_no_cache_is_refused_before_anything_is_done(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"notes.txt.*(another path|delete)"):
        open_cache(str(path))
    assert path.read_bytes() == content


def test_other_things_at_the_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="is a folder: give the path of a file"):
        open_cache(str(tmp_path))
    with pytest.raises(CacheError, match=r"has no folder to lie in: make .*nowhere"):
        open_cache(str(tmp_path / "nowhere" / "c.sqlite"))
    with sqlite3.connect(tmp_path / "own.db") as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()
    with pytest.raises(CacheError, match="database of another program"):
        open_cache(str(tmp_path / "own.db"))


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_file_is_cold_or_refused_but_never_wrong(
    path: str, kept: float, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path, [*TEXTS, *(f"text {n}" for n in range(300))])
    os.truncate(path, int(os.path.getsize(path) * kept))
    with notes_of_cache() as notes:
        try:
            open_cache(path)
        except CacheError:
            return
        counted = Counted()
        one = cached(path, counted)
        texts = [*TEXTS, *(f"text {n}" for n in range(300))]
        np.testing.assert_array_equal(one.embed(texts), Counted().embed(texts))
        assert counted.seen
    assert any("damaged" in note for note in notes)


def test_a_file_that_somebody_holds_is_not_waited_for_long(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path, TEXTS[:2])
    monkeypatch.setattr(_cache_file, "BUSY_SECONDS", 0.01)
    opened = assert_right(path, 2)
    with sqlite3.connect(path) as holder:
        holder.execute("DELETE FROM entries")
    holder.close()
    fill(path, TEXTS[:2])
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with notes_of_cache() as notes:
        # Whoever has it open reads on, and only can't keep anything; whoever comes now has nothing of it.
        np.testing.assert_array_equal(opened.embed(TEXTS), Counted().embed(TEXTS))
        assert opened.known == [True, True, False, False]
        assert_right(path, 4).close()
    (note,) = notes
    assert "held by another program" in note
    holder.execute("ROLLBACK")
    holder.close()
    opened.close()
    assert_right(path, 2).close()
    assert_right(path, 0)


def test_a_file_that_is_replaced_under_a_run_is_not_used_any_more(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path)
    with open(path, "wb") as file:
        file.write(b"another program was here")
    for suffix in ("-wal", "-shm"):
        Path(path + suffix).unlink(missing_ok=True)
    counted = Counted()
    one = cached(path, counted)
    with notes_of_cache() as notes:
        for _ in range(2):
            np.testing.assert_array_equal(one.embed(TEXTS), Counted().embed(TEXTS))
    (note,) = notes
    assert "the cache is not used any more: " in note
    assert len(counted.seen) == 8


# Where it lies


def test_the_default_is_in_the_users_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == str(tmp_path / "xdg/tournant/embeddings.sqlite")
    assert open_cache(default_cache()) == default_cache()
    assert (tmp_path / "xdg/tournant").stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert default_cache() == str(tmp_path / "home/.cache/tournant/embeddings.sqlite")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert open_cache("~/vectors.sqlite".replace("~", str(tmp_path))) == str(
        tmp_path / "vectors.sqlite"
    )
    (tmp_path / "home").write_text("no folder")
    with pytest.raises(CacheError, match=r"can't be made.*XDG_CACHE_HOME"):
        open_cache(default_cache())
