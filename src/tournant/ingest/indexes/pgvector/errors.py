"""What PostgreSQL's errors mean for an index: whether another attempt helps, and what to say."""

from __future__ import annotations

import re

import psycopg

from tournant.ingest.errors import IndexMissing, IndexTrouble
from tournant.ingest.indexes.pgvector.address import Address

#: Another attempt may succeed: the connection or the server went, or two writers met.
_PASSING = frozenset({
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "53300",  # too_many_connections
    "55P03",  # lock_not_available
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now
    "57P05",  # idle_session_timeout
    "25P03",  # idle_in_transaction_session_timeout
})  # fmt: skip
_REASONS = {
    "53100": "the database's disk is full; free some space there and run again, what is done is kept",
    "53200": "the database is out of memory; give it more, or run fewer things on it, and run again",
    "54000": "something is too long for the database ({said}); the path of a document may take about 2,700 bytes",
    "53400": "a limit of the database is reached ({said}); raise it and run again, what is done is kept",
    "42501": "its user lacks a right ({said}); grant it, or use another user",
    "25006": "the database takes no writes ({said}); name the primary server, not a standby",
    "57014": "the database cancelled a statement ({said}); raise statement_timeout for this user, and run again",
    "40P01": "writers kept blocking each other ({said}); run again",
    "53300": "the database has no connection left ({said}); raise max_connections, or close some, and run again",
}
#: Failed attempts to connect have no code; the server's words are in its log's language, so these are a help, no more.
_CONNECTING = (
    (r"password authentication failed|no password supplied|PAM authentication failed",
     "the database refuses this user and password; mend the URL, or put the password into PGPASSWORD or ~/.pgpass"),
    (r"no pg_hba\.conf entry|peer authentication failed|Ident authentication failed|authentication failed",
     "the database refuses this user from here; allow it in pg_hba.conf, or use another user or host"),
    (r'role "[^"]*" does not exist', "the database has no such user; make it with `createuser`, or mend the URL"),
    (r'database "[^"]*" does not exist', "there is no such database; make it with `createdb`, or mend the URL"),
    (r"could not translate host name|Name or service not known|failed to resolve host", "its host name can't be resolved; mend the URL"),
    (r"server does not support SSL|SSL error|certificate", "the encrypted connection failed; see sslmode and sslrootcert"),
)  # fmt: skip
_UNREACHABLE = re.compile(
    r"Connection refused|No such file or directory|timeout expired|timed out|unreachable|No route to host"
)


def is_passing(error: BaseException) -> bool:
    """Tell whether the same work may succeed a little later, on this connection or another."""
    if not isinstance(error, psycopg.Error):
        return False
    code = error.sqlstate
    if code is not None:
        return code in _PASSING or code.startswith("08")
    if isinstance(error, psycopg.InterfaceError):
        return "closed" in str(error)
    if not isinstance(error, psycopg.OperationalError):
        return False
    return not any(re.search(sign, str(error)) for sign, _ in _CONNECTING)


def explained(address: Address, error: Exception, failed: type[IndexTrouble]) -> IndexTrouble:
    """Say in our words what went wrong.

    Args:
        address: the index.
        error: what psycopg raised.
        failed: the class of the error to return, unless another one says it better.
    """
    said = address.scrub(_first_line(error))
    code = error.sqlstate if isinstance(error, psycopg.Error) else None
    if code in ("42P01", "3F000", "42703"):
        return IndexMissing(
            address.shown,
            f"its tables are gone or are others now ({said}); run `tournant ingest` on it again",
        )
    if code in _REASONS:
        return failed(address.shown, _REASONS[code].format(said=said))
    if code is None:
        whole = str(error)
        for sign, reason in _CONNECTING:
            if re.search(sign, whole):
                return failed(address.shown, f"{reason} ({said})")
        if _UNREACHABLE.search(whole):
            return failed(
                address.shown,
                f"no database answers there; see that PostgreSQL runs, and that host and port are right ({said})",
            )
    if is_passing(error):
        return failed(
            address.shown,
            f"the connection to the database was lost and didn't come back ({said}); run again when it is there, what is "
            "done is kept",
        )
    return failed(address.shown, f"the database refused: {said}")


def _first_line(error: Exception) -> str:
    """Return what an error says, on one line; of several failed attempts to connect, the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    failed = [line for line in lines if line.startswith("- host:")]
    return (failed[-1] if failed else lines[0])[:300]
