from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tournant.cli import text


def test_a_plain_name_is_shown_as_it_is() -> None:
    for name in ("a file.txt", "été.md", "日本.txt", "it's", "back\\slash"):
        assert text.shown_name(name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines", "$'two\\nlines'"),
        ("caf\udce9.txt", "$'caf\\xe9.txt'"),
        ("\x1b[31mred", "$'\\e[31mred'"),
        ("it's\tb\\s", "$'it\\'s\\tb\\\\s'"),
        ("right\u202eleft", "$'right\\u202eleft'"),
        ("bell\x07", "$'bell\\x07'"),
        ("tag\U000e0001", "$'tag\\U000e0001'"),
    ],
)
def test_a_dangerous_name_is_quoted(name: str, shown: str) -> None:
    assert text.shown_name(name) == shown


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "name", ["a\nb'c\\d", "caf\udce9 \x1b[0m", "\x07\ttab", "tag\U000e0001é\n"]
)
def test_a_shell_takes_the_quoted_name_back(name: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"printf %s {text.shown_name(name)}"],
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert os.fsdecode(done.stdout) == name


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_unprintable_is_ever_shown(name: str) -> None:
    assert text.shown_name(name).isprintable()
    assert text.one_line(name).isprintable()


def test_a_path_below_here_is_shown_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert text.shown_path(f"{tmp_path}/docs/a.txt") == "docs/a.txt"
    assert text.shown_path(f"{tmp_path}-other/a.txt") == f"{tmp_path}-other/a.txt"
    assert text.shown_path("a\n") == "$'a\\n'"


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_becomes_strict_json(name: str) -> None:
    stream = io.StringIO()
    text.put_json(stream, {"source": name, "list": [name, (1, None)], name: 1.5})
    written = stream.getvalue()
    assert written.isascii()
    assert written.count("\n") == 1
    json.dumps(json.loads(written), ensure_ascii=False).encode()  # no lone surrogates


def test_the_true_bytes_of_a_name_that_is_no_text_are_kept() -> None:
    safe = text.json_safe({"source": "caf\udce9", "other": "é"})
    assert safe == {
        "source": "caf\ufffd",
        "source_base64": base64.b64encode(b"caf\xe9").decode(),
        "other": "é",
    }


def test_numbers_that_json_lacks_are_null() -> None:
    assert text.json_safe([float("nan"), float("-inf"), 1.0, 2, True]) == [None, None, 1.0, 2, True]


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (1_023, "1,023 bytes"), (1_536, "1.5 KiB"), (5 * 2**30, "5.0 GiB"),
     (3 * 2**50, "3,072.0 TiB")],
)  # fmt: skip
def test_sizes_are_readable(count: int, words: str) -> None:
    assert text.size(count) == words


def test_a_pipe_is_80_columns_wide_and_knows_no_bold() -> None:
    assert text.width(io.StringIO()) == 80
    assert text.bold("x", io.StringIO()) == "x"


def test_a_terminal_knows_bold_unless_it_was_asked_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with open(theirs, "w") as stream:
        assert text.bold("x", stream) == "\x1b[1mx\x1b[0m"
        monkeypatch.setenv("NO_COLOR", "1")
        assert text.bold("x", stream) == "x"
    os.close(ours)
