"""The file of a `SQLiteStore`: one table, read and written many rows at a time, by one thread.

Internal to `tournant.cache`. A cache is never worth a failed run: what goes wrong with the file is logged once and costs the
values in it. Only what is plainly a mistake (another program's file, no such folder) is an error.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote

from tournant._cache_stores import CacheError
from tournant._cache_values import Damaged, Stored, checksum, decode_value

logger = logging.getLogger("tournant.cache")

T = TypeVar("T")

_APPLICATION = 0x54726E43  # "TrnC"
_FORMAT = 1
_LOOKUP = 500  # keys in one statement; SQLite's own limit was 999 for long
BUSY_SECONDS = 2.0
RETRY_SECONDS = 30.0

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS entries (
    key BLOB NOT NULL PRIMARY KEY,
    kind INTEGER NOT NULL,
    about TEXT NOT NULL,
    data BLOB NOT NULL,
    checksum BLOB NOT NULL
);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_FORMAT};
COMMIT;
"""


class CacheFile:
    """Rows of a cache in SQLite. For one thread; opened at the first use.

    Args:
        path: Where the file is or is to be.
        read_only: Never write.
        max_bytes: The size of the file above which its oldest rows go.
    """

    def __init__(self, path: str, *, read_only: bool = False, max_bytes: int | None = None) -> None:
        self.path = path
        self._read_only = read_only
        self._max_bytes = max_bytes
        self._db: sqlite3.Connection | None = None
        self._refusal = ""
        self._told: set[str] = set()
        self._retry_at = 0.0

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        """Return the values of those keys that are here, each checked against its checksum, length and type.

        Raises:
            CacheError: the file is none of ours, or can't be made.
        """

        def lookup(db: sqlite3.Connection) -> dict[bytes, Any]:
            found: dict[bytes, Any] = {}
            for some in _parts(keys, _LOOKUP):
                rows = db.execute(
                    "SELECT key, kind, about, data, checksum FROM entries "
                    f"WHERE key IN ({','.join('?' * len(some))})",
                    some,
                )
                for key, *stored, check in rows:
                    try:
                        found[key] = _checked(key, Stored(*stored), check)
                    except Damaged:
                        self._tell(
                            "damaged values",
                            "has values that are damaged: they are computed again",
                        )
            return found

        return self._guarded(lookup) or {}

    def write(self, rows: Sequence[tuple[bytes, Stored]]) -> None:
        """Keep rows, in one transaction.

        Raises:
            CacheError: the file is none of ours, or can't be made.
        """

        def insert(db: sqlite3.Connection) -> None:
            if self._read_only:
                return
            with db:
                db.execute("BEGIN IMMEDIATE")
                db.executemany(
                    "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)",
                    [(key, *stored, checksum(key, stored)) for key, stored in rows],
                )
            self._prune(db)

        self._guarded(insert)

    def delete(self, keys: Sequence[bytes]) -> None:
        """Forget rows.

        Raises:
            CacheError: the file is none of ours, can't be made, or could not be written: the rows may still be there.
        """

        def remove(db: sqlite3.Connection) -> bool:
            if self._read_only:
                return False
            with db:
                db.execute("BEGIN IMMEDIATE")
                db.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in keys])
            return True

        if not self._guarded(remove):
            raise CacheError(
                f"The cache {self.path!r} can't be written at present, so what was to be forgotten may still be in it: "
                "see the log for the reason, and try again."
            )

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _guarded(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Do `work`; log what goes wrong with the file, and return ``None`` then."""
        if self._refusal:
            raise CacheError(self._refusal)
        if time.monotonic() < self._retry_at:
            return None
        try:
            if self._db is None:
                self._db = self._open()
            return work(self._db)
        except (sqlite3.Error, OverflowError) as error:
            self._trouble(error)
        except CacheError as error:
            self._refusal = str(error)
            raise
        return None

    def _trouble(self, error: Exception) -> None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_NOTADB and self._db is None:
            self._refusal = (
                f"{self.path!r} is not a cache, or is damaged ({error}): give the cache another path, or delete the file, which costs "
                "what was cached in it."
            )
            raise CacheError(self._refusal) from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self._tell("damage", f"is damaged ({error}) and is not used: delete it")
            self._give_up()
        elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM) and self._db is not None:
            self._tell_read_only(error)
            self._read_only = True
        elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            self._tell(
                "lock",
                f"was held by another program for {BUSY_SECONDS:g} s: it is left alone for {RETRY_SECONDS:g} s at a time, and what it "
                "lacks is computed",
            )
            self._retry_at = time.monotonic() + RETRY_SECONDS
        elif code == sqlite3.SQLITE_FULL:
            self._tell("room", f"has no room ({error}): new values are not kept")
        elif code == sqlite3.SQLITE_IOERR or self._db is None:
            self._tell("disk", f"can't be used at present ({error}): what it lacks is computed")
            self._retry_at = time.monotonic() + RETRY_SECONDS
        else:
            self._tell("error", f"failed ({error}): what it lacks is computed")

    def _give_up(self) -> None:
        self.close()
        self._retry_at = float("inf")

    def _tell(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            logger.warning("the cache %r %s", self.path, text)

    def _tell_read_only(self, error: Exception) -> None:
        self._tell(
            "read-only", f"can't be written ({error}): it is read, and new values are not kept"
        )

    def _prune(self, db: sqlite3.Connection) -> None:
        """Let the oldest rows go until the file is within its bounds."""
        if self._max_bytes is None:
            return
        (page,) = db.execute("PRAGMA page_size").fetchone()
        while True:
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            (free,) = db.execute("PRAGMA freelist_count").fetchone()
            oldest, newest = db.execute("SELECT min(rowid), max(rowid) FROM entries").fetchone()
            if (pages - free) * page <= self._max_bytes or oldest is None:
                return
            with db:
                db.execute(
                    "DELETE FROM entries WHERE rowid <= ?", [oldest + (newest - oldest) // 8]
                )

    # Opening.

    def _open(self) -> sqlite3.Connection:
        folder = os.path.dirname(self.path)
        if os.path.isdir(self.path):
            raise CacheError(f"The cache {self.path!r} is a folder: give the path of a file.")
        if not os.path.isdir(folder):
            raise CacheError(
                f"The cache {self.path!r} has no folder to lie in: make {folder!r} first."
            )
        if self._read_only:
            return self._open_reading()
        try:
            return self._open_writing()
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code not in (
                sqlite3.SQLITE_READONLY,
                sqlite3.SQLITE_CANTOPEN,
                sqlite3.SQLITE_PERM,
            ):
                raise
            if not os.path.exists(self.path):
                raise CacheError(
                    f"The cache {self.path!r} can't be made ({error}): give this user leave to write in {folder!r}, or put the cache "
                    "elsewhere."
                ) from error
            db = self._open_reading()
            self._tell_read_only(error)
            self._read_only = True
            return db

    def _open_writing(self) -> sqlite3.Connection:
        db = _connect(self.path)
        try:
            fresh = self._check(db)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            if fresh:
                db.executescript(_SCHEMA)
            else:
                # Changes nothing, but SQLite refuses it now where the file can't be written.
                db.execute("UPDATE entries SET kind = kind WHERE false")
        except BaseException:
            db.close()
            raise
        return db

    def _open_reading(self) -> sqlite3.Connection:
        if not os.path.exists(self.path):
            raise CacheError(
                f"There is no cache at {self.path!r}, and read_only=True makes none: check the path."
            )
        address = f"file:{quote(os.fsencode(self.path))}?mode=ro"
        # Where a WAL database has no -wal file and none may be made, SQLite opens it only as "immutable"; nobody writes it then.
        for suffix in ("", "&immutable=1"):
            db = _connect(address + suffix, uri=True)
            try:
                if self._check(db):
                    raise CacheError(f"The cache {self.path!r} is empty: fill it first.")
            except sqlite3.Error as error:
                db.close()
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if (
                    suffix
                    or code not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
                    or os.path.exists(self.path + "-wal")
                ):
                    raise
            except BaseException:
                db.close()
                raise
            else:
                return db
        raise AssertionError("unreachable")

    def _check(self, db: sqlite3.Connection) -> bool:
        """Return whether the database is empty; refuse what is no cache of this version."""
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if application == _APPLICATION:
            if version > _FORMAT:
                raise CacheError(
                    f"The cache {self.path!r} has format {version}, and this version of tournant reads {_FORMAT}: upgrade tournant, or "
                    "give the cache another path."
                )
            return False
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables or application:
            raise CacheError(
                f"{self.path!r} is a database of another program, not a cache: give the cache another path."
            )
        return True


def _connect(address: str, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(
        address, timeout=BUSY_SECONDS, isolation_level=None, uri=uri, check_same_thread=False
    )


def _checked(key: Any, stored: Stored, check: Any) -> Any:
    try:
        intact = check == checksum(key, stored)
    except (TypeError, UnicodeError) as error:
        raise Damaged from error
    if not intact:
        raise Damaged
    return decode_value(stored)


def _parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
