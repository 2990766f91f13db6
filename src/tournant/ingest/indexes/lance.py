"""The built-in index: a LanceDB table in a folder, with full-text and vector search.

A replace is one commit of the table, so a search sees the old chunks of a document or the new ones.
Sources that are known to be absent are appended, which costs 10 microseconds a row; anything else goes
through one merge on the row's id that also deletes what the sources no longer have.

LanceDB runs Rust threads (one set per process, as many as cores, idle when there is nothing to do) that don't
survive a fork: open an index in the process that uses it. Importing it costs about a second of CPU; nothing
here imports it before a table is read or written, and `preload` does so ahead of time.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tournant.ingest.errors import IndexMissing, IndexWriteFailed, InvalidOption
from tournant.ingest.indexes.base import Counts, Hit, IndexSettings, Mode
from tournant.ingest.indexes.catalog import (
    read_catalog,
    read_settings,
    require_same,
    table_state,
    write_catalog,
    write_settings,
)
from tournant.ingest.indexes.files import (
    WriterLock,
    is_being_written,
    read_json,
    write_failed,
    write_json,
)
from tournant.ingest.indexes.table import make_table, open_table, text_rows, writing
from tournant.ingest.indexes.upkeep import Upkeep, UpkeepPolicy
from tournant.ingest.sources import from_store, to_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

    from tournant.ingest.documents import EmbeddedDocument
    from tournant.ledger import Ledger

_LEDGER = "ledger.db"
_JOB = "job.json"
_SOURCES_PER_DELETE = 2_000


def preload() -> None:
    """Import LanceDB now, for instance on a thread while the first files are being read."""
    import lancedb  # noqa: F401

    import tournant.ingest.indexes.rows  # noqa: F401


class LanceIndex:
    """An index in a folder. Made by `LanceIndex.open`; closes itself as a context manager."""

    def __init__(self, directory: str, settings: IndexSettings, lock: WriterLock | None) -> None:
        self._directory = directory
        self._settings = settings
        self._lock = lock
        self._policy = UpkeepPolicy()
        self._upkeep: Upkeep | None = None
        self._handle: Any = None
        self._snapshot: tuple[list[str], Any] = ([], None)
        self._held: dict[str, int] | None = None
        # One commit at a time, and what this object remembers of the table.
        self._writer = threading.RLock()
        # The version that searches read. Searching never waits for a commit.
        self._opening = threading.Lock()
        # A merge, a delete or upkeep; appends go on beside upkeep.
        self._exclusive = threading.Lock()

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        settings: IndexSettings | None = None,
        *,
        write: bool = False,
        upkeep: UpkeepPolicy | None = None,
    ) -> LanceIndex:
        """Open an index, or with ``write=True`` and settings make it where there is none.

        Cheap: LanceDB is not imported before the first read or write of the table.

        Args:
            directory: the folder of the index.
            settings: what the index must have been built with; None takes what it has.
            write: whether to write. One may at a time; any number may read.
            upkeep: when to compact and to update the full-text structure.

        Raises:
            IndexMissing: there is no index here, and none is to be made.
            IndexMismatch: it was built with other settings.
            IndexBusy: another process writes to it.
            IndexWriteFailed: it can't be made.
            IndexDamaged: its files can't be understood.
        """
        folder = os.path.abspath(os.fsdecode(directory))
        if to_store(folder) != folder:
            raise InvalidOption(
                f"the index folder {folder!r} has a name that is not UTF-8; choose another"
            )
        if not write:
            stored = read_settings(folder)
            if settings is not None:
                require_same(folder, stored, settings)
            return cls(folder, stored, None)
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise write_failed(folder, error) from error
        lock = WriterLock(folder)
        try:
            try:
                stored = read_settings(folder)
            except IndexMissing:
                if settings is None:
                    raise
                stored = settings
                write_settings(folder, settings)
            if settings is not None:
                require_same(folder, stored, settings)
            index = cls(folder, stored, lock)
            index._policy = upkeep or UpkeepPolicy()
            return index
        except BaseException:
            lock.release()
            raise

    @property
    def settings(self) -> IndexSettings:
        """What the index was created with."""
        return self._settings

    @property
    def directory(self) -> str:
        """The folder of the index, absolute."""
        return self._directory

    # --- writing ---

    def replace(self, documents: Sequence[EmbeddedDocument]) -> None:
        """Put documents in, in one commit; see `Index.replace`."""
        from tournant.ingest.indexes.rows import condition, to_table

        sizes = {document.source: len(document.chunks) for document in documents}
        if len(sizes) != len(documents):
            raise ValueError(
                "two documents of one replace have the same source; give the last one only"
            )
        rows = to_table(documents, self._settings.dimensions)
        with self._writer:
            held = self._sources_held()
            present = [source for source in sizes if source in held]
            table = self._writable()
            with self._writing():
                if present and rows.num_rows == 0:
                    with self._exclusive:
                        table.delete(condition(present))
                elif present:
                    merge = table.merge_insert("id").when_matched_update_all()
                    merge = merge.when_not_matched_insert_all()
                    with self._exclusive:
                        merge.when_not_matched_by_source_delete(condition(present)).execute(rows)
                elif rows.num_rows:
                    table.add(rows)
                else:
                    return
            for source, size in sizes.items():
                if size:
                    held[source] = size
                else:
                    held.pop(source, None)
        self._care().wrote(rows.num_rows)

    def remove(self, sources: Iterable[str]) -> int:
        """Take sources out; see `Index.remove`."""
        removed = 0
        with self._writer:
            held = self._sources_held()
            present = sorted({source for source in sources if source in held})
            if present:
                from tournant.ingest.indexes.rows import condition
            for start in range(0, len(present), _SOURCES_PER_DELETE):
                some = present[start : start + _SOURCES_PER_DELETE]
                with self._writing(), self._exclusive:
                    self._writable().delete(condition(some))
                removed += sum(held.pop(source) for source in some)
        if removed:
            self._care().wrote(0)
        return removed

    def optimize(self) -> None:
        """Bring everything up to date now; see `Index.optimize`."""
        with self._writer, self._writing():
            care = self._care()
            care.join()
            if care.behind:
                care.run(lambda: self._optimize(thorough=True))

    def _optimize(self, *, thorough: bool = False) -> None:
        """Compact, index, and delete older versions: a search that loses its files starts again.

        Args:
            thorough: also delete files that no version knows, which killed or refused writes have left. No
                append may be under way.
        """
        table = self._handle
        with self._exclusive:
            table.optimize(cleanup_older_than=timedelta(milliseconds=1), delete_unverified=thorough)

    # --- reading ---

    def vectors_of(self, sources: Iterable[str]) -> dict[bytes, NDArray[np.float32]]:
        """Give the vectors that sources have now; see `Index.vectors_of`."""
        with self._writer:
            held = self._sources_held()
            present = [source for source in sources if source in held]
            if not present:
                return {}
            table = self._writable() if self._lock else self._table()
        from tournant.ingest.indexes.rows import condition, vectors_by_hash

        rows = table.search().where(condition(present)).select(["hash", "vector"]).to_arrow()
        return vectors_by_hash(rows, self._settings.dimensions)

    def sources(self) -> set[str]:
        """Name every source that has chunks; see `Index.sources`."""
        with self._writer:
            return set(self._sources_held())

    def counts(self) -> Counts:
        """Count documents and chunks; see `Index.counts`."""
        with self._writer:
            held = self._sources_held()
            return Counts(len(held), sum(held.values()))

    def search(
        self, text: str, vector: NDArray[np.float32] | None, k: int = 10, mode: Mode = "hybrid"
    ) -> list[Hit]:
        """Find the best chunks; see `Index.search`."""
        from tournant.ingest.indexes.searching import Query, search

        query = Query(text, vector, k, mode)
        query.check(self._settings.dimensions)
        return search(self._directory, self._table, query)

    def size_bytes(self) -> int:
        """Bytes on disk; see `Index.size_bytes`."""
        total = 0
        for folder, _, names in os.walk(self._directory):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except FileNotFoundError:  # upkeep deletes files meanwhile
                    continue
        return total

    # --- what an ingest keeps beside it ---

    @property
    def folder(self) -> str | None:
        """The folder of the index, absolute."""
        return self._directory

    def ledger(self, *, lock: bool = True) -> Ledger | None:
        """Return the ledger, which lies in the folder; see `StoredIndex.ledger`."""
        from tournant.ledger import Ledger

        path = os.path.join(self._directory, _LEDGER)
        return Ledger(path, lock=lock) if lock or os.path.exists(path) else None

    def remember_embedder(self, spec: str) -> None:
        """Keep the embedder's spec beside the table; see `StoredIndex.remember_embedder`."""
        if self.recall_embedder() == spec:
            return
        try:
            write_json(os.path.join(self._directory, _JOB), {"embedder": spec})
        except OSError as error:
            raise write_failed(self._directory, error) from error

    def recall_embedder(self) -> str | None:
        """Return the embedder's spec, if one was kept."""
        kept = read_json(os.path.join(self._directory, _JOB))
        spec = kept.get("embedder") if isinstance(kept, dict) else None
        return spec if isinstance(spec, str) else None

    def is_being_written(self) -> bool:
        """Tell whether some process has it open for writing."""
        return is_being_written(self._directory)

    def close(self) -> None:
        """Wait for upkeep, write the catalog, and let go of the lock. Closing twice is no error."""
        if self._lock is None:
            return
        if self._upkeep is not None:
            self._upkeep.join()
        with self._writer:
            try:
                if self._held is not None and self._handle is not None:
                    write_catalog(self._directory, self._held)
            except OSError:
                pass  # the table is the truth; without its catalog it is only asked more slowly
            finally:
                self._lock.release()
                self._lock, self._handle = None, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the table ---

    def _sources_held(self) -> dict[str, int]:
        """Every source and its number of chunks. A reader's view is as new as the table."""
        if self._lock is not None and self._held is not None:
            return self._held
        held = read_catalog(self._directory)
        if held is None:
            held = {}
            table = self._writable() if self._lock else self._table()
            if table is not None:
                column = table.search().select(["source"]).to_arrow()["source"]
                for pair in column.value_counts().to_pylist():
                    held[from_store(pair["values"])] = pair["counts"]
        self._held = held
        return held

    def _table(self) -> Any:
        """A handle on the table as it is now; the handle doesn't move on. None before the first write."""
        state = table_state(self._directory)
        with self._opening:
            if self._snapshot[0] != state:
                self._snapshot = (state, open_table(self._directory) if state else None)
            return self._snapshot[1]

    def _writable(self) -> Any:
        if self._lock is None:
            raise IndexWriteFailed(
                self._directory, "was opened for reading (or is closed); open it with write=True"
            )
        with self._writer:
            if self._handle is None:
                with writing(self._directory):
                    self._handle = make_table(self._directory, self._settings.dimensions)
            return self._handle

    def _care(self) -> Upkeep:
        with self._writer:
            if self._upkeep is None:
                settled, waiting = text_rows(self._writable())
                # Upkeep deletes the versions that commits leave, so those that are there count the commits.
                commits = len(table_state(self._directory))
                self._upkeep = Upkeep(self._optimize, settled, waiting, self._policy, commits)
            return self._upkeep

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with writing(self._directory):
                yield
        except IndexWriteFailed:
            self._held = None  # whether the commit went in is unknown: ask the table next time
            raise
