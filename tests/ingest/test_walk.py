from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tournant.ingest.errors import UnreadableFile
from tournant.ingest.walk import FoundFile, vanished, walk


def find(*paths: object, **options: object) -> tuple[list[FoundFile], list[UnreadableFile]]:
    problems: list[UnreadableFile] = []
    found = list(walk(paths, on_problem=problems.append, **options))  # type: ignore[arg-type]
    return found, problems


def names(found: list[FoundFile], root: Path) -> list[str]:
    return [os.path.relpath(file.path, root) for file in found]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.txt",
        "a.md",
        "sub/c.txt",
        "sub/deep/d.py",
        "skip.bin",
        ".hidden/e.txt",
        ".f.txt",
        ".git/g.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def test_files_come_in_a_fixed_order_with_size_time_and_root(tree: Path) -> None:
    found, problems = find(tree)
    assert names(found, tree) == ["a.md", "b.txt", "skip.bin", "sub/c.txt", "sub/deep/d.py"]
    assert not problems
    status = (tree / "a.md").stat()
    assert found[0] == FoundFile(str(tree / "a.md"), str(tree), status.st_size, status.st_mtime_ns)
    assert found[0].fingerprint == f"{status.st_size}-{status.st_mtime_ns}"


def test_suffixes_filter_folders_but_not_arguments(tree: Path) -> None:
    assert names(find(tree, suffixes={".txt"})[0], tree) == ["b.txt", "sub/c.txt"]
    found, _ = find(tree / "skip.bin", tree, suffixes={".txt"})
    assert names(found, tree) == ["skip.bin", "b.txt", "sub/c.txt"]


def test_hidden_files_are_skipped_unless_asked_for_and_git_always(tree: Path) -> None:
    found, _ = find(tree, hidden=True, suffixes={".txt"})
    assert names(found, tree) == [".f.txt", "b.txt", ".hidden/e.txt", "sub/c.txt"]
    assert names(find(tree / ".hidden")[0], tree) == [".hidden/e.txt"]


def test_overlapping_arguments_give_each_file_once_under_the_first(tree: Path) -> None:
    found, _ = find(tree / "sub", tree / "b.txt", tree, tree)
    assert names(found, tree) == ["sub/c.txt", "sub/deep/d.py", "b.txt", "a.md", "skip.bin"]
    assert [file.root for file in found[:3]] == [str(tree / "sub")] * 2 + [str(tree / "b.txt")]


def test_excluded_folders_are_not_entered(tree: Path) -> None:
    assert names(find(tree, exclude=[str(tree / "sub")])[0], tree) == ["a.md", "b.txt", "skip.bin"]


def test_relative_arguments_become_absolute(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert find("sub/../b.txt")[0][0].path == str(tree / "b.txt")
    assert find(b"b.txt")[0][0].path == str(tree / "b.txt")


def test_link_loops_end_and_links_to_folders_are_followed_on_request(tree: Path) -> None:
    (tree / "sub/loop").symlink_to(tree)
    (tree / "sub/self").symlink_to("self")
    (tree / "sub/nothing").symlink_to("nowhere")
    (tree / "sub/link.txt").symlink_to(tree / "b.txt")
    found, problems = find(tree)
    assert names(found, tree)[3:] == ["sub/c.txt", "sub/link.txt", "sub/deep/d.py"]
    assert {(os.path.basename(p.path), p.reason) for p in problems} == {
        ("self", "it is a symbolic link that leads back to itself"),
        ("nothing", "it is a symbolic link to nothing"),
    }
    followed, _ = find(tree, follow_links=True)
    assert sorted(names(followed, tree)) == sorted(names(found, tree))


def test_folders_without_permission_are_reported_and_the_rest_goes_on(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tree / "sub"
    real = os.scandir

    # Root reads everything, so the refusal is made here.
    def scandir(path: str) -> object:
        if path == str(locked):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found, problems = find(tree)
    assert names(found, tree) == ["a.md", "b.txt", "skip.bin"]
    assert [(p.path, p.reason) for p in problems] == [(str(locked), "permission denied")]


def test_what_is_no_regular_file_is_reported_and_never_opened(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tree / "fifo.txt")
    monkeypatch.chdir(tree)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.txt")
        found, problems = find(tree, suffixes={".txt"})
        assert names(found, tree) == ["b.txt", "sub/c.txt"]
        assert {p.reason for p in problems} == {
            "it is a FIFO, not a regular file",
            "it is a socket, not a regular file",
        }
    assert find(tree / "fifo.txt")[1][0].reason == "it is a FIFO, not a regular file"
    assert find("/dev/null")[1][0].reason == "it is a device, not a regular file"


def test_an_argument_that_is_not_there_is_reported(tree: Path) -> None:
    found, problems = find(tree / "missing", tree / "b.txt", "nul\0")
    assert names(found, tree) == ["b.txt"]
    assert problems[0].reason == "no such file or directory"
    assert "null" in problems[1].reason


def test_names_with_newlines_and_stray_bytes_are_found(tmp_path: Path) -> None:
    odd = [b"new\nline.txt", b"caf\xe9.txt", b"tab\t'quote\".txt"]
    for name in odd:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"x")
    found, problems = find(tmp_path, suffixes={".txt"})
    assert {os.fsencode(os.path.basename(file.path)) for file in found} == set(odd)
    assert not problems


def test_only_files_under_the_walked_roots_vanish(tmp_path: Path) -> None:
    known = ["/a/one", "/a/two", "/ab/three", "/c/four", "/a/locked/five", "/d"]
    gone = vanished(known, {"/a/one"}, ["/a", "/d"], ["/a/locked"])
    assert gone == ["/a/two", "/d"]
    assert vanished(known, set(), ["/"], []) == sorted(known)


def test_a_root_that_is_missing_deletes_nothing(tree: Path) -> None:
    root = tree / "unmounted"
    _, problems = find(root)
    assert vanished([f"{root}/x"], set(), [root], [p.path for p in problems]) == []


def test_an_argument_inside_an_earlier_argument_is_taken_once(tree: Path) -> None:
    found, _ = find(tree, tree / "skip.bin", tree / "b.txt", suffixes={".txt"})
    assert names(found, tree) == ["b.txt", "sub/c.txt", "skip.bin"]


def test_what_is_left_out_is_neither_entered_nor_reported(tree: Path) -> None:
    os.mkfifo(tree / "sub/pipe")
    asked: list[tuple[str, str]] = []

    def leave_out(path: str, root: str) -> bool:
        asked.append((os.path.relpath(path, tree), root))
        return path.endswith("sub")

    found, problems = find(tree, leave_out=leave_out)
    assert not any(name.startswith("sub/") for name in names(found, tree))
    assert problems == []
    assert ("sub", str(tree)) in asked
    assert not any(path.startswith("sub/") for path, _ in asked)
    assert find(tree / "sub", leave_out=leave_out)[1] != []
    assert find(tree / "b.txt", leave_out=lambda *_: True) == ([], [])
