from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from typing import Any

import pytest

from tournant.cli import main
from tournant.cli.search import passage
from tournant.errors import LedgerError
from tournant.ingest.indexes.base import Hit
from tournant.ledger import RunRecord
from tournant.report import Report

INGEST = ["ingest", "docs", "--index", "i"]


def hit(source: str, text: str, score: float = 0.5, title: str = "") -> Hit:
    return Hit(source, 3, 10, 20, text, score, title, "text/plain")


# ingest


def test_options_reach_the_job_and_the_others_are_left_to_it(job: Any) -> None:
    assert main([*INGEST, "--quiet"]) == 0
    assert job.options == type(job.options)(paths=("docs",), index="i")
    argv = "--chunk-size 500 --chunk-overlap 50 --include *.md --include *.txt --exclude .git"
    argv += " --max-file-size 10MB --memory-limit 1GiB --embedder onnx:model --quiet"
    assert main(["ingest", "a", "b\udce9", "--index", "i", *argv.split()]) == 0
    assert vars(job.options) == {
        "paths": ("a", "b\udce9"),
        "index": "i",
        "embedder": "onnx:model",
        "chunk_size": 500,
        "chunk_overlap": 50,
        "include": ("*.md", "*.txt"),
        "exclude": (".git",),
        "max_file_size": 10_000_000,
        "memory_limit": 2**30,
        "cache": None,
    }


