"""The key goes to the provider, and nowhere else: not even where the provider says it back."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import batch_samples as samples
import pytest
from batch_samples import Program, completion, provider, refusal

from tournant.llm.batch import InvalidBatch

KEY = 'sk-canary-"5f1e\\c0ffee'
PLAIN = "sk-canary-5f1e-c0ffee"


def echoing(status: int) -> Any:
    """Answers with whatever it was sent, in the body and in the headers. A 429 is tried again, so there are two of them."""
    refusals = iter(range(2))

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        key = headers["Authorization"].removeprefix("Bearer ")
        back = {"x-request-id": f"req-{key}", "retry-after-ms": "1"}
        number = int(body["messages"][0]["content"].split()[1].rstrip(":"))
        if status == 200 or number % 2 or (status == 429 and next(refusals, None) is None):
            return 200, completion(body, f"Order {number}: your key is {key}"), back
        return status, refusal(f"the key {key} is bad", code=key, type=key, headers=headers), back

    return answer


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize("key", [PLAIN, KEY])
def test_it_is_in_no_output_whatever_the_provider_says(
    tmp_path: Path, status: int, key: str
) -> None:
    requests = samples.write_requests(tmp_path / "requests.jsonl", 12)
    results = tmp_path / "results.jsonl"
    with provider(echoing(status)) as url:
        argv = (str(requests), "-o", str(results), "--base-url", url, "--retries", "0")
        environment = {
            "KITCHEN_KEY": key,
            "PYTHONASYNCIODEBUG": "1",
            "TOURNANT_TRACEBACK": "1",
        }
        more = ("--api-key-env", "KITCHEN_KEY", "--traceback", "--json", "--patience", "1")
        with Program(*argv, *more, **environment) as program:
            code, out, err = program.end()
    assert code == {200: 0, 401: 1}.get(status, code)
    written = results.read_text() if results.exists() else ""
    assert written or out or err
    for text in (out, err, written):
        for spelling in (key, json.dumps(key)[1:-1], json.dumps(json.dumps(key))[3:-3]):
            assert spelling not in text
        assert "canary" not in text
    assert not any(path.read_text() for path in tmp_path.glob("*.new"))


def by_number(text: str) -> str:
    return "".join(f"\\u{ord(char):04X}" for char in text)


@pytest.mark.parametrize("place", ["content", "name"])
@pytest.mark.parametrize(
    "spell", [by_number, lambda text: text.replace("/", "\\/"), lambda text: "\\u0073" + text[1:]]
)
def test_it_is_found_however_json_spells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spell: Any, place: str
) -> None:
    key = "sk-canary/5f1e"
    monkeypatch.setenv("KITCHEN_KEY", key)

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        if place == "content":
            return 200, completion(body, "Yours is KEY").replace(b"KEY", spell(key).encode())
        return 200, completion(body).replace(b'"usage"', f'"{spell(key)}"'.encode())

    requests = samples.write_requests(tmp_path / "requests.jsonl", 2)
    with provider(answer) as url:
        samples.batch(requests, tmp_path / "out", url, api_key_env="KITCHEN_KEY")
    found = samples.read_results(tmp_path / "out")
    assert len(found) == 2
    for result in found.values():
        assert result["error"] is None
        assert "canary" not in json.dumps(result)


def test_what_is_spelled_in_another_way_and_is_no_key_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KITCHEN_KEY", PLAIN)

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        return 200, completion(body, "KEY").replace(b"KEY", b"a\\/b \\u0041 50 %")

    requests = samples.write_requests(tmp_path / "requests.jsonl", 1)
    with provider(answer) as url:
        samples.batch(requests, tmp_path / "out", url, api_key_env="KITCHEN_KEY")
    assert b'"a\\/b \\u0041 50 %"' in (tmp_path / "out").read_bytes()


def test_it_is_in_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KITCHEN_KEY", PLAIN)
    caplog.set_level(logging.DEBUG)
    requests = samples.write_requests(tmp_path / "requests.jsonl", 10)
    for status in (200, 400, 500):
        results = tmp_path / f"results-{status}.jsonl"
        with provider(echoing(status)) as url:
            outcome = samples.batch(requests, results, url, api_key_env="KITCHEN_KEY", retries=0)
        assert "canary" not in results.read_text()
        assert "canary" not in repr(outcome)
        assert "canary" not in json.dumps(outcome.as_dict(), default=str)
    assert "canary" not in caplog.text


@pytest.mark.parametrize("given", [PLAIN, "hf_CanaryCanary1234", "sk canary"])
def test_a_key_that_is_given_in_place_of_its_variable_is_not_said_back(
    tmp_path: Path, given: str
) -> None:
    requests = samples.write_requests(tmp_path / "requests.jsonl", 1)
    with pytest.raises(InvalidBatch, match="give its name, not the key") as caught:
        samples.batch(requests, tmp_path / "out", "http://127.0.0.1:9", api_key_env=given)
    assert given not in str(caught.value)
    assert "anary" not in repr(caught.value)


def test_the_key_is_taken_from_the_usual_variable_and_sent_to_the_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    def answer(body: dict[str, Any], headers: dict[str, str]) -> samples.Answer:
        seen.append(headers.get("Authorization"))
        return 200, completion(body)

    requests = samples.write_requests(tmp_path / "requests.jsonl", 1)
    with provider(answer) as url:
        monkeypatch.setenv("OPENAI_API_KEY", PLAIN)
        samples.batch(requests, tmp_path / "with", url)
        monkeypatch.setenv("OPENAI_API_KEY", " ")
        samples.batch(requests, tmp_path / "empty", url)
        monkeypatch.delenv("OPENAI_API_KEY")
        samples.batch(requests, tmp_path / "without", url)
    assert seen == [f"Bearer {PLAIN}", None, None]
