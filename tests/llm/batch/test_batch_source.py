from __future__ import annotations

import gzip
import os
import tracemalloc
from contextlib import closing
from pathlib import Path

import batch_samples as samples
import pytest

from tournant.llm.batch.digests import DigestSet, digest_of
from tournant.llm.batch.errors import InputRefused
from tournant.llm.batch.fields import CsvRows, PromptMaker
from tournant.llm.batch.requests import BatchLines
from tournant.llm.batch.source import Checked, InputFile, Unanswered
from tournant.llm.batch.templates import Template


def check(path: Path) -> Checked:
    with closing(InputFile(str(path), BatchLines())) as file:
        return file.check()


def test_requests_are_counted_and_bad_lines_kept(tmp_path: Path) -> None:
    path = samples.write_lines(tmp_path / "in", [samples.line(1), "nonsense", samples.line(2), "{"])
    checked = check(path)
    assert (checked.requests, checked.bad_count) == (2, 2)
    assert [bad.line for bad in checked.bad] == [2, 4]
    assert digest_of("request-1") in checked.ids
    assert len(checked.ids) == 2


def test_what_is_answered_is_left_out(tmp_path: Path) -> None:
    path = samples.write_requests(tmp_path / "in", 5)
    answered = DigestSet()
    answered.add(digest_of("request-1"))
    answered.add(digest_of("request-4"))
    with closing(InputFile(str(path), BatchLines())) as file:
        file.check()
        source = Unanswered(file, answered, 3)
        assert len(source) == 3
        assert [request.custom_id for request in source] == ["request-0", "request-2", "request-3"]


def test_a_doubled_id_is_refused_with_both_lines(tmp_path: Path) -> None:
    entries = [samples.line(1), "", "nonsense", samples.line(2), samples.line(3), samples.line(2)]
    path = samples.write_lines(tmp_path / "in", entries)
    with pytest.raises(InputRefused, match="custom_id 'request-2' twice, in line 4 and in line 6"):
        check(path)


@pytest.mark.parametrize("text", ["", "\n\n  \n"])
def test_an_empty_file_is_called_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "in").write_text(text)
    with pytest.raises(InputRefused, match="is empty; there is nothing to ask"):
        check(tmp_path / "in")


def test_a_file_without_any_request_says_what_is_wrong_with_the_first_line(tmp_path: Path) -> None:
    path = samples.write_lines(tmp_path / "in", ["", '{"text": "a"}', '{"text": "b"}'])
    with pytest.raises(InputRefused, match=r"2 line.* line 2: .*--prompt"):
        check(path)


def test_what_can_not_be_read_twice_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, why in (
        (tmp_path / "absent", "No such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "fifo", "is no regular file"),
        (Path("/dev/null"), "is no regular file"),
    ):
        with pytest.raises(InputRefused, match=why) as caught:
            InputFile(str(path), BatchLines())
        assert str(path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = samples.write_requests(tmp_path / "in", 1)
    path.chmod(0)
    with pytest.raises(InputRefused, match="Permission denied"):
        InputFile(str(path), BatchLines())


def test_a_file_that_changes_between_the_readings_is_noticed(tmp_path: Path) -> None:
    path = samples.write_requests(tmp_path / "in", 3)
    with closing(InputFile(str(path), BatchLines())) as file:
        file.check()
        with path.open("a") as more:
            more.write("\n")
        with pytest.raises(InputRefused, match="was changed while it was read"):
            list(file.requests(DigestSet()))


def test_a_file_put_in_its_place_changes_nothing(tmp_path: Path) -> None:
    path = samples.write_requests(tmp_path / "in", 3)
    with closing(InputFile(str(path), BatchLines())) as file:
        file.check()
        os.replace(samples.write_requests(tmp_path / "new", 9), path)
        assert len(list(file.requests(DigestSet()))) == 3


def test_a_large_file_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "in"
    text = "word " * 2_000
    with path.open("w") as file:
        for number in range(4_000):
            file.write(samples.json.dumps(samples.line(number, text)) + "\n")
    assert path.stat().st_size > 40_000_000
    with closing(InputFile(str(path), BatchLines())) as source:
        tracemalloc.start()
        checked = source.check()
        assert sum(1 for _ in source.requests(DigestSet())) == checked.requests == 4_000
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 4_000_000


@pytest.mark.parametrize(
    ("data", "mend"),
    [
        (gzip.compress(b"{}", mtime=0), "is compressed: gunzip it first"),
        (b"\x28\xb5\x2f\xfd....", "is compressed: decompress it first"),
        (b"PK\x03\x04....", "save it as CSV"),
        ("{}".encode("utf-16"), "is in UTF-16: save it as UTF-8"),
        (b"\xfe\xff\x00{", "is in UTF-16: save it as UTF-8"),
    ],
)
def test_a_file_in_another_form_is_refused_with_what_to_do(
    tmp_path: Path, data: bytes, mend: str
) -> None:
    (tmp_path / "in").write_bytes(data)
    with (
        closing(InputFile(str(tmp_path / "in"), BatchLines())) as file,
        pytest.raises(InputRefused, match=mend),
    ):
        file.check()


def test_a_table_without_rows_is_not_called_empty(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\n")
    form = CsvRows(PromptMaker(Template("{text}"), "m"))
    with (
        closing(InputFile(str(tmp_path / "in.csv"), form)) as file,
        pytest.raises(InputRefused, match="no row below the names of its columns"),
    ):
        file.check()
