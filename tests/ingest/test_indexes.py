"""What every index does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ingest_samples import DIMENSIONS, embedded, unit

from tournant.ingest.documents import text_hash
from tournant.ingest.errors import (
    IndexBusy,
    IndexMismatch,
    IndexMissing,
    IndexWriteFailed,
    InvalidOption,
)
from tournant.ingest.indexes.base import Counts, Index, IndexSettings
from tournant.ingest.indexes.locations import open_index as open_index_at

SETTINGS = IndexSettings("an embedder", DIMENSIONS, "a chunker")
STORES = ("lance", "object store", "postgres")


@pytest.fixture(params=STORES)
def open_index(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Index]]:
    """Opens an index by the path that it would have in a folder, and closes what a test leaves open."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    opened: list[Index] = []
    urls: dict[str, str] = {}

    def opener(path: Path, *arguments: object, **options: object) -> Index:
        where = str(path)
        if request.param == "object store":
            where = f"file-object-store://{path}"
        elif request.param == "postgres":
            new = request.getfixturevalue("new_index_url")
            where = urls[where] if where in urls else urls.setdefault(where, new())
        index = open_index_at(where, *arguments, **options)  # type: ignore[arg-type]
        opened.append(index)
        return index

    yield opener
    for index in opened:
        index.close()


@pytest.fixture
def index(open_index: Callable[..., Index], tmp_path: Path) -> Iterator[Index]:
    index = open_index(tmp_path / "index", SETTINGS, write=True)
    yield index
    index.close()


def texts(index: Index, words: str) -> list[str]:
    return sorted(hit.text for hit in index.search(words, None, 50, "text"))


class TestReplacing:
    def test_documents_come_back_as_they_went_in(self, index: Index) -> None:
        index.replace([embedded("/a", ["red apple", "green pear"], 1, title="Fruit")])
        hit = index.search("pear", unit(2), 10, "hybrid")[0]
        assert (hit.source, hit.ordinal, hit.text) == ("/a", 1, "green pear")
        assert (hit.start, hit.end, hit.title, hit.media_type) == (10, 20, "Fruit", "text/plain")
        assert index.counts() == Counts(1, 2)
        assert index.sources() == {"/a"}

    def test_doing_it_again_changes_nothing(self, index: Index) -> None:
        for _ in range(3):
            index.replace(
                [embedded("/a", ["red apple", "green pear"]), embedded("/b", ["apple pie"])]
            )
        assert index.counts() == Counts(2, 3)
        assert texts(index, "apple") == ["apple pie", "red apple"]

    @pytest.mark.parametrize(
        "new", [[], ["one apple"], ["an apple", "b apple", "c apple", "d apple"]]
    )
    def test_what_was_there_before_is_gone(self, index: Index, new: list[str]) -> None:
        index.replace(
            [embedded("/a", ["old apple", "other apple", "third apple"]), embedded("/b", ["b"])]
        )
        index.replace([embedded("/a", new), embedded("/c", ["c apple pie"])])
        assert texts(index, "apple") == sorted([*new, "c apple pie"])
        assert index.counts() == Counts(2 + bool(new), len(new) + 2)
        assert len(index.search("", unit(0), 50, "vector")) == len(new) + 2

    def test_only_empty_documents(self, index: Index) -> None:
        index.replace([embedded("/a", [])])
        assert index.counts() == Counts(0, 0)
        index.replace([embedded("/a", ["x"])])
        index.replace([embedded("/a", [])])
        assert index.counts() == Counts(0, 0)
        index.replace([])

    @pytest.mark.parametrize(
        "source",
        [
            "/a\nb",
            os.fsdecode(b"/caf\xe9"),
            '/it\'s "quoted"',
            "/100%/\ufffd",
            "C:\\back\\slash",
            "/日本 -- ;",
            "",
        ],
    )
    def test_any_name_is_replaced_found_and_removed(self, index: Index, source: str) -> None:
        index.replace([embedded(source, ["apple one"]), embedded("/other", ["apple"])])
        index.replace([embedded(source, ["apple two"])])
        assert index.sources() == {source, "/other"}
        assert {hit.source for hit in index.search("two", None, 5, "text")} == {source}
        assert list(index.vectors_of([source])) == [text_hash("apple two")]
        assert index.remove([source]) == 1
        assert index.sources() == {"/other"}

    def test_the_same_source_twice_is_refused(self, index: Index) -> None:
        with pytest.raises(ValueError, match="same source"):
            index.replace([embedded("/a", ["x"]), embedded("/a", ["y"])])

    def test_other_dimensions_are_refused(self, index: Index) -> None:
        with pytest.raises(ValueError, match="'/a' has vectors of 3 dimensions, the index has 8"):
            index.replace([embedded("/a", ["x"], dimensions=3)])
        assert index.counts() == Counts(0, 0)

    def test_many_documents_in_one_commit(self, index: Index) -> None:
        documents = [embedded(f"/{n}", [f"text {n}"], n) for n in range(3_000)]
        index.replace(documents)
        index.replace(documents)
        assert index.counts() == Counts(3_000, 3_000)
        assert index.remove(f"/{n}" for n in range(0, 3_000, 2)) == 1_500
        assert index.counts() == Counts(1_500, 1_500)


