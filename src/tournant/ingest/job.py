"""The main job: files into an index, incrementally. An ordinary pipeline, built from the public API alone.

Read -> Chunk -> (Recall ->) Embed -> Index. The ledger lies in the index's folder, so that unchanged files are skipped without being
opened; the index is written before the ledger, so that whatever a kill interrupts is done again; and writing a
document again changes nothing.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import tournant as tn
from tournant.ingest import stages
from tournant.ingest.chunkers import ChunkSettings
from tournant.ingest.embedders import embedder as make_embedder
from tournant.ingest.errors import IndexMissing, IndexTrouble, InvalidOption, UnreadableFile
from tournant.ingest.indexes.base import Hit, IndexSettings, Mode
from tournant.ingest.indexes.files import is_being_written
from tournant.ingest.indexes.lance import LanceIndex
from tournant.ingest.readers.opening import MAX_BYTES
from tournant.ingest.readers.registry import SUFFIXES
from tournant.ingest.walk import FoundFile, absolute, vanished, walk

if TYPE_CHECKING:
    from tournant.ledger import RunRecord

__all__ = ["Hit", "IndexStatus", "IngestOptions", "IngestOutcome", "run_ingest", "search", "status"]

#: Of what the readers and chunkers make of a file; another version reads every file again.
VERSION = "1"
_LEDGER = "ledger.db"
_JOB = "job.json"
#: Chunks (and documents) in one commit, and the seconds after which a smaller one is made.
_COMMIT_WEIGHT = 4096
_COMMIT_WAIT = 0.5
#: Documents per call of an embedder that gains from batches, and per look-up of old vectors.
_EMBED_DOCUMENTS = 8
_RECALL_DOCUMENTS = 32
_MEMORY = 256 * 2**20


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """What to ingest, and how.

    Attributes:
        paths: files and folders.
        index: the index's folder; made where there is none.
        embedder: ``"static"`` or ``"onnx:FOLDER"``.
        chunk_size: the most characters in a chunk; ``None`` for the chunker's default.
        chunk_overlap: characters that neighbouring chunks share; ``None`` for the chunker's default.
        include: globs of file names or paths; without any, every suffix that a reader knows is taken.
        exclude: globs of files and folders that are left out.
        max_file_size: bytes; larger files are skipped and listed.
        memory_limit: bytes that documents between the stages may take together. Default 256 MiB.
    """

    paths: tuple[str, ...]
    index: str
    embedder: str = "static"
    chunk_size: int | None = None
    chunk_overlap: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_file_size: int = MAX_BYTES
    memory_limit: int = _MEMORY

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        if not self.paths:
            raise InvalidOption("there is nothing to ingest; name a file or a folder")
        if self.max_file_size < 1:
            raise InvalidOption(f"max_file_size={self.max_file_size}: give bytes, 1 or more")


@dataclass(frozen=True, slots=True)
class IngestOutcome:
    """What an ingest did.

    Attributes:
        report: the run's report.
        chunks: chunks written.
        reused: chunks of changed documents whose vectors were kept.
        removed: documents taken out because their files are gone.
        rejected: (source, reason) of every file that did not get in.
    """

    report: tn.Report
    chunks: int
    reused: int
    removed: int
    rejected: tuple[tuple[str, str], ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        report = self.report.as_dict()
        del report["failures"]
        return {
            "documents": self.report.done,
            "unchanged": self.report.skipped,
            "chunks": self.chunks,
            "reused": self.reused,
            "removed": self.removed,
            "rejected": [{"source": source, "reason": reason} for source, reason in self.rejected],
            "seconds": self.report.duration,
            "report": report,
        }


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """What an index holds.

    Attributes:
        documents: documents with at least one chunk.
        chunks: chunks.
        bytes: on disk, everything in the folder.
        embedder: the name of the embedder.
        failures: (source, reason) of every file that did not get in.
        last_run: the last ingest, or ``None``.
        busy: an ingest is running.
    """

    documents: int
    chunks: int
    bytes: int
    embedder: str
    failures: tuple[tuple[str, str], ...]
    last_run: RunRecord | None
    busy: bool

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        run = self.last_run
        return {
            "documents": self.documents,
            "chunks": self.chunks,
            "bytes": self.bytes,
            "embedder": self.embedder,
            "failures": [{"source": source, "reason": reason} for source, reason in self.failures],
            "last_run": None
            if run is None
            else {"started": run.started, "ended": run.ended, "summary": run.summary},
            "busy": self.busy,
        }


def run_ingest(
    options: IngestOptions, on_start: Callable[[tn.Watched], None] | None = None
) -> IngestOutcome:
    """Bring an index up to date with files on disk.

    Args:
        options: what and how.
        on_start: called with the run once it is under way, to watch, drain or cancel it.

    Raises:
        InvalidOption: an option can't be as it was given.
        EmbedderUnavailable: the embedder's files are missing.
        IndexMismatch: the index was built with another embedder or other chunks.
        IndexBusy: another ingest writes to it.
        IndexWriteFailed: the disk is full or refuses; a rerun completes.
    """
    chunking = ChunkSettings(options.chunk_size, options.chunk_overlap)
    model = make_embedder(options.embedder)
    settings = IndexSettings(model.name, model.dimensions, chunking.name)
    with LanceIndex.open(options.index, settings, write=True) as index:
        _remember(index.directory, options.embedder)
        return _Ingest(options, chunking, index).run(on_start)


class _Ingest:
    """One ingest into an open index."""

    def __init__(self, options: IngestOptions, chunking: ChunkSettings, index: LanceIndex) -> None:
        self.options = options
        self.chunking = chunking
        self.index = index
        self.ledger = tn.Ledger(os.path.join(index.directory, _LEDGER))
        self.found: set[str] = set()
        self.problems: list[UnreadableFile] = []
        self.writer = stages.Writer(index)
        self.recall = stages.Recall(index)

    def run(self, on_start: Callable[[tn.Watched], None] | None) -> IngestOutcome:
        with self.ledger:
            if not self.index.sources():
                # The table has been deleted or never came about: what the ledger says is done is not there.
                self.ledger.forget(list(self.ledger.keys()))
            drained: list[tn.Watched] = []

            def started(run: tn.Watched) -> None:
                drained.append(run)
                if on_start is not None:
                    on_start(run)

            try:
                report = self.pipeline().run(on_start=started)
            except tn.PipelineFailed as failed:
                for error in failed.exceptions:
                    if isinstance(error, (IndexTrouble, tn.LedgerError)):
                        raise error from failed
                raise
            removed = 0
            if report.sourced == len(self.found) and not report.interrupted and not drained[0].stopped:
                removed = self.remove_vanished()
        rejected = [(problem.path, problem.reason) for problem in self.problems]
        rejected += [(str(failure.key), reason_of(failure.error)) for failure in report.failures]
        return IngestOutcome(report, self.writer.chunks, self.recall.reused, removed, tuple(rejected))

    def pipeline(self) -> tn.Pipeline:
        """Describe the ingest."""
        options = self.options
        chunker = tn.PerWorker(partial(stages.make_chunker, self.chunking))
        model = tn.PerWorker(partial(stages.make_embedder, options.embedder))
        pipeline = (
            tn.Pipeline(
                self.files,
                key=_path,
                fingerprint=_fingerprint,
                ledger=self.ledger,
                version=VERSION,
                on_error="skip",
                memory_limit=options.memory_limit,
            )
            .tap(stages.Preload(), on="loop", name="find")
            .map(stages.reader(options.max_file_size), on="processes", name="read")
            .map(stages.cut, on="processes", state=chunker, name="chunk")
        )
        known = bool(self.index.sources())
        if known:
            pipeline = pipeline.map_batches(
                self.recall, size=_RECALL_DOCUMENTS, max_wait=0.02, blocking=True, on="threads", concurrency=2,
                name="recall",
            )  # fmt: skip
        if known or options.embedder != "static":
            pipeline = pipeline.map_batches(
                stages.embed_all, size=_EMBED_DOCUMENTS, on="processes", state=model, name="embed"
            )
        else:
            # One document at a time is as fast, and so reading, cutting and embedding need only one hop.
            pipeline = pipeline.map(stages.embed, on="processes", state=model, name="embed")
        return pipeline.batch(
            weight=stages.chunk_count, max_weight=_COMMIT_WEIGHT, max_wait=_COMMIT_WAIT, name="collect"
        ).for_each(self.writer, on="threads", blocking=True, concurrency=1, on_error="stop", name="index")

    def files(self) -> Iterator[FoundFile]:
        """Walk the paths; the index's own folder is left out."""
        options = self.options
        excluded = _matcher(options.exclude)
        included = _matcher(options.include)
        suffixes = None if options.include else SUFFIXES
        for file in walk(
            options.paths,
            on_problem=self.problems.append,
            suffixes=suffixes,
            exclude=(self.index.directory,),
        ):
            if options.exclude and excluded(file):
                continue
            if options.include and not included(file):
                continue
            self.found.add(file.path)
            yield file

    def remove_vanished(self) -> int:
        """Take documents out of the index whose files are gone."""
        known = {key for key in self.ledger.keys() if isinstance(key, str)} | self.index.sources()
        gone = vanished(known, self.found, self.options.paths, [p.path for p in self.problems])
        if gone:
            self.index.remove(gone)
            self.ledger.forget(gone)
        return len(gone)


