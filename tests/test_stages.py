"""What is refused when a stage is added, and that each refusal says where and how to mend it."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator

import pytest

import core_samples as samples
import tournant as tn
from tournant import stages
from tournant.errors import InvalidPipeline
from tournant.limits import Adaptive, RateLimit

LIMIT = RateLimit(requests="500/min")
SHARED = Adaptive()
EMPTY = tn.Pipeline([])


async def coroutine(value):
    return value


async def async_generator(value):
    yield value


def plain(value):
    return value


class AsyncCall:
    async def __call__(self, value):
        return value


LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("add", "where", "mend"),
    [
        (lambda: EMPTY.map(5), ".map(5)", "callable"),
        (
            lambda: EMPTY.map(coroutine, on="processes"),
            ".map(coroutine)",
            "plain def to run it in processes",
        ),
        (lambda: EMPTY.map(coroutine, on="threads"), ".map(coroutine)", "leave on out"),
        (lambda: EMPTY.map(AsyncCall(), on="threads"), ".map(AsyncCall)", "leave on out"),
        (
            lambda: EMPTY.map(functools.partial(coroutine), on="processes"),
            ".map(coroutine)",
            "leave on out",
        ),
        (lambda: EMPTY.map(async_generator), ".map(async_generator)", ".flat_map()"),
        (lambda: EMPTY.filter(samples.upto), ".filter(upto)", ".flat_map()"),
        (
            lambda: EMPTY.map(plain, on="gpu"),
            ".map(plain)",
            '"loop", "threads", "processes" or "auto"',
        ),
        (lambda: EMPTY.map(coroutine, concurrency=0), "concurrency=0", "1 or more"),
        (lambda: EMPTY.map(coroutine, concurrency=2.5), "concurrency=2.5", "whole number"),
        (lambda: EMPTY.map(coroutine, concurrency=True), "concurrency=True", "whole number"),
        (lambda: EMPTY.map(plain, concurrency=4), "concurrency=4", "max_workers="),
        (
            lambda: EMPTY.map(plain, concurrency=Adaptive()),
            "concurrency=Adaptive(",
            "blocking=True",
        ),
        (
            lambda: EMPTY.map(plain, on="processes", concurrency=Adaptive()),
            ".map(plain)",
            "max_workers=",
        ),
        (lambda: EMPTY.map(coroutine, concurrency="8"), "concurrency='8'", "Adaptive(min, max)"),
        (lambda: EMPTY.map(coroutine, limit=500), ".map(coroutine): limit=500", "RateLimit("),
        (lambda: EMPTY.map(coroutine, limit=Adaptive()), "limit=Adaptive(", "concurrency="),
        (lambda: EMPTY.map(plain, limit=LIMIT), ".map(plain): limit=", "blocking=True"),
        (
            lambda: EMPTY.map(plain, on="processes", limit=LIMIT),
            ".map(plain): limit=",
            "async def",
        ),
        (lambda: EMPTY.map(coroutine, cost=5), ".map(coroutine): cost=", "give both"),
        (lambda: EMPTY.map(coroutine, limit=LIMIT, cost=-1), "cost=-1", "0 or more"),
        (lambda: EMPTY.map(coroutine, limit=LIMIT, cost=True), "cost=True", "a number of tokens"),
        (lambda: EMPTY.map(coroutine, limit=LIMIT, cost="9"), "cost='9'", "a number of tokens"),
        (lambda: EMPTY.map(coroutine, limit=LIMIT, cost=float("inf")), "cost=inf", "tokens"),
        (lambda: EMPTY.map(coroutine, limit=LIMIT, cost=coroutine), "cost=", "plain function"),
        (
            lambda: EMPTY.flat_map(async_generator, concurrency=SHARED).map(
                coroutine, concurrency=SHARED
            ),
            ".map(coroutine): it shares its Adaptive with .flat_map(async_generator)",
            "an Adaptive of its own",
        ),
        (lambda: EMPTY.map(plain, on="processes", concurrency=4), "concurrency=4", "blocking=True"),
        (lambda: EMPTY.map(plain, max_workers=0), "max_workers=0", "1 or more"),
        (lambda: EMPTY.map(coroutine, max_workers=2), ".map(coroutine)", "concurrency="),
        (lambda: EMPTY.map(plain, blocking=True, max_workers=2), ".map(plain)", "concurrency="),
        (lambda: EMPTY.map(plain, blocking=True, on="processes"), "blocking=True", 'on="threads"'),
        (lambda: EMPTY.map(coroutine, blocking=True), "blocking=True", 'on="threads"'),
        (lambda: EMPTY.map(plain, timeout=0), "timeout=0", "above 0"),
        (lambda: EMPTY.map(plain, timeout=float("nan")), "timeout=nan", "above 0"),
        (lambda: EMPTY.map(plain, retry=3), "retry=3", "tn.Retry("),
        (lambda: EMPTY.map(plain, on_error="ignore"), "on_error='ignore'", '"skip"'),
        (lambda: EMPTY.map(plain, state=dict), "state=", "tn.PerWorker"),
        (lambda: EMPTY.map(plain, name=" "), "name=' '", "non-empty"),
        (
            lambda: EMPTY.map(lambda v: LOCK.acquire() or [LOCK], on="processes"),
            ".map(lambda)",
            "tn.PerWorker",
        ),
        (
            lambda: EMPTY.map(
                plain, on="processes", state=tn.PerWorker(functools.partial(print, LOCK))
            ),
            "PerWorker(factory)",
            "module-level function",
        ),
        (
            lambda: EMPTY.map(plain, on="processes", state=tn.PerWorker(dict, close=LOCK.release)),
            "PerWorker(close=)",
            "module-level function",
        ),
        (lambda: EMPTY.map_batches(plain, size=0), "size=0", "1 or more"),
        (lambda: EMPTY.map_batches(plain, max_wait=-1), "max_wait=-1", "above 0"),
        (lambda: EMPTY.batch(), ".batch()", "size=, or weight= and max_weight="),
        (lambda: EMPTY.batch(0), "size=0", "1 or more"),
        (lambda: EMPTY.batch(2, weight=len), ".batch()", "go together"),
        (lambda: EMPTY.batch(2, max_weight=5), ".batch()", "go together"),
        (lambda: EMPTY.batch(weight=coroutine, max_weight=5), "weight=", "plain function"),
        (lambda: EMPTY.batch(weight=len, max_weight=0), "max_weight=0", "above 0"),
        (lambda: EMPTY.ordered(0), "window=0", "1 or more"),
        (lambda: EMPTY.for_each(plain).map(plain), ".map() after .for_each(plain)", ".tap()"),
        (lambda: EMPTY.unbatch(), ".unbatch()", ".batch() before it"),
        (lambda: EMPTY.batch(2).unbatch().unbatch(), ".unbatch()", ".batch() before it"),
        (lambda: EMPTY.batch(2).gather(), ".gather() after .batch()", ".unbatch() before it"),
        (lambda: EMPTY.batch(2).ordered(), ".ordered() after .batch()", ".unbatch() before it"),
    ],
)
def test_what_cant_be_is_refused_with_the_mend(add, where, mend):
    with pytest.raises(InvalidPipeline) as caught:
        add()
    assert where in str(caught.value)
    assert mend in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_defaults_follow_the_callable():
    (stage,) = EMPTY.map(coroutine).stages
    assert (stage.on, stage.is_async, stage.concurrency) == ("loop", True, 64)
    (stage,) = EMPTY.map(AsyncCall()).stages
    assert (stage.on, stage.name) == ("loop", "AsyncCall")
    (stage,) = EMPTY.map(plain).stages
    assert (stage.on, stage.is_async, stage.max_workers) == ("threads", False, None)
    (stage,) = EMPTY.flat_map(async_generator).stages
    assert (stage.on, stage.is_async) == ("loop", True)
    (stage,) = EMPTY.map(lambda v: v).stages
    assert stage.name == "lambda"
    (stage,) = EMPTY.map(functools.partial(functools.partial(plain, 1))).stages
    assert stage.name == "plain"


def test_names_are_made_unique():
    pipeline = EMPTY.map(plain).map(plain).map(plain, name="plain-2").gather().gather()
    assert [s.name for s in pipeline.stages] == [
        "plain",
        "plain-2",
        "plain-2-2",
        "gather",
        "gather-2",
    ]


def test_stages_are_frozen():
    (stage,) = EMPTY.map(plain).stages
    with pytest.raises(AttributeError):
        stage.name = "other"


def test_what_can_be_imported_travels_by_reference():
    assert stages.travels_by_reference(samples.inc)
    assert stages.travels_by_reference(samples.Counted)
    assert stages.travels_by_reference(len)
    assert not stages.travels_by_reference(lambda: 0)
    assert not stages.travels_by_reference(functools.partial(len))
    assert not stages.travels_by_reference([].append)

    def inner():
        pass

    assert not stages.travels_by_reference(inner)


@pytest.mark.parametrize("kind", sorted(stages.CALLING))
def test_every_kind_of_stage_takes_a_limit_an_adaptive_concurrency_and_a_cost(kind):
    fn = async_generator if kind == "flat_map" else coroutine
    add = getattr(EMPTY, kind)
    (stage,) = add(fn, limit=LIMIT, concurrency=SHARED, cost=len).stages
    assert (stage.limit, stage.adaptive, stage.cost) == (LIMIT, SHARED, len)
    assert stage.concurrency == SHARED.max == 64
    assert stage.limited
    (stage,) = add(plain, blocking=True, limit=LIMIT, cost=0).stages
    assert stage.limited
    (stage,) = add(fn, concurrency=8).stages
    assert not stage.limited


def test_an_adaptive_may_be_shared_where_nobody_waits_for_ever():
    p = EMPTY.map(coroutine, concurrency=SHARED).map(coroutine, concurrency=SHARED)
    p = p.flat_map(async_generator, concurrency=SHARED, retry=tn.Retry())
    assert p.map(coroutine, concurrency=SHARED).stages[-1].adaptive is SHARED


def test_the_second_of_two_stages_of_one_name_keeps_its_limit():
    p = EMPTY.map(coroutine).map(coroutine, limit=LIMIT, concurrency=SHARED, cost=3)
    stage = p.stages[1]
    assert (stage.name, stage.limit, stage.adaptive, stage.cost) == (
        "coroutine-2",
        LIMIT,
        SHARED,
        3,
    )


class _Pieces:
    def __aiter__(self):
        raise NotImplementedError


def _pieces(x) -> _Pieces:
    return _Pieces()


def _iterated(x) -> AsyncIterator[int]:
    raise NotImplementedError


def _listed(x) -> list[int]:
    return [x]


def _elsewhere(x) -> NotImportedHere:  # noqa: F821
    raise NotImplementedError


@pytest.mark.parametrize(
    ("fn", "on"),
    [(_pieces, "loop"), (_iterated, "loop"), (functools.partial(_pieces, 1), "loop"), (_listed, "threads"), (_elsewhere, "threads")],
)  # fmt: skip
def test_what_says_that_it_returns_an_async_iterator_runs_on_the_loop(fn, on):
    assert tn.Pipeline([1]).flat_map(fn).stages[0].on == on
    if on == "loop":
        with pytest.raises(
            InvalidPipeline, match="returns an async iterator, runs on the event loop"
        ):
            tn.Pipeline([1]).flat_map(fn, on="threads")