class TestRemoving:
    def test_sources_that_are_not_there_are_no_error(self, index: Index) -> None:
        assert index.remove(["/nothing"]) == 0
        index.replace([embedded("/a", ["x", "y"])])
        assert index.remove(["/nothing", "/a", "/a"]) == 2
        assert index.remove(["/a"]) == 0
        assert index.search("x", unit(0), 5) == []


class TestVectors:
    def test_vectors_are_found_by_the_text_of_their_chunk(self, index: Index) -> None:
        index.replace([embedded("/a", ["x", "y"], 5), embedded("/b", ["z"], 9)])
        vectors = index.vectors_of(["/a", "/nothing"])
        assert set(vectors) == {text_hash("x"), text_hash("y")}
        np.testing.assert_array_equal(vectors[text_hash("y")], unit(6))
        assert index.vectors_of([]) == {}
        assert index.vectors_of(["/nothing"]) == {}


class TestSearching:
    @pytest.fixture
    def filled(self, index: Index) -> Index:
        index.replace([embedded(f"/{n}", [f"common word{n}"], n) for n in range(30)])
        index.replace([embedded("/rare", ["a singular zebrafish"], 100)])
        return index

    def test_by_vector(self, filled: Index) -> None:
        hits = filled.search("", unit(7), 3, "vector")
        assert hits[0].source == "/7"
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)

    def test_by_words(self, filled: Index) -> None:
        assert [hit.source for hit in filled.search("ZEBRAFISH singular", None, 3, "text")] == [
            "/rare"
        ]
        assert len(filled.search("common", None, 5, "text")) == 5
        assert filled.search("nowhere", None, 5, "text") == []

    def test_by_both(self, filled: Index) -> None:
        hits = filled.search("zebrafish", unit(7), 2)
        assert {hit.source for hit in hits} == {"/rare", "/7"}
        assert filled.search("word7", unit(7), 1)[0].source == "/7"
        assert (
            len({(hit.source, hit.ordinal) for hit in filled.search("common", unit(3), 31)}) == 31
        )

    @pytest.mark.parametrize("words", ["", "  ", "the", '"+- AND (', "it's", "\ud800", "a" * 5_000])
    def test_odd_queries_are_answered(self, filled: Index, words: str) -> None:
        filled.search(words, None, 3, "text")
        assert filled.search(words, unit(7), 3)[0].source == "/7"

    def test_a_zero_vector_is_no_special_case(self, filled: Index) -> None:
        filled.replace([embedded("/0", ["x"])])
        zero = np.zeros(DIMENSIONS, np.float32)
        assert len(filled.search("zebrafish", zero, 3)) == 3

    def test_before_and_after_upkeep(self, filled: Index) -> None:
        filled.optimize()
        filled.replace(
            [embedded("/new", ["another zebrafish"], 200), embedded("/rare", ["no fish"], 300)]
        )
        assert texts(filled, "zebrafish") == ["another zebrafish"]
        filled.optimize()
        assert texts(filled, "zebrafish") == ["another zebrafish"]
        assert filled.search("", unit(200), 1, "vector")[0].source == "/new"

    def test_an_empty_index_has_no_hits(self, index: Index) -> None:
        for mode in ("hybrid", "vector", "text"):
            assert index.search("x", unit(0), 5, mode) == []

    def test_impossible_searches_are_refused(self, index: Index) -> None:
        with pytest.raises(InvalidOption, match="no search mode 'fuzzy'"):
            index.search("x", None, 5, "fuzzy")  # type: ignore[arg-type]
        with pytest.raises(InvalidOption, match="k is 0"):
            index.search("x", unit(0), 0)
        with pytest.raises(InvalidOption, match=r"a vector of shape \(8,\), not None"):
            index.search("x", None)
        with pytest.raises(InvalidOption, match=r"not \(3,\)"):
            index.search("x", unit(0, 3), mode="vector")


