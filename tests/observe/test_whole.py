from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from tournant.observe.recording import Recording
from tournant.observe.timeline import save_timeline
from tournant.observe.whole import whole_file


def test_a_file_is_replaced_when_the_new_one_is_whole_and_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"before")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half")
        file.write(b"%d" % (1 // 0))
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a"]
    with whole_file(path) as file:
        file.write(b"whole")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["a"]


def test_a_name_may_be_as_long_as_names_may_be(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".html")
    assert save_timeline([Recording()], path).is_file()


def test_where_the_folder_is_not_there_the_file_is_named_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "run.html"
    with pytest.raises(FileNotFoundError) as caught:
        save_timeline([Recording()], path)
    assert caught.value.filename == str(path)


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "run.html", tmp_path / "link.html"
    link.symlink_to(target)  # to nothing, at first
    for _ in range(2):
        save_timeline([Recording()], link)
        assert link.is_symlink()
        assert target.read_text().startswith("<!doctype html>")


def test_a_timeline_for_what_is_no_file_is_written_to_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    save_timeline([Recording()], pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode), "it would be gone from /dev for everybody"
    reader.join(30)
    assert found[0].startswith(b"<!doctype html>")
