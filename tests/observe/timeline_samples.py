"""Recordings that look like real ones: an ingest, a demonstration of a few cooks, and a cluster."""

from __future__ import annotations

import random

from tournant.observe.recording import (
    FAILED,
    RETRIED,
    Counter,
    InputSpan,
    Lane,
    Mark,
    Recording,
    Slice,
    Stage,
)

SUMMARY = """\
{n:,} in: {done:,} done, {failed:,} failed, 0 skipped, 0 filtered, 0 interrupted; {out:,} out in {seconds:.1f} s
  stage   on             in      out  failed  retried     busy  no input  no room  no slot  occupied
  files   loop       {n:>6,}   {n:>6,}       0        0    1.2 s      0 us   {seconds:.1f} s     0 us        2%
  read    processes  {n:>6,}   {done:>6,}       {failed}        0   14.1 s    1.1 s     0 us   2.0 s        9%
  chunk   processes  {n:>6,}   {out:>6,}       0        0    8.3 s      0 us     0 us   1.1 s        5%
  embed   processes  {out:>6,}   {out:>6,}       0        0  190.4 s    0.9 s   0.4 s   3.1 s       97%
  write   threads    {out:>6,}   {out:>6,}       0        0   21.9 s   81.3 s     0 us     0 us       19%
bottleneck: embed at 97%, ceiling 104.2 inputs/s"""


def ingest(documents: int = 400, slices: int = 4_000, seed: int = 7) -> Recording:
    """An ingest of `documents` files in about `slices` slices: a source on the loop, two processes that read, chunk and embed, a thread
    that writes.
    """
    rng = random.Random(seed)
    stages = (Stage("files", "loop"), Stage("read", "processes"), Stage("chunk", "processes"),
              Stage("embed", "processes"), Stage("write", "threads"))  # fmt: skip
    lanes = (Lane("loop", "files"), Lane("process", "process 1", 4101), Lane("process", "process 2", 4102),
             Lane("thread", "thread 1", 4100))  # fmt: skip
    embeds = max(1, round(slices / documents) - 3)
    found: list[Slice] = []
    born: dict[int, float] = {}
    ended: dict[int, float] = {}
    failed: set[int] = set()
    queue: list[tuple[float, int]] = []  # changes of the depth of the queue to the writer
    free = [0.05, 0.08]
    pending: list[int] = []
    written = 0.0
    for number in range(documents):
        worker = 0 if free[0] <= free[1] else 1
        now = free[worker]
        listed = max(0.0, now - rng.uniform(0.1, 0.6))
        found.append(Slice(0, 0, listed, listed + rng.uniform(0.002, 0.05), (number,)))
        born[number] = listed
        waited = rng.uniform(0, 0.004)
        took = rng.lognormvariate(-6.2, 0.5)
        if rng.random() < 0.004:
            failed.add(number)
            found.append(Slice(1 + worker, 1, now, now + took, (number,), 1, FAILED, waited))
            free[worker] = ended[number] = now + took
            continue
        outcome = RETRIED if rng.random() < 0.006 else "ok"
        found.append(Slice(1 + worker, 1, now, now + took, (number,), 1, outcome, waited))
        now += took
        if outcome == RETRIED:
            found.append(Slice(1 + worker, 1, now + 0.02, now + 0.02 + took, (number,)))
            now += 0.02 + took
        took = rng.lognormvariate(-6.9, 0.4)
        found.append(Slice(1 + worker, 2, now, now + took, (number,)))
        now += took
        for _ in range(embeds):
            size = rng.choice((1, 2, 4, 8, 8, 16))
            took = 0.0016 * size * rng.uniform(0.8, 1.4)
            found.append(Slice(1 + worker, 3, now, now + took, (number,), size))
            now += took + 0.0001
        free[worker] = now + rng.uniform(0.0002, 0.003)
        ended[number] = now
        queue.append((now, 1))
        pending.append(number)
        if len(pending) >= 24 and now > written:
            began = max(now, written) + 0.001
            written = began + rng.uniform(0.03, 0.12)
            found.append(
                Slice(3, 4, began, written, tuple(pending), 8 * len(pending), waited=0.001)
            )
            ended.update(dict.fromkeys(pending, written))
            queue.append((written, -len(pending)))
            pending = []
    if pending:
        began = max(*free, written)
        written = began + 0.05
        found.append(Slice(3, 4, began, written, tuple(pending), 8 * len(pending)))
        ended.update(dict.fromkeys(pending, written))
        queue.append((written, -len(pending)))
    seconds = max(ended.values()) + 0.04
    found.sort(key=lambda one: one.began)
    inputs = {
        number: InputSpan(
            f"corpus/{'abcdef'[number % 6]}/report-{number:05d}.pdf",
            born[number],
            ended[number],
            "failed" if number in failed else "done",
        )
        for number in range(documents)
    }
    return Recording(
        title="Ingest of a corpus",
        began=1_795_545_600.0,
        duration=seconds,
        cores=2,
        stages=stages,
        lanes=lanes,
        slices=tuple(found),
        inputs=inputs,
        counters=_counters(rng, seconds, queue),
        marks=_marks(rng, seconds),
        summary=SUMMARY.format(
            n=documents, done=documents - len(failed), failed=len(failed), out=documents * 9, seconds=seconds
        ),
    )  # fmt: skip


