from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tournant.ingest.errors import UnreadableFile
from tournant.ingest.readers import opening
from tournant.ingest.readers.opening import HEAD_BYTES, load
from tournant.ingest.readers.registry import read


def refusal(path: object, **options: int) -> str:
    with pytest.raises(UnreadableFile) as caught:
        load(str(path), **options)
    assert caught.value.path == str(path)
    return caught.value.reason


@pytest.mark.parametrize("size", [0, 1, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 1, 5 << 20])
def test_files_are_read_whole(tmp_path: Path, size: int) -> None:
    data = (b"some words\n" * (size // 11 + 1))[:size]
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert load(str(path)) == data


def test_a_gigabyte_of_zeros_is_refused_by_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "zeros.txt"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    read_bytes = 0
    real = os.read

    def counting(fd: int, size: int) -> bytes:
        nonlocal read_bytes
        data = real(fd, size)
        read_bytes += len(data)
        return data

    monkeypatch.setattr(opening.os, "read", counting)
    assert refusal(path, max_bytes=2 << 30) == "its content is binary, not text"
    assert read_bytes == HEAD_BYTES


def test_a_large_file_is_refused_with_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"words " * 500_000)
    assert refusal(path, max_bytes=1 << 20) == (
        "it has 2.9 MiB, above the limit of 1.0 MiB; raise the limit or split the file"
    )
    assert "above the limit of 100 bytes" in refusal(path, max_bytes=100)
    assert len(load(str(path), max_bytes=3_000_000)) == 3_000_000


def test_fifos_sockets_devices_and_folders_are_refused_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refusal(tmp_path / "fifo") == "it is a FIFO, not a regular file"
    assert refusal(tmp_path) == "it is a folder, not a regular file"
    assert refusal("/dev/zero") == "it is a device, not a regular file"
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        assert refusal("socket") == "it is a socket, not a regular file"


def test_a_file_that_becomes_a_fifo_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x")
    before = os.stat(path)
    os.unlink(path)
    os.mkfifo(path)
    monkeypatch.setattr(opening.os, "stat", lambda *_, **__: before)
    assert refusal(path) == "it is a FIFO, not a regular file"


def test_missing_looping_and_forbidden_files_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(tmp_path / "missing") == "no such file or directory"
    assert "symbolic links" in refusal(tmp_path / "loop")
    assert "null" in refusal("nul\0")

    def forbidden(*_: object) -> int:  # root may read everything
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_bytes(b"x")
    monkeypatch.setattr(opening.os, "open", forbidden)
    assert refusal(tmp_path / "a.txt") == "permission denied"


def test_odd_names_and_invalid_bytes_are_read(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/new\nline \xe9.txt"
    with open(name, "wb") as file:
        file.write(b"caf\xe9 au lait, d\xe9j\xe0 vu")
    document = read(os.fsdecode(name))
    assert os.fsencode(document.source) == name
    assert document.text.startswith("caf")
