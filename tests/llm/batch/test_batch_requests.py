from __future__ import annotations

import io
import json
from typing import Any

import batch_samples as samples
import pytest

from tournant.llm.batch import requests
from tournant.llm.batch.digests import digest_of
from tournant.llm.batch.requests import BadLine, BatchLines, Request
from tournant.llm.estimate import estimate_tokens


def read(data: bytes, model: str | None = None) -> list[Request | BadLine]:
    return list(BatchLines(model).read(io.BytesIO(data)))


def one(entry: Any, model: str | None = None) -> Request | BadLine:
    (found,) = read(json.dumps(entry).encode(), model)
    return found


def test_a_body_goes_through_byte_for_byte() -> None:
    body = b'{ "messages":[],\t"x": 1.50, "big": 12345678901234567890123, "model": "a" }'
    text = b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": %b}\n' % body
    (found,) = read(text)
    assert isinstance(found, Request)
    assert (found.body, found.url, found.line) == (body, "/v1/embeddings", 1)
    assert (found.custom_id, found.digest) == ("a", digest_of("a"))


def test_another_model_replaces_that_of_the_body_and_nothing_else() -> None:
    found = one(samples.line(1), model="other")
    assert isinstance(found, Request)
    assert json.loads(found.body) == {**samples.line(1)["body"], "model": "other"}


def test_lines_are_counted_from_one_and_blank_ones_are_passed_over() -> None:
    first, second = (json.dumps(samples.line(number)).encode() for number in (1, 2))
    found = read(b"\xef\xbb\xbf" + first + b"\r\n\n  \t\r\n" + second)
    assert [(type(entry), entry.line) for entry in found] == [(Request, 1), (Request, 4)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"custom_id": "a", ', "is not JSON"),
        (b'[1, 2]', "not in the batch format"),
        (b'{"text": "Hello"}', "--prompt 'Summarise: {text}'"),
        (b'{"custom_id": "a", "url": "/v1/embeddings"}', "`body`"),
        (b'{"custom_id": 7, "url": "/v1/embeddings", "body": {}}', "$.custom_id"),
        (b'{"custom_id": "", "url": "/v1/embeddings", "body": {}}', "custom_id is empty"),
        (b'{"custom_id": "a", "url": "/v1/responses", "body": {}}', "'/v1/responses'"),
        (b'{"custom_id": "a", "method": "GET", "url": "/v1/embeddings", "body": {}}', "'GET'"),
        (b'{"custom_id": "a", "url": "/v1/embeddings", "body": []}', "object"),
        (b'{"custom_id": "a", "url": "/v1/embeddings", "body": {"x": }}', "not JSON"),
        (b'{"custom_id": "a", "url": "/v1/embeddings", "body": {"stream": true}}', '"stream": true'),
        (b'{"custom_id": "a", "url": "/v1/embeddings", "body": {"input": "\xff"}}', "not UTF-8"),
        (b'{"custom_id": "a", "url": "/v1/embeddings", "body": {"x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}}", "nested too deeply"),
        (b"[" * 200_000, "not in the batch format"),
        (b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"custom_id": "\xff", "url": "/v1/embeddings", "body": {}}', "not UTF-8"),
    ],
)  # fmt: skip
def test_a_malformed_line_is_reported_and_the_rest_goes_on(text: bytes, reason: str) -> None:
    good = json.dumps(samples.line(1)).encode()
    before, bad, after = read(good + b"\n" + text + b"\n" + good + b"\n")
    assert isinstance(before, Request)
    assert isinstance(after, Request)
    assert isinstance(bad, BadLine)
    assert bad.line == 2
    assert reason in bad.reason


def test_a_line_without_end_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    good = json.dumps(samples.line(1)).encode()
    monkeypatch.setattr(requests, "LONGEST_LINE", 1_000)
    found = read(good + b"\n" + b"x" * 5_000 + b"\n" + good + b"\n" + b"{" * 3_000)
    assert [type(entry) for entry in found] == [Request, BadLine, Request, BadLine]
    assert [entry.line for entry in found] == [1, 2, 3, 4]
    assert isinstance(found[1], BadLine)
    assert "longer than" in found[1].reason


@pytest.mark.parametrize(
    "entry",
    [
        samples.line(1),
        samples.line(1, "word " * 400),
        samples.line(1, url="/v1/embeddings", body={"input": ["word " * 40] * 9}),
        samples.line(1, body={"messages": [], "max_completion_tokens": 900, "n": 3}),
        samples.line(1, body={"messages": [{"role": "user", "content": "x" * 4_000}]}),
    ],
)
def test_the_tokens_are_about_those_of_the_parsed_body(entry: dict[str, Any]) -> None:
    found = one(entry)
    assert isinstance(found, Request)
    expected = estimate_tokens(entry["body"])
    assert expected <= found.tokens <= expected + 60


def test_a_picture_is_not_taken_for_text() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 200_000}}
    found = one(samples.line(1, body={"messages": [{"role": "user", "content": [picture]}]}))
    assert isinstance(found, Request)
    assert found.tokens < 2_000


def test_figures_that_are_none_in_a_body_are_for_the_provider_to_refuse() -> None:
    for wrong in ("many", -1, [1], True):
        found = one(samples.line(1, body={"messages": [], "max_tokens": wrong, "n": wrong}))
        assert isinstance(found, Request)
        assert found.tokens >= 0
