"""Full disks, crashing workers and a second ingest, on real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import job_samples as samples
import pytest

from tournant.ingest import job
from tournant.ingest.errors import IndexBusy, IndexTrouble, IndexWriteFailed
from tournant.ingest.indexes.lance import LanceIndex

DOCUMENTS = 60


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    samples.make_corpus(folder, DOCUMENTS)
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


def assert_as_from_scratch(index: Path, docs: Path) -> None:
    samples.ingest(docs, index.parent / "fresh")
    samples.assert_same(index, docs, index.parent / "fresh", docs)


# Worker processes that crash


def test_a_document_that_crashes_its_worker_fails_alone(
    docs: Path, index: Path, tmp_path: Path
) -> None:
    poison = docs / "part2/poison.txt"
    poison.write_text("Whoever embeds this dies.")
    argv = ("ingest", str(docs), "--index", str(index), "--json", "--quiet")
    # The first run embeds document by document, the second in batches.
    for number, (done, unchanged) in enumerate([(DOCUMENTS, 0), (1, DOCUMENTS)]):
        with samples.Program(tmp_path / f"notes{number}", *argv) as program:
            code, out, err = program.end()
        assert code == 3
        assert "Traceback" not in err
        outcome = json.loads(out)
        assert (outcome["documents"], outcome["unchanged"]) == (done, unchanged)
        ((source, reason),) = [tuple(each.values()) for each in outcome["rejected"]]
        assert source == str(poison)
        assert reason.startswith("WorkerDied: ")
        assert job.status(str(index)).failures == ((source, reason),)
        (docs / "part2/new.txt").write_text("Rides along in the second run.")
    poison.unlink()
    assert samples.ingest(docs, index).rejected == ()
    assert job.status(str(index)).failures == ()
    assert_as_from_scratch(index, docs)


# Disks that are full

#: The command line under a limit on the size of files, which the kernel enforces as it does a full disk.
LIMITED = """
import resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from tournant.cli import main
sys.exit(main(sys.argv[2:]))
"""


def limited(limit: int, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=samples.PATIENCE,
    )


# What is refused first differs: index.json, the ledger, the table's data.
@pytest.mark.parametrize("limit", [10, 1_000, 200_000])
def test_where_files_may_not_grow_it_says_so_and_a_rerun_completes(
    docs: Path, index: Path, limit: int
) -> None:
    argv = ("ingest", str(docs), "--index", str(index), "--quiet")
    ended = limited(limit, *argv)
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("tournant: ")
    assert str(index) in line
    assert "run again" in line or "large" in line
    assert samples.done_in(index) <= set(samples.rows_of(index, "/")[0])
    assert samples.ingest(docs, index).rejected == ()
    assert job.status(str(index)).failures == ()
    assert_as_from_scratch(index, docs)


#: Mounts a small disk, fills it, makes it larger, goes on. The namespace, and the mount with it, ends with the shell.
FULL_DISK = """
mount -t tmpfs -o size="$5" tmpfs "$1" || exit 99
"$3" -m tournant ingest "$2" --index "$1/index" --quiet
echo "full: $?"
mount -o remount,size=200m "$1"
"$3" -m tournant ingest "$2" --index "$1/index" --quiet
echo "roomy: $?"
cp -r "$1/index" "$4"
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
@pytest.mark.parametrize("size", ["120k", "400k"])
def test_a_full_disk_is_said_and_a_rerun_completes(
    docs: Path, index: Path, tmp_path: Path, size: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    ended = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, "sh",
         str(disk), str(docs), sys.executable, str(index), size],
        capture_output=True, text=True, check=False, timeout=samples.PATIENCE,
    )  # fmt: skip
    if ended.returncode == 99 or "unshare:" in ended.stderr:
        pytest.skip("mounting is not permitted")
    assert ended.stdout.split() == ["full:", "1", "roomy:", "0"], ended.stderr
    assert "free some space and run again" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert_as_from_scratch(index, docs)


#: The command line without the two capabilities by which root may write anywhere.
UNPRIVILEGED = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, "-m", "tournant", *sys.argv[1:]])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="capabilities are Linux's")
@pytest.mark.parametrize("closed", ["", "chunks.lance/_versions"])
def test_an_index_that_may_not_be_written_is_said(docs: Path, index: Path, closed: str) -> None:
    samples.ingest(docs, index)
    (docs / "new.txt").write_text("New.")
    (index / closed).chmod(0o500)
    argv = [sys.executable, "-c", UNPRIVILEGED, "ingest", str(docs), "--index", str(index)]
    ended = subprocess.run(
        [*argv, "--quiet"], capture_output=True, text=True, check=False, timeout=samples.PATIENCE
    )
    (index / closed).chmod(0o700)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("tournant: ")
    assert "permission denied" in line.lower() or "give this user leave to write" in line
    assert samples.ingest(docs, index).report.done == 1


def test_a_store_that_fails_under_the_run_ends_it(
    docs: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as so many documents that were skipped: nothing is wrong with them."""
    samples.ingest(docs, index)
    (docs / "part0/doc0000.txt").write_text("Changed.")

    def refuses(*_: object) -> None:
        raise RuntimeError("lance error: the moon is in the wrong quarter")

    with monkeypatch.context() as patch, pytest.raises(IndexTrouble, match="the moon"):
        patch.setattr(LanceIndex, "vectors_of", refuses)
        samples.ingest(docs, index)

    def full(*_: object) -> None:
        raise IndexWriteFailed(str(index), "the disk is full")

    with monkeypatch.context() as patch, pytest.raises(IndexWriteFailed, match="disk is full"):
        patch.setattr(LanceIndex, "replace", full)
        samples.ingest(docs, index)
    assert samples.ingest(docs, index).report.done == 1
    assert_as_from_scratch(index, docs)


# Two at once


def test_while_one_ingest_writes_others_read_and_a_second_is_refused(
    tmp_path: Path, index: Path
) -> None:
    docs = tmp_path / "docs"
    samples.make_corpus(docs, 20)
    (docs / "part3").rename(docs / "zz")
    (docs / "zz/stuck.txt").write_text("This one keeps the run going.")
    argv = ("ingest", str(docs), "--index", str(index))
    with samples.Program(tmp_path / "notes", *argv, "--json", "--quiet") as program:

        def searchable() -> bool:
            return len(samples.done_in(index)) >= 10

        assert program.reached(searchable)
        with pytest.raises(IndexBusy, match=f"written by process {program.process.pid} on "):
            samples.ingest(docs, index)
        other = subprocess.run(
            [sys.executable, "-m", "tournant", *argv],
            capture_output=True,
            text=True,
            check=False,
            timeout=samples.PATIENCE,
        )
        assert (other.returncode, other.stdout) == (1, "")
        assert f"is being written by process {program.process.pid} on" in other.stderr
        assert "Traceback" not in other.stderr
        status = job.status(str(index))
        assert status.busy
        assert status.last_run is not None
        assert status.last_run.ended is None
        assert status.documents >= 10
        for mode in ("hybrid", "vector", "text"):
            assert job.search(str(index), "kitchen brigade", mode=mode)
        (program.notes / "go").touch()
        code, out, err = program.end()
    assert code == 0, err
    assert json.loads(out)["documents"] == 21
    assert not job.status(str(index)).busy
    assert_as_from_scratch(index, docs)