def test_a_cache_is_the_one_that_is_named_or_the_users(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    job.outcome = type(job.outcome)(cached=15, warnings=("the cache is cold",))
    for argv, cache in (([], None), (["--cache"], "the default"), (["--cache=c"], "c"), (["--cache", "c"], "c"), (["--cache", ""], "")):  # fmt: skip
        assert main([*INGEST, *argv]) == 0
        assert job.options.cache == cache
        said = capsys.readouterr()
        assert ("40 chunks (15 from the cache)" in said.out) == (cache is not None)
        assert "warning: the cache is cold\n" in said.err


def test_the_outcome_goes_to_standard_output_and_the_progress_to_standard_error(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(INGEST) == 0
    said = capsys.readouterr()
    assert said.out == "2 documents in 1.2 s, 40 chunks, 1 unchanged, 1 removed.\n"
    assert "3 of 3 documents (100%)" in said.err


def test_skipped_files_are_listed_with_their_reason_and_the_code_is_3(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rejected = [("bad\n.pdf", "encrypted")] + [(f"{number}.bin", "no text") for number in range(24)]
    job.outcome = type(job.outcome)(rejected=tuple(rejected))
    assert main([*INGEST, "--quiet"]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[:2] == ["25 files skipped:", "  $'bad\\n.pdf': encrypted"]
    assert lines[-1] == "  and 5 more: see 'tournant status'"


def test_json_is_the_only_thing_on_standard_output(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    job.outcome = type(job.outcome)(rejected=(("caf\udce9", "gone"),))
    assert main([*INGEST, "--json"]) == 3
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        "chunks": 40,
        "rejected": [["caf\ufffd", "gone"]],
        "interrupted": False,
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_the_code_is_130(
    job: Any, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    job.during = lambda: os.kill(os.getpid(), number)
    assert main([*INGEST, "--quiet", "--json"]) == 130
    said = capsys.readouterr()
    assert job.handle.asked == ["drain"]
    assert json.loads(said.out)["interrupted"] is True
    assert said.err.startswith("Stopping: what is in flight is being finished")
    assert main(INGEST) == 130
    assert "stopped before the end; run it again to go on" in capsys.readouterr().out


def test_two_signals_cancel(job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    job.during = twice
    assert main([*INGEST, "--quiet"]) == 130
    assert job.handle.asked == ["drain", "cancel"]
    assert "Cancelling" in capsys.readouterr().err


def test_what_a_cancellation_raises_is_an_interruption_not_a_failure(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def cancelled() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise LedgerError("cut off")

    job.during = cancelled
    assert main([*INGEST, "--quiet"]) == 130
    said = capsys.readouterr().err
    assert "cut off" not in said
    assert said.endswith("Interrupted.\n")


def test_an_error_while_draining_is_a_failure(job: Any) -> None:
    def broken() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raise LedgerError("disk full")

    job.during = broken
    assert main([*INGEST, "--quiet"]) == 1


# search


def test_search_asks_the_index_and_shows_passages(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    job.hits = [
        hit("a.txt", "The  tournant\nis the swing cook.", 0.91234, "Brigade"),
        hit("b\n.txt", "Clear \x1b[2J the screen.", 0.5),
    ]
    assert main(["search", "swing", "cook", "--index", "i"]) == 0
    assert job.asked == ("i", "swing cook", 5, "hybrid")
    assert capsys.readouterr().out == (
        "1. a.txt  0.912  Brigade\n"
        "   The tournant is the swing cook.\n"
        "\n"
        "2. $'b\\n.txt'  0.500\n"
        "   Clear \ufffd[2J the screen.\n"
    )


def test_search_options_reach_the_index(job: Any) -> None:
    assert main(["search", "x", "--index", "i", "-k", "2", "--mode", "text"]) == 0
    assert job.asked == ("i", "x", 2, "text")


def test_search_as_json_is_complete(job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    job.hits = [hit("caf\udce9", "text\n", 0.25)]
    assert main(["search", "x", "y", "--index", "i", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "query": "x y",
        "mode": "hybrid",
        "hits": [
            {
                "source": "caf\ufffd",
                "source_base64": "Y2Fm6Q==",
                "score": 0.25,
                "title": "",
                "ordinal": 3,
                "start": 10,
                "end": 20,
                "text": "text\n",
            }
        ],
    }


def test_nothing_found_is_said_aside(job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "x", "--index", "i"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "Nothing found.\n")
    assert main(["search", "x", "--index", "i", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hits"] == []


def test_a_long_passage_is_shown_where_its_words_are() -> None:
    text = "filler " * 200 + "the Swing cook works here " + "more " * 200
    part = passage(text, "swing COOK", 240)
    assert part.startswith("... ")
    assert "the Swing cook works" in part[:120]
    assert passage("short text", "words", 240) == "short text"
    assert passage("filler " * 200, "absent", 240).startswith("filler")


def test_a_long_passage_fits_three_lines(job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    job.hits = [hit("a.txt", "word " * 500)]
    assert main(["search", "word", "--index", "i"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1].endswith("...")


# status


@dataclass
class Status:
    documents: int = 1_234
    chunks: int = 1
    bytes: int = 2_097_152
    embedder: str = "static-256"
    failures: tuple[tuple[str, str], ...] = ()
    last_run: RunRecord | None = None
    busy: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {"documents": self.documents, "failures": [list(pair) for pair in self.failures]}


def test_status_says_what_is_there(job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    job.found = Status()
    assert main(["status", "--index", "i"]) == 0
    assert job.asked == ("i",)
    assert capsys.readouterr().out == (
        "1,234 documents, 1 chunk, 2.0 MiB\nembedder: static-256\nlast run: none\n"
    )


@pytest.mark.parametrize(
    ("ended", "busy", "words"),
    [(1_030.5, False, "took 30.5 s"), (None, True, "going on"), (None, False, "did not end")],
)
def test_status_says_how_the_last_run_ended(
    job: Any, capsys: pytest.CaptureFixture[str], ended: float | None, busy: bool, words: str
) -> None:
    job.found = Status(last_run=RunRecord(1, 1_000.0, ended, "1", None), busy=busy)
    assert main(["status", "--index", "i"]) == 0
    assert words in capsys.readouterr().out


def test_status_lists_what_did_not_get_in(job: Any, capsys: pytest.CaptureFixture[str]) -> None:
    job.found = Status(failures=tuple((f"f\n{number}", "encrypted") for number in range(53)))
    assert main(["status", "--index", "i"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "53 files did not get in:" in lines
    assert "  $'f\\n0': encrypted" in lines
    assert lines[-1] == "  and 3 more: see --json"
    assert main(["status", "--index", "i", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["failures"]) == 53


def test_the_report_of_an_empty_run_reads_well(
    job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    job.outcome = type(job.outcome)(report=Report(), chunks=0, removed=0)
    assert main(INGEST) == 0
    assert capsys.readouterr().out == "0 documents in 0.0 s, 0 chunks.\n"