def _counters(
    rng: random.Random, seconds: float, queue: list[tuple[float, int]]
) -> tuple[Counter, ...]:
    depth = 0
    waiting = []
    for at, change in sorted(queue):
        depth += change
        waiting.append((at, float(depth)))
    count = min(4000, max(20, int(seconds * 20)))
    room = []
    cores = []
    level = 32.0
    for step in range(count):
        at = seconds * step / count
        level = min(64.0, max(0.0, level + rng.randint(-6, 6)))
        room.append((at, level if step < count * 0.95 else level * (count - step) / (count * 0.05)))
        cores.append((at, min(2.0, max(0.0, 1.93 + rng.gauss(0, 0.07))) if step > 2 else 0.4))
    return (
        Counter("queue: read", "items", tuple(room)),
        Counter("queue: write", "items", tuple(waiting)),
        Counter("cores", "cores", tuple(cores)),
    )


def _marks(rng: random.Random, seconds: float) -> tuple[Mark, ...]:
    marks = [
        Mark("blocked", seconds * 0.31, "The loop stood still for 212 ms in files.py:88, in `os.walk`: run it in a thread, on=\"threads\".", 0, 0.212),
        Mark("guard", seconds * 0.62, "Stage write: its threads share one core; run it in processes, or in C.", 3),
        Mark("limit", seconds * 0.44, "Stage embed works on 6 batches at once instead of 4."),
        Mark("worker", seconds * 0.78, "Process 2 was started anew: its memory had grown above 2 GB.", 2),
        Mark("retry", seconds * 0.15, "read of report-00061.pdf again after OSError.", 1),
    ]  # fmt: skip
    at = 0.4
    while at < seconds:
        marks.append(Mark("gc", at, "Generation 2, 14,203 objects.", 1, rng.uniform(0.004, 0.03)))
        at += rng.uniform(0.5, 1.5) * seconds / 14
    return tuple(sorted(marks, key=lambda mark: mark.at))


def chat(calls: int = 600, at_once: int = 60, seed: int = 3) -> Recording:
    """A loop stage that waits for a provider, many calls at once, with a limit that moves."""
    rng = random.Random(seed)
    free = [0.0] * at_once
    found = []
    inputs = {}
    for number in range(calls):
        slot = min(range(at_once), key=free.__getitem__)
        began = free[slot]
        took = rng.lognormvariate(-0.5, 0.5)
        outcome = RETRIED if rng.random() < 0.02 else FAILED if rng.random() < 0.01 else "ok"
        found.append(
            Slice(0, 0, began, began + took, (number,), outcome=outcome, waited=rng.random() * 0.2)
        )
        free[slot] = began + took
        inputs[number] = InputSpan(f"question {number}", max(0.0, began - 0.3), began + took + 0.02)
        found.append(Slice(1, 1, began + took + 0.001, began + took + 0.004, (number,)))
    found.sort(key=lambda one: one.began)
    end = max(one.ended for one in found)
    return Recording(
        title="600 questions, 60 at once",
        began=1_795_545_700.0,
        duration=end,
        stages=(Stage("ask", "loop"), Stage("parse", "loop")),
        lanes=(Lane("loop", "ask"), Lane("loop", "parse")),
        slices=tuple(found),
        inputs=inputs,
        counters=(Counter("limit: ask", "calls", ((0.0, 20.0), (2.0, 40.0), (4.0, 60.0))),),
        summary="600 in: 594 done, 6 failed",
    )


