"""Ingests into PostgreSQL, and searches in it, by the command line and by the server: as into a folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import job_samples as samples
import pytest

from tournant.errors import LedgerError
from tournant.ingest import job
from tournant.ingest.errors import IndexMismatch, IndexMissing
from tournant.ingest.indexes.locations import open_index
from tournant.ledger import Entry

if TYPE_CHECKING:
    from postgres_server import Server

pytest.importorskip("psycopg", reason="psycopg is not installed")
DOCUMENTS = 40


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    samples.make_corpus(folder, DOCUMENTS)
    return folder


def tournant(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tournant", *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=samples.PATIENCE,
        env={**os.environ, **environment},
    )


def test_an_ingest_is_as_one_into_a_folder(
    docs: Path, pg_url: str, as_from_scratch: Callable[[str, Path], None]
) -> None:
    (docs / "broken.pdf").write_bytes(b"%PDF-1.4 nothing more")
    (docs / os.fsdecode(b"caf\xe9.txt")).write_text("Whose name is no text.")
    outcome = samples.ingest(docs, pg_url)
    assert outcome.report.done == DOCUMENTS + 1
    assert [source for source, _ in outcome.rejected] == [str(docs / "broken.pdf")]
    as_from_scratch(pg_url, docs)
    status = job.status(pg_url)
    assert (status.documents, status.chunks) == (DOCUMENTS + 1, outcome.chunks)
    assert status.failures == outcome.rejected
    assert status.last_run is not None
    assert status.last_run.ended is not None
    assert status.bytes > 100_000
    assert not status.busy

    changed = docs / "part0/doc0000.txt"
    changed.write_text(changed.read_text() + "\n\nOne more paragraph about a zebrafish.")
    (docs / "part1/doc0001.md").unlink()
    (docs / "broken.pdf").unlink()
    outcome = samples.ingest(docs, pg_url)
    assert (outcome.report.done, outcome.report.skipped) == (1, DOCUMENTS - 1)
    assert (outcome.removed, outcome.rejected) == (1, ())
    assert 0 < outcome.reused < outcome.chunks
    as_from_scratch(pg_url, docs)
    assert job.status(pg_url).failures == ()

    for mode in ("hybrid", "vector", "text"):
        hits = job.search(pg_url, "paragraph about a zebrafish", limit=3, mode=mode)
        assert hits[0].source == str(changed)
    with pytest.raises(IndexMismatch, match="or ingest into another index"):
        samples.ingest(docs, pg_url, chunk_size=300)
    with pytest.raises(IndexMissing, match="there is no index here"):
        job.search(pg_url + "_not", "zebrafish")


def test_options_show_no_password() -> None:
    options = job.IngestOptions(("docs",), "postgresql://ann:s3cr3t@db/work")
    assert "s3cr3t" not in repr(options)
    assert options.index == "postgresql://ann:s3cr3t@db/work"
    from tournant.serve.settings import ServeSettings

    assert "s3cr3t" not in repr(ServeSettings(index="postgresql://ann:s3cr3t@db/work"))


def assert_secret(*texts: str) -> None:
    """The superuser's password, or a part of it, is in none of the texts."""
    for text in texts:
        assert "of the super" not in text
        assert "of%20the" not in text


