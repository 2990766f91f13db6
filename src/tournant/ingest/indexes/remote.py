"""The LanceDB index in an object store: the same table behind ``s3://``, ``gs://`` or ``az://``.

Beside the table lies a second one with a single row, which says what the index is. The ledger, and the lock that lets one writer in at a time,
lie on the machine that ingests (``$XDG_STATE_HOME/tournant``, by default ``~/.local/state/tournant``), since object stores have neither
files that grow nor locks: ingest into one such index from one machine only. Any machine may search. Credentials come from the
environment, as the store's own tools read them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from tournant.ingest.errors import (
    IndexBusy,
    IndexDamaged,
    IndexMissing,
    IndexTrouble,
    IndexWriteFailed,
    MissingExtra,
    SearchFailed,
)
from tournant.ingest.indexes.base import IndexSettings
from tournant.ingest.indexes.catalog import FORMAT, TABLE, require_same
from tournant.ingest.indexes.files import WriterLock, is_being_written, write_failed
from tournant.ingest.indexes.lance import LanceIndex
from tournant.ingest.indexes.table import connect, make_structures, text_rows
from tournant.ingest.indexes.upkeep import Upkeep, UpkeepPolicy
from tournant.ingest.sources import from_store

if TYPE_CHECKING:
    from tournant.ledger import Ledger

_IDENTITY = "tournant"
#: Without these a store that can't be reached is waited for during minutes.
_OPTIONS = {
    "timeout": "60s",
    "connect_timeout": "5s",
    "client_max_retries": "4",
    "client_retry_timeout": "60",
}


class RemoteLanceIndex(LanceIndex):
    """An index in an object store. Made by `RemoteLanceIndex.open`; closes itself as a context manager."""

    def __init__(
        self, url: str, settings: IndexSettings, lock: WriterLock | None, database: Any
    ) -> None:
        super().__init__(url, settings, lock)
        self._database = database

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        settings: IndexSettings | None = None,
        *,
        write: bool = False,
        upkeep: UpkeepPolicy | None = None,
    ) -> RemoteLanceIndex:
        """Open an index, or with ``write=True`` and settings make it where there is none; see `LanceIndex.open`.

        Raises:
            MissingExtra: LanceDB is not installed.
            IndexMissing: there is no index here, and none is to be made.
            IndexMismatch: it was built with other settings.
            IndexBusy: another process of this machine writes to it.
            IndexDamaged: a newer version wrote it.
            IndexWriteFailed: the store can't be reached or refuses, for a writer.
            SearchFailed: the same for a reader.
        """
        url = os.fspath(directory).rstrip("/")
        failed: type[IndexTrouble] = IndexWriteFailed if write else SearchFailed
        lock = None
        if write:
            try:
                os.makedirs(_home(url), exist_ok=True)
            except OSError as error:
                raise write_failed(_home(url), error) from error
            try:
                lock = WriterLock(_home(url))
            except IndexBusy as error:
                raise IndexBusy(url, error.reason) from None
        try:
            with reaching(url, failed):
                database = connect(url, _OPTIONS)
                kept = _identity(database)
                if kept is None:
                    if settings is None or not write:
                        raise IndexMissing(
                            url, "there is no index here; make one with `tournant ingest`"
                        )
                    kept = {"format": FORMAT, **asdict(settings), "spec": ""}
                    _keep(database, kept)
            if kept["format"] != FORMAT:
                raise IndexDamaged(
                    url,
                    f"has format {kept['format']!r}, this version of tournant reads {FORMAT}; ingest into another place",
                )
            stored = IndexSettings(kept["embedder"], kept["dimensions"], kept["chunker"])
            if settings is not None:
                require_same(url, stored, settings)
            index = cls(url, stored, lock, database)
            index._policy = upkeep or UpkeepPolicy()
            return index
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    def size_bytes(self) -> int:
        """Bytes of the table's data in the store."""
        with reaching(self._directory, IndexTrouble):
            table = self._table()
            return 0 if table is None else int(table.stats()["total_bytes"])

    # --- what an ingest keeps beside it ---

    @property
    def folder(self) -> str | None:
        """It has no folder here."""
        return None

    def ledger(self, *, lock: bool = True) -> Ledger | None:
        """Return the ledger of the ingests from this machine; see `StoredIndex.ledger`."""
        from tournant.ledger import Ledger

        path = os.path.join(_home(self._directory), "ledger.db")
        return Ledger(path, lock=lock) if lock or os.path.exists(path) else None

    def remember_embedder(self, spec: str) -> None:
        """Keep the embedder's spec in the store."""
        with reaching(self._directory, IndexWriteFailed):
            kept = _identity(self._database) or {}
            if kept.get("spec") != spec:
                row = {"format": FORMAT, **asdict(self._settings), "spec": spec}
                _keep(self._database, row)

    def recall_embedder(self) -> str | None:
        """Return the embedder's spec, if one was kept."""
        with reaching(self._directory, IndexTrouble):
            return (_identity(self._database) or {}).get("spec") or None

    def is_being_written(self) -> bool:
        """Tell whether a process of this machine has it open for writing."""
        return is_being_written(_home(self._directory))

    def close(self) -> None:
        """Wait for upkeep, and let go of the lock. Closing twice is no error."""
        if self._lock is None:
            return
        if self._upkeep is not None:
            self._upkeep.join()
        with self._writer:
            self._lock.release()
            self._lock, self._handle = None, None

    # --- the table ---

    def _sources_held(self) -> dict[str, int]:
        if self._lock is not None and self._held is not None:
            return self._held
        held: dict[str, int] = {}
        with reaching(self._directory, IndexTrouble):
            table = self._table()
            if table is not None:
                column = table.search().select(["source"]).to_arrow()["source"]
                for pair in column.value_counts().to_pylist():
                    held[from_store(pair["values"])] = pair["counts"]
        self._held = held
        return held

    def _table(self) -> Any:
        return _opened(self._database, TABLE)

    def _writable(self) -> Any:
        if self._lock is None:
            raise IndexWriteFailed(
                self._directory, "was opened for reading (or is closed); open it with write=True"
            )
        with self._writer, reaching(self._directory, IndexWriteFailed):
            if self._handle is None:
                from tournant.ingest.indexes.rows import schema

                table = self._table()
                if table is None:
                    table = self._database.create_table(
                        TABLE, schema=schema(self._settings.dimensions)
                    )
                make_structures(table)
                self._handle = table
            return self._handle

    def _care(self) -> Upkeep:
        with self._writer:
            if self._upkeep is None:
                settled, waiting = text_rows(self._writable())
                self._upkeep = Upkeep(self._optimize, settled, waiting, self._policy)
            return self._upkeep