def _matcher(globs: tuple[str, ...]) -> Callable[[FoundFile], bool]:
    """Match a file by its name, its path below the argument, its whole path, or a folder on the way to it."""

    def matches(file: FoundFile) -> bool:
        below = os.path.relpath(file.path, file.root)
        names = [os.path.basename(file.path), below, file.path, *below.split(os.sep)[:-1]]
        return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in globs)

    return matches


def _path(file: FoundFile) -> str:
    return file.path


def _fingerprint(file: FoundFile) -> str:
    return file.fingerprint


def reason_of(error: Exception) -> str:
    """Say why a file did not get in, in one sentence."""
    if isinstance(error, UnreadableFile):
        return error.reason
    return f"{type(error).__name__}: {error}"


def _remember(directory: str, spec: str) -> None:
    """Keep the embedder's spec beside the index, so that a search can embed its words with it."""
    kind, colon, folder = spec.partition(":")
    if colon:
        spec = f"{kind}:{absolute(os.path.expanduser(folder))}"
    path = os.path.join(directory, _JOB)
    text = json.dumps({"embedder": spec})
    try:
        with open(path, encoding="utf-8") as file:
            if file.read() == text:
                return
    except OSError:
        pass
    draft = f"{path}.new"
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _recollect(directory: str) -> str:
    try:
        with open(os.path.join(directory, _JOB), encoding="utf-8") as file:
            return str(json.load(file)["embedder"])
    except (OSError, ValueError, KeyError) as error:
        raise IndexMissing(
            os.path.abspath(directory), f"has no usable {_JOB} ({error}); run 'tournant ingest' on it once"
        ) from error


