"""The ledger's file: who may write it, whether it is one, and what SQLite's errors mean.

Internal to `tournant.ledger`. It knows the file's format and nothing of runs or outcomes.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing

from tournant.errors import LedgerError

_APPLICATION = 0x54726E74  # "Trnt"
_FORMAT = 1
_BUSY_SECONDS = 5.0

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE inputs (
    key BLOB NOT NULL PRIMARY KEY,
    fingerprint BLOB NOT NULL,
    version TEXT NOT NULL,
    outcome INTEGER NOT NULL,
    delivered INTEGER NOT NULL,
    outputs INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    stage TEXT,
    error TEXT
) WITHOUT ROWID;
CREATE INDEX failures ON inputs (key) WHERE outcome = 2;
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    started REAL NOT NULL,
    ended REAL,
    version TEXT NOT NULL,
    summary TEXT
);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_FORMAT};
COMMIT;
"""


class RunLock:
    """The right to write a ledger, which one process at a time holds.

    It is a `flock` on a file beside the ledger, which the kernel gives back however the holder ends. The
    file stays when the lock is released: deleting it would let two processes lock two files of one name.

    Args:
        path: The ledger's path; the lock is ``path + ".lock"``.

    Raises:
        LedgerError: Another process (or another `Ledger` of this one) holds it, or it cannot be made.
    """

    __slots__ = ("_handle",)

    def __init__(self, path: str) -> None:
        import fcntl

        try:
            handle = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise _file_error(path, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} {os.uname().nodename}\n".encode(), 0)
        except BlockingIOError:
            message = _in_use(path, os.pread(handle, 512, 0).decode(errors="replace"))
            os.close(handle)
            raise LedgerError(message) from None
        except OSError as error:
            os.close(handle)
            raise _file_error(path, error) from error
        self._handle = handle

    def release(self) -> None:
        """Give the lock back."""
        # Closing, not LOCK_UN: in a forked child that would unlock the parent's lock as well.
        os.ftruncate(self._handle, 0)
        os.close(self._handle)


def _in_use(path: str, holder: str) -> str:
    pid, _, host = holder.strip().partition(" ")
    if not pid:
        who = "another process"
    elif host and host != os.uname().nodename:
        who = f"process {pid} on {host}"
    elif pid == str(os.getpid()):
        who = f"another Ledger object of this process ({pid})"
    else:
        who = f"process {pid}"
    return (
        f"The ledger {path!r} is in use by {who}, and one run at a time can write it: "
        "wait until that run has ended, or give this one a ledger of its own."
    )


def connect(path: str, *, write: bool) -> sqlite3.Connection:
    """Open a ledger's file and check that it is one.

    Args:
        path: An absolute path.
        write: Whether to open for writing, and make the file when it is missing.

    Returns:
        A connection without implicit transactions, usable from any thread.

    Raises:
        LedgerError: The file is no ledger, damaged, newer than this version, or cannot be used.
    """
    if os.path.isdir(path):
        raise LedgerError(f"The ledger {path!r} is a folder: give the path of a file.")
    if not write and not os.path.exists(path):
        raise LedgerError(
            f"There is no ledger at {path!r}: check the path, or run the pipeline once to make it."
        )
    try:
        db = _connect_writing(path) if write else _connect_reading(path)
    except sqlite3.Error as error:
        raise sql_error(path, error) from error
    return db


def _connect_writing(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        fresh = _check(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if fresh:
            db.executescript(_SCHEMA)
        else:
            # Changes nothing, but SQLite refuses it now where the file cannot be written.
            db.execute("UPDATE runs SET id = id WHERE false")
    except BaseException:
        db.close()
        raise
    return db


def _connect_reading(path: str) -> sqlite3.Connection:
    from urllib.parse import quote

    address = f"file:{quote(os.fsencode(path))}?mode=ro"
    # Without a -wal file and without leave to make one, SQLite opens a WAL database only as "immutable". That
    # is true then: nobody is writing it.
    for suffix in ("", "&immutable=1"):
        db = sqlite3.connect(
            address + suffix,
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            if _check(db, path):
                raise LedgerError(
                    f"The ledger {path!r} is empty: run the pipeline once to fill it."
                )
        except sqlite3.Error as error:
            db.close()
            code = error.sqlite_errorcode & 0xFF
            unwritable = code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
            if suffix or not unwritable or os.path.exists(path + "-wal"):
                raise
        except BaseException:
            db.close()
            raise
        else:
            return db
    raise AssertionError("unreachable")


def _check(db: sqlite3.Connection, path: str) -> bool:
    """Return whether the database is empty; refuse what is not a ledger of this version."""
    application, found = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if application == _APPLICATION:
        if found > _FORMAT:
            raise LedgerError(
                f"The ledger {path!r} has format {found}, and this version of tournant reads "
                f"{_FORMAT}: upgrade tournant, or give the run another ledger."
            )
        return False
    with closing(db.execute("SELECT count(*) FROM sqlite_master")) as rows:
        tables = rows.fetchone()[0]
    if tables or application:
        raise LedgerError(
            f"{path!r} is a database of another program, not a ledger: give the run another path."
        )
    return True


def _file_error(path: str, error: OSError) -> LedgerError:
    """Say what an operating system's error means for whoever runs a pipeline."""
    folder = os.path.dirname(path)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return LedgerError(f"The ledger {path!r} has no folder to lie in: make {folder!r} first.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return LedgerError(
            f"The ledger {path!r} cannot be written ({error.strerror}): give this user leave to "
            f"write in {folder!r}, or put the ledger elsewhere."
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(path, error.strerror or "no space left")
    return LedgerError(
        f"The ledger {path!r} cannot be locked ({error.strerror}): put it on a local disk."
    )


def sql_error(path: str, error: sqlite3.Error) -> LedgerError:
    """Say what SQLite's error means for whoever runs a pipeline."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LedgerError(
            f"The ledger {path!r} was held by another program for {_BUSY_SECONDS:.0f} s: close what "
            "has it open (a database browser?) and run again."
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return LedgerError(
            f"{path!r} is not a ledger, or is damaged ({error}): give the run another path, or move the "
            "file away and run again, which repeats everything that it had recorded."
        )
    if code == sqlite3.SQLITE_FULL:
        return _full(path, str(error))
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return LedgerError(
            f"The ledger {path!r} cannot be written ({error}): give this user leave to write the file "
            f"and {os.path.dirname(path)!r}, or put the ledger elsewhere."
        )
    if code == sqlite3.SQLITE_IOERR:
        return LedgerError(
            f"The disk failed to read or write the ledger {path!r} ({error}): look for a full disk, a "
            "quota or a limit on file sizes, then run again; what was recorded before is kept."
        )
    return LedgerError(f"The ledger {path!r} failed: {error}.")


def _full(path: str, reason: str) -> LedgerError:
    return LedgerError(
        f"There is no room to write the ledger {path!r} ({reason}): free some space and run again; "
        "what was recorded before is kept."
    )
