"""The client and the limits it runs under: its own, and those of the stage that calls it."""

from __future__ import annotations

import asyncio
import contextlib

import fault_server as fault
import pytest
from fault_server import CHAT, WHOLE, FaultServer, event, says, streams

import tournant as tn
from tournant import llm
from tournant.limits import Adaptive, RateLimit, admit
from tournant.limits.current import admission
from tournant.llm import Client
from tournant.llm.estimate import estimate_tokens

TOKENS = 100_000


def fresh() -> RateLimit:
    """A limit so slow to fill that what is left of its bucket tells what was charged."""
    return RateLimit("100/day", f"{TOKENS}/day", burst=50)


def charged(limit: RateLimit) -> tuple[int, int]:
    """Requests and tokens that a `fresh` limit has been charged with."""
    now = limit.snapshot()
    return round(50 - now.requests.level), round(TOKENS / 2 - now.tokens.level)


@contextlib.asynccontextmanager
async def own(server, limit, concurrency=None):
    """The limit is the client's."""
    async with Client(server.url, "kitchen-1", limit=limit, concurrency=concurrency) as client:
        yield client


@contextlib.asynccontextmanager
async def stage(server, limit, concurrency=None):
    """The limit is the stage's: the engine admits, and says so in a context variable."""
    async with (
        Client(server.url, "kitchen-1") as client,
        admit(limit, concurrency, tokens=1_000) as call,
    ):
        token = admission.set(call)
        try:
            yield client
        finally:
            admission.reset(token)


both = pytest.mark.parametrize("place", [own, stage])


def run(answers, place, work, limit, concurrency=None):
    async def main():
        async with (
            FaultServer(*answers) as server,
            place(server, limit, concurrency) as client,
        ):
            return await work(client)

    return asyncio.run(main())


async def ask(client):
    return await client.chat("x", max_tokens=1_000)


async def read(client):
    return [chunk async for chunk in client.stream("x", max_tokens=1_000)]


@both
@pytest.mark.parametrize(("work", "answer"), [(ask, says()), (read, streams(*WHOLE))])
def test_a_call_is_settled_with_what_it_used(place, work, answer):
    limit = fresh()
    run([answer], place, work, limit)
    assert charged(limit) == (1, 12)


@both
def test_where_nobody_says_what_it_used_the_estimate_stands(place):
    limit = fresh()
    run([says({**CHAT, "usage": None})], place, ask, limit)
    requests, tokens = charged(limit)
    assert requests == 1
    assert tokens >= 1_000


@both
def test_a_stream_that_does_not_say_is_settled_by_its_pieces(place):
    limit = fresh()
    run([streams(*(piece for piece in WHOLE if b"usage" not in piece))], place, read, limit)
    requests, tokens = charged(limit)
    assert requests == 1
    assert 4 <= tokens <= 12


@both
def test_a_stream_that_is_left_is_settled_by_its_pieces(place):
    async def leave(client):
        async for _ in client.stream("x", max_tokens=1_000):
            break

    limit = fresh()
    run([streams(*WHOLE[:3], end="hang")], place, leave, limit)
    assert charged(limit)[1] < 20


@both
@pytest.mark.parametrize("work", [ask, read])
def test_a_call_that_never_left_costs_nothing(place, work):
    limit = fresh()

    async def main():
        server = type("Nowhere", (), {"url": await fault.refused_url()})
        async with place(server, limit) as client:
            await work(client)

    with pytest.raises(llm.ConnectionFailed):
        asyncio.run(main())
    assert charged(limit) == (0, 0)
    assert limit.snapshot().in_flight == 0


@both
@pytest.mark.parametrize("work", [ask, read])
def test_a_call_that_broke_may_have_been_counted(place, work):
    limit = fresh()
    with pytest.raises(llm.ConnectionFailed):
        run([fault.resets], place, work, limit)
    assert charged(limit)[0] == 1


@both
@pytest.mark.parametrize("work", [ask, read])
def test_a_request_that_is_refused_costs_no_tokens(place, work):
    limit = fresh()
    with pytest.raises(llm.BadRequest):
        run([fault.openai_error(400, None, "no")], place, work, limit)
    assert charged(limit) == (1, 0)


@both
@pytest.mark.parametrize("work", [ask, read])
@pytest.mark.parametrize(
    "answer",
    [
        fault.openai_error(429, "rate_limit_exceeded", "slow", retry_after="77"),
        says({"error": {"code": 429, "message": "slow"}}, retry_after="77"),
    ],
)
def test_a_throttle_freezes_the_limit(place, work, answer):
    limit = RateLimit("100/s", "1000000/s")
    with pytest.raises(llm.RateLimited):
        run([answer], place, work, limit)
    assert limit.snapshot().throttled == 1
    assert 70 < limit.snapshot().frozen_for <= 77


