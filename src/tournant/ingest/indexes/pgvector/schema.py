"""The tables of an index: how they are made, migrated and recognised.

An index is a schema with five tables. ``tournant`` has one row that says what the index is. ``documents`` has a row for each source,
with the session that wrote it last; a writer holds the row's lock until it commits, so a document is replaced by one
writer after the other. ``chunks`` has the chunks; ``inputs`` and ``runs`` are the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from tournant.ingest.errors import IndexDamaged, IndexMissing, IndexWriteFailed
from tournant.ingest.indexes.base import IndexSettings
from tournant.ingest.indexes.catalog import require_same
from tournant.ingest.indexes.pgvector.address import Address
from tournant.ingest.indexes.pgvector.connections import Connection

FORMAT = 1
#: For each format, the statements that make it of the one before. ``{s}`` is the schema.
MIGRATIONS: dict[int, tuple[str, ...]] = {}
DEFAULT_LANGUAGE = (
    "english"  # as the LanceDB index does: stems, and words that say nothing left out
)
#: Vectors up to this length stay in their row; longer ones may not fit into a page with the rest of it.
_INLINE = 1_800
EXTENSION = "vector"
_OLDEST_EXTENSION = (0, 8)  # the first that goes on searching when what it found has been deleted
_OLDEST_SERVER = 13  # the first that pgvector 0.8 runs in
_ENCODING = "UTF8"

_TABLES = """
CREATE TABLE {s}.tournant (
    format integer NOT NULL, identity uuid NOT NULL DEFAULT gen_random_uuid(), created timestamptz NOT NULL DEFAULT now(),
    embedder text NOT NULL, dimensions integer NOT NULL, chunker text NOT NULL, language text NOT NULL, spec text
);
CREATE UNIQUE INDEX tournant_is_one_row ON {s}.tournant ((true));
CREATE TABLE {s}.documents (
    id bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    source text COLLATE "C" PRIMARY KEY,
    title text NOT NULL, media_type text NOT NULL, chunks integer NOT NULL, writer bigint NOT NULL
);
CREATE TABLE {s}.chunks (
    document bigint NOT NULL, ordinal integer NOT NULL, start_at integer NOT NULL, end_at integer NOT NULL,
    text text NOT NULL, hash bytea NOT NULL, vector {v}.vector({dimensions}) NOT NULL,
    words tsvector GENERATED ALWAYS AS (to_tsvector({language}::regconfig, left(text, 100000))) STORED,
    PRIMARY KEY (document, ordinal)
);
ALTER TABLE {s}.chunks ALTER COLUMN words SET STATISTICS 1000, ALTER COLUMN words SET STORAGE MAIN;
CREATE TABLE {s}.inputs (
    key bytea PRIMARY KEY, fingerprint bytea NOT NULL, version text NOT NULL, outcome smallint NOT NULL,
    delivered boolean NOT NULL, outputs bigint NOT NULL, attempts integer NOT NULL, stage text, error text,
    writer bigint NOT NULL
);
CREATE INDEX inputs_failed ON {s}.inputs (key) WHERE outcome = 2;
CREATE TABLE {s}.runs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, started double precision NOT NULL, ended double precision,
    version text NOT NULL, summary text
);
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database says an index is.

    Attributes:
        settings: what it was built with.
        identity: a value that no other index has, nor this one when it is made anew.
        language: the text search configuration of its words.
        extension: the schema that pgvector's types and operators lie in.
    """

    settings: IndexSettings
    identity: str
    language: str
    extension: str


def read(connection: Connection, address: Address) -> Stored:
    """Read what an index is.

    Raises:
        IndexMissing: there is none.
        IndexDamaged: it is of another format, or something else has its name.
    """
    row = _row(connection, address)
    if row is None:
        raise IndexMissing(address.shown, "there is no index here; make one with `tournant ingest`")
    if row[0] != FORMAT:
        raise IndexDamaged(address.shown, _other_format(row[0], "run `tournant ingest` on it once"))
    _check_language(address, row[2])
    extension = _extension(connection)
    if extension is None:
        raise IndexDamaged(
            address.shown,
            "the database has lost its extension 'vector'; restore it from a backup, or drop the schema and ingest again",
        )
    return Stored(IndexSettings(*row[3:6]), row[1], row[2], extension[0])


def ensure(connection: Connection, address: Address, settings: IndexSettings | None) -> Stored:
    """Make an index where there is none and settings are given, migrate an old one, and read it. Safe from many processes.

    Raises:
        IndexMissing: there is none, and none is to be made.
        IndexMismatch: it was built with other settings.
        IndexDamaged: it was written by a newer version, or something else has its name.
        IndexWriteFailed: the database lacks pgvector or is too old, or the user lacks a right.
    """
    row = _row(connection, address)
    if row is None and settings is None:
        read(connection, address)
    if row is None or row[0] != FORMAT:
        # Others that come to make or migrate the same index wait here, and then find it done. The lock is taken before the
        # transaction begins: one that began earlier may go on believing that nothing is there.
        key = [address.schema]
        connection.execute("SELECT pg_advisory_lock(hashtext('tournant'), hashtext(%s))", key)
        try:
            with connection.transaction():
                row = _row(connection, address)
                if row is None:
                    assert settings is not None
                    _create(connection, address, settings)
                elif row[0] < FORMAT:
                    _migrate(connection, address, row[0])
        finally:
            if not connection.closed:
                connection.execute(
                    "SELECT pg_advisory_unlock(hashtext('tournant'), hashtext(%s))", key
                )
    stored = read(connection, address)
    if settings is not None:
        require_same(address.shown, stored.settings, settings)
    return stored


def remember(connection: Connection, address: Address, spec: str) -> None:
    """Keep the embedder's spec."""
    query = sql.SQL("UPDATE {s}.tournant SET spec = %s WHERE spec IS DISTINCT FROM %s")
    connection.execute(filled(query, address), [spec, spec])