def test_the_command_line(docs: Path, postgres: Server, pg_url: str, tmp_path: Path) -> None:
    name = pg_url.rpartition("index=")[2]
    url = postgres.tcp("postgres", "secret%20of%20the%20superuser", name)
    (tmp_path / "w").mkdir()
    written = {"XDG_CACHE_HOME": str(tmp_path / "w"), "XDG_STATE_HOME": str(tmp_path / "w")}
    for trace in ("run.html", "run.json"):
        ended = tournant(
            "ingest", str(docs), "--index", url, "--json", "--cache", "--trace", str(tmp_path / "w" / trace), **written
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert_secret(ended.stdout, ended.stderr)
        if trace == "run.html":
            assert json.loads(ended.stdout)["documents"] == DOCUMENTS
    files = [path for path in (tmp_path / "w").rglob("*") if path.is_file()]
    assert {"run.html", "run.json"} < {path.name for path in files}
    assert_secret(*(path.read_bytes().decode("latin-1") for path in files))
    ended = tournant("search", "kitchen", "brigade", "--index", url, "--json")
    assert len(json.loads(ended.stdout)["hits"]) == 5
    ended = tournant("status", "--index", url)
    assert ended.stdout.startswith(f"{DOCUMENTS} documents, ")
    # The password may come from the environment, as with all of PostgreSQL's own tools.
    bare = f"postgresql://postgres@127.0.0.1:{postgres.port}/postgres?index={name}"
    ended = tournant("status", "--index", bare, PGPASSWORD="secret of the superuser")
    assert ended.stdout.startswith(f"{DOCUMENTS} documents, ")
    for command in (("ingest", str(docs)), ("search", "x")):
        ended = tournant(*command, "--index", url.replace("secret", "another"))
        assert (ended.returncode, ended.stdout) == (1, "")
        (line,) = ended.stderr.splitlines()
        assert "the database refuses this user and password; mend the URL" in line
        assert "another" not in line
    ended = tournant(*command, "--index", url.replace("secret", "another"), "--traceback")
    assert "Traceback" in ended.stderr
    assert "another" not in ended.stderr


def test_without_psycopg_it_says_what_to_install(docs: Path, tmp_path: Path) -> None:
    (tmp_path / "psycopg.py").write_text("raise ModuleNotFoundError(name='psycopg')")
    for command in (("ingest", str(docs)), ("search", "x")):
        ended = tournant(*command, "--index", "postgresql://db/work", PYTHONPATH=str(tmp_path))
        assert ended.returncode == 1
        assert "pip install 'tournant[postgres]'" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_the_server_searches_and_takes_uploads(
    docs: Path, postgres: Server, pg_url: str, tmp_path: Path
) -> None:
    samples.ingest(docs, pg_url)
    name = pg_url.rpartition("index=")[2]
    url = postgres.tcp("postgres", "secret%20of%20the%20superuser", name)
    command = [sys.executable, "-m", "tournant", "serve", "--index", url, "--port", "0"]
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "data")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        try:
            match = re.search(r"http://[\d.:]+", server.stderr.readline())
            assert match is not None

            def get(path: str) -> str:
                with urllib.request.urlopen(match[0] + path, timeout=samples.PATIENCE) as answer:
                    return str(answer.read().decode())

            def post(path: str, body: bytes, kind: str) -> str:
                request = urllib.request.Request(match[0] + path, body, {"Content-Type": kind})
                with urllib.request.urlopen(request, timeout=samples.PATIENCE) as answer:
                    return str(answer.read().decode())

            def search(words: str) -> list[dict[str, Any]]:
                body = json.dumps({"query": words, "k": 3}).encode()
                return list(json.loads(post("/v1/search", body, "application/json"))["hits"])

            assert len(search("kitchen brigade")) == 3
            upload = (
                b'--b\r\nContent-Disposition: form-data; name="file"; filename="new.txt"\r\n\r\n'
                b"A zebrafish in the sink.\r\n--b--\r\n"
            )
            said = post("/v1/documents", upload, "multipart/form-data; boundary=b")
            assert '"failed":0' in said.replace(" ", ""), said
            assert os.path.basename(search("zebrafish sink")[0]["source"]) == "new.txt"
            assert list((tmp_path / "data" / "tournant").glob("uploads-*/new.txt"))
            postgres.restart()
            assert os.path.basename(search("zebrafish sink")[0]["source"]) == "new.txt"
            for path in ("/v1/stats", "/metrics", "/readyz", "/openapi.json", "/v1/models", "/"):
                assert_secret(get(path))
            with postgres.connect() as owner:
                owner.execute(f"ALTER SCHEMA {name} RENAME TO {name}_gone")  # type: ignore[arg-type]
            with pytest.raises(urllib.error.HTTPError) as refused:
                search("zebrafish sink")
            assert refused.value.code == 503
            assert_secret(refused.value.read().decode())
        finally:
            server.terminate()
            _, said = server.communicate(timeout=samples.PATIENCE)
            assert_secret(said)
    assert server.returncode == 0