@both
@pytest.mark.parametrize(("work", "answer"), [(ask, says), (read, None)])
def test_what_the_headers_say_is_taken_in(place, work, answer):
    headers = {"x_ratelimit_limit_requests": "300", "x_ratelimit_remaining_requests": "250"}

    async def streamed(to):
        await to.head(200, "text/event-stream", **headers)
        await to.send(b"".join(WHOLE))

    limit = RateLimit()
    run([says(**headers) if answer else streamed], place, work, limit)
    assert limit.snapshot().requests.goal == 300


@both
def test_the_headers_of_a_refusal_are_taken_in(place):
    limit = RateLimit()
    refusal = fault.openai_error(
        400, None, "no", x_ratelimit_limit_tokens="90000", x_ratelimit_remaining_tokens="1"
    )
    with pytest.raises(llm.BadRequest):
        run([refusal], place, ask, limit)
    assert limit.snapshot().tokens.goal == 90_000


@both
def test_a_users_rule_finds_the_throttle_in_a_body(place):
    def busy(outcome):
        return 55.0 if isinstance(outcome, dict) and outcome.get("busy") else None

    limit = RateLimit("100/s", is_throttle=busy)
    with pytest.raises(llm.RateLimited, match="is_throttle"):
        run([says({"busy": 1})], place, ask, limit)
    assert 50 < limit.snapshot().frozen_for <= 55


@both
@pytest.mark.parametrize("work", [ask, read])
@pytest.mark.parametrize(
    "answer",
    [
        fault.anthropic_error(529, "overloaded_error", "Overloaded"),
        fault.openai_error(503, None, "busy"),
    ],
)
def test_an_overload_lowers_the_concurrency(place, work, answer):
    adaptive = Adaptive(1, 64, start=32)
    with pytest.raises(llm.Overloaded):
        run([answer], place, work, None, adaptive)
    assert adaptive.limit < 32
    assert adaptive.snapshot().running == 0


@both
@pytest.mark.parametrize("which", ["total", "first_token"])
def test_a_timeout_lowers_the_concurrency(place, which):
    adaptive = Adaptive(1, 64, start=32)

    async def work(client):
        object.__setattr__(client, "timeouts", llm.Timeouts(**{which: 0.05}))
        await (ask(client) if which == "total" else read(client))

    with pytest.raises(llm.LLMTimeout):
        run([fault.hangs], place, work, None, adaptive)
    assert adaptive.limit < 32


def test_an_error_in_a_stream_that_means_too_many_freezes_the_limit():
    limit = RateLimit("100/s")
    failing = streams(event("a"), b'data: {"error":{"code":429,"message":"slow"}}\n\n')
    with pytest.raises(llm.StreamFailed):
        run([failing], own, read, limit)
    assert limit.snapshot().throttled == 1


@pytest.mark.parametrize("leave", [False, True])
def test_the_time_a_streams_reader_takes_is_not_the_providers(leave):
    clock = tn.limits.SYSTEM
    adaptive = Adaptive(1, 64, start=32)
    latencies = []
    end = adaptive.controller.leave

    def note(outcome, seconds):
        latencies.append(seconds)
        end(outcome, seconds)

    adaptive.controller.leave = note

    async def work(client):
        began, busy = clock.now(), 0.0
        async with client.stream("x") as chunks:
            async for chunk in chunks:
                since = clock.now()
                await asyncio.sleep(0.05)
                busy += clock.now() - since
                if leave and chunk.finish_reason:
                    break
        return clock.now() - began - busy, busy

    provider, reader = run([streams(*WHOLE)], own, work, None, adaptive)
    assert reader >= 0.2
    assert latencies == [pytest.approx(provider, abs=reader / 4)]


def test_its_own_concurrency_bounds_calls_and_streams():
    running, most = 0, 0

    async def slow(to):
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(20):
            await asyncio.sleep(0)
        running -= 1
        await (streams(*WHOLE) if to.request.body.get("stream") else says())(to)

    async def work(client):
        await asyncio.gather(*(ask(client) for _ in range(10)), *(read(client) for _ in range(10)))

    run([slow], own, work, None, concurrency=3)
    assert most == 3


def test_a_limit_that_both_name_counts_a_call_once():
    limit = fresh()

    async def main():
        async with FaultServer(says(), streams(*WHOLE)) as server:
            client = Client(server.url, "kitchen-1", limit=limit)
            for work in (ask, read):
                async with admit(limit, tokens=1_000) as call:
                    token = admission.set(call)
                    await work(client)
                    admission.reset(token)

    asyncio.run(main())
    assert charged(limit) == (2, 24)