def search(
    directory: str, query: str, *, limit: int = 5, mode: Mode = "hybrid", embedder: str | None = None
) -> list[Hit]:
    """Find the passages of an index that fit some words best.

    Args:
        directory: the index's folder.
        query: the words.
        limit: the most passages.
        mode: by meaning (``"vector"``), by words (``"text"``) or both (``"hybrid"``).
        embedder: spec of the embedder; by default the one that the index was built with.

    Raises:
        IndexMissing: there is no index.
        IndexMismatch: the embedder is not the one that the index was built with.
        SearchFailed: the store could not answer.
    """
    vector = None
    index = LanceIndex.open(directory)
    if mode != "text":
        model = make_embedder(embedder or _recollect(directory))
        index = LanceIndex.open(
            directory, IndexSettings(model.name, model.dimensions, index.settings.chunker)
        )
        vector = model.embed([query])[0]
    return index.search(query, vector, limit, mode)


def status(directory: str) -> IndexStatus:
    """Say what an index holds and how its last ingest ended. Works while an ingest is running.

    Raises:
        IndexMissing: there is no index.
    """
    index = LanceIndex.open(directory)
    counts = index.counts()
    path = os.path.join(index.directory, _LEDGER)
    failures: tuple[tuple[str, str], ...] = ()
    last = None
    if os.path.exists(path):
        with tn.Ledger(path, lock=False) as ledger:
            failures = tuple((str(e.key), e.error or "") for e in ledger.failures())
            last = ledger.last_run()
    return IndexStatus(
        counts.documents,
        counts.chunks,
        index.size_bytes(),
        index.settings.embedder,
        failures,
        last,
        last is not None and last.ended is None and is_being_written(index.directory),
    )
