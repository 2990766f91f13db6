"""The main job: files into an index, incrementally. An ordinary pipeline, built from the public API alone.

Read -> Chunk -> (Recall ->) Embed -> Index. The ledger lies with the index, so that unchanged files are skipped without being
opened; the index is written before the ledger, so that whatever a kill interrupts is done again; and writing a
document again changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Any

import tournant as tn
from tournant.ingest import spread, stages
from tournant.ingest.choosing import PathSet, matcher, on_the_way, places
from tournant.ingest.chunkers import ChunkSettings
from tournant.ingest.embedders import embedder as make_embedder
from tournant.ingest.embedders.cached import default_cache, notes_of_cache, open_cache
from tournant.ingest.errors import (
    EmbedderUnavailable,
    IndexMissing,
    IndexTrouble,
    InvalidOption,
    MissingExtra,
    UnreadableFile,
)
from tournant.ingest.indexes.base import Hit, IndexSettings, Mode, StoredIndex
from tournant.ingest.indexes.catalog import require_same
from tournant.ingest.indexes.locations import is_url, needs_lance, open_index, protected
from tournant.ingest.readers.opening import MAX_BYTES
from tournant.ingest.readers.registry import SUFFIXES
from tournant.ingest.walk import FoundFile, absolute, vanished, walk
from tournant.ledger import Entry

if TYPE_CHECKING:
    from tournant.ledger import RunRecord

__all__ = [
    "Hit",
    "IndexStatus",
    "IngestOptions",
    "IngestOutcome",
    "default_cache",
    "run_ingest",
    "search",
    "status",
]

#: Of what the readers and chunkers make of a file; another version reads every file again.
VERSION = "1"
_FIND, _RECALL, _COLLECT, _INDEX = "find", "recall", "collect", "index"
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
        index: the index's folder, or a URL: ``postgresql://``, ``s3://``, ``file://``. Made where there is none.
        embedder: ``"static"`` or ``"onnx:FOLDER"``.
        chunk_size: the most characters in a chunk; ``None`` for the chunker's default.
        chunk_overlap: characters that neighbouring chunks share; ``None`` for the chunker's default.
        include: globs of file names or paths; without any, every suffix that a reader knows is taken.
        exclude: globs of files and folders that are left out.
        max_file_size: bytes; larger files are skipped and listed.
        memory_limit: bytes that documents between the stages may take together. Default 256 MiB.
        cache: a file in which vectors are looked up and kept, for this index and others; made where there is none.
            `default_cache` names one for the user. Default: none. On a cluster each node has its own at that path.
        cluster: read, cut and embed on the nodes of a cluster, as in ``pipeline.run(cluster=...)``. They read the files
            themselves; only this process writes to the index. Default: on this machine.
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
    cache: str | None = None
    cluster: tn.cluster.Ray | str | None = None

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        # Whoever prints these options must not print a password.
        object.__setattr__(self, "index", protected(self.index))
        if not self.paths:
            raise InvalidOption("there is nothing to ingest; name a file or a folder")
        if self.max_file_size < 1:
            raise InvalidOption(f"max_file_size={self.max_file_size}: give bytes, 1 or more")
        if self.cluster is not None:
            object.__setattr__(self, "cluster", spread.settings_for(self.cluster, _COLLECT))
        if self.cache is not None:
            if not self.cache:
                raise InvalidOption("cache='': give the path of a file, or leave it out")
            path = os.path.expanduser(self.cache)
            if not is_url(self.index) and os.path.realpath(path) == os.path.realpath(self.index):
                raise InvalidOption(
                    f"cache={self.cache!r} is the index itself, which is a folder; give the cache a file of its own"
                )


@dataclass(frozen=True, slots=True)
class IngestOutcome:
    """What an ingest did.

    Attributes:
        report: the run's report.
        chunks: chunks written.
        reused: chunks of changed documents whose vectors were kept.
        cached: chunks whose vectors came from the cache.
        removed: documents taken out because their files are gone.
        rejected: (source, reason) of every file that did not get in.
        warnings: what was wrong with the cache, so that it was of less use than it could be.
    """

    report: tn.Report
    chunks: int
    reused: int
    removed: int
    rejected: tuple[tuple[str, str], ...]
    cached: int = 0
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        report = self.report.as_dict()
        del report["failures"]
        return {
            "documents": self.report.done,
            "unchanged": self.report.skipped,
            "chunks": self.chunks,
            "reused": self.reused,
            "cached": self.cached,
            "removed": self.removed,
            "rejected": [{"source": source, "reason": reason} for source, reason in self.rejected],
            "warnings": list(self.warnings),
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
        MissingExtra: a package that every ingest needs is not installed.
        EmbedderUnavailable: the embedder's files are missing or damaged.
        CacheError: what lies at the cache's path is no cache, or none can be made there.
        IndexMismatch: the index was built with another embedder or other chunks.
        IndexBusy: another ingest writes to it.
        IndexWriteFailed: the disk is full or refuses; a rerun completes.
        ClusterError: there is no such cluster, or it has no node left to work.
    """
    if needs_lance(options.index):
        _require("an ingest", "lancedb")
    _require("an ingest", "semantic-text-splitter")
    chunking = ChunkSettings(options.chunk_size, options.chunk_overlap)
    model = make_embedder(options.embedder)
    settings = IndexSettings(model.name, model.dimensions, chunking.name)
    with notes_of_cache() as notes, spread.joined(options.cluster):
        cache = None if options.cache is None else open_cache(options.cache)
        with open_index(options.index, settings, write=True) as index:
            index.remember_embedder(_lasting(options.embedder))
            outcome = _Ingest(options, chunking, index, cache).run(on_start)
    return replace(outcome, warnings=tuple(notes))