def test_limits_of_a_stage_and_of_a_client_that_differ_are_both_charged():
    of_stage, of_client = fresh(), fresh()

    async def main():
        async with FaultServer(says()) as server:
            client = Client(server.url, "kitchen-1", limit=of_client)
            async with admit(of_stage, tokens=1_000) as call:
                token = admission.set(call)
                await ask(client)
                admission.reset(token)

    asyncio.run(main())
    assert charged(of_stage) == charged(of_client) == (1, 12)


def test_a_call_that_is_cancelled_while_it_waits_takes_nothing():
    limit = RateLimit("1/day", burst=1)

    async def work(client):
        await ask(client)
        task = asyncio.create_task(ask(client))
        while not limit.snapshot().waiting:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert limit.snapshot().waiting == 0
        assert limit.snapshot().in_flight == 0

    run([says()], own, work, limit)


def test_a_pipeline_admits_and_the_client_settles():
    limit = fresh()

    async def main():
        async with FaultServer(fault.resets, says()) as server, Client(server.url, "m") as client:
            pipeline = tn.Pipeline(["a", "b", "c"]).map(
                client.chat,
                limit=limit,
                cost=1_000,
                concurrency=Adaptive(1, 64),
                retry=tn.Retry(delay=0.001, on=llm.TRANSIENT),
            )
            return await pipeline.acollect()

    replies = asyncio.run(main())
    assert [reply.text for reply in replies] == ["The swing cook."] * 3
    # The one that was reset may have been counted: its estimate stands.
    assert charged(limit) == (4, 3 * 12 + 1_000)


# Estimates


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "x" * 400, "max_tokens": 50}, 150),
        ({"prompt": ["x" * 400, "x" * 400], "max_tokens": 0}, 200),
        ({"prompt": [1, 2, 3], "max_tokens": 7}, 10),
        ({"prompt": "x" * 400}, 100 + 256),
        ({"prompt": "x" * 400, "max_tokens": 50, "n": 3}, 250),
        ({"input": "x" * 400}, 100),
        ({"input": [[1, 2, 3], [4]]}, 4),
        ({"messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 50}, 154),
        ({"messages": [{"content": "x" * 400}], "max_completion_tokens": 9, "max_tokens": 99}, 113),
        ({"messages": [{"content": [{"type": "text", "text": "x" * 400}]}], "max_tokens": 0}, 104),
        ({"messages": [{"content": [{"type": "image_url"}]}], "max_tokens": 0}, 804),
        ({"prompt": "世" * 400, "max_tokens": 0}, 300),
        ({}, 1),
        ({"messages": None, "prompt": None, "input": {"a": 1}}, 256 + 800),
        ({"messages": 7, "max_tokens": "many", "n": "few"}, 256),
    ],
)
def test_tokens_are_estimated_from_the_prompt_and_what_is_allowed(body, tokens):
    assert estimate_tokens(body) == tokens


def test_tools_and_their_calls_count():
    plain = {"messages": [{"role": "user", "content": ""}], "max_tokens": 0}
    assert estimate_tokens({**plain, "tools": [{"name": "x" * 400}]}) > 100
    called = [{"role": "assistant", "content": None, "tool_calls": [{"arguments": "x" * 400}]}]
    assert estimate_tokens({"messages": called, "max_tokens": 0}) > 100


def test_the_calls_of_one_stage_call_add_up():
    """An agent's stage asks the model more than once; each time counts."""
    limit = fresh()

    async def twice(client):
        first = await ask(client)
        second = await ask(client)
        return first.usage.total_tokens + second.usage.total_tokens

    used = run([says(), says()], stage, twice, limit)
    assert charged(limit)[1] == used


def test_a_refused_connection_leaves_what_was_charged_before():
    limit = fresh()

    async def work(client):
        used = (await ask(client)).usage.total_tokens
        gone = Client("http://127.0.0.1:9/v1", "kitchen-1")
        with pytest.raises(llm.ConnectionFailed):
            await ask(gone)
        await gone.aclose()
        return used

    used = run([says()], stage, work, limit)
    assert charged(limit) == (1, used)


def test_a_used_up_account_does_not_freeze_the_limit():
    limit = fresh()
    error = llm.QuotaExhausted("no credit left", status=429)
    assert not limit.check(error)
    assert limit.snapshot().frozen_for == 0
    assert limit.check(llm.RateLimited("too fast", status=429, retry_after=5.0))
    assert limit.snapshot().frozen_for > 0
