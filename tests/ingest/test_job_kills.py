"""``kill -9`` and signals, on real processes."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import job_samples as samples
import psutil
import pytest

from tournant.ingest import job
from tournant.ingest.indexes.catalog import table_state

DOCUMENTS = 240
#: So that most documents have not been begun yet when the kill or the signal comes.
LITTLE_MEMORY = ("--memory-limit", "64KiB")


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills") / "docs"
    samples.make_corpus(folder, DOCUMENTS)
    return folder


@pytest.fixture(scope="module")
def undisturbed(docs: Path) -> Path:
    index = docs.parent / "undisturbed"
    samples.ingest(docs, index)
    return index


@pytest.fixture
def start(docs: Path, tmp_path: Path) -> Callable[..., samples.Program]:
    """Starts the command line on the corpus; every program has its own notes."""
    numbers = iter(range(1_000))

    def started(*options: str, folder: Path = docs, weight: int = 40) -> samples.Program:
        argv = ("ingest", str(folder), "--index", str(tmp_path / "index"), "--json", *options)
        return samples.Program(tmp_path / f"notes{next(numbers)}", *argv, weight=weight)

    return started


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


def finished(program: samples.Program, code: int = 0) -> dict[str, object]:
    with program:
        ended, out, err = program.end()
        assert ended == code, err
        return json.loads(out)


@pytest.mark.slow
def test_kill_9_at_ten_moments_loses_doubles_and_repeats_nothing(
    start: Callable[..., samples.Program], index: Path, docs: Path, undisturbed: Path
) -> None:
    expected, _ = samples.rows_of(undisturbed, docs)
    chance = random.Random(20_261_124)
    targets = sorted(chance.sample(range(5, DOCUMENTS - 5), 6))

    def recorded(documents: int) -> Callable[[], bool]:
        return lambda: len(samples.done_in(index)) >= documents

    def committed(more: int) -> Callable[[], bool]:
        # Between a commit of the index and its record in the ledger lie milliseconds: with luck, in there.
        before = len(table_state(str(index)))
        return lambda: len(table_state(str(index))) >= before + more

    moments: list[Callable[[], Callable[[], bool]]] = [
        lambda: (index / "index.json").exists,
        lambda: (index / "ledger.db").exists,
        lambda: (index / "chunks.lance").exists,
        *[lambda target=target: recorded(target) for target in targets[:3]],
        lambda: committed(chance.randint(1, 4)),
        *[lambda target=target: recorded(target) for target in targets[3:]],
    ]
    assert len(moments) == 10
    killed = 0
    for moment in moments:
        # What is in the index, recorded or not, is not embedded again.
        there = {os.path.basename(source) for source in samples.rows_of(index, docs)[0]}
        with start("--quiet", *LITTLE_MEMORY) as program:
            if program.reached(moment()):
                program.kill()
                killed += 1
            again = {name for name, fresh in program.embedded() if fresh and name in there}
            assert not again
        samples.assert_whole(index, docs, expected)
    assert killed == 10
    there = {os.path.basename(source) for source in samples.rows_of(index, docs)[0]}
    done = len(samples.done_in(index))
    assert 0 < done <= DOCUMENTS
    program = start("--quiet")
    outcome = finished(program)
    assert outcome["unchanged"] == done
    assert outcome["documents"] == DOCUMENTS - done
    assert not {name for name, fresh in program.embedded() if fresh and name in there}
    samples.assert_same(index, docs, undisturbed, docs)
    assert samples.ingest(docs, index).report.skipped == DOCUMENTS


@pytest.mark.slow
def test_kill_9_while_an_index_is_brought_up_to_date(
    start: Callable[..., samples.Program], index: Path, tmp_path: Path
) -> None:
    changing, fresh = tmp_path / "docs", tmp_path / "fresh"
    samples.make_corpus(changing, 60)
    samples.ingest(changing, index)
    for number in range(0, 60, 3):
        file = changing / f"part{number % 4}/doc{number:04}.txt"
        file.write_text(file.read_text() + "\n\n" + samples.prose(1_000 + number, 2))
    for file in (changing / "part1").glob("*.md"):
        file.unlink()
    old, _ = samples.rows_of(index, changing)
    samples.ingest(changing, fresh)
    new, _ = samples.rows_of(fresh, changing)
    for _ in range(2):
        before = len(table_state(str(index)))
        with start("--quiet", folder=changing, weight=10) as program:
            if program.reached(lambda before=before: len(table_state(str(index))) > before):
                program.kill()
        # Each document is as it was or as it is now, never a mixture, and never missing.
        for source, rows in samples.rows_of(index, changing)[0].items():
            assert rows in (old.get(source), new.get(source))
        assert set(new) <= set(samples.rows_of(index, changing)[0])
    assert samples.ingest(changing, index).rejected == ()
    samples.assert_same(index, changing, fresh, changing)


def test_a_worker_that_is_killed_loses_nothing(
    start: Callable[..., samples.Program], index: Path, docs: Path, undisturbed: Path
) -> None:
    with start("--quiet") as program:
        assert program.reached(lambda: len(samples.done_in(index)) >= 20)
        program.workers()[0].kill()
        outcome = finished(program)
    assert (outcome["documents"], outcome["rejected"]) == (DOCUMENTS, [])
    samples.assert_same(index, docs, undisturbed, docs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_drains_and_the_ledger_is_true(
    start: Callable[..., samples.Program],
    index: Path,
    docs: Path,
    undisturbed: Path,
    number: signal.Signals,
) -> None:
    with start("--quiet", *LITTLE_MEMORY) as program:
        assert program.reached(lambda: len(samples.done_in(index)) >= 20)
        workers = program.workers()
        program.signal(number)
        code, out, err = program.end()
    assert code == 130
    assert err.startswith("Stopping: what is in flight is being finished")
    outcome = json.loads(out)
    assert (outcome["interrupted"], outcome["rejected"], outcome["removed"]) == (True, [], 0)
    assert psutil.wait_procs(workers, timeout=samples.PATIENCE)[1] == []
    whole = samples.assert_whole(index, docs, samples.rows_of(undisturbed, docs)[0])
    # Drained: nothing was dropped, so the ledger knows of everything in the index, and no run is open.
    assert {os.path.relpath(source, docs) for source in samples.done_in(index)} == whole
    assert outcome["documents"] == len(whole) < DOCUMENTS
    status = job.status(str(index))
    assert status.last_run is not None
    assert (status.last_run.ended is None, status.busy) == (False, False)
    assert samples.ingest(docs, index).report.skipped == len(whole)
    samples.assert_same(index, docs, undisturbed, docs)


def test_a_second_ctrl_c_ends_at_once_what_would_never_end(
    start: Callable[..., samples.Program], index: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "docs"
    samples.make_corpus(folder, 20)
    (folder / "stuck.txt").write_text("This one never comes out of its stage.")
    with start("--quiet", folder=folder) as program:
        # The other documents have been committed, so a drain waits for this one alone.
        assert program.reached(lambda: ["stuck.txt", 1] in map(list, program.embedded()))
        workers = program.workers()
        program.signal(signal.SIGINT)
        assert program.process.stderr is not None
        assert program.process.stderr.readline().startswith("Stopping")
        program.signal(signal.SIGINT)
        code, _, err = program.end()
        assert (code, err.splitlines()[0].split(":")[0]) == (130, "Cancelling")
        assert psutil.wait_procs(workers, timeout=samples.PATIENCE)[1] == []
    done = samples.done_in(index)
    report = samples.ingest(folder, index).report
    assert (report.done, report.skipped) == (21 - len(done), len(done))
    samples.ingest(folder, tmp_path / "fresh")
    samples.assert_same(index, folder, tmp_path / "fresh", folder)


@pytest.mark.parametrize("sign", ["index", "index/index.json", "index/ledger.db"])
def test_a_signal_while_it_starts_is_an_interruption(
    start: Callable[..., samples.Program], tmp_path: Path, sign: str
) -> None:
    with start("--quiet") as program:
        assert program.reached((tmp_path / sign).exists)
        program.signal(signal.SIGINT)
        code, _, err = program.end()
    assert code == 130
    assert "Traceback" not in err
