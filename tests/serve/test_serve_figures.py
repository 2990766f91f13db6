"""What can be seen: metrics for Prometheus, the figures of the page, the models, the OpenAPI document."""

from __future__ import annotations

import asyncio
import json

import pytest
from serving import CHAT, Call, ask, asking, metric, provider, run, serving, talk, until, upstream

from tournant.serve.metrics import Histogram
from tournant.serve.ticker import Ticker

STREAM = {**CHAT, "stream": True}


def test_prometheus_reads_the_metrics():
    from prometheus_client.parser import text_string_to_metric_families

    async def main():
        async with upstream(talk) as up, serving(llm=up.url) as server:
            await ask(server, "/v1/chat/completions", STREAM)
            await ask(server, "/v1/chat/completions", STREAM)
            await ask(server, "/nowhere")
            _, headers, text = await ask(server, "/metrics")
            assert headers["content-type"].startswith("text/plain; version=0.0.4")
            found = {}
            for family in text_string_to_metric_families(text):
                assert family.documentation
                for sample in family.samples:
                    found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
            assert (
                found[
                    "tournant_requests_total",
                    (("route", "/v1/chat/completions"), ("status", "200")),
                ]
                == 2
            )
            assert found["tournant_requests_total", (("route", "other"), ("status", "404"))] == 1
            assert found["tournant_answers_total", (("outcome", "complete"),)] == 2
            assert found["tournant_events_total", ()] == 8
            assert found["tournant_first_token_seconds_count", ()] == 2
            assert found["tournant_first_token_seconds_bucket", (("le", "+Inf"),)] == 2
            assert found["tournant_answers_running", ()] == 0
            assert found["tournant_connections", ()] == 1
            assert found["tournant_caller_requests_total", (("caller", "anonymous"),)] == 2

    run(main())


def test_an_answer_in_progress_is_counted_as_it_goes():
    async def script(call: Call) -> None:
        await call.start()
        await call.token("a")
        await call.go.wait()
        await call.event("[DONE]")
        await call.end()

    async def main():
        async with upstream(script) as up, serving(llm=up.url) as server:
            async with asking(server, "/v1/chat/completions", STREAM) as response:
                await anext(response.events())
                assert await metric(server, "tournant_events_total") == 1
                assert await metric(server, "tournant_answers_running") == 1
                up.calls[0].go.set()
                await response.text()
            await until(lambda: server.app.state.admission.running == 0)
            assert await metric(server, "tournant_events_total") == 2

    run(main())


def test_routes_in_metrics_are_bounded_whatever_is_asked_for():
    async def main():
        async with serving() as server:
            for number in range(20):
                await ask(server, f"/{number}")
                await ask(server, f"/v1/models/{number}")
            assert len(server.app.state.figures.requests) == 2

    run(main())


def test_the_figures_of_the_page():
    async def main():
        async with upstream(talk) as up, serving(llm=up.url) as server:
            await ask(server, "/v1/chat/completions", STREAM)
            _, _, once = await ask(server, "/v1/stats")
            assert once["answers"]["ended"] == {"complete": 1}
            assert once["totals"]["events"] == 4
            assert once["ready"] is True
            async with asking(server, "/v1/stats/stream") as response:
                assert response.headers["content-type"].startswith("text/event-stream")
                events = response.events()
                first, second = [json.loads((await anext(events))[1]) for _ in range(2)]
            assert first.keys() == second.keys() == once.keys()
            assert len(second["cores"]) >= 1
            assert all(0 <= share <= 1 for share in second["cores"])
            await until(lambda: not len(server.app.state.running))

    run(main())


def test_the_figures_say_what_is_served_here():
    async def main():
        async with upstream(talk) as up, serving(llm=up.url) as server:
            _, _, stats = await ask(server, "/v1/stats")
            assert stats["serves"] == {"llm": True, "index": False, "embedder": None}
        async with serving(embedder="static") as server:
            _, _, stats = await ask(server, "/v1/stats")
            assert stats["serves"] == {"llm": False, "index": False, "embedder": "static"}

    run(main())


def test_only_so_many_may_watch(monkeypatch):
    monkeypatch.setattr("tournant.serve.stats._MOST_WATCHERS", 1)

    async def main():
        async with serving() as server, asking(server, "/v1/stats/stream") as response:
            await anext(response.events())
            status, headers, _ = await ask(server, "/v1/stats/stream")
            assert (status, headers["retry-after"]) == (503, "10")

    run(main())


