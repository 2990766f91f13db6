"""Generated pipelines: whatever is put together and whatever fails, every input is accounted for, and the results are those of a
plain interpreter of the same description."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from recording_checks import check_recording

import tournant as tn

# Values are tuples (input, path of fan-outs), so that every item is told apart; a stage decides by a hash of them.


class Planned(Exception):
    """What a stage raises because the test says so."""


@dataclass(frozen=True)
class Op:
    """One stage of a generated pipeline."""

    kind: str
    place: str = "loop"
    number: int = 0
    fails: bool = False
    retry: bool = False
    size: int = 3
    window: int = 5
    concurrency: int = 4

    def decides(self, value: Any, salt: int) -> int:
        """A number that depends on the value alone."""
        return zlib.crc32(f"{canonical(value)}-{self.number}-{salt}".encode())

    def poison(self, value: Any) -> bool:
        return self.fails and self.decides(value, 1) % 7 == 0

    def keeps(self, value: Any) -> bool:
        return self.decides(value, 2) % 3 != 0

    def children(self, value: Any) -> int:
        return self.decides(value, 3) % 4


def call(op: Op, folder: str | None, value: Any) -> Any:
    if op.poison(value):
        raise Planned(op.number)
    if folder is not None:
        die_once(folder, op, value)
    if op.kind == "filter":
        return op.keeps(value)
    return ("m", op.number, value)


def call_flat(op: Op, folder: str | None, value: Any) -> Any:
    for n in range(op.children(value)):
        yield ("f", op.number, n, value)
    if op.poison(value):
        raise Planned(op.number)


def call_batch(op: Op, folder: str | None, values: Any) -> Any:
    if any(op.poison(value) for value in values):
        raise Planned(op.number)
    return [("b", op.number, value) for value in values]


def die_once(folder: str, op: Op, value: Any) -> None:
    """Kill this process for one item in some dozens, the first time that it is met."""
    if op.decides(value, 4) % 41 == 0:
        mark = Path(folder, f"{op.number}-{op.decides(value, 6)}")
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


async def acall(op: Op, folder: str | None, value: Any) -> Any:
    if op.decides(value, 5) % 3 == 0:
        await asyncio.sleep(0)
    return call(op, None, value)


async def acall_flat(op: Op, folder: str | None, value: Any) -> Any:
    for child in call_flat(op, None, value):
        if op.decides(child, 5) % 3 == 0:
            await asyncio.sleep(0)
        yield child


async def acall_batch(op: Op, folder: str | None, values: Any) -> Any:
    await asyncio.sleep(0)
    return call_batch(op, None, values)


_CALLS = {
    "map": (call, acall),
    "filter": (call, acall),
    "tap": (call, acall),
    "flat_map": (call_flat, acall_flat),
    "map_batches": (call_batch, acall_batch),
}


def add(pipeline: tn.Pipeline, op: Op, folder: str | None) -> tn.Pipeline:
    if op.kind == "ordered":
        return pipeline.ordered(window=op.window)
    if op.kind == "gather":
        return pipeline.gather()
    if op.kind == "batch":
        return pipeline.batch(size=op.size, max_wait=0.01)
    if op.kind == "unbatch":
        return pipeline.unbatch()
    plain, coroutine = _CALLS[op.kind]
    options: dict[str, Any] = {}
    if op.place == "async":
        fn, options["concurrency"] = coroutine, op.concurrency
    else:
        fn = plain
        options["on"] = "threads" if op.place == "blocking" else op.place
        if op.place == "blocking":
            options.update(blocking=True, concurrency=op.concurrency)
    if op.kind == "map_batches":
        options.update(size=op.size, max_wait=0.01)
    if op.retry:
        options["retry"] = tn.Retry(2, delay=0.0005)
    deaths = folder if op.place == "processes" else None
    return getattr(pipeline, op.kind)(
        functools.partial(fn, op, deaths), name=f"s{op.number}", **options
    )


def build(
    inputs: list[int], ops: list[Op], folder: str | None = None, **options: Any
) -> tn.Pipeline:
    pipeline = tn.Pipeline(inputs, **options)
    for op in ops:
        pipeline = add(pipeline, op, folder)
    return pipeline


# The reference: one input at a time, in order, with lists. Batches are transparent to it where only elementwise stages stand
# between batch and unbatch, which is all that is generated.


@dataclass
class Expected:
    outputs: list[Any]
    done: int = 0
    failed: int = 0
    filtered: int = 0


def interpret(inputs: list[int], ops: list[Op]) -> Expected:
    expected = Expected([])
    for value in inputs:
        items, failed, dropped, root_dropped = [value], False, False, False
        for n, op in enumerate(ops):
            if op.kind in ("ordered", "batch", "unbatch"):
                continue
            if op.kind == "gather":
                if failed or root_dropped:
                    items = []
                    break
                items, dropped = [tuple(items)], False
                continue
            after: list[Any] = []
            fanned = any(o.kind == "flat_map" for o in ops[:n])
            gathered = any(o.kind == "gather" for o in ops[:n])
            for item in items:
                if op.kind == "flat_map":
                    if op.poison(item):
                        failed = True
                        if op.retry:
                            continue
                    after += [("f", op.number, k, item) for k in range(op.children(item))]
                elif op.poison(item):
                    failed = True
                elif op.kind == "filter":
                    if op.keeps(item):
                        after.append(item)
                    else:
                        dropped = True
                        root_dropped = root_dropped or not fanned or (gathered and _whole(ops[:n]))
                elif op.kind == "tap":
                    after.append(item)
                elif op.kind == "map":
                    after.append(("m", op.number, item))
                else:
                    after.append(("b", op.number, item))
            items = after
        expected.outputs += items
        if failed:
            expected.failed += 1
        elif dropped and not items:
            expected.filtered += 1
        else:
            expected.done += 1
    return expected


def _whole(ops: list[Op]) -> bool:
    """Whether an item behind `ops` stands for its whole input."""
    kinds = [op.kind for op in ops]
    last_gather = len(kinds) - 1 - kinds[::-1].index("gather")
    return "flat_map" not in kinds[last_gather:]


@st.composite
def pipelines(draw: Any, places: tuple[str, ...]) -> list[Op]:
    ops: list[Op] = []
    in_batch = False
    for number in range(draw(st.integers(1, 6))):
        kinds = [
            "map",
            "map",
            "filter",
            "tap",
            "flat_map",
            "map_batches",
            "ordered",
            "gather",
            "batch",
        ]
        if in_batch:
            # Only what keeps a batch's rows: a barrier or fan-out has no place here.
            kinds = ["unbatch"]
        kind = draw(st.sampled_from(kinds))
        in_batch = kind == "batch"
        ops.append(
            Op(
                kind,
                place=draw(st.sampled_from(places)),
                number=number,
                fails=draw(st.booleans()),
                retry=draw(st.booleans()),
                size=draw(st.integers(1, 5)),
                window=draw(st.integers(1, 20)),
                concurrency=draw(st.integers(1, 4)),
            )
        )
    if in_batch:
        ops.append(Op("unbatch", number=len(ops)))
    return ops


def canonical(value: Any) -> Any:
    return tuple(canonical(v) for v in value) if isinstance(value, (list, tuple)) else value


def check(inputs: list[int], ops: list[Op], pipeline: tn.Pipeline, *, inline: bool = False) -> None:
    expected = interpret(inputs, ops)
    outputs: list[Any] = []
    values: list[Any] = []

    async def main() -> tn.Report:
        async with pipeline.open(inline=inline) as run:
            async for value in run:
                values.append(value)
            return run.report

    report = asyncio.run(main())
    outputs = [canonical(value) for value in values]
    assert Counter(outputs) == Counter(canonical(v) for v in expected.outputs)
    assert (report.sourced, report.done, report.failed, report.filtered, report.interrupted) == (
        len(inputs), expected.done, expected.failed, expected.filtered, 0,
    )  # fmt: skip
    assert report.outputs == len(outputs)
    if inline or any(op.kind == "ordered" for op in ops):
        position = {value: n for n, value in enumerate(inputs)}
        last = max((n for n, op in enumerate(ops) if op.kind == "ordered"), default=0)
        disturbing = {"async", "threads", "blocking", "processes"}
        behind = [op for op in ops[last + 1 :] if op.kind not in ("batch", "unbatch", "gather")]
        if inline and not any(op.retry or op.kind == "map_batches" for op in ops):
            behind = []
        if not any(op.place in disturbing for op in behind) and not behind:
            order = [position[root(value)] for value in outputs if root(value) is not None]
            assert order == sorted(order)
    for stage in report.stages:
        assert stage.items_in >= 0
        assert stage.p50 <= stage.p90 <= stage.p99
    check_recording(report)


def root(value: Any) -> Any:
    """The input that an output descends from; ``None`` for an empty group."""
    while isinstance(value, tuple):
        if not value:
            return None
        value = value[-1]
    return value


QUICK = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
INPUTS = st.integers(0, 60).map(lambda n: list(range(n)))


@given(inputs=INPUTS, ops=pipelines(("loop", "async", "threads", "blocking")))
@QUICK
def test_every_input_of_any_pipeline_is_accounted_for(inputs, ops):
    check(inputs, ops, build(inputs, ops, on_error="skip"))


@given(inputs=INPUTS, ops=pipelines(("loop", "async", "threads")))
@QUICK
def test_an_inline_run_gives_the_same(inputs, ops):
    check(inputs, ops, build(inputs, ops, on_error="skip"), inline=True)


@given(inputs=INPUTS, ops=pipelines(("async", "threads")), limit=st.integers(1, 20_000))
@settings(QUICK, max_examples=60)
def test_a_memory_limit_changes_nothing_but_the_pace(inputs, ops, limit):
    check(inputs, ops, build(inputs, ops, on_error="skip", memory_limit=limit))


@given(inputs=INPUTS, ops=pipelines(("async", "threads", "processes", "processes")))
@settings(QUICK, max_examples=20)
def test_worker_deaths_change_nothing(inputs, ops, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("deaths"))
    check(inputs, ops, build(inputs, ops, folder, on_error="skip"))


@given(
    inputs=INPUTS,
    ops=pipelines(("loop", "async", "threads", "blocking")),
    leave_after=st.integers(0, 20),
    on_error=st.sampled_from(["stop", "skip"]),
    how=st.sampled_from(["leave", "drain", "cancel"]),
)
@QUICK
def test_a_run_that_is_stopped_early_accounts_for_every_input(
    inputs, ops, leave_after, on_error, how
):
    expected = Counter(canonical(v) for v in interpret(inputs, ops).outputs)
    pipeline = build(inputs, ops, on_error=on_error)
    outputs = []

    async def main() -> tn.Report | None:
        handle = pipeline.open()
        try:
            async with handle as run:
                async for value in run:
                    outputs.append(canonical(value))
                    if len(outputs) > leave_after:
                        if how == "leave":
                            break
                        getattr(run, how)()
        except tn.PipelineFailed as failed:
            assert on_error == "stop"
            assert any(op.fails for op in ops)
            return failed.report
        return handle.report

    report = asyncio.run(main())
    assert report is not None
    ended = report.done + report.failed + report.skipped + report.filtered + report.interrupted
    assert report.sourced == ended <= len(inputs)
    check_recording(report)
    assert not Counter(outputs) - expected
    assert len(asyncio_tasks_left()) == 0
    if how == "drain" and on_error == "skip":
        assert report.interrupted == 0


def asyncio_tasks_left():
    return [task for task in _all_tasks() if not task.done()]


def _all_tasks():
    import gc

    return [o for o in gc.get_objects() if isinstance(o, asyncio.Task)]


@pytest.mark.parametrize("place", ["async", "threads", "processes"])
def test_ordered_output_is_the_inputs_order_whatever_each_item_costs(place, tmp_path):
    ops = [
        Op("flat_map", place, 1),
        Op("map", place, 2, retry=True),
        Op("ordered", window=7),
        Op("filter", "loop", 3, concurrency=1),
    ]
    inputs = list(range(300))
    outputs = build(inputs, ops, str(tmp_path), on_error="skip").collect()
    roots = [root(value) for value in outputs]
    assert roots == sorted(roots)
    assert Counter(map(canonical, outputs)) == Counter(
        map(canonical, interpret(inputs, ops).outputs)
    )