class _Ingest:
    """One ingest into an open index."""

    def __init__(
        self,
        options: IngestOptions,
        chunking: ChunkSettings,
        index: StoredIndex,
        cache: str | None = None,
    ) -> None:
        self.options = options
        self.cache = cache
        self.chunking = chunking
        self.index = index
        ledger = index.ledger()
        assert ledger is not None
        self.ledger = ledger
        self.known = index.sources()  # before anything of this run is written
        self.empty: set[str] = set()
        self.found = PathSet()
        self.problems: list[UnreadableFile] = []
        self.writer = stages.Writer(index)

    def run(self, on_start: Callable[[tn.Watched], None] | None) -> IngestOutcome:
        with self.ledger:
            if not self.known:
                # The table has been deleted or never came about: what the ledger says is done is not there.
                self.ledger.forget(list(self.ledger.keys()))
            # Sources without a chunk. What comes from now on and is not this run's is another's, who found it where this walk had been.
            self.empty = set(map(str, self.ledger.keys())) - self.known
            runs: list[tn.Watched] = []

            def started(run: tn.Watched) -> None:
                runs.append(run)
                if on_start is not None:
                    on_start(run)

            try:
                report = self.pipeline().run(on_start=started, cluster=self.options.cluster)
            except tn.PipelineFailed as failed:
                raise self.cause_of(failed) from failed
            for failure in report.failures:
                if isinstance(failure.error, EmbedderUnavailable):
                    raise failure.error  # nothing is wrong with the document
            removed = 0
            if report.sourced == len(self.found) and not report.interrupted and not runs[0].stopped:
                removed = self.remove_vanished()
            self.record_problems()
        rejected = [(problem.path, problem.reason) for problem in self.problems]
        rejected += [(str(failure.key), reason_of(failure.error)) for failure in report.failures]
        return IngestOutcome(
            report,
            self.writer.chunks,
            self.writer.reused,
            removed,
            tuple(rejected),
            self.writer.cached,
        )

    def cause_of(self, failed: tn.PipelineFailed) -> Exception:
        """Find what stopped a run among all that failed in it: the documents that were skipped say nothing of that."""
        for error in failed.exceptions:
            if isinstance(error, (IndexTrouble, tn.LedgerError)):
                return error
        for failure in failed.failures:
            if failure.stage == _FIND:
                return failure.error
            if failure.stage in (_RECALL, _INDEX):
                return IndexTrouble(
                    self.index.directory, f"could not be used: {_said(failure.error)}"
                )
        return failed

    def pipeline(self) -> tn.Pipeline:
        """Describe the ingest."""
        options = self.options
        embedder = _lasting(options.embedder)
        chunker = tn.PerWorker(partial(stages.make_chunker, self.chunking))
        model = tn.PerWorker(partial(stages.make_embedder, embedder))
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
            .tap(spread.first(options), on="loop", on_error="stop", name=_FIND)
            .map(stages.reader(options.max_file_size), on="processes", name="read")
            .map(stages.cut, on="processes", state=chunker, name="chunk")
        )
        if self.known:
            pipeline = pipeline.map_batches(
                **spread.recalling(options, self.index, self.known), size=_RECALL_DOCUMENTS, max_wait=0.02, blocking=True, on="threads", concurrency=2,
                on_error="stop", name=_RECALL,
            )  # fmt: skip
        if self.cache is not None:
            settings = self.index.settings
            cached = partial(
                stages.make_cached_embedder, embedder, settings.embedder, settings.dimensions, self.cache
            )  # fmt: skip
            pipeline = pipeline.map_batches(
                stages.embed_cached, size=_EMBED_DOCUMENTS, on="processes", name="embed",
                state=tn.PerWorker(cached, close=stages.close_cached),
            )  # fmt: skip
        elif self.known or options.embedder != "static":
            pipeline = pipeline.map_batches(
                stages.embed_all, size=_EMBED_DOCUMENTS, on="processes", state=model, name="embed"
            )
        else:
            # One document at a time is as fast, and so reading, cutting and embedding need only one hop.
            pipeline = pipeline.map(stages.embed, on="processes", state=model, name="embed")
        return pipeline.batch(
            weight=stages.chunk_count,
            max_weight=_COMMIT_WEIGHT,
            max_wait=_COMMIT_WAIT,
            name=_COLLECT,
        ).for_each(
            self.writer, on="threads", blocking=True, concurrency=1, on_error="stop", name=_INDEX
        )

    def files(self) -> Iterator[FoundFile]:
        """Walk the paths; the index's own folder is left out."""
        options = self.options
        included = matcher(options.include)
        for file in walk(
            options.paths,
            on_problem=self.problems.append,
            suffixes=None if options.include else SUFFIXES,
            exclude=[] if self.index.folder is None else places(self.index.folder, options.paths),
            leave_out=matcher(options.exclude) if options.exclude else None,
        ):
            if options.include and not on_the_way(included, file.path, file.root):
                continue
            self.found.add(file.path)
            yield file

    def remove_vanished(self) -> int:
        """Take documents out of the index whose files are gone, and forget files that failed and are gone."""
        gone = self.gone(chain(self.empty, self.known))
        # The ledger first: were it last, a kill in between and then the very same file back in its place would leave a
        # document that the ledger calls done and the index does not have.
        self.ledger.forget(gone)
        self.index.remove(gone)
        self.ledger.forget(self.gone(str(entry.key) for entry in self.ledger.failures()))
        return len(gone)

    def gone(self, known: Iterable[str]) -> set[str]:
        return set(vanished(known, self.found, self.options.paths, [p.path for p in self.problems]))

    def record_problems(self) -> None:
        """Note what the walk could not look at beside the files that could not be read, for `status`."""
        self.ledger.record(
            [
                Entry(problem.path, None, VERSION, "failed", 0, "find", _said(problem), 1)
                for problem in self.problems
                # A mistyped argument is no matter of the index.
                if os.path.lexists(problem.path)
            ]
        )


