"""What is particular to the index in PostgreSQL: URLs, tables, search structures, ranking."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pytest
from ingest_samples import DIMENSIONS, embedded, unit

from tournant.ingest.errors import (
    IndexDamaged,
    IndexMismatch,
    IndexMissing,
    IndexWriteFailed,
    InvalidOption,
    SearchFailed,
)
from tournant.ingest.indexes.base import Counts, IndexSettings
from tournant.ingest.indexes.locations import protected, shown
from tournant.ingest.indexes.pgvector.address import parse, redacted

if TYPE_CHECKING:
    from postgres_server import Server

    from tournant.ingest.indexes.pgvector.index import PgvectorIndex

pytest.importorskip("psycopg", reason="psycopg is not installed")
SETTINGS = IndexSettings("an embedder", DIMENSIONS, "a chunker")


@pytest.fixture
def open_pg() -> Iterator[Callable[..., PgvectorIndex]]:
    """Opens indexes, and closes them in the end."""
    from tournant.ingest.indexes.pgvector.index import PgvectorIndex

    opened = []

    def opener(url: str, settings: IndexSettings | None = None, **options: Any) -> PgvectorIndex:
        index = PgvectorIndex.open(url, settings, **options)
        opened.append(index)
        return index

    yield opener
    for index in opened:
        index.close()


def query(postgres: Server, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with postgres.connect() as connection:
        cursor = connection.execute(statement, values)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


def name_of(url: str) -> str:
    return parse(url).schema


class TestAddresses:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("postgresql://ann:s3cr3t@db:5433/work?index=notes", "postgresql://ann@db:5433/work?index=notes"),
            ("postgres://ann:s3c%40r3t@a,b/work", "postgres://ann@a,b/work"),
            ("postgresql://ann@db/work?password=s3cr3t&sslmode=require", "postgresql://ann@db/work?sslmode=require"),
            ("postgresql:///work?host=/run&sslpassword=s3cr3t", "postgresql:///work?host=/run"),
            ("postgresql://ann:s3c/r3t@db/work", "postgresql://ann@db/work"),
            ("postgresql://ann:s3c@r3t@db/work", "postgresql://ann@db/work"),
            ("postgresql://ann:s3c?r3t@db/work?index=a", "postgresql://ann@db/work?index=a"),
            ("postgresql://db", "postgresql://db"),
        ],
    )  # fmt: skip
    def test_no_password_is_shown(self, url: str, expected: str) -> None:
        assert redacted(url) == shown(url) == expected
        for text in (repr(protected(url)), repr([protected(url)])):
            assert "s3c" not in text
            assert "r3t" not in text

    def test_what_was_given_reaches_libpq(self) -> None:
        address = parse(
            "postgresql://ann:s3c%40r3t@db:5433/work?index=notes&language=german&sslmode=require"
        )
        assert (address.schema, address.language) == ("notes", "german")
        for part in ("user=ann", "password=s3c@r3t", "host=db", "port=5433", "dbname=work", "sslmode=require"):  # fmt: skip
            assert part in address.conninfo
        assert "index=" not in address.conninfo
        assert "s3c" not in repr(address)
        assert address.scrub('refused "s3c@r3t" and s3c%40r3t') == 'refused "***" and ***'

    def test_a_password_may_hold_a_question_mark(self) -> None:
        address = parse("postgresql://ann:s3c?r3t@db/work?index=a")
        assert address.schema == "a"
        assert "password=s3c?r3t" in address.conninfo

    @pytest.mark.parametrize(
        ("url", "what"),
        [
            ("postgresql://ann:s3cr3t@db/work?index=My-Notes", "'My-Notes' can't name an index"),
            ("postgresql://ann:s3cr3t@db/work?index=pg_notes", "can't name an index"),
            ("postgresql://ann:s3cr3t@db/work?language=a'b", "is no text search configuration"),
            ("postgresql://ann:s3cr3t@db/work?nonsense=1", "no URL that PostgreSQL understands"),
            ("postgresql://ann:s3cr3t%zz@db/work", "no URL that PostgreSQL understands"),
            ("postgresql://ann:s3c/r3t@db/work", "no URL that PostgreSQL understands"),
            ("postgresql://ann:s3c@r3t@db/work", "with %XX for special characters"),
        ],
    )
    def test_what_is_wrong_with_a_url_is_said_without_its_password(
        self, url: str, what: str
    ) -> None:
        with pytest.raises(InvalidOption, match=what) as caught:
            parse(url)
        error: BaseException | None = caught.value
        while error is not None:
            assert "s3c" not in str(error)
            assert "r3t" not in str(error)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


class TestReaching:
    """What is wrong is said at once, as what it is, with the mend, and without the password."""

    def refused(self, url: str, *, write: bool = True) -> str:
        from tournant.ingest.indexes.pgvector.index import PgvectorIndex

        expected = IndexWriteFailed if write else SearchFailed
        with pytest.raises(expected) as caught:
            PgvectorIndex.open(url, SETTINGS, write=write)
        message = str(caught.value)
        assert message.startswith(f"index {redacted(url)!r}: ")
        assert "the wrong one" not in repr(caught.value) + message
        return message

    @pytest.mark.parametrize("write", [True, False])
    def test_no_server(self, write: bool) -> None:
        message = self.refused("postgresql://ann:the%20wrong%20one@127.0.0.1:1/work", write=write)
        assert "no database answers there; see that PostgreSQL runs" in message
        message = self.refused("postgresql:///work?host=/nowhere", write=write)
        assert "no database answers there" in message

    def test_a_wrong_password(self, postgres: Server, pg_url: str) -> None:
        message = self.refused(postgres.tcp("postgres", "the%20wrong%20one"))
        assert (
            "refuses this user and password; mend the URL, or put the password into PGPASSWORD"
            in message
        )

    def test_no_such_user_or_database(self, postgres: Server, pg_url: str) -> None:
        assert "there is no such database; make it with `createdb`" in self.refused(
            postgres.url(database="nowhere")
        )
        assert "no such user" in self.refused(
            pg_url.replace("postgresql://postgres@", "postgresql://nobody_at_all@")
        )

    def test_the_right_password(
        self, postgres: Server, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        url = postgres.tcp("postgres", "secret%20of%20the%20superuser", "by_password")
        index = open_pg(url, SETTINGS, write=True)
        index.replace([embedded("/a", ["x"])])
        assert "secret" not in index.directory
        assert open_pg(url).counts() == Counts(1, 1)

    def test_the_password_may_come_from_a_file_or_a_service(
        self,
        postgres: Server,
        pg_url: str,
        tmp_path: Path,
        open_pg: Callable[..., PgvectorIndex],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        password = "secret of the superuser"
        passfile = tmp_path / "pass word"
        passfile.write_text(f"127.0.0.1:{postgres.port}:*:postgres:{password}\n")
        passfile.chmod(0o600)
        services = tmp_path / "services"
        services.write_text(
            f"[kitchen]\nhost=127.0.0.1\nport={postgres.port}\nuser=postgres\ndbname=postgres\npassword={password}\n"
        )
        monkeypatch.setenv("PGSERVICEFILE", str(services))
        place, name = f"postgresql://postgres@127.0.0.1:{postgres.port}/postgres", name_of(pg_url)
        for url in (
            f"{place}?passfile={quote(str(passfile))}&index={name}",
            f"postgresql://?service=kitchen&index={name}",
        ):
            index = open_pg(url, SETTINGS, write=True)
            index.replace([embedded("/a", ["x"])])
            assert index.counts() == Counts(1, 1)
            assert "secret" not in index.directory
        assert "refuses this user and password" in self.refused(f"{place}?index={name}")

    def test_an_encrypted_connection_that_is_not_to_be_had(
        self, postgres: Server, pg_url: str
    ) -> None:
        url = postgres.tcp("postgres", "the%20wrong%20one", name_of(pg_url))
        for parameter in ("sslmode=require", "sslmode=verify-full&sslrootcert=/nowhere.crt"):
            message = self.refused(f"{url}&{parameter}")
            assert "the encrypted connection failed; see sslmode and sslrootcert" in message

    @pytest.fixture
    def plain_user(self, postgres: Server) -> Iterator[str]:
        """A database that has no pgvector yet, and a user who may make schemas in it but no extensions."""
        query(postgres, "CREATE ROLE plain LOGIN PASSWORD 'the wrong one'")
        query(postgres, "CREATE DATABASE bare")
        query(postgres, "GRANT CREATE ON DATABASE bare TO plain")
        yield postgres.tcp("plain", "the%20wrong%20one", database="bare")
        query(postgres, "DROP DATABASE bare WITH (FORCE)")
        query(postgres, "DROP ROLE plain")

    def test_a_user_who_may_not_switch_pgvector_on(
        self, postgres: Server, plain_user: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        message = self.refused(plain_user)
        assert "have a superuser run CREATE EXTENSION vector in the database 'bare' once" in message
        with postgres.connect("bare") as connection:
            connection.execute("CREATE EXTENSION vector")
        open_pg(plain_user, SETTINGS, write=True).replace([embedded("/a", ["x"])])

    def test_a_user_who_may_not_make_a_schema(
        self, postgres: Server, plain_user: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        with postgres.connect("bare") as connection:
            connection.execute("CREATE EXTENSION vector; REVOKE CREATE ON DATABASE bare FROM plain")
            assert "its user lacks a right (permission denied for database bare)" in self.refused(
                plain_user
            )
            # Whoever may can make it for them.
            connection.execute("CREATE SCHEMA tournant AUTHORIZATION plain")
        open_pg(plain_user, SETTINGS, write=True).replace([embedded("/a", ["x"])])

    def test_a_server_without_pgvector(self, pg_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from tournant.ingest.indexes.pgvector import schema

        monkeypatch.setattr(schema, "EXTENSION", "an_extension_that_nobody_has")
        assert "the database server has no pgvector; install it there" in self.refused(pg_url)

    def test_an_old_pgvector(self, pg_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from tournant.ingest.indexes.pgvector import schema

        monkeypatch.setattr(schema, "_OLDEST_EXTENSION", (99, 0))
        assert "ALTER EXTENSION vector UPDATE" in self.refused(pg_url)

    def test_an_old_server(self, pg_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from tournant.ingest.indexes.pgvector import schema

        monkeypatch.setattr(schema, "_OLDEST_SERVER", 99)
        assert re.search(
            r"the database is PostgreSQL \d\d, and 99 or later is needed; upgrade it",
            self.refused(pg_url),
        )

    def test_a_database_that_cannot_hold_every_text(self, postgres: Server, pg_url: str) -> None:
        query(postgres, "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        message = self.refused(postgres.url(name_of(pg_url), "latin"))
        assert (
            "the database 'latin' has the encoding LATIN1, which can't hold every text" in message
        )
        assert "make one with `createdb --encoding UTF8" in message
        query(postgres, "DROP DATABASE latin WITH (FORCE)")

    def test_more_dimensions_than_pgvector_holds(self, pg_url: str) -> None:
        from tournant.ingest.indexes.pgvector.index import PgvectorIndex

        with pytest.raises(IndexWriteFailed, match="can't hold vectors of 20000 dimensions"):
            PgvectorIndex.open(pg_url, IndexSettings("e", 20_000, "c"), write=True)
        with pytest.raises(IndexMissing):
            PgvectorIndex.open(pg_url)

    def test_an_unknown_language(self, pg_url: str) -> None:
        assert "no text search configuration 'klingon'" in self.refused(
            pg_url + "&language=klingon"
        )


class TestTables:
    def test_indexes_of_one_database_know_nothing_of_each_other(
        self, new_index_url: Callable[[], str], open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        one, other = (open_pg(new_index_url(), SETTINGS, write=True) for _ in range(2))
        one.replace([embedded("/a", ["apple"])])
        other.replace([embedded("/b", ["apple"])])
        assert (one.sources(), other.sources()) == ({"/a"}, {"/b"})
        assert [hit.source for hit in one.search("apple", unit(0))] == ["/a"]
        assert one.directory != other.directory

    def test_a_newer_format_is_refused_and_an_older_one_migrated(
        self,
        postgres: Server,
        pg_url: str,
        open_pg: Callable[..., PgvectorIndex],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from tournant.ingest.indexes.pgvector import schema

        open_pg(pg_url, SETTINGS, write=True).replace([embedded("/a", ["x"])])
        name = name_of(pg_url)
        query(postgres, f"UPDATE {name}.tournant SET format = 99")
        for write in (False, True):
            with pytest.raises(
                IndexDamaged, match=r"has format 99.*a newer version wrote it; update"
            ):
                open_pg(pg_url, write=write)
        query(postgres, f"UPDATE {name}.tournant SET format = 1")
        monkeypatch.setattr(schema, "FORMAT", 3)
        monkeypatch.setattr(
            schema,
            "MIGRATIONS",
            {
                2: ("ALTER TABLE {s}.documents ADD COLUMN two integer DEFAULT 2",),
                3: ("ALTER TABLE {s}.documents ADD COLUMN three integer DEFAULT 3",),
            },
        )
        with pytest.raises(IndexDamaged, match=r"of an older version.*run `tournant ingest` on it"):
            open_pg(pg_url)
        for _ in range(2):
            assert open_pg(pg_url, SETTINGS, write=True).counts() == Counts(1, 1)
        assert query(postgres, f"SELECT two, three FROM {name}.documents") == [(2, 3)]
        assert query(postgres, f"SELECT format FROM {name}.tournant") == [(3,)]

    def test_a_migration_that_fails_changes_nothing(
        self,
        postgres: Server,
        pg_url: str,
        open_pg: Callable[..., PgvectorIndex],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from tournant.ingest.indexes.pgvector import schema

        open_pg(pg_url, SETTINGS, write=True).replace([embedded("/a", ["x"])])
        with monkeypatch.context() as patch:
            patch.setattr(schema, "FORMAT", 2)
            steps = ("ALTER TABLE {s}.documents ADD COLUMN two integer", "SELECT 1 / 0")
            patch.setattr(schema, "MIGRATIONS", {2: steps})
            with pytest.raises(IndexWriteFailed, match="the database refused: division by zero"):
                open_pg(pg_url, SETTINGS, write=True)
        assert open_pg(pg_url, SETTINGS, write=True).counts() == Counts(1, 1)

    def test_what_is_no_index_is_left_alone(
        self, postgres: Server, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        name = name_of(pg_url)
        query(postgres, f"CREATE SCHEMA {name} CREATE TABLE chunks (mine text)")
        with pytest.raises(IndexMissing):
            open_pg(pg_url)
        with pytest.raises(IndexDamaged, match=r"holds other tables.*choose another index=NAME"):
            open_pg(pg_url, SETTINGS, write=True)
        query(postgres, f"CREATE TABLE {name}.tournant (mine text)")
        with pytest.raises(IndexDamaged, match="has a table 'tournant' that is no index"):
            open_pg(pg_url, SETTINGS, write=True)
        assert query(postgres, f"SELECT * FROM {name}.chunks") == []

    def test_a_chunk_that_is_the_same_is_not_touched(
        self, postgres: Server, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        index = open_pg(pg_url, SETTINGS, write=True)
        index.replace([embedded("/a", ["one", "two", "three", "four"])])
        rows = f"SELECT ordinal, ctid::text, text FROM {name_of(pg_url)}.chunks ORDER BY ordinal"
        before = query(postgres, rows)
        index.replace([embedded("/a", ["one", "TWO", "three"])])
        after = query(postgres, rows)
        assert [row[2] for row in after] == ["one", "TWO", "three"]
        same = [old == new for old, new in zip(before, after, strict=False)]
        assert same == [True, False, True]

    def test_other_vectors_or_places_of_the_same_text_are_taken(
        self, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        index = open_pg(pg_url, SETTINGS, write=True)
        index.replace([embedded("/a", ["one", "two"], 1)])
        index.replace([embedded("/a", ["one", "two"], 5)])
        assert index.search("", unit(6), 1, "vector")[0].text == "two"
        assert index.search("", unit(6), 1, "vector")[0].score == pytest.approx(1, abs=1e-5)
        index.replace([embedded("/a", ["longer", "two"], 5)])
        assert index.search("", unit(6), 1, "vector")[0].start == 7

    def test_characters_that_no_database_holds(
        self, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        index = open_pg(pg_url, SETTINGS, write=True)
        document = embedded("/a", ["a\0b apple \ud800"], title="t\0i")
        index.replace([document])
        (hit,) = index.search("apple", unit(0))
        assert hit.text == "a\ufffdb apple ?"
        assert hit.title == "t\ufffdi"
        from tournant.ingest.documents import text_hash

        assert set(index.vectors_of(["/a"])) == {text_hash(document.chunks.texts[0])}
        with pytest.raises(ValueError, match="NUL in its name"):
            index.replace([embedded("/a\0b", ["x"])])

    @pytest.mark.parametrize("where", ["environment", "URL"])
    def test_texts_are_utf_8_whatever_the_client_is_set_to(
        self,
        pg_url: str,
        open_pg: Callable[..., PgvectorIndex],
        monkeypatch: pytest.MonkeyPatch,
        where: str,
    ) -> None:
        url = pg_url
        if where == "environment":
            monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
        else:
            url += "&client_encoding=LATIN1"
        open_pg(url, SETTINGS, write=True).replace([embedded("/é", ["naïve café 😀"])])
        monkeypatch.undo()
        (hit,) = open_pg(pg_url).search("café", None, 3, "text")
        assert (hit.source, hit.text) == ("/é", "naïve café 😀")

    def test_a_path_that_is_too_long_for_its_tables_is_said(
        self, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        index = open_pg(pg_url, SETTINGS, write=True)
        chance = random.Random(1)
        odd = "".join(chance.choices(string.ascii_letters, k=4_000))
        with pytest.raises(IndexWriteFailed, match="the path of a document may take about 2,700"):
            index.replace([embedded("/" + odd, ["x"])])
        index.replace([embedded("/" + 4_000 * "a", ["x"]), embedded("/" + odd[:2_600], ["x"])])
        assert len(index.sources()) == 2

    def test_vectors_that_are_no_numbers_are_refused(
        self, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        index = open_pg(pg_url, SETTINGS, write=True)
        document = embedded("/a", ["x", "y"])
        document.vectors[1, 3] = np.nan
        with pytest.raises(ValueError, match="'/a' has a vector with an infinite number, or none"):
            index.replace([embedded("/b", ["x"]), document])
        assert index.counts() == Counts(0, 0)

    def test_a_chunk_longer_than_what_words_are_taken_from(
        self, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        index = open_pg(pg_url, SETTINGS, write=True)
        long = "apple " + " ".join(f"word{n:07}" for n in range(200_000))
        index.replace([embedded("/a", [long])])
        assert index.search("apple", None, 1, "text")[0].text == long

    def test_texts_that_are_hard_to_cut_into_words(
        self, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        """PostgreSQL refuses a tsvector of more than a megabyte, and leaves out words of more than two kilobytes."""
        chance = random.Random(2)

        def word(length: int, first: int = ord("a"), letters: int = 26) -> str:
            return "".join(chr(first + chance.randrange(letters)) for _ in range(length))

        texts = [
            "apple " + word(3_000),
            "apple " + word(90_000) + " pie",
            # A compound counts as a whole and again in its parts; four bytes a letter.
            "apple " + " ".join(f"{word(400, 0x10428, 40)}-{word(400, 0x10428, 40)}" for _ in range(125)),
            "apple " + " ".join(f"{word(3, 0x10428, 40)}-{word(3, 0x10428, 40)}" for _ in range(12_000)),
            "apple " + " ".join(f"http://{word(20)}.com/{word(30)}" for _ in range(1_600)),
            "apple " + " ".join("/" + "/".join(word(3) for _ in range(500)) for _ in range(50)),
            "apple " + "".join(map(chr, chance.choices(range(1, 0xD800), k=90_000))),
        ]  # fmt: skip
        index = open_pg(pg_url, SETTINGS, write=True, fewest=1)
        index.replace([embedded(f"/{n}", [text]) for n, text in enumerate(texts)])
        index.optimize()
        hits = index.search("apple", None, 100, "text")
        assert {hit.source: hit.text for hit in hits} == {
            f"/{n}": text for n, text in enumerate(texts)
        }

    def test_an_index_that_is_made_anew_is_noticed(
        self, postgres: Server, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        open_pg(pg_url, SETTINGS, write=True).replace([embedded("/a", ["apple"])])
        reader = open_pg(pg_url)
        assert reader.search("apple", unit(0))
        query(postgres, f"DROP SCHEMA {name_of(pg_url)} CASCADE")
        with pytest.raises(IndexMissing, match="its tables are gone"):
            reader.search("apple", unit(0))
        open_pg(pg_url, SETTINGS, write=True).replace([embedded("/a", ["apple"])])
        with pytest.raises(IndexMismatch, match="was built anew"):
            reader.search("apple", unit(0))

    def test_a_writer_leaves_an_index_alone_that_was_made_anew(
        self, postgres: Server, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        """Vectors of its embedder would lie among those of another one."""
        writer = open_pg(pg_url, SETTINGS, write=True)
        writer.replace([embedded("/a", ["apple"])])
        query(postgres, f"DROP SCHEMA {name_of(pg_url)} CASCADE")
        other = IndexSettings("another embedder", DIMENSIONS, "a chunker")
        index = open_pg(pg_url, other, write=True)
        index.replace([embedded("/b", ["apple"])])
        with pytest.raises(IndexMismatch, match="was built anew since it was opened here"):
            writer.replace([embedded("/a", ["apple"])])
        assert index.sources() == {"/b"}

    def test_whoever_may_only_read_can_search(
        self, postgres: Server, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        with open_pg(pg_url, SETTINGS, write=True, fewest=1) as writer:
            writer.replace([embedded("/a", ["apple"])])
            writer.remember_embedder("static")
        name = name_of(pg_url)
        query(postgres, "CREATE ROLE reader LOGIN")
        try:
            url = pg_url.replace("postgres@", "reader@")
            with pytest.raises(SearchFailed, match=r"its user lacks a right .*; grant it"):
                open_pg(url)
            query(postgres, f"GRANT USAGE ON SCHEMA {name} TO reader")
            query(postgres, f"GRANT SELECT ON ALL TABLES IN SCHEMA {name} TO reader")
            reader = open_pg(url)
            for mode in ("vector", "text", "hybrid"):
                assert [hit.source for hit in reader.search("apple", unit(0), 3, mode)] == ["/a"]
            assert (reader.recall_embedder(), reader.counts()) == ("static", Counts(1, 1))
            with pytest.raises(IndexWriteFailed, match="its user lacks a right"):
                open_pg(url, write=True).replace([embedded("/b", ["x"])])
        finally:
            query(postgres, "DROP OWNED BY reader")
            query(postgres, "DROP ROLE reader")

    def test_someone_who_writes_is_seen(
        self, pg_url: str, open_pg: Callable[..., PgvectorIndex], until: Callable[..., bool]
    ) -> None:
        writer, reader = open_pg(pg_url, SETTINGS, write=True), open_pg(pg_url)
        assert reader.is_being_written()
        writer.close()
        assert until(lambda: not reader.is_being_written())


class TestStructures:
    CLUSTERS = 40
    #: So few rows are otherwise looked at one by one.
    BY_STRUCTURE = "&options=-cenable_seqscan%3Doff"

    @pytest.fixture
    def vectors(self) -> np.ndarray:
        """2,000 vectors in clusters, as those of real texts lie."""
        chance = np.random.default_rng(7)
        centres = chance.standard_normal((self.CLUSTERS, 32)).astype(np.float32)
        made = centres[chance.integers(0, self.CLUSTERS, 2_000)]
        made = made + 0.6 * chance.standard_normal(made.shape).astype(np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    def fill(self, index: PgvectorIndex, vectors: np.ndarray) -> None:
        from dataclasses import replace

        documents = []
        for n in range(0, len(vectors), 10):
            texts = [f"chunk number{n + m}" for m in range(10)]
            document = embedded(f"/{n}", texts, dimensions=32)
            documents.append(replace(document, vectors=vectors[n : n + 10]))
        index.replace(documents)

    def structures(self, postgres: Server, url: str) -> dict[str, bool]:
        rows = query(
            postgres,
            "SELECT c.relname::text, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname ~ '^chunks_(words|vector)'",
            name_of(url),
        )
        return dict(rows)

    def uses(self, postgres: Server, url: str) -> int:
        """How many scans of the vectors' structure the server has counted so far."""
        (row,) = query(
            postgres,
            "SELECT idx_scan FROM pg_stat_all_indexes WHERE indexrelname = 'chunks_vector' AND schemaname = %s",
            name_of(url),
        )
        return int(row[0])

    def test_they_are_built_when_a_writer_of_enough_closes(
        self,
        postgres: Server,
        pg_url: str,
        open_pg: Callable[..., PgvectorIndex],
        vectors: np.ndarray,
    ) -> None:
        settings = IndexSettings("e", 32, "c")
        index = open_pg(pg_url, settings, write=True, fewest=2_001)
        self.fill(index, vectors)
        index.close()
        assert self.structures(postgres, pg_url) == {}
        open_pg(pg_url, settings, write=True, fewest=2_000).close()
        assert self.structures(postgres, pg_url) == {"chunks_words": True, "chunks_vector": True}
        definition = query(
            postgres, "SELECT indexdef FROM pg_indexes WHERE indexname = 'chunks_vector' AND schemaname = %s",
            name_of(pg_url),
        )[0][0]  # fmt: skip
        assert "USING hnsw (vector vector_ip_ops)" in definition

    def test_what_they_find_is_what_looking_at_every_row_finds(
        self,
        postgres: Server,
        pg_url: str,
        open_pg: Callable[..., PgvectorIndex],
        until: Callable[..., bool],
        vectors: np.ndarray,
    ) -> None:
        index = open_pg(pg_url, IndexSettings("e", 32, "c"), write=True, fewest=1_000)
        self.fill(index, vectors)
        queries = vectors[::20] + 0.1 * unit(3, 32)
        exact = [{hit.text for hit in index.search("", query, 10, "vector")} for query in queries]
        index.optimize()
        reader = open_pg(pg_url + self.BY_STRUCTURE)
        found = [{hit.text for hit in reader.search("", query, 10, "vector")} for query in queries]
        recall = sum(len(a & b) for a, b in zip(exact, found, strict=True)) / (10 * len(queries))
        assert recall > 0.95
        # Half of what lies nearest is deleted; what is found instead is as many.
        near = {hit.source for hit in reader.search("", queries[0], 200, "vector")}
        assert len(near) > 10
        index.remove(near)
        assert len(reader.search("", queries[0], 100, "vector")) == 100
        assert not {hit.source for hit in reader.search("", queries[0], 100, "vector")} & near
        # What comes after they were built is found as well, more of it than HNSW keeps candidates, too.
        self.fill(index, vectors)
        assert len(reader.search("number1999", queries[0], 300)) == 300
        assert reader.search("number1999", None, 3, "text")[0].text == "chunk number1999"
        reader.close()
        assert until(lambda: self.uses(postgres, pg_url) > len(queries))

    def test_one_that_was_left_half_built_is_built_again(
        self, postgres: Server, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        index = open_pg(pg_url, SETTINGS, write=True, fewest=1)
        index.replace([embedded(f"/{n}", ["apple"], n) for n in range(20)])
        index.optimize()
        query(
            postgres,
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(%s)",
            f"{name_of(pg_url)}.chunks_vector",
        )
        assert self.structures(postgres, pg_url)["chunks_vector"] is False
        index.close()
        assert self.structures(postgres, pg_url) == {"chunks_words": True, "chunks_vector": True}

    def test_vectors_that_are_too_long_for_hnsw_are_searched_one_by_one(
        self, postgres: Server, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        index = open_pg(pg_url, IndexSettings("e", 5_000, "c"), write=True, fewest=1)
        index.replace([embedded(f"/{n}", ["apple"], n, 5_000) for n in range(5)])
        index.close()
        assert self.structures(postgres, pg_url) == {"chunks_words": True}
        assert open_pg(pg_url).search("", unit(3, 5_000), 1, "vector")[0].source == "/3"

    @pytest.mark.parametrize("dimensions", [2_000, 2_001, 4_000])
    def test_long_vectors_are_found_by_a_structure_and_ranked_as_they_are(
        self,
        postgres: Server,
        pg_url: str,
        open_pg: Callable[..., PgvectorIndex],
        until: Callable[..., bool],
        dimensions: int,
    ) -> None:
        index = open_pg(pg_url, IndexSettings("e", dimensions, "c"), write=True, fewest=1)
        index.replace([embedded(f"/{n}", ["apple"], n, dimensions) for n in range(60)])
        query_vector = 2 * unit(3, dimensions) + unit(4, dimensions)
        exact = index.search("", query_vector, 60, "vector")
        scores = [float(unit(int(hit.source[1:]), dimensions) @ query_vector) for hit in exact]
        assert len(exact) == 60
        assert [hit.score for hit in exact] == pytest.approx(scores, abs=1e-5)
        assert scores == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
        index.close()
        assert self.structures(postgres, pg_url) == {"chunks_words": True, "chunks_vector": True}
        reader = open_pg(pg_url + self.BY_STRUCTURE)
        for mode in ("vector", "hybrid"):
            hits = reader.search("", query_vector, 5, mode)
            assert [hit.source for hit in hits[:2]] == [hit.source for hit in exact[:2]]
            assert len(hits) == 5
        reader.close()
        assert until(lambda: self.uses(postgres, pg_url) > 0)

    def test_someone_else_who_builds_is_not_waited_for(
        self, postgres: Server, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        index = open_pg(pg_url, SETTINGS, write=True, fewest=1)
        index.replace([embedded("/a", ["apple"])])
        with postgres.connect() as other:
            other.execute(
                "SELECT pg_advisory_lock(hashtext('tournant build'), hashtext(%s))",
                [name_of(pg_url)],
            )
            index.optimize()
            assert self.structures(postgres, pg_url) == {}
        index.close()
        assert len(self.structures(postgres, pg_url)) == 2


class TestRanking:
    def test_a_rare_word_weighs_more_than_a_common_one(
        self, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        index = open_pg(pg_url, SETTINGS, write=True, fewest=1)
        common = [embedded(f"/{n}", ["kitchen kitchen kitchen"], n) for n in range(300)]
        index.replace([*common, embedded("/rare", ["one zebrafish in a long text of other words"])])
        index.optimize()
        assert index.search("kitchen zebrafish", None, 3, "text")[0].source == "/rare"

    def test_words_are_stemmed_as_the_language_has_it(
        self, new_index_url: Callable[[], str], open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        def found(language: str, text: str, words: str) -> bool:
            url = new_index_url() + (f"&language={language}" if language else "")
            index = open_pg(url, SETTINGS, write=True)
            index.replace([embedded("/a", [text])])
            return bool(index.search(words, None, 3, "text"))

        assert found("", "numbered invoices", "invoice numbering")
        assert not found("simple", "numbered invoices", "invoice numbering")
        assert found("simple", "numbered invoices", "INVOICES")
        assert found("german", "die Rechnungen", "Rechnung")

    def test_another_language_than_it_was_built_with_is_refused(
        self, pg_url: str, open_pg: Callable[..., PgvectorIndex]
    ) -> None:
        open_pg(pg_url + "&language=german", SETTINGS, write=True).close()
        assert open_pg(pg_url).counts() == Counts(0, 0)
        with pytest.raises(IndexDamaged, match="was built with language=german, not english"):
            open_pg(pg_url + "&language=english")

    def test_of_words_that_are_everywhere_some_are_ranked(
        self, pg_url: str, open_pg: Callable[..., PgvectorIndex], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tournant.ingest.indexes.pgvector import searching

        index = open_pg(pg_url, SETTINGS, write=True, fewest=1)
        index.replace([embedded(f"/{n}", [f"red apple pie{n % 7}"], n) for n in range(200)])
        index.replace([embedded("/both", ["zebrafish apple"]), embedded("/one", ["zebrafish"])])
        index.optimize()
        monkeypatch.setattr(searching, "_RANKED", 20)
        assert len(index.search("apple", None, 30, "text")) == 30
        assert len(index.search("red apple", None, 15, "text")) == 15
        hits = index.search("zebrafish apple red", None, 5, "text")
        assert {hit.source for hit in hits[:2]} == {"/both", "/one"}
        assert len(hits) == 5
        places = [(hit.source, hit.ordinal) for hit in hits]
        assert len(set(places)) == len(places)