class TestLedger:
    """The ledger in the database: true with several writers, which the one in a file need not be."""

    @pytest.fixture
    def sessions(self, pg_url: str) -> Any:
        from ingest_samples import DIMENSIONS

        from tournant.ingest.indexes.base import IndexSettings

        settings = IndexSettings("e", DIMENSIONS, "c")
        opened = [open_index(pg_url, settings, write=True) for _ in range(2)]
        yield [(index, index.ledger()) for index in opened]
        for index in opened:
            index.close()

    def test_what_another_has_overwritten_since_runs_again(self, sessions: Any) -> None:
        from ingest_samples import embedded

        (one, its), (other, others) = sessions
        one.replace([embedded("/a", ["old"])])
        other.replace([embedded("/a", ["new"])])
        others.record([Entry("/a", "f-new", "1", "done", 1)])
        assert its.pending(["/a"], ["f-new"], "1") == [False]
        # The slower one records what it wrote first, but what is there is what the other one wrote.
        its.record([Entry("/a", "f-old", "1", "done", 1)])
        assert its.pending(["/a"], ["f-old"], "1") == [True]
        others.record([Entry("/a", "f-new", "1", "done", 1)])
        assert others.pending(["/a"], ["f-new"], "1") == [False]
        one.replace([embedded("/a", ["newest"])])
        assert others.pending(["/a"], ["f-new"], "1") == [True]

    def test_what_is_gone_runs_again(self, sessions: Any) -> None:
        from ingest_samples import embedded

        (index, ledger), _ = sessions
        index.replace([embedded("/a", ["x"]), embedded("/empty", [])])
        ledger.record([Entry(f"/{n}", 1, "1", "done", 1) for n in ("a", "empty")])
        assert ledger.pending(["/a", "/empty", "/b"], [1, 1, 1], "1") == [False, False, True]
        index.remove(["/a"])
        assert ledger.pending(["/a", "/empty"], [1, 1], "1") == [True, False]

    def test_it_records_as_the_one_in_a_file_does(self, sessions: Any) -> None:
        (index, ledger), _ = sessions
        run = ledger.begin_run("1")
        with pytest.raises(LedgerError, match=f"in use by run {run}"):
            ledger.begin_run("1")
        odd = os.fsdecode(b"/caf\xe9")
        ledger.record(
            [
                Entry(odd, (1, "x", None), "1", "failed", 0, "read", "bad\0 thing \udce9", 2),
                Entry("/f", 1.5, "1", "filtered"),
                Entry("/f", 2.5, "1", "filtered"),
            ]
        )
        (failure,) = ledger.failures()
        assert (failure.key, failure.fingerprint, failure.stage) == (odd, (1, "x", None), "read")
        assert failure.attempts == 2
        assert len(list(ledger.entries())) == 2
        assert ledger.pending(["/f", "/f", odd], [2.5, 1.5, (1, "x", None)], "1") == [
            False,
            True,
            True,
        ]
        # It has changed, so even the way back runs again.
        assert ledger.pending(["/f"], [2.5], "1") == [True]
        assert ledger.counts() == (0, 1, 0, 1)
        assert list(ledger.keys()) == []
        assert ledger.forget([odd, "/nothing"]) == 1
        ledger.end_run(run, {"done": 3})
        last = ledger.last_run()
        assert (last.id, last.version, last.summary) == (run, "1", {"done": 3})
        assert last.ended >= last.started
        looking = index.ledger(lock=False)
        with looking, pytest.raises(LedgerError, match="opened to look at"):
            looking.forget(["/f"])

    def test_many_keys_come_page_by_page(self, sessions: Any) -> None:
        (_, ledger), _ = sessions
        ledger.record([Entry(f"/{n:05}", n, "1", "done", 1) for n in range(2_500)])
        assert list(ledger.keys()) == [f"/{n:05}" for n in range(2_500)]