def recall(connection: Connection, address: Address) -> str | None:
    """Return the embedder's spec, if one was kept."""
    row = connection.execute(filled(sql.SQL("SELECT spec FROM {s}.tournant"), address)).fetchone()
    return None if row is None or row[0] is None else str(row[0])


def identity(connection: Connection, address: Address) -> str | None:
    """Return the identity of the index that is there now, or None."""
    query = sql.SQL("SELECT identity::text FROM {s}.tournant")
    row = connection.execute(filled(query, address)).fetchone()
    return None if row is None else str(row[0])


def filled(query: sql.SQL, address: Address, **more: sql.Composable) -> sql.Composed:
    """Put the schema, and other names, into a statement."""
    return query.format(s=sql.Identifier(address.schema), **more)


def _row(connection: Connection, address: Address) -> tuple[Any, ...] | None:
    found = connection.execute(
        "SELECT to_regclass(format('%%I.tournant', %s::text)) IS NOT NULL", [address.schema]
    ).fetchone()
    if found is None or not found[0]:
        return None
    query = (
        "SELECT format, identity::text, language, embedder, dimensions, chunker FROM {s}.tournant"
    )
    try:
        return connection.execute(filled(sql.SQL(query), address)).fetchone()
    except psycopg.errors.UndefinedColumn:
        raise IndexDamaged(
            address.shown,
            f"the schema {address.schema!r} has a table 'tournant' that is no index; choose another index=NAME",
        ) from None


def _check_server(connection: Connection, address: Address) -> None:
    version = connection.info.server_version // 10_000
    if version < _OLDEST_SERVER:
        raise IndexWriteFailed(
            address.shown,
            f"the database is PostgreSQL {version}, and {_OLDEST_SERVER} or later is needed; upgrade it, or use another server",
        )
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != _ENCODING:
        raise IndexWriteFailed(
            address.shown,
            f"the database {connection.info.dbname!r} has the encoding {encoding}, which can't hold every text; make one with "
            f"`createdb --encoding {_ENCODING} --template template0 NAME`, and name it in the URL",
        )


