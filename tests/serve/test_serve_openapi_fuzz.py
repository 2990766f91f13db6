"""Requests made up from the OpenAPI document, right and wrong ones: none of them is the server's fault, and each answer is as promised."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from data_samples import make_index
from serving import provider, run, serving, upstream

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")

pytestmark = [pytest.mark.slow]

# Never ends, and takes no input.
ENDLESS = "/v1/stats/stream"
# Refused for want of room, as is right when so many uploads wait for their ingest.
UPLOADS = "/v1/documents"
EXAMPLES = 30
FEWER = 8  # where each is followed by an ingest


def try_everything(url: str) -> dict[str, set[int]]:
    """Make the requests; return the statuses that each address answered with."""
    from schemathesis.specs.openapi import checks as promised

    checks = [
        schemathesis.checks.not_a_server_error,
        promised.status_code_conformance,
        promised.content_type_conformance,
    ]
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    found: dict[str, set[int]] = {}

    def try_one(operation, mode) -> None:
        if mode.is_negative and not operation.body:
            return  # any other part of a request is a string, and none of them is wrong

        @hypothesis.seed(1)
        @hypothesis.settings(
            max_examples=FEWER if operation.path == UPLOADS else EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(operation.as_strategy(mode))
        def one(case) -> None:
            response = case.call(timeout=20)
            found.setdefault(operation.path, set()).add(response.status_code)
            if operation.path == UPLOADS and response.status_code == 503:
                assert response.headers["retry-after"]
                return
            # A stream is described as the text that it is, not event by event.
            kind = response.headers.get("content-type", [""])[0]
            shape = [promised.response_schema_conformance] if "json" in kind else []
            case.validate_response(response, checks=checks + shape)

        one()

    for result in document.get_all_operations():
        operation = result.ok()
        if operation.path != ENDLESS:
            for mode in schemathesis.GenerationMode:
                try_one(operation, mode)
    return found


@pytest.mark.parametrize("parts", ["gateway", "index"])
def test_no_request_is_the_servers_fault(parts, tmp_path):
    async def main():
        async with AsyncExitStack() as open_:
            up = await open_.enter_async_context(upstream(provider))
            options = {"llm": up.url}
            if parts == "index":
                options["index"] = str(await asyncio.to_thread(make_index, tmp_path))
            server = await open_.enter_async_context(serving(**options))
            found = await asyncio.to_thread(try_everything, server.url)
            assert server.app.state.figures.faults == 0
            assert found["/v1/chat/completions"] >= {200, 400}
            assert ("/v1/search" in found) == (parts == "index")

    run(main())