def _path(file: FoundFile) -> str:
    return file.path


def _fingerprint(file: FoundFile) -> str:
    return file.fingerprint


def reason_of(error: Exception) -> str:
    """Say why a file did not get in, in one sentence."""
    if isinstance(error, UnreadableFile):
        return error.reason
    return _said(error)


def _require(purpose: str, *packages: str) -> None:
    """Refuse to begin without these packages, rather than to fail at every document."""
    for package in packages:
        if find_spec(package.replace("-", "_")) is None:
            raise MissingExtra(purpose, package, "ingest")


def _said(error: Exception) -> str:
    """Say an error as the ledger of a run does."""
    return f"{type(error).__name__}: {error}"


def _reason_in(entry: Entry) -> str:
    """Return what `reason_of` would have said of a recorded failure."""
    return (entry.error or "").removeprefix(_said(UnreadableFile(str(entry.key), "")))


def _lasting(spec: str) -> str:
    """Return an embedder's spec so that it means the same wherever a search is run from."""
    kind, colon, folder = spec.partition(":")
    return f"{kind}:{absolute(os.path.expanduser(folder))}" if colon else spec


def _recollect(index: StoredIndex) -> str:
    spec = index.recall_embedder()
    if spec is None:
        raise IndexMissing(
            index.directory,
            "doesn't say how its texts were embedded; run 'tournant ingest' on it once",
        )
    return spec


def search(
    directory: str,
    query: str,
    *,
    limit: int = 5,
    mode: Mode = "hybrid",
    embedder: str | None = None,
) -> list[Hit]:
    """Find the passages of an index that fit some words best.

    Args:
        directory: the index's folder or URL.
        query: the words.
        limit: the most passages.
        mode: by meaning (``"vector"``), by words (``"text"``) or both (``"hybrid"``).
        embedder: spec of the embedder; by default the one that the index was built with.

    Raises:
        MissingExtra: a package is not installed.
        IndexMissing: there is no index.
        IndexMismatch: the embedder is not the one that the index was built with.
        SearchFailed: the store could not answer.
    """
    if needs_lance(directory):
        _require("a search", "lancedb")
    with open_index(directory) as index:
        vector = None
        if mode != "text":
            model = make_embedder(embedder or _recollect(index))
            want = IndexSettings(model.name, model.dimensions, index.settings.chunker)
            require_same(index.directory, index.settings, want)
            vector = model.embed([query])[0]
        return index.search(query, vector, limit, mode)


def status(directory: str) -> IndexStatus:
    """Say what an index holds and how its last ingest ended. Works while an ingest is running.

    Raises:
        IndexMissing: there is no index.
    """
    with open_index(directory) as index:
        counts = index.counts()
        failures: tuple[tuple[str, str], ...] = ()
        last = None
        found = index.ledger(lock=False)
        if found is not None:
            with found as ledger:
                failures = tuple((str(e.key), _reason_in(e)) for e in ledger.failures())
                last = ledger.last_run()
        return IndexStatus(
            counts.documents,
            counts.chunks,
            index.size_bytes(),
            index.settings.embedder,
            failures,
            last,
            last is not None and last.ended is None and index.is_being_written(),
        )
