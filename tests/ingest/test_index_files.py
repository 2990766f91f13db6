from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tournant.ingest.errors import IndexBusy, IndexTrouble
from tournant.ingest.indexes import files
from tournant.ingest.indexes.files import WriterLock, read_json, write_failed, write_json


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = str(tmp_path / "a.json")
    assert read_json(path) is None
    write_json(path, {"a": 1})
    write_json(path, {"a": "\ud800é"})
    assert read_json(path) == {"a": "\ud800é"}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "a.json")
    write_json(path, [1])

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, [2])
    assert json.loads(Path(path).read_text()) == [1]
    assert os.listdir(tmp_path) == ["a.json"]


def test_reasons_name_the_mend() -> None:
    assert "free some space" in str(write_failed("/i", OSError(errno.ENOSPC, "x")))
    assert "choose another" in str(write_failed("/i", OSError(errno.EACCES, "x")))
    assert "can't write: odd" in str(write_failed("/i", OSError(errno.EIO, "odd")))


def test_another_process_is_refused_by_name(tmp_path: Path) -> None:
    code = (
        "import sys; from tournant.ingest.indexes.files import WriterLock; "
        "lock = WriterLock(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(IndexBusy, match=f"process {holder.pid} on .*wait for it to end"):
            WriterLock(str(tmp_path))
        holder.communicate(b"")
    lock = WriterLock(str(tmp_path))
    lock.release()
    lock.release()


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with pytest.raises(IndexTrouble, match="offers no locks"):
        WriterLock(str(tmp_path))