def test_the_models_are_the_upstreams():
    async def script(call: Call) -> None:
        await call.reply({"object": "list", "data": [{"id": "a"}, {"id": "b"}, "odd"]})

    async def main():
        async with upstream(script) as up, serving(llm=up.url) as server:
            for _ in range(3):
                _, _, body = await ask(server, "/v1/models")
                assert [model["id"] for model in body["data"]] == ["a", "b"]
            assert len(up.calls) == 1, "the list is kept for a while"
        async with upstream(script) as up, serving(llm=up.url, model="mine") as server:
            _, _, body = await ask(server, "/v1/models")
            assert [model["id"] for model in body["data"]] == ["mine"]
            assert not up.calls

    run(main())


def test_a_list_of_models_that_cannot_be_read_is_a_502():
    async def main():
        async with (
            upstream(lambda call: call.reply(b"<html>")) as up,
            serving(llm=up.url) as server,
        ):
            assert (await ask(server, "/v1/models"))[0] == 502

    run(main())


def test_the_model_of_the_settings_is_put_into_the_request():
    async def main():
        async with upstream(talk) as up, serving(llm=up.url, model="mine") as server:
            await ask(server, "/v1/chat/completions", {**CHAT, "extra": 1})
            assert up.calls[0].json == {**CHAT, "extra": 1, "model": "mine"}
            status, _, said = await ask(server, "/v1/chat/completions", {**CHAT, "model": "other"})
            assert (status, said["error"]["code"]) == (404, "model_not_found")
            assert (await ask(server, "/v1/chat/completions", {**CHAT, "model": "mine"}))[0] == 200

    run(main())


def test_the_openapi_document_says_what_there_is():
    async def main():
        async with upstream(provider) as up, serving(llm=up.url) as server:
            _, _, document = await ask(server, "/openapi.json")
            assert document["openapi"] == "3.1.0"
            for path, methods in server.app._routes.items():
                assert {method.lower() for method in methods} == set(document["paths"][path])
            refs = set()

            def walk(value):
                if isinstance(value, dict):
                    if "$ref" in value:
                        refs.add(value["$ref"].rsplit("/", 1)[1])
                    for inner in value.values():
                        walk(inner)
                elif isinstance(value, list):
                    for inner in value:
                        walk(inner)

            walk(document)
            assert refs <= set(document["components"]["schemas"])
            # What really comes is among what is promised.
            for path, method, body in (
                ("/v1/chat/completions", "post", {}), ("/v1/chat/completions", "post", CHAT), ("/v1/models", "get", None),
                ("/v1/embeddings", "post", {"input": 5}), ("/v1/models", "get", None),
            ):  # fmt: skip
                status, _, _ = await ask(server, path, body)
                assert str(status) in document["paths"][path][method]["responses"]

    run(main())


def test_ready_only_when_everything_is_loaded():
    async def main():
        async with serving() as server:
            assert (await ask(server, "/readyz"))[0] == 200
            server.app.state.ready = False
            status, headers, body = await ask(server, "/readyz")
            assert (status, body["error"]["code"]) == (503, "loading")
            assert headers["retry-after"] == "1"
            assert (await ask(server, "/healthz"))[0] == 200

    run(main())


def test_a_histogram_counts_into_the_right_buckets():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 99):
        histogram.add(value)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]
    assert histogram.total == pytest.approx(102.0)


def test_a_blocked_loop_is_measured():
    async def main():
        ticker = Ticker()
        ticker.start()
        import time

        await asyncio.sleep(0.1)
        time.sleep(0.3)
        await asyncio.sleep(0.05)
        assert max(ticker.lags) > 0.2
        assert ticker.loaded
        ticker.stop()

    asyncio.run(main())


def test_the_ticker_outlives_what_it_looks_after(caplog):
    class Broken:
        def tick(self, now: float) -> None:
            raise RuntimeError("broken")

    class Fine:
        ticks = 0

        def tick(self, now: float) -> None:
            self.ticks += 1

    async def main():
        ticker = Ticker()
        fine = Fine()
        ticker.watched |= {Broken(), fine}
        ticker.start()
        await until(lambda: fine.ticks >= 2)
        ticker.stop()

    asyncio.run(main())
    assert "broken" in caplog.text