@contextmanager
def reaching(url: str, failed: type[IndexTrouble]) -> Iterator[None]:
    """Say what an object store's refusal means."""
    try:
        yield
    except ImportError as error:
        raise MissingExtra(f"the index {url!r}", error.name or "lancedb", "ingest") from error
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, IndexTrouble):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise failed(
            url,
            f"the object store can't be reached, or refuses: {said}. See that the bucket's name is right, and that the "
            "environment has the credentials and the region (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, and "
            "AWS_ENDPOINT for another provider); then run again, what is done is kept",
        ) from error


def _home(url: str) -> str:
    """The folder on this machine for what the object store can't hold."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join("~", ".local", "state")
    digest = blake2b(url.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return os.path.join(os.path.expanduser(state), "tournant", digest)


def _identity(database: Any) -> dict[str, Any] | None:
    table = _opened(database, _IDENTITY)
    rows = [] if table is None else table.to_arrow().to_pylist()
    return rows[0] if rows else None


def _keep(database: Any, row: dict[str, Any]) -> None:
    # To overwrite what isn't there is something that the store would complain of to the terminal.
    mode = "create" if _opened(database, _IDENTITY) is None else "overwrite"
    database.create_table(_IDENTITY, data=[row], mode=mode)


def _opened(database: Any, name: str) -> Any:
    try:
        return database.open_table(name)
    except (FileNotFoundError, ValueError) as error:
        if "was not found" in str(error):
            return None
        raise