def kitchen() -> list[Recording]:
    """The same nine dishes by one cook, by one cook who does not stand and wait, and by four."""
    stages = (Stage("query", "loop"), Stage("image", "processes"), Stage("upload", "loop"))
    waits, thinks = (0.5, 0.05, 0.35), (0.02, 0.4, 0.02)
    dishes = [f"dish {number}" for number in range(1, 10)]

    def recording(title: str, lanes: tuple[Lane, ...], found: list[Slice]) -> Recording:
        found.sort(key=lambda one: one.began)
        inputs = {}
        for number, key in enumerate(dishes):
            mine = [one for one in found if number in one.inputs]
            inputs[number] = InputSpan(key, min(s.began for s in mine), max(s.ended for s in mine))
        end = max(one.ended for one in found)
        return Recording(title=title, duration=end, cores=2, stages=stages, lanes=lanes, slices=tuple(found), inputs=inputs,
                         summary=f"{end:.2f} s for nine dishes")  # fmt: skip

    one: list[Slice] = []
    now = 0.0
    for number in range(9):
        for stage in range(3):
            took = waits[stage] + thinks[stage]
            one.append(Slice(0, stage, now, now + took, (number,)))
            now += took
    many: list[Slice] = []
    now = 0.0
    for number in range(9):
        many.append(Slice(0, 0, 0.02 * number, 0.02 * number + waits[0], (number,)))
    now = 0.55
    for number in range(9):
        many.append(Slice(1, 1, now, now + thinks[1] + waits[1], (number,)))
        now += thinks[1] + waits[1]
        many.append(Slice(0, 2, now, now + waits[2], (number,)))
    four: list[Slice] = []
    free = [0.1, 0.1, 0.1, 0.1]
    for number in range(9):
        cook = min(range(4), key=free.__getitem__)
        for stage in range(3):
            took = waits[stage] + thinks[stage]
            four.append(Slice(cook, stage, free[cook], free[cook] + took, (number,)))
            free[cook] += took
    return [
        recording("Synchronously: one cook, one dish at a time", (Lane("task", "cook"),), one),
        recording("Concurrently: one cook, many dishes", (Lane("loop", "waits"), Lane("task", "cook")), many),
        recording("In processes: four cooks", tuple(Lane("process", f"cook {n}", 100 + n) for n in range(1, 5)), four),
    ]  # fmt: skip


def cluster(nodes: int = 3, seed: int = 5) -> Recording:
    """A run on several nodes, each with a group of lanes and its own queue."""
    rng = random.Random(seed)
    lanes: list[Lane] = []
    found: list[Slice] = []
    counters = []
    for node in range(nodes):
        name = f"node-{node + 1}.example"
        for worker in range(4):
            lanes.append(Lane("process", f"process {worker + 1}", 100 * node + worker, name))
            now = 0.05 * node
            while now < 6:
                took = rng.uniform(0.01, 0.2)
                found.append(
                    Slice(len(lanes) - 1, rng.randrange(2), now, now + took, (rng.randrange(200),))
                )
                now += took + (0.002 if rng.random() < 0.9 else 0.2)
        counters.append(
            Counter(
                "queue: embed",
                "items",
                tuple((t / 10, float(rng.randint(0, 30))) for t in range(60)),
                name,
            )
        )
    found.sort(key=lambda one: one.began)
    return Recording(
        title="Three nodes",
        duration=6.2,
        cores=4 * nodes,
        stages=(Stage("chunk", "processes"), Stage("embed", "processes")),
        lanes=tuple(lanes),
        slices=tuple(found),
        inputs={n: InputSpan(f"https://example.org/pages/{n}", 0.0, 6.0) for n in range(200)},
        counters=tuple(counters),
        marks=(
            Mark(
                "worker", 3.1, "node-2.example did not answer for 5 s; its work went to the others."
            ),
        ),
        lost=1204,
    )
