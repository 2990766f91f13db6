from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from pathlib import Path

import job_samples as samples
import pytest
from ingest_samples import pdf

import tournant as tn
from tournant.ingest import job, stages
from tournant.ingest.errors import (
    EmbedderUnavailable,
    IndexMismatch,
    IndexMissing,
    IndexWriteFailed,
    InvalidOption,
    MissingExtra,
)
from tournant.ingest.indexes import files
from tournant.ingest.indexes.catalog import TABLE, table_state
from tournant.ingest.indexes.lance import LanceIndex
from tournant.ingest.indexes.upkeep import UpkeepPolicy
from tournant.ingest.job import IngestOptions, IngestOutcome, run_ingest

DOCUMENTS = 100


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    samples.make_corpus(folder, DOCUMENTS)
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "a.txt").write_text("Alpha.")
    (folder / "b.md").write_text("Beta.")
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


def assert_as_from_scratch(index: Path, docs: Path, **options: object) -> None:
    fresh = index.parent / "fresh"
    samples.ingest(docs, fresh, **options)
    samples.assert_same(index, docs, fresh, docs)


def assert_nothing_ran(outcome: IngestOutcome) -> None:
    assert all(stage.items_in == 0 for stage in outcome.report.stages)
    assert (outcome.report.done, outcome.chunks) == (0, 0)


def sources(index: Path, below: Path) -> list[str]:
    return sorted(samples.rows_of(index, below)[0])


def failures(index: Path) -> dict[str, str]:
    return {os.path.basename(source): reason for source, reason in job.status(str(index)).failures}


# What is unchanged, changed, gone, renamed


