"""Recordings of runs that never were, for the tests of what is drawn and said of them."""

from __future__ import annotations

import random

from tournant.observe.recording import (
    FAILED,
    OK,
    RETRIED,
    Counter,
    InputSpan,
    Lane,
    Mark,
    Recording,
    Slice,
    Stage,
)


def ingest(calls: int = 400, seed: int = 1, cores: int = 2) -> Recording:
    """Documents that are fetched on the loop, parsed in processes in chunks, embedded in threads."""
    draw = random.Random(seed)
    stages = (Stage("fetch", "loop"), Stage("parse", "processes"), Stage("embed", "threads"))
    lanes = (
        Lane("loop", "fetch"),
        Lane("process", "process 1", 4_711),
        Lane("process", "process 2", 4_712),
        Lane("thread", "thread 1"),
    )
    slices: list[Slice] = []
    inputs: dict[int, InputSpan] = {}
    free = [0.0] * len(lanes)
    queue: list[tuple[float, float]] = []
    for number in range(calls // 3):
        began = number * 0.004 + draw.random() * 0.002
        ended = began + 0.05 + draw.random() * 0.02
        failed = number % 37 == 5
        slices.append(Slice(0, 0, began, ended, (number,), 1, FAILED if failed else OK, 0.001))
        outcome, last = "failed", ended
        if not failed:
            outcome = "done"
            for stage, choice in ((1, (1, 2)), (2, (3,))):
                lane = min(choice, key=free.__getitem__)
                start = max(free[lane], last)
                last = free[lane] = start + (0.007 if stage == 1 else 0.003) * (0.5 + draw.random())
                retried = stage == 1 and number % 50 == 7
                slices.append(
                    Slice(lane, stage, start, last, (number,), 4, RETRIED if retried else OK, start - ended)
                )  # fmt: skip
        inputs[number] = InputSpan(f"docs/{number:05d}.txt", began, last, outcome)
        queue.append((ended, float(number % 9)))
    slices.sort(key=lambda one: one.began)
    end = max(one.ended for one in slices)
    return Recording(
        title="ingest",
        began=1_790_000_000.25,
        duration=end,
        cores=cores,
        stages=stages,
        lanes=lanes,
        slices=tuple(slices),
        inputs=inputs,
        counters=(
            Counter("queue: parse", "items", tuple(sorted(queue))),
            Counter("limit: fetch", "calls", ((0.0, float("inf")), (0.5, 8.0))),
        ),
        marks=(
            Mark("blocked", 0.1, "the loop was blocked by parse.py, line 3", 0, 0.02),
            Mark("gc", 0.2, "garbage collection", 1, 0.004),
            Mark("note", 0.3, "halfway"),
        ),
        summary="100 in: 97 done\nbottleneck: parse at 97%",
    )