def _create(connection: Connection, address: Address, settings: IndexSettings) -> None:
    _check_server(connection, address)
    extension = _extension(connection) or _make_extension(connection, address)
    if _version(extension[1]) < _OLDEST_EXTENSION:
        raise IndexWriteFailed(
            address.shown,
            f"the database has pgvector {extension[1]}, and 0.8 or later is needed; install it there, and run "
            "ALTER EXTENSION vector UPDATE in this database",
        )
    language = address.language or DEFAULT_LANGUAGE
    names: dict[str, sql.Composable] = {
        "v": sql.Identifier(extension[0]),
        "dimensions": sql.Literal(settings.dimensions),
        "language": sql.Literal(language),
    }
    there = connection.execute(
        "SELECT 1 FROM pg_namespace WHERE nspname = %s", [address.schema]
    ).fetchone()
    try:
        if there is None:
            connection.execute(filled(sql.SQL("CREATE SCHEMA {s}"), address))
        connection.execute(filled(sql.SQL(_TABLES), address, **names))
    except psycopg.errors.DuplicateTable as error:
        raise IndexDamaged(
            address.shown,
            f"the schema {address.schema!r} holds other tables ({error.diag.message_primary}); choose another index=NAME",
        ) from error
    except psycopg.errors.UndefinedObject as error:
        raise IndexWriteFailed(
            address.shown,
            f"the database has no text search configuration {language!r}; use one that `\\dF` of psql lists, or "
            "language=simple",
        ) from error
    except psycopg.errors.InvalidParameterValue as error:
        raise IndexWriteFailed(
            address.shown,
            f"it can't hold vectors of {settings.dimensions} dimensions ({error.diag.message_primary}); use another "
            "embedder",
        ) from error
    if settings.dimensions <= _INLINE:
        query = sql.SQL("ALTER TABLE {s}.chunks ALTER COLUMN vector SET STORAGE PLAIN")
        connection.execute(filled(query, address))
    query = sql.SQL(
        "INSERT INTO {s}.tournant (format, embedder, dimensions, chunker, language) VALUES (%s, %s, %s, %s, %s)"
    )
    values = [FORMAT, settings.embedder, settings.dimensions, settings.chunker, language]
    connection.execute(filled(query, address), values)


def _migrate(connection: Connection, address: Address, found: int) -> None:
    for step in range(found + 1, FORMAT + 1):
        for statement in MIGRATIONS[step]:
            connection.execute(filled(sql.SQL(statement), address))
    query = sql.SQL("UPDATE {s}.tournant SET format = %s")
    connection.execute(filled(query, address), [FORMAT])


def _other_format(found: int, mend_of_old: str) -> str:
    if found > FORMAT:
        return (
            f"has format {found}, and this version of tournant knows formats up to {FORMAT}: a newer version wrote it; "
            "update tournant here, or ingest into another index (another index=NAME)"
        )
    return f"has format {found}, of an older version of tournant; {mend_of_old}"


def _check_language(address: Address, language: str) -> None:
    if address.language not in (None, language):
        raise IndexDamaged(
            address.shown,
            f"was built with language={language}, not {address.language}; leave it out of the URL, or ingest into "
            "another index (another index=NAME)",
        )


def _extension(connection: Connection) -> tuple[str, str] | None:
    """The schema and the version of pgvector in this database."""
    return connection.execute(
        "SELECT n.nspname::text, e.extversion FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
        "WHERE e.extname = %s",
        [EXTENSION],
    ).fetchone()


def _make_extension(connection: Connection, address: Address) -> tuple[str, str]:
    database = connection.info.dbname
    try:
        with connection.transaction():
            create = sql.SQL("CREATE EXTENSION IF NOT EXISTS {}")
            connection.execute(create.format(sql.Identifier(EXTENSION)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise IndexWriteFailed(
            address.shown,
            "the database has pgvector but it isn't switched on here, and this user may not do that; have a superuser run "
            f"CREATE EXTENSION vector in the database {database!r} once",
        ) from error
    except (psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported) as error:
        raise IndexWriteFailed(
            address.shown,
            "the database server has no pgvector; install it there (the package postgresql-NN-pgvector, or an image such as "
            "pgvector/pgvector), then run again",
        ) from error
    made = _extension(connection)
    assert made is not None
    return made


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