def test_an_unchanged_corpus_is_not_even_opened(docs: Path, index: Path) -> None:
    first = samples.ingest(docs, index)
    assert (first.report.done, first.reused, first.removed, first.rejected) == (DOCUMENTS, 0, 0, ())
    # Had anyone looked inside, it would be noticed: other content, yet neither size nor time differ.
    liar = docs / "part0/doc0000.txt"
    before, status = liar.read_text(), liar.stat()
    liar.write_text("x" * len(before))
    os.utime(liar, ns=(status.st_atime_ns, status.st_mtime_ns))
    state = table_state(str(index))
    again = samples.ingest(docs, index)
    assert again.report.skipped == DOCUMENTS
    assert_nothing_ran(again)
    assert table_state(str(index)) == state
    liar.write_text(before)
    os.utime(liar, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert_as_from_scratch(index, docs)


def test_after_changes_the_index_is_as_one_made_from_scratch(docs: Path, index: Path) -> None:
    first = samples.ingest(docs, index)
    changed, longer, shorter, emptied = (docs / f"part0/doc{n:04}.txt" for n in (0, 12, 24, 36))
    paragraphs = changed.read_text().split("\n\n")
    untouched, text = len(paragraphs) - 1, "\n\n".join(["Another beginning.", *paragraphs[1:]])
    changed.write_text(text)
    longer.write_text(longer.read_text() + "\n\n" + samples.prose(5_000, 3))
    shorter.write_text(shorter.read_text().split("\n\n")[0])
    emptied.write_text("")
    (docs / "part1/doc0001.md").unlink()
    (docs / "part2/doc0002.html").rename(docs / "part2/renamed.html")
    (docs / "part3").rename(docs / "part9")
    moved = len(list((docs / "part9").iterdir()))
    samples.make_corpus(docs, 3, first=DOCUMENTS)
    second = samples.ingest(docs, index)
    assert second.report.skipped == DOCUMENTS - 4 - 1 - 1 - moved
    assert second.report.done == 4 + 1 + moved + 3
    assert second.removed == 1 + 1 + moved
    assert second.rejected == ()
    assert_as_from_scratch(index, docs)
    assert untouched <= second.reused < first.chunks
    assert_nothing_ran(samples.ingest(docs, index))


def test_only_chunks_whose_text_changed_are_embedded_again(tmp_path: Path, index: Path) -> None:
    docs, notes = tmp_path / "docs", tmp_path / "notes"
    docs.mkdir()
    for number in range(20):
        (docs / f"{number}.txt").write_text(samples.prose(number))
    first = samples.ingest(docs, index)
    parts = samples.prose(7).split("\n\n")
    parts[3] = samples.prose(900, 1)
    (docs / "7.txt").write_text("\n\n".join(parts))
    os.utime(docs / "8.txt", (1, 1))
    before = samples.rows_of(index, docs)[0]
    with samples.Program(notes, "ingest", str(docs), "--index", str(index), "--quiet") as program:
        assert program.end() == (0, "", "")
        embedded = dict(program.embedded())
    after = samples.rows_of(index, docs)[0]
    texts = {row[3] for row in before["7.txt"]}
    fresh = [row[3] for row in after["7.txt"] if row[3] not in texts]
    assert 0 < len(fresh) < len(after["7.txt"])
    assert embedded == {"7.txt": len(fresh), "8.txt": 0}
    assert after["8.txt"] == before["8.txt"]
    assert first.chunks == sum(map(len, before.values()))


def test_a_touched_document_is_reused_whole(docs: Path, index: Path) -> None:
    samples.ingest(docs, index)
    os.utime(docs / "part0/doc0000.txt")
    outcome = samples.ingest(docs, index)
    assert (outcome.report.done, outcome.chunks) == (1, outcome.reused)
    assert outcome.chunks > 0
    assert_as_from_scratch(index, docs)


def test_a_change_that_is_taken_back_is_noticed(small: Path, index: Path) -> None:
    file = small / "a.txt"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    samples.ingest(small, index)
    file.write_text("Gamma, for a while.")
    samples.ingest(small, index)
    file.write_text("Alpha.")
    os.utime(file, ns=times)
    samples.ingest(small, index)
    assert_as_from_scratch(index, small)


def test_an_index_whose_table_was_deleted_is_filled_again(small: Path, index: Path) -> None:
    samples.ingest(small, index)
    shutil.rmtree(index / f"{TABLE}.lance")
    outcome = samples.ingest(small, index)
    assert (outcome.report.done, outcome.report.skipped) == (2, 0)
    assert_as_from_scratch(index, small)


def test_an_index_without_its_ledger_loses_and_doubles_nothing(small: Path, index: Path) -> None:
    samples.ingest(small, index)
    for file in index.glob("ledger.db*"):
        file.unlink()
    (small / "b.md").unlink()
    outcome = samples.ingest(small, index)
    assert (outcome.report.done, outcome.reused, outcome.removed) == (1, 1, 1)
    assert_as_from_scratch(index, small)


def test_what_a_kill_leaves_between_index_and_ledger_is_no_loss(
    small: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file vanishes; the run that removes it dies half-way; the same file, with the same time, comes back."""

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    samples.ingest(small, index)
    (small / "a.txt").rename(small.parent / "aside")
    for method in (LanceIndex, "remove"), (tn.Ledger, "forget"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(*method, killed)
            samples.ingest(small, index)
        (small.parent / "aside").rename(small / "a.txt")
        samples.ingest(small, index)
        assert sources(index, small) == ["a.txt", "b.md"]
        (small / "a.txt").rename(small.parent / "aside")
    assert samples.ingest(small, index).removed == 1
    assert sources(index, small) == ["b.md"]


def test_many_short_runs_are_compacted_as_one_long_run_is(
    small: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UpkeepPolicy.__init__, "__defaults__", (1_000, 0.5, 6))
    versions = []
    for number in range(14):
        (small / "a.txt").write_text(f"Alpha {number}.")
        samples.ingest(small, index)
        versions.append(len(table_state(str(index))))
    assert max(versions) < 10
    assert_as_from_scratch(index, small)


def test_a_look_at_the_status_does_not_get_in_the_way(
    small: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.ingest(small, index)
    looking = os.open(index / "writer.lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    with monkeypatch.context() as patch:
        patch.setattr(files.time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        assert samples.ingest(small, index).report.skipped == 2
    os.close(looking)


def test_a_run_that_was_stopped_takes_nothing_for_vanished(docs: Path, index: Path) -> None:
    samples.ingest(docs, index)
    before = samples.rows_of(index, docs)
    options = IngestOptions((str(docs),), str(index))
    for stop in (lambda run: run.drain(), lambda run: run.cancel()):
        for file in docs.rglob("*.txt"):
            os.utime(file)
        outcome = run_ingest(options, on_start=stop)
        assert (outcome.removed, outcome.rejected) == (0, ())
        assert samples.rows_of(index, docs)[0] == before[0]
    assert samples.ingest(docs, index).removed == 0
    assert_as_from_scratch(index, docs)


# Which files


def test_arguments_elsewhere_are_left_alone(tmp_path: Path, index: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "a.txt").write_text(folder.name)
    samples.ingest(one, index)
    assert samples.ingest(two, index).removed == 0
    assert sources(index, tmp_path) == ["one/a.txt", "two/a.txt"]
    (one / "a.txt").unlink()
    assert samples.ingest(two, index).removed == 0
    assert run_ingest(IngestOptions((str(one), str(two)), str(index))).removed == 1


def test_a_missing_argument_empties_no_index_and_sticks_to_none(small: Path, index: Path) -> None:
    samples.ingest(small, index)
    small.rename(small.parent / "away")
    outcome = samples.ingest(small, index)
    assert outcome.removed == 0
    assert outcome.rejected == ((str(small), "no such file or directory"),)
    assert failures(index) == {}
    assert sources(index, small) == ["a.txt", "b.md"]


def test_the_working_directory_does_not_matter(
    small: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.ingest(small, index)
    monkeypatch.chdir(small.parent)
    assert samples.ingest("small", "index").report.skipped == 2
    monkeypatch.chdir(small)
    assert samples.ingest(".", "../index").report.skipped == 2
    assert samples.ingest("../small/", "../index/").report.skipped == 2
    hits = job.search("../index", "Alpha", mode="text")
    assert [hit.source for hit in hits] == [str(small / "a.txt")]


def test_an_argument_may_be_a_link(small: Path, index: Path) -> None:
    link = small.parent / "link"
    link.symlink_to(small)
    samples.ingest(link, index)
    assert sources(index, link) == ["a.txt", "b.md"]
    (small / "a.txt").unlink()
    assert samples.ingest(link, index).removed == 1


@pytest.mark.parametrize("way", ["plain", "link", "link to a parent"])
def test_an_index_among_its_documents_does_not_eat_itself(small: Path, way: str) -> None:
    argument = small
    if way != "plain":
        (small.parent / "link").symlink_to(small if way == "link" else small.parent)
        argument = small.parent / "link" if way == "link" else small.parent / "link/small"
    index = small / "sub/index"
    for expected in (2, 0):
        outcome = samples.ingest(argument, index)
        assert (outcome.report.done, outcome.rejected) == (expected, ())
    assert sources(index, argument) == ["a.txt", "b.md"]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.txt", "b.md", "c.xyz", "private/d.txt", "private/deep/e.md", "notes/f.txt"):
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"This is {name}.")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "docs"


PUBLIC = ["a.txt", "b.md", "notes/f.txt"]


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        ({}, [*PUBLIC, "private/d.txt", "private/deep/e.md"]),
        ({"exclude": ("private",)}, PUBLIC),
        ({"exclude": ("private/",)}, PUBLIC),
        ({"exclude": ("private/*",)}, PUBLIC),
        ({"exclude": ("docs/private",)}, PUBLIC),
        ({"exclude": ("./docs/private/*",)}, PUBLIC),
        ({"exclude": ("*/private",)}, PUBLIC),
        ({"exclude": ("private/deep", "*.md")}, ["a.txt", "notes/f.txt", "private/d.txt"]),
        ({"exclude": ("deep", "notes")}, ["a.txt", "b.md", "private/d.txt"]),
        ({"include": ("*.xyz",)}, ["c.xyz"]),
        ({"include": ("notes", "*.md")}, ["b.md", "notes/f.txt", "private/deep/e.md"]),
        ({"include": ("docs/private",)}, ["private/d.txt", "private/deep/e.md"]),
        ({"include": ("*.md",), "exclude": ("private",)}, ["b.md"]),
    ],
)
def test_globs_choose(
    tree: Path, globs: dict[str, tuple[str, ...]], expected: list[str], index: Path
) -> None:
    options = IngestOptions(("docs",), str(index), **globs)
    with LanceIndex.open(index, job.IndexSettings("e", 1, "c"), write=True) as opened:
        found = job._Ingest(options, job.ChunkSettings(), opened).files()
        assert sorted(os.path.relpath(file.path, tree) for file in found) == sorted(expected)


def test_what_is_excluded_is_not_complained_of_and_goes(tree: Path, index: Path) -> None:
    samples.ingest(tree, index)
    os.mkfifo(tree / "private/fifo.txt")
    (tree / "dangling.md").symlink_to("nowhere")
    outcome = samples.ingest(tree, index, exclude=("private", "dangling*"))
    assert (outcome.rejected, outcome.removed) == ((), 2)
    assert sources(index, tree) == PUBLIC


# What cannot be read


def test_bad_files_are_listed_until_they_are_mended_or_gone(small: Path, index: Path) -> None:
    bad, gone, pipe, loop = (
        small / name for name in ("bad.pdf", "gone.pdf", "pipe.txt", "loop.md")
    )
    bad.write_bytes(pdf("Secret.", encrypted=True))
    gone.write_bytes(b"%PDF-1.4 cut off")
    os.mkfifo(pipe)
    loop.symlink_to("loop.md")
    outcome = samples.ingest(small, index)
    assert outcome.report.done == 2
    listed = {os.path.basename(source): reason for source, reason in outcome.rejected}
    assert set(listed) == {"bad.pdf", "gone.pdf", "pipe.txt", "loop.md"}
    assert listed["pipe.txt"] == "it is a FIFO, not a regular file"
    assert "leads back to itself" in listed["loop.md"]
    assert "encrypted" in listed["bad.pdf"]
    assert failures(index) == listed
    assert sources(index, small) == ["a.txt", "b.md"]
    # A rerun tries again, and says the same.
    again = samples.ingest(small, index)
    assert sorted(again.rejected) == sorted(outcome.rejected)
    assert (again.report.skipped, again.report.failed) == (2, 2)
    bad.write_bytes(pdf("Open."))
    gone.unlink()
    pipe.unlink()
    pipe.write_text("No longer a pipe.")
    loop.unlink()
    mended = samples.ingest(small, index)
    assert (mended.report.done, mended.rejected, mended.removed) == (2, (), 0)
    assert failures(index) == {}
    assert sources(index, small) == ["a.txt", "b.md", "bad.pdf", "pipe.txt"]


def test_of_a_file_that_became_unreadable_the_last_state_stays(small: Path, index: Path) -> None:
    samples.ingest(small, index)
    (small / "a.txt").write_bytes(b"\x00\x01\x02" * 99)
    outcome = samples.ingest(small, index)
    assert [source for source, _ in outcome.rejected] == [str(small / "a.txt")]
    assert sources(index, small) == ["a.txt", "b.md"]
    (small / "a.txt").unlink()
    assert samples.ingest(small, index).removed == 1
    assert failures(index) == {}


def test_a_file_that_is_too_large_is_listed(small: Path, index: Path) -> None:
    (small / "c.txt").write_text("word " * 100)
    outcome = samples.ingest(small, index, max_file_size=400)
    ((source, reason),) = outcome.rejected
    assert source == str(small / "c.txt")
    assert "above the limit of 400 bytes" in reason
    assert samples.ingest(small, index, max_file_size=500).report.done == 1


# Options, settings, embedders


def test_options_that_make_no_sense_are_refused(small: Path, index: Path) -> None:
    with pytest.raises(InvalidOption, match="nothing to ingest"):
        IngestOptions((), str(index))
    for options in ({"chunk_size": 0}, {"chunk_overlap": 800}, {"embedder": "magic"}):
        with pytest.raises(InvalidOption):
            samples.ingest(small, index, **options)
    with pytest.raises(InvalidOption, match="bytes"):
        samples.ingest(small, index, max_file_size=0)
    with pytest.raises(EmbedderUnavailable):
        samples.ingest(small, index, embedder=f"onnx:{small}")
    assert not index.exists()


@pytest.mark.parametrize("package", ["lancedb", "semantic_text_splitter"])
def test_a_missing_package_is_said_once_not_for_every_file(
    small: Path, index: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match="pip install 'tournant\\[ingest\\]'"):
        samples.ingest(small, index)
    if package == "lancedb":
        with pytest.raises(MissingExtra):
            job.search(str(index), "Alpha")


def test_an_embedder_that_fails_in_the_workers_fails_the_run(
    small: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(EmbedderUnavailable, match="damaged"):
        patch.setattr(stages, "make_embedder", _damaged)
        samples.ingest(small, index)
    assert samples.ingest(small, index).report.done == 2


def _damaged(spec: str) -> None:
    raise EmbedderUnavailable(spec, "its file is damaged")


def test_another_chunking_is_refused_with_the_mend(small: Path, index: Path) -> None:
    samples.ingest(small, index, chunk_size=300)
    with pytest.raises(IndexMismatch, match=r"300:37.*not.*800:100.*ingest into a new folder"):
        samples.ingest(small, index)
    assert samples.ingest(small, index, chunk_size=300).report.skipped == 2


def test_a_folder_that_cannot_hold_an_index_is_refused(small: Path) -> None:
    with pytest.raises(IndexWriteFailed):
        samples.ingest(small, small / "a.txt")


def test_a_damaged_note_of_the_embedder_is_said_and_mended_by_an_ingest(
    small: Path, index: Path
) -> None:
    samples.ingest(small, index)
    for text in ("", "[1]", '{"embedder": 1}'):
        (index / "job.json").write_text(text)
        with pytest.raises(IndexMissing, match="run 'tournant ingest' on it once"):
            job.search(str(index), "Alpha")
        assert job.search(str(index), "Alpha", mode="text")
    samples.ingest(small, index)
    assert job.search(str(index), "Alpha")


def test_the_outcome_is_plain_data(small: Path, index: Path) -> None:
    plain = samples.ingest(small, index).as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert (plain["documents"], plain["chunks"]) == (2, 2)
    assert json.dumps(job.status(str(index)).as_dict())
