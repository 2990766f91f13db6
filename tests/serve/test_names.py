"""What becomes of the names of uploaded files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tournant.serve.names import below, safe_name


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"notes.md", "notes.md"),
        (b"../../etc/passwd", "etc/passwd"),
        (b"..\\..\\windows\\system.ini", "windows/system.ini"),
        (b"/etc/shadow", "etc/shadow"),
        (b"C:\\Users\\me\\a.txt", "C_/Users/me/a.txt"),
        (b"folder/./sub//a.md", "folder/sub/a.md"),
        (b"a\x00b.txt", "ab.txt"),
        (b"a\r\nb.txt", "ab.txt"),
        (b".htaccess", "htaccess"),
        (b"...", None),
        (b"", None),
        (b"folder/", None),
        (b"..", None),
        (b"CON", "_CON"),
        (b"nul.txt", "_nul.txt"),
        (b"a.txt. . ", "a.txt"),
        (b'<img src="x">.md', "_img src=_x__.md"),
        ("caf\u0065\u0301.md".encode(), "caf\u00e9.md"),
        ("文書.pdf".encode(), "文書.pdf"),
        # Shown as "exe.md" by whoever believes the marks of direction.
        ("dm.\u202eexe".encode(), "dm.exe"),
        (b"\xff\xfe.txt", "\ufffd\ufffd.txt"),
        (b"/".join([b"d"] * 20) + b"/a.md", None),
    ],
)
def test_names_become_harmless(raw: bytes, name: str | None) -> None:
    assert safe_name(raw) == name


def test_long_names_keep_their_suffix() -> None:
    name = safe_name("ü" * 5_000 + ".md")
    assert name is not None
    assert name.endswith("ü.md")
    assert len(name.encode()) <= 200
    assert safe_name("/".join(["x" * 150] * 9)) is None


@example("a\u2028b")
@example("a\xa0b")
@example(". .a")
@example("e\x00\u0301")
@given(st.one_of(st.text(), st.binary(), st.from_regex(r"(\.\.|/|\\|[a.]){0,12}")))
def test_no_name_leaves_the_folder(raw: str | bytes) -> None:
    name = safe_name(raw)
    if name is None:
        return
    path = os.path.normpath(os.path.join("/uploads", name))
    assert path == f"/uploads/{name}"
    parts = name.split("/")
    assert not any(part.startswith(".") or not part or len(part.encode()) > 255 for part in parts)
    assert all(char.isprintable() for char in name)
    assert safe_name(name) == name


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    uploads, outside = tmp_path / "uploads", tmp_path / "outside"
    uploads.mkdir()
    outside.mkdir()
    (uploads / "link").symlink_to(outside)
    with pytest.raises(PermissionError, match="outside of the folder"):
        below(str(uploads), "link/a.md")
    assert below(str(uploads), "new/a.md") == str(uploads / "new" / "a.md")
    assert (uploads / "new").is_dir()
