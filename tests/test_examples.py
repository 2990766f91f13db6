"""The examples run, offline and from anywhere, and print what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(
    name: str, *arguments: str, folder: Path, code: int = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def numbers(pattern: str, text: str) -> tuple[int, ...]:
    found = re.search(pattern, text)
    assert found, text
    return tuple(int(group.replace(",", "")) for group in found.groups())


def test_an_ordered_map_keeps_the_order_and_its_concurrency(tmp_path: Path) -> None:
    output = run("ordered_map.py", folder=tmp_path).stdout
    assert "300 answers, in order: True" in output
    most, refused = numbers(r"in flight: (\d+) of 50; refused once and asked again: (\d+)", output)
    assert 1 < most <= 50
    assert refused == 30


def test_cpu_work_runs_in_worker_processes(tmp_path: Path) -> None:
    output = run("cpu_in_processes.py", folder=tmp_path).stdout
    assert "longest way down: 374 steps from 142587" in output
    assert "same results, same order: True" in output
    assert "ran in the caller's process: False" in output


def test_the_pipeline_by_hand_indexes_the_documents_and_finds_a_passage(tmp_path: Path) -> None:
    output = run("read_chunk_embed_index.py", folder=tmp_path).stdout
    documents, passages = numbers(r"(\d+) documents, (\d+) passages", output)
    assert documents == len(list((EXAMPLES.parent / "docs").glob("*.md")))
    assert passages > documents
    assert re.search(r"-> \w+\.md: .*worker", output)


def test_leaving_a_stream_early_leaves_nothing_behind(tmp_path: Path) -> None:
    output = run("streaming_early_exit.py", folder=tmp_path).stdout
    assert "async: [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]" in output
    assert "sync: [2, 3, 5, 7, 11]" in output
    left, inputs, *outcomes = numbers(
        r"tasks left: (\d+); inputs: (\d+) = (\d+) done \+ (\d+) filtered \+ (\d+) interrupted",
        output,
    )
    assert left == 0
    assert inputs == sum(outcomes)


def test_a_killed_job_goes_on_where_it_was(tmp_path: Path) -> None:
    output = run("resumable_job.py", folder=tmp_path).stdout
    assert "first run: killed by signal 9 with 120 rows in the store" in output
    skipped, done = numbers(r"second run: 200 in, (\d+) skipped, (\d+) done", output)
    assert skipped + done == 200
    assert 0 < skipped <= 120
    assert "rows in the store: 200 of 200" in output
    assert "third run: 200 in, 200 skipped, 0 done" in output


@pytest.mark.slow
def test_the_demonstration_finds_its_answers_and_a_second_run_changes_nothing(
    tmp_path: Path,
) -> None:
    first = run("demo.py", "--index", "index", folder=tmp_path)
    documents, _ = numbers(r"([\d,]+) documents in .* s, ([\d,]+) chunks", first.stdout)
    assert documents > 100
    second = run("demo.py", "--index", "index", folder=tmp_path)
    again, unchanged = numbers(
        r"([\d,]+) documents in .* s, 0 chunks, ([\d,]+) unchanged", second.stdout
    )
    assert (again, unchanged) == (0, documents)
    for output in (first.stdout, second.stdout):
        assert output.count("$ tournant search") == 3
        assert "Every search found its file." in output


@pytest.mark.slow
def test_the_demonstration_fails_loudly_when_it_cannot_ingest(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("a file where the folder should be")
    done = run("demo.py", "--index", "index", folder=tmp_path, code=1)
    assert "demo: the ingest ended with exit code 1" in done.stderr