class TestOpening:
    def test_everything_is_there_again(
        self, open_index: Callable[..., Index], tmp_path: Path
    ) -> None:
        with open_index(tmp_path, SETTINGS, write=True) as index:  # type: ignore[attr-defined]
            index.replace([embedded("/a", ["x", "y"]), embedded("/b", ["z"])])
        again = open_index(tmp_path)
        assert again.settings == SETTINGS
        assert again.counts() == Counts(2, 3)
        assert again.sources() == {"/a", "/b"}
        assert set(again.vectors_of(["/b"])) == {text_hash("z")}
        assert again.size_bytes() > 1_000

    def test_readers_see_what_a_writer_has_committed(
        self, open_index: Callable[..., Index], index: Index, tmp_path: Path
    ) -> None:
        reader = open_index(tmp_path / "index")
        assert reader.counts() == Counts(0, 0)
        assert reader.search("x", unit(0)) == []
        for n in range(3):
            index.replace([embedded(f"/{n}", ["apple"])])
            assert len(reader.search("apple", unit(0), 9)) == n + 1
            assert reader.counts() == Counts(n + 1, n + 1)
            index.optimize()

    def test_readers_may_not_write(
        self, open_index: Callable[..., Index], index: Index, tmp_path: Path
    ) -> None:
        reader = open_index(tmp_path / "index")
        for write in (lambda: reader.replace([embedded("/a", ["x"])]), reader.optimize):
            with pytest.raises(IndexWriteFailed, match="opened for reading"):
                write()

    def test_a_second_writer_is_refused_by_name(
        self,
        open_index: Callable[..., Index],
        index: Index,
        tmp_path: Path,
        request: pytest.FixtureRequest,
    ) -> None:
        if "postgres" in request.node.name:
            pytest.skip("PostgreSQL takes any number of writers")
        with pytest.raises(IndexBusy, match=f"is being written by process {os.getpid()} on "):
            open_index(tmp_path / "index", SETTINGS, write=True)
        index.close()
        index.close()
        open_index(tmp_path / "index", SETTINGS, write=True).close()

    @pytest.mark.parametrize(
        ("other", "what"),
        [
            (
                IndexSettings("another", DIMENSIONS, "a chunker"),
                "embedder 'an embedder', not 'another'",
            ),
            (IndexSettings("an embedder", 3, "a chunker"), "dimensions 8, not 3"),
            (IndexSettings("an embedder", DIMENSIONS, "other"), "chunker 'a chunker', not 'other'"),
        ],
    )
    @pytest.mark.parametrize("write", [True, False])
    def test_other_settings_are_refused_with_the_mend(
        self,
        open_index: Callable[..., Index],
        tmp_path: Path,
        other: IndexSettings,
        what: str,
        write: bool,
    ) -> None:
        open_index(tmp_path, SETTINGS, write=True).close()
        with pytest.raises(IndexMismatch, match=f"{what}.*or ingest into a"):
            open_index(tmp_path, other, write=write)
        open_index(tmp_path, SETTINGS, write=True).close()  # the refusal left no lock

    def test_an_index_that_is_not_there_is_named(
        self, open_index: Callable[..., Index], tmp_path: Path
    ) -> None:
        for write in (False, True):
            with pytest.raises(IndexMissing, match="there is no index here"):
                open_index(tmp_path / "none", write=write)
