"""Uploads on their way to disk."""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path

import pytest
from data_samples import multipart
from hypothesis import given, settings
from hypothesis import strategies as st

from tournant.serve.errors import HTTPError
from tournant.serve.receiving import INCOMING, Received, Reception, clear_stale

TYPE = "multipart/form-data; boundary=XX"


def receive(
    folder: Path,
    body: bytes,
    *,
    piece: int = 1 << 20,
    max_bytes: int = 1 << 20,
    max_files: int = 10,
) -> list[Received]:
    reception = Reception(str(folder), TYPE, max_bytes, max_files)
    try:
        for start in range(0, len(body), piece):
            reception.feed(body[start : start + piece])
        reception.finish()
        return reception.commit()
    finally:
        reception.close()


def stored(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def bomb(unpacked: int = 1 << 30) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("word/document.xml", "w") as entry,
    ):
        for _ in range(unpacked >> 20):
            entry.write(bytes(1 << 20))
    return buffer.getvalue()


def test_files_are_stored_whatever_pieces_they_come_in(tmp_path: Path) -> None:
    body = multipart({"a.md": b"# A\r\n--X no boundary\r\n", "sub/b.txt": b"B" * 5_000})
    for piece in (1, 7, 100, 1 << 20):
        files = receive(tmp_path / str(piece), body, piece=piece)
        assert [(file.name, file.size, file.reason) for file in files] == [
            ("a.md", 22, None),
            ("sub/b.txt", 5_000, None),
        ]
        assert stored(tmp_path / str(piece)) == {
            "a.md": b"# A\r\n--X no boundary\r\n",
            "sub/b.txt": b"B" * 5_000,
        }
        assert oct(os.stat(files[0].path).st_mode & 0o777) == "0o644"


def test_a_file_of_the_same_name_replaces_the_earlier_one(tmp_path: Path) -> None:
    receive(tmp_path, multipart({"a.md": b"old"}))
    receive(tmp_path, multipart({"../a.md": b"new"}))
    assert stored(tmp_path) == {"a.md": b"new"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("...", b"x", "name"),
        ("a.exe", b"x", "kind '.exe' are not read; what is read: text"),
        ("noname", b"x", "without a suffix"),
        ("a.md", b"", "0 bytes"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0", "PNG image"),
        ("a.md", bytes(1000), "binary"),
        ("a.txt", b"PK\x03\x04" + bytes(100), "ZIP archive"),
        ("a.docx", b"PK\x03\x04" + bytes(100), "damaged"),
        ("bomb.docx", bomb(), "would unpack to 1,024 MiB"),
    ],
)
def test_what_is_not_taken_is_told_and_the_rest_is_stored(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    bad, good = receive(tmp_path, multipart({name: content, "good.md": b"good"}), max_bytes=4 << 20)
    assert bad.reason is not None
    assert re.search(reason, bad.reason)
    assert bad.path == ""
    assert good.reason is None
    assert stored(tmp_path) == {"good.md": b"good"}


def test_two_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    body = multipart([("a.md", b"first"), ("./a.md", b"second")])
    first, second = receive(tmp_path, body)
    assert first.reason is None
    assert "same name" in (second.reason or "")
    assert stored(tmp_path) == {"a.md": b"first"}


@pytest.mark.parametrize(
    ("body", "limits", "status"),
    [
        (multipart({"a.md": b"x" * 5_000}), {"max_bytes": 4_000}, 413),
        (multipart({f"{n}.md": b"x" for n in range(5)}), {"max_files": 4}, 413),
        (multipart({"new.md": b"x"})[:-6], {}, 400),  # no end
        (multipart({"new.md": b"x"}).replace(b"\r\n\r\n", b"\r\nbroken", 1), {}, 400),
        (b"--XX\r\nContent-Disposition: form-data; name=q\r\n\r\nvalue\r\n--XX--\r\n", {}, 400),
        (b"no multipart at all", {}, 400),
        (b"", {}, 400),
        (b"--XX\r\n" + b"A" * 20_000 + b": b\r\n\r\n", {}, 400),
    ],
)
def test_an_upload_that_is_refused_leaves_and_replaces_nothing(
    tmp_path: Path, body: bytes, limits: dict[str, int], status: int
) -> None:
    (tmp_path / "a.md").write_bytes(b"old")
    (tmp_path / "0.md").write_bytes(b"old")
    with pytest.raises(HTTPError) as raised:
        receive(tmp_path, body, piece=1_000, **limits)
    assert raised.value.status == status
    assert stored(tmp_path) == {"a.md": b"old", "0.md": b"old"}


@pytest.mark.parametrize(
    "kind", [None, "", "application/json", "multipart/form-data", "multipart/mixed; boundary=X"]
)
def test_what_is_no_form_is_refused(tmp_path: Path, kind: str | None) -> None:
    with pytest.raises(HTTPError) as raised:
        Reception(str(tmp_path), kind, 100, 1)
    assert raised.value.status == 415
    assert "curl" in raised.value.message


def test_a_full_disk_is_a_503_that_says_so(tmp_path: Path) -> None:
    (tmp_path / INCOMING).write_bytes(
        b""
    )  # a file where the folder should be: the write is refused as a full disk would
    with pytest.raises(HTTPError) as raised:
        receive(tmp_path, multipart({"a.md": b"x"}))
    assert raised.value.status == 503
    assert "can't be stored" in raised.value.message


def test_a_fifo_in_the_way_is_replaced_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.md")
    receive(tmp_path, multipart({"a.md": b"text"}))
    assert stored(tmp_path) == {"a.md": b"text"}


def test_a_folder_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.md").mkdir()
    (file,) = receive(tmp_path, multipart({"a.md": b"text"}))
    assert "can't be stored" in (file.reason or "")
    assert stored(tmp_path) == {}


def test_what_a_kill_has_left_is_deleted_a_day_later(tmp_path: Path) -> None:
    folder = tmp_path / INCOMING
    folder.mkdir()
    (folder / "old").write_bytes(b"x")
    (folder / "new").write_bytes(b"x")
    os.utime(folder / "old", (1, 1))
    clear_stale(str(tmp_path))
    assert [path.name for path in folder.iterdir()] == ["new"]
    clear_stale(str(tmp_path / "not there"))


@settings(max_examples=200, deadline=None)
@given(
    body=st.one_of(
        st.binary(max_size=300),
        st.from_regex(
            rb"(--XX|\r\n|--|Content-Disposition: form-data; filename=\"\.\./a\.md\"|:|\x00){0,20}"
        ),
    )
)
def test_no_body_breaks_out(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    folder = tmp_path_factory.mktemp("uploads")
    try:
        receive(folder / "in", body)
    except HTTPError as error:
        assert error.status == 400
    assert [path.name for path in folder.iterdir()] in ([], ["in"])
