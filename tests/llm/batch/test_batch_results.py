from __future__ import annotations

import errno
import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tournant.llm.batch import lines as forms
from tournant.llm.batch.digests import DigestSet, digest_of
from tournant.llm.batch.errors import ResultsRefused
from tournant.llm.batch.lines import State, answer_line, failure_line, read_line
from tournant.llm.batch.requests import CHAT, Request
from tournant.llm.batch.results import Kept, ResultsFile
from tournant.llm.errors import BadRequest, LLMTimeout

BODY = b'{"choices":[{"message":{"content":"Oui, chef \xc3\xa9"}}]}'


def request(name: str) -> Request:
    return Request(name, CHAT, b"{}", 1, digest_of(name), 1)


def answer(name: str) -> bytes:
    return answer_line(request(name), 200, "req-1", BODY)


def failure(name: str, kind: Any = LLMTimeout) -> bytes:
    return failure_line(request(name), kind("too late"))


def ids(*names: str) -> DigestSet:
    found = DigestSet()
    for name in names:
        found.add(digest_of(name))
    return found


def opened(path: Path, *names: str, retry_refused: bool = False) -> Kept:
    with closing(ResultsFile(str(path))) as file:
        return file.read(ids(*names), retry_refused=retry_refused)


def counts(kept: Kept) -> tuple[int, int, int, int]:
    return kept.answered, kept.refused, kept.again, kept.foreign


# Lines


def test_an_answer_has_the_official_shape_and_the_body_as_it_came() -> None:
    line = answer_line(request('a "b"\n'), 201, 'r"1', BODY)
    assert BODY in line
    assert line.endswith(b"}\n")
    assert json.loads(line) == {
        "id": "batch_req_" + digest_of('a "b"\n').hex(),
        "custom_id": 'a "b"\n',
        "response": {"status_code": 201, "request_id": 'r"1', "body": json.loads(BODY)},
        "error": None,
    }
    assert line.startswith(forms.BEGINNING)
    assert line.count(b"\n") == 1


def test_a_failure_says_what_went_wrong_and_what_the_provider_answered() -> None:
    error = BadRequest("no such field", status=400)
    error.body, error.request_id = {"error": {"message": "é"}}, "r-1"
    line = failure_line(request("a"), error)
    assert line.startswith(forms.BEGINNING)
    assert json.loads(line) == {
        "id": "batch_req_" + digest_of("a").hex(),
        "custom_id": "a",
        "response": {"status_code": 400, "request_id": "r-1", "body": {"error": {"message": "é"}}},
        "error": {"code": "bad_request", "message": "no such field"},
    }
    assert json.loads(failure("b"))["response"] is None


@pytest.mark.parametrize(
    ("line", "state"),
    [
        # OpenAI: output file, error file, expired
        ('{"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "request_id": "r", "body": {}}, "error": null}', State.ANSWERED),
        ('{"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 400, "request_id": "r", "body": {"error": {}}}, "error": null}', State.REFUSED),
        ('{"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 500, "request_id": "r", "body": {}}, "error": null}', State.FAILED),
        ('{"id": "batch_req_1", "custom_id": "a", "response": null, "error": {"code": "batch_expired", "message": "m"}}', State.FAILED),
        # vllm run-batch
        ('{"id":"vllm-1","custom_id":"a","response":{"status_code":200,"request_id":"vllm-batch-1","body":{"id":"x"}},"error":null}', State.ANSWERED),
        ('{"id":"vllm-1","custom_id":"a","response":{"status_code":400,"request_id":"vllm-batch-1","body":null},"error":{"object":"error","message":"m","code":400}}', State.REFUSED),
        ('{"id":"vllm-1","custom_id":"a","response":{"request_id":"vllm-batch-1","body":{"id":"x"}},"error":null}', State.ANSWERED),
        ('{"custom_id":"a","response":null,"error":"broken"}', State.FAILED),
    ],
)  # fmt: skip
def test_lines_of_other_programs_are_understood(line: str, state: State) -> None:
    assert read_line(line.encode()) == ("a", state)


def test_its_own_lines_are_understood() -> None:
    assert read_line(answer("a")) == ("a", State.ANSWERED)
    assert read_line(failure("a")) == ("a", State.FAILED)
    assert read_line(failure("a", BadRequest)) == ("a", State.REFUSED)


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b'{"custom_id": "a"}', b"\xff", b'{"custom_id": 1}']
)
def test_what_is_no_line_of_results_is_told_apart(line: bytes) -> None:
    with pytest.raises(ValueError):
        read_line(line)


# Going on


def test_a_new_file_is_made_and_goes_if_nothing_came(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with closing(ResultsFile(str(path))) as file:
        assert path.exists()
        assert counts(file.read(ids("a"), retry_refused=False)) == (0, 0, 0, 0)
    assert not path.exists()
    path.touch()
    opened(path)
    assert path.exists()
    with closing(ResultsFile(str(tmp_path / "b"))) as file:
        os.write(file.descriptor, answer("a"))
    assert (tmp_path / "b").read_bytes() == answer("a")


def test_answers_are_kept_and_failures_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    before = [answer("a"), failure("b"), failure("c", BadRequest), answer("other"), failure("old")]
    path.write_bytes(b"".join(before))
    path.chmod(0o640)
    kept = opened(path, "a", "b", "c", "d")
    assert counts(kept) == (1, 1, 1, 2)
    assert [digest_of(name) in kept.settled for name in "abcd"] == [True, False, True, False]
    # Those of requests that are not in this batch stay, whatever they say.
    assert path.read_bytes() == b"".join([before[0], *before[2:]])
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["out"]


def test_what_was_refused_is_asked_again_if_one_says_so(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(failure("a", BadRequest) + answer("b"))
    kept = opened(path, "a", "b", retry_refused=True)
    assert counts(kept) == (1, 0, 1, 0)
    assert path.read_bytes() == answer("b")


def test_without_failures_the_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(answer("a") + failure("c", BadRequest))
    before = path.stat()
    opened(path, "a", "b", "c")
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_of_two_answers_the_first_stays(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(answer("a") + answer("b") + answer_line(request("a"), 200, "late", BODY))
    assert counts(opened(path, "a", "b")) == (2, 0, 0, 0)
    assert path.read_bytes() == answer("a") + answer("b")


def test_a_failure_beside_an_answer_goes(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(failure("a") + answer("a"))
    assert counts(opened(path, "a")) == (1, 0, 1, 0)
    assert path.read_bytes() == answer("a")


# Ends that a kill leaves


@pytest.mark.parametrize("last", [answer("b"), failure("b")], ids=["answer", "failure"])
def test_a_last_line_that_is_half_written_is_cut_off(tmp_path: Path, last: bytes) -> None:
    path = tmp_path / "out"
    for length in range(len(last)):
        path.write_bytes(answer("a") + last[:length])
        kept = opened(path, "a", "b")
        if length < len(last) - 1:
            assert path.read_bytes() == answer("a")
            assert counts(kept) == (1, 0, 0, 0)
    spaced = b'{"id": "batch_req_1", "custom_id": "b", "response": {"x": [-1.5e-7, true]}, "y": "\\u00e9\\\\ '
    for length in range(len(spaced)):
        path.write_bytes(answer("a") + spaced[:length] + b"\0" * (length % 3))
        opened(path, "a", "b")
        assert path.read_bytes() == answer("a")
    # Only the line break was missing.
    path.write_bytes(answer("a") + answer("b")[:-1])
    assert counts(opened(path, "a", "b")) == (2, 0, 0, 0)
    assert path.read_bytes() == answer("a") + answer("b")


def test_a_half_line_that_is_longer_than_any_buffer_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "out"
    long = answer_line(request("b"), 200, "", b'"' + b"x" * 3_000_000 + b'"')
    path.write_bytes(answer("a") + long[:-4])
    assert counts(opened(path, "a", "b")) == (1, 0, 0, 0)
    assert path.read_bytes() == answer("a")
    path.write_bytes(long[:-4])
    opened(path, "b")
    assert path.read_bytes() == b""


def test_zeros_that_a_crash_of_the_machine_leaves_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(answer("a") + b"\0" * 5_000)
    opened(path, "a")
    assert path.read_bytes() == answer("a")


@pytest.mark.parametrize(
    "text",
    [
        b"My notes\n",
        b"My notes",
        b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {}}\n',
        b'{"name": "half a',
        answer("a") + b"notes\n" + answer("b"),
        answer("a") + b"notes",
        b'{"name": "a"}\n{"id":"batch_req_1","custom',
        b'{"name": "a"}\n{"id":"batch_req_1"}',
        b'{"name": "a"}\n' + answer("a")[:-1],
        b'{"id":"batch_abc123","object":"batch","endpoint":"/v1/chat/completions"}',
        b'{"id":"batch_abc123","object":"batch","endpo',
        b'{"id": 7, "name": "half a',
        b'{"id":"batch_req_1","custom_id":"a"}',
        answer("a") + b'{"id":"batch_req_1","custom_id":"b"}',
        answer("a") + b'{"id":"batch_req_1", x',
        b"\0" * 5_000,
        b"\n" + b"\0" * 5_000,
    ],
)
def test_the_file_of_something_else_is_refused_and_left_as_it_is(
    tmp_path: Path, text: bytes
) -> None:
    path = tmp_path / "out"
    path.write_bytes(text)
    with pytest.raises(ResultsRefused, match="is it the right file"):
        opened(path, "a")
    assert path.read_bytes() == text


def test_a_line_that_is_wrong_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(answer("a") + answer("b") + b"notes\n")
    with pytest.raises(ResultsRefused, match="a line 3 that is no line of results"):
        opened(path, "a")


def test_rewriting_leaves_the_files_beside_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    (tmp_path / "out.new").write_bytes(b"mine")
    path.write_bytes(failure("a") + answer("b"))
    opened(path, "a", "b")
    assert path.read_bytes() == answer("b")
    path.write_bytes(failure("a") + answer("b"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultsRefused, match="the disk is full"):
        opened(path, "a", "b")
    assert path.read_bytes() == failure("a") + answer("b")
    assert (tmp_path / "out.new").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["out", "out.new"]


def test_a_file_that_took_the_place_of_an_empty_one_is_not_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with closing(ResultsFile(str(path))) as file:
        path.unlink()
        path.write_bytes(b"mine")
        assert file.missing() is not None
    assert path.read_bytes() == b"mine"


# Who may write


def test_two_batches_may_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with closing(ResultsFile(str(path))) as first:
        os.write(first.descriptor, failure("a") + answer("b"))
        with pytest.raises(ResultsRefused, match="is being written by another batch"):
            ResultsFile(str(path))
        first.read(ids("a", "b"), retry_refused=False)
        # Now the path is another file.
        with pytest.raises(ResultsRefused, match="is being written by another batch"):
            ResultsFile(str(path))
    assert counts(opened(path, "a", "b")) == (1, 0, 0, 0)


def test_whoever_waited_at_the_old_file_gets_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    path.write_bytes(answer("a"))
    replaced = []
    lock = ResultsFile._lock

    def late(self: ResultsFile, descriptor: int) -> None:
        if not replaced:
            replaced.append(True)
            (tmp_path / "new").write_bytes(answer("b"))
            os.replace(tmp_path / "new", path)
        lock(self, descriptor)

    monkeypatch.setattr(ResultsFile, "_lock", late)
    with closing(ResultsFile(str(path))) as file:
        assert os.path.samestat(os.fstat(file.descriptor), path.stat())


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(failure("a") + answer("b"))
    (tmp_path / "link").symlink_to("real")
    opened(tmp_path / "link", "a", "b")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == answer("b")


def test_what_can_not_be_written_is_refused_with_the_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, why in (
        (tmp_path / "absent" / "out", "its folder does not exist"),
        (tmp_path, "it is a folder"),
        (tmp_path / "fifo", "is no regular file"),
        (Path("/dev/null"), "is no regular file"),
    ):
        with pytest.raises(ResultsRefused, match=why) as caught:
            ResultsFile(str(path))
        assert str(path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ResultsRefused, match="permission denied"):
        ResultsFile(str(tmp_path / "out"))
