"""Each sentence with a recording that deserves it, and one near it that does not."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trace_samples import ingest

from tournant.observe.advice import Advice, advise
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
from tournant.observe.usage import Steps, together

EMBED, ASK = Stage("embed", "processes"), Stage("ask", "loop")


def row(
    lane: int, stage: int, starts: list[float], length: float, waited: float = 0.0
) -> list[Slice]:
    return [Slice(lane, stage, at, at + length, (n,), waited=waited) for n, at in enumerate(starts)]


def every(step: float, until: float = 10.0, first: float = 0.0) -> list[float]:
    return [first + n * step for n in range(round((until - first) / step))]


def made(
    stages: tuple[Stage, ...],
    slices: list[Slice],
    *,
    cores: int = 2,
    inputs: list[tuple[float, float]] | None = None,
    counters: tuple[Counter, ...] = (),
    marks: tuple[Mark, ...] = (),
    duration: float = 10.0,
) -> Recording:
    """A run of ten seconds whose lanes follow from its slices; its inputs were all taken early unless they are given."""
    kinds = {"loop": "loop", "threads": "thread", "processes": "process"}
    number = max((one.lane for one in slices), default=0) + 1
    kind = {one.lane: kinds[stages[one.stage].on] for one in slices}
    spans = inputs if inputs is not None else [(0.1, duration - 0.2)] * 100
    return Recording(
        duration=duration,
        cores=cores,
        stages=stages,
        lanes=tuple(Lane(kind.get(n, "thread"), f"lane {n}") for n in range(number)),
        slices=tuple(sorted(slices, key=lambda one: one.began)),
        inputs={n: InputSpan(f"{n}.txt", *span) for n, span in enumerate(spans)},
        counters=counters,
        marks=marks,
    )


def said(recording: Recording) -> tuple[str, str]:
    advice = advise(recording)
    return advice.kind, advice.sentence


def full(share: float = 0.97, cores: int = 2) -> list[Slice]:
    """Embedding that keeps so much of all cores busy."""
    return [one for lane in range(cores) for one in row(lane, 0, every(0.1), 0.1 * share)]


# cores


def test_cpu_stages_that_fill_the_cores_want_more_of_them() -> None:
    advice = advise(made((EMBED,), full()))
    assert advice.sentence == "embed is the bottleneck at 97% of two cores: more cores help, more concurrency does not"  # fmt: skip
    assert advice.kind == "cores"
    assert (advice.bottleneck, advice.utilisation) == ("embed", pytest.approx(0.97))
    # 100 inputs in 10 s at 97 %.
    assert advice.ceiling == pytest.approx(10 / 0.97)
    assert said(made((EMBED,), full(0.5)))[0] != "cores"


def test_several_cpu_stages_share_the_cores() -> None:
    stages = (Stage("parse", "processes"), Stage("embed", "threads"))

    def both(parse: float, embed: float) -> list[Slice]:
        """First the one, then the other, on either core."""
        return [
            one
            for lane in (0, 1)
            for one in row(lane, 0, every(0.1), parse)
            + row(lane, 1, every(0.1, first=parse), embed)
        ]

    kind, sentence = said(made(stages, both(0.045, 0.03)))
    assert kind == "cores"
    assert sentence.startswith("the CPU stages are the bottleneck at 75% of two cores, parse first (parse 60%, embed 40% of it)")  # fmt: skip
    assert said(made(stages, both(0.07, 0.01)))[1].startswith("parse is the bottleneck at 80% of")
    assert said(made(stages, both(0.045, 0.005)))[0] == "none"


# waiting


def test_workers_that_wait_want_company_and_no_cores() -> None:
    def waiting(on: str, computing: float | None, cores: int = 2) -> tuple[str, str]:
        return said(made((Stage("fetch", on, computing),), full(0.97, cores), cores=cores))

    for on in ("threads", "processes"):
        kind, sentence = waiting(on, 0.01)
        assert kind == "waiting"
        assert sentence.startswith("fetch is the bottleneck: it holds its places on two cores for 97% of the run and computes for 1% of that")  # fmt: skip
        assert "more of its calls at once help" in sentence
        assert sentence.endswith("more cores do not")
        assert waiting(on, 0.6)[0] == waiting(on, None)[0] == "cores"
    # Eight threads behind the interpreter lock compute an eighth of their time each, and one core's worth together.
    assert waiting("threads", 0.125, cores=8)[0] == "cores"
    assert waiting("processes", 0.125, cores=8)[0] == "waiting"


def test_how_much_of_the_cores_in_use_is_cpu_time_is_said_where_it_is_little() -> None:
    def line(computing: float | None) -> str:
        (found,) = (
            text
            for text in advise(made((Stage("fetch", "threads", computing),), full())).lines
            if text.startswith("cores:")
        )
        return found

    assert line(0.02) == "cores: 1.94 of 2 in use on average (2% of that is CPU time)"
    assert line(0.9) == line(None) == "cores: 1.94 of 2 in use on average"


def test_threads_that_only_wait_use_no_cores() -> None:
    recording = made((Stage("fetch", "threads"),), full(0.97, 8))
    waiting = tuple(lane._replace(name=f"blocking {lane.name}") for lane in recording.lanes)
    assert advise(dataclasses.replace(recording, lanes=waiting)).cores_used == 0


# worker


def test_a_stage_with_one_worker_that_is_always_busy_is_named_though_cores_are_free() -> None:
    writes = (Stage("write", "threads"),)
    kind, sentence = said(made(writes, row(0, 0, every(0.1), 0.095)))
    assert kind == "worker"
    assert sentence.startswith("write is the bottleneck: it works on one call at a time and is busy for 95% of the run, while 1.0 of two cores")  # fmt: skip
    # On one core the core is what is missing.
    assert said(made(writes, row(0, 0, every(0.1), 0.095), cores=1))[0] == "cores"
    two = [s._replace(lane=s.lane % 2) for s in row(0, 0, every(0.1), 0.095) + row(1, 0, [0.05], 0.05)]  # fmt: skip
    assert said(made(writes, two))[0] != "worker"


def test_a_loop_stage_with_one_place_is_such_a_stage() -> None:
    kind, sentence = said(made((ASK,), row(0, 0, every(0.1), 0.1)))
    assert (kind, "ask is the bottleneck: it works on one call at a time" in sentence) == ("worker", True)  # fmt: skip


# rate and concurrency


def asking(at_once: int, length: float, waited: float, gap: float) -> list[Slice]:
    """Calls on the loop: so many lanes of them, each a call of `length` every `gap` seconds, ready `waited` seconds before it."""
    return [
        one
        for lane in range(at_once)
        for one in row(0, 0, every(gap, first=1.0 + lane * gap / at_once), length, waited)
    ]


def test_calls_that_wait_while_places_are_free_wait_for_the_rate() -> None:
    slices = asking(4, 0.12, 0.88, 1.0) + row(0, 0, [0.0, 0.0, 0.0, 0.0], 0.2)
    advice = advise(made((ASK,), slices))
    assert advice.kind == "rate"
    assert advice.sentence.startswith("ask waits 86% of its time for its rate limit, in 9")
    assert "more cores and more concurrency do not" in advice.sentence
    assert advice.bottleneck == "ask"
    # The same calls, and hardly any of them waited.
    near = [one._replace(waited=0.01) for one in slices]
    assert said(made((ASK,), near))[0] not in ("rate", "concurrency")


def test_calls_that_wait_while_all_places_are_taken_wait_for_the_concurrency() -> None:
    slices = asking(4, 0.5, 0.3, 0.5) + row(0, 0, [0.0] * 4, 1.0)
    kind, sentence = said(made((ASK,), slices))
    assert kind == "concurrency"
    assert sentence.startswith("ask is the bottleneck: its 4 places are taken for ")
    assert "a higher concurrency helps" in sentence
    # Four calls at once at most, but most of the time fewer, and nobody waited.
    assert said(made((ASK,), [s._replace(waited=0.0) for s in slices if s.began % 2 < 1]))[0] == "none"  # fmt: skip


def test_a_counter_of_the_limit_tells_how_many_places_there_are() -> None:
    slices = asking(4, 0.5, 0.0, 0.5)

    def limit(places: float) -> tuple[Counter, ...]:
        return (Counter("limit: ask", "calls", ((0.0, places),)),)

    kind, sentence = said(made((ASK,), slices, counters=limit(4.0)))
    assert (kind, "its 4 places are taken for 8" in sentence) == ("concurrency", True)
    assert said(made((ASK,), slices, counters=limit(40.0)))[0] == "none"
    assert said(made((ASK,), slices, counters=limit(math.inf)))[0] == "none"


def test_without_one_a_queue_in_front_tells_that_the_places_are_full() -> None:
    slices = asking(4, 0.5, 0.0, 0.5)

    def queue(depth: float) -> tuple[Counter, ...]:
        return (Counter("queue: ask", "items", ((0.0, depth),)),)

    assert said(made((ASK,), slices, counters=queue(7.0)))[0] == "concurrency"
    assert said(made((ASK,), slices, counters=queue(0.0)))[0] == "none"


def test_threads_that_wait_share_no_cores() -> None:
    slices = [one for lane in range(8) for one in row(lane, 0, every(0.5), 0.5, 0.1)]
    kind, sentence = said(made((Stage("fetch", "threads"),), slices))
    assert (kind, "its 8 places" in sentence) == ("concurrency", True)


def test_an_adaptive_concurrency_that_was_used_up_is_named_though_a_call_or_two_waited() -> None:
    """A few milliseconds of waiting made the rate a suspect, and then nothing stood out of a stage that was full all the time."""
    slices = [one._replace(waited=0.01 if one.began < 1.2 else 0.0) for one in asking(4, 0.5, 0.0, 0.5)]  # fmt: skip
    slices += row(0, 0, [0.0] * 4, 1.0)
    counters = (Counter("concurrency: ask", "calls", ((0.0, 2), (0.1, 4))),)
    kind, sentence = said(made((ASK,), slices, counters=counters))
    assert kind == "concurrency"
    assert sentence.startswith("ask is the bottleneck: its 4 places are taken for ")
    assert "0%" not in sentence.replace("100%", "")


# who takes the results, retries, inline


def results(share: float) -> tuple[Counter, ...]:
    held = ((0.0, 3.0), (10 * share, 0.0))
    return Counter("queue: results", "items", held), Counter("queue: embed", "items", held)


def test_results_that_nobody_takes_are_not_blamed_on_the_stage_before_them() -> None:
    advice = advise(made((EMBED,), full(0.2), counters=results(0.9)))
    assert (advice.kind, advice.bottleneck) == ("consumer", "consumer")
    assert advice.sentence.startswith("results stood ready for 90% of the run and were not taken, while 0.4 of two cores")  # fmt: skip
    assert said(made((EMBED,), full(0.2), counters=results(0.5)))[0] == "none"
    assert said(made((EMBED,), full(), counters=results(0.9)))[0] == "cores", "they were just ready"
    named = (Stage("results", "processes"),)
    assert said(made(named, full(0.2), counters=results(0.9)[:1]))[0] == "overhead"


def test_items_that_wait_for_their_next_attempt() -> None:
    tries = [
        Slice(0, 0, n * 0.01 + at, n * 0.01 + at + 0.001, (n,), outcome=RETRIED if at < 9 else "ok")
        for n in range(20)
        for at in (0.0, 4.0, 9.0)
    ]
    advice = advise(made((ASK,), tries))
    assert (advice.kind, advice.bottleneck) == ("retry", "ask")
    assert "in 92% of the run, 40 of its 60 calls" in advice.sentence
    assert said(made((ASK,), [one._replace(outcome="ok") for one in tries]))[0] == "none"
    assert said(made((ASK,), [one for one in tries if one.began < 4 or one.inputs[0] % 2]))[0] == "retry"  # fmt: skip


def test_an_inline_run_is_not_measured_in_cores() -> None:
    stages = (ASK, EMBED)
    slices = row(0, 0, every(0.1), 0.06) + row(0, 1, every(0.1, first=0.06), 0.03)
    inline = dataclasses.replace(made(stages, slices), lanes=(Lane("loop", "inline"),))
    kind, sentence = said(inline)
    assert kind == "inline"
    assert "ask took 60% of it, embed took 30% of it; without inline=True" in sentence


def test_of_a_long_run_of_which_little_is_left_it_is_not_said_that_it_was_short() -> None:
    some = [one._replace(began=9.9, ended=9.91) for one in full()[:9]]
    kind, sentence = said(dataclasses.replace(made((EMBED,), some), lost=1000))
    assert kind == "short"
    assert sentence.startswith("too little is left of the run to say anything (its last 100.0 ms, 9 calls)")  # fmt: skip
    assert "TOURNANT_EVENTS" in sentence


def test_calls_are_called_small_only_where_they_are() -> None:
    def crowd(length: float) -> tuple[str, str]:
        queue = (Counter("queue: embed", "items", ((0.0, 9.0),)),)
        return said(made((EMBED,), row(0, 0, every(0.1), length), counters=queue))

    kind, small = crowd(0.002)
    assert kind == "overhead"
    assert "its calls (median 2.0 ms) are too small" in small
    kind, large = crowd(0.05)
    assert kind == "overhead"
    assert "small" not in large
    assert "other programs had the cores" in large


def test_what_is_busy_all_the_time_is_not_said_to_be_used_to_all_of_it_and_not_to_stand_out() -> (
    None
):
    slices = [one for lane in range(4) for one in row(0, 0, every(0.5, first=lane * 0.1), 0.499)]
    kind, sentence = said(made((ASK,), slices))
    assert kind == "none"
    assert "has 3.9 calls under way on average, but nothing waits for it" in sentence


# source


def trickle(step: float = 0.1) -> list[tuple[float, float]]:
    return [(at, at + 0.05) for at in every(step)]


def test_a_source_that_gives_until_the_end_while_nothing_is_full_is_the_bottleneck() -> None:
    slices = row(0, 0, every(0.1), 0.04)
    kind, sentence = said(made((EMBED,), slices, inputs=trickle()))
    assert kind == "source"
    assert sentence.startswith("the source is the bottleneck: it gave 10.0 inputs/s until the end, while 0.4 of two cores were used: ")  # fmt: skip
    queue = (Counter("queue: embed", "items", ((0.0, 0.0),)),)
    advice = advise(made((EMBED,), slices, inputs=trickle(), counters=queue))
    assert "; embed had nothing to do for 60% of the run: " in advice.sentence
    assert (advice.bottleneck, advice.ceiling) == ("source", pytest.approx(10.0))


def test_a_source_is_not_blamed_when_it_gave_all_early_or_work_stood_waiting() -> None:
    slices = row(0, 0, every(0.1), 0.04)
    assert said(made((EMBED,), slices))[0] == "none"
    queue = (Counter("queue: embed", "items", ((0.0, 3.0),)),)
    assert said(made((EMBED,), slices, inputs=trickle(), counters=queue))[0] == "overhead"
    asks = [one for lane in (0, 1) for one in row(lane, 0, every(0.1), 0.06)]
    assert said(made((ASK,), asks, inputs=trickle()))[0] == "source"
    queue = (Counter("queue: ask", "items", ((0.0, 3.0),)), Counter("limit: ask", "", ((0.0, 2.0),)))  # fmt: skip
    assert said(made((ASK,), asks, inputs=trickle(), counters=queue))[0] == "none"


# overhead


def test_work_that_stands_before_free_cores_is_noticed() -> None:
    slices = [one for lane in (0, 1) for one in row(lane, 0, every(0.01), 0.005)]
    queue = (Counter("queue: embed", "items", ((0.0, 9.0),)),)
    kind, sentence = said(made((EMBED,), slices, counters=queue))
    assert kind == "overhead"
    assert sentence.startswith("work stood before embed nearly all the time, and yet only 1.0 of two cores were used: ")  # fmt: skip
    assert "(median 5.0 ms)" in sentence
    advice = advise(made((EMBED,), slices, counters=queue))
    assert advice.utilisation < 0.7
    assert advice.ceiling is None, "nobody has seen what it does at full use"
    assert not [line for line in advice.lines if line.startswith("bottleneck")]
    sometimes = (Counter("queue: embed", "items", ((0.0, 9.0), (5.0, 0.0))),)
    assert said(made((EMBED,), slices, counters=sometimes))[0] == "none"


# short


@pytest.mark.parametrize(
    ("recording", "short"),
    [
        (Recording(), True),
        (made((EMBED,), []), True),
        (made((EMBED,), row(0, 0, every(0.01, 0.2), 0.01), duration=0.2), True),
        (made((EMBED,), row(0, 0, [0.0, 3.0], 3.0)), True),
        (made((EMBED,), row(0, 0, every(0.01, 0.6), 0.01), duration=0.6), False),
    ],
)
def test_a_run_that_is_too_short_says_so(recording: Recording, short: bool) -> None:
    kind, sentence = said(recording)
    assert (kind == "short") == short
    words = (
        "the run was too short to say anything (" if recording.slices else "no call was recorded: "
    )
    assert (words in sentence) == short


# blocked


def test_a_loop_that_was_blocked_for_long_comes_first() -> None:
    marks = (
        Mark("blocked", 1.0, "parse.py, line 3", lasted=2.0),
        Mark("blocked", 2.5, "x", lasted=1.5),
    )
    kind, sentence = said(made((EMBED,), full(), marks=marks))
    assert kind == "blocked"
    assert sentence == "the event loop was blocked for 30% of the run, at worst 2.0 s, and everything on it stood still: parse.py, line 3"  # fmt: skip
    assert said(made((EMBED,), full(), marks=marks[1:]))[0] == "cores"
    gc = tuple(mark._replace(kind="gc") for mark in marks)
    assert said(made((EMBED,), full(), marks=gc))[0] == "cores"


# tail


def test_a_run_that_waits_for_one_call_at_its_end_names_it() -> None:
    slices = [one for lane in (0, 1) for one in row(lane, 0, every(0.1, 5.0), 0.1)]
    slices += [Slice(0, 0, 5.0, 9.5, (42,)), Slice(1, 0, 9.5, 9.9, (42,))]
    kind, sentence = said(made((EMBED,), slices, duration=9.9))
    assert kind == "tail"
    assert sentence.startswith("for its last 45% (4.5 s) the run waits for one call of embed (42.txt): put the largest")  # fmt: skip
    # Two of them keep both cores busy.
    assert said(made((EMBED,), [*slices, Slice(1, 0, 5.0, 9.4, (43,))]))[0] != "tail"
    # A stage that has only ever one call is no tail.
    assert said(made((EMBED,), row(0, 0, every(1.0), 1.0)))[0] != "tail"


# gil


THREADS = (Stage("parse", "threads"),)


def parsing(lengths: tuple[float, ...] = (0.1, 0.1)) -> list[Slice]:
    return [one for lane, length in enumerate(lengths) for one in row(lane, 0, every(0.1), length)]


def cpu(value: float) -> tuple[Counter, ...]:
    return (Counter("cpu", "cores", ((0.0, value),)),)


def test_threads_that_use_one_core_together_are_told_by_the_cpu_counter() -> None:
    kind, sentence = said(made(THREADS, parsing(), counters=cpu(1.04)))
    assert kind == "gil"
    assert sentence.startswith("the threads of parse use one core together: with 2.0 of them at work, 1.0 cores were")  # fmt: skip
    assert "on='processes'" in sentence
    assert said(made(THREADS, parsing(), counters=cpu(1.9)))[0] == "cores"  # they scale
    assert said(made(THREADS, parsing(), counters=cpu(0.1)))[0] != "gil"  # they wait
    assert said(made((EMBED,), parsing(), counters=cpu(1.04)))[0] != "gil"  # processes


def test_threads_that_use_one_core_together_are_told_by_a_guard() -> None:
    text = "stage 'parse' keeps 2.0 threads at work (the watchdog had to wait for the interpreter lock at 60% of its looks)"
    kind, sentence = said(made(THREADS, parsing(), marks=(Mark("guard", 1.5, text),)))
    assert (kind, "one core together: a guard saw it at 1.5 s; if" in sentence) == ("gil", True)
    other = (Mark("guard", 1.5, text.replace("parse", "embed")), Mark("note", 2.0, text))
    assert said(made(THREADS, parsing(), marks=other))[0] == "cores"


def test_threads_that_only_wait_are_not_told_off() -> None:
    recording = made(THREADS, parsing(), counters=cpu(1.0))
    lanes = (Lane("thread", "blocking thread 1"), Lane("thread", "blocking thread 2"))
    assert said(recording)[0] == "gil"
    assert said(dataclasses.replace(recording, lanes=lanes))[0] != "gil"


def test_threads_that_use_one_core_together_are_told_by_calls_that_grow() -> None:
    alone = row(0, 0, every(0.1, 3.0), 0.1)
    together_ = [one for lane in (0, 1) for one in row(lane, 0, every(0.2, first=3.0), 0.2)]
    kind, sentence = said(made(THREADS, alone + together_))
    assert kind == "gil"
    assert "a call takes 2.0 times as long while 2 run at once" in sentence
    scaling = [one for lane in (0, 1) for one in row(lane, 0, every(0.1, first=3.0), 0.1)]
    assert said(made(THREADS, alone + scaling))[0] == "cores"
    # Those that wait hold no lock, and no lock makes calls a hundred times as long.
    waiting = (THREADS[0]._replace(computing=0.01), *THREADS[1:])
    assert said(made(waiting, alone + together_))[0] != "gil"
    brief = row(0, 0, every(0.1, 3.0), 0.002)
    assert said(made(THREADS, brief + together_))[0] != "gil"


# none


def test_where_nothing_stands_out_it_says_so() -> None:
    kind, sentence = said(made((EMBED,), full(0.6)))
    assert kind == "none"
    assert sentence.startswith("nothing stands out: the busiest stage, embed, is used to 60%, and 1.2 of two cores")  # fmt: skip
    assert advise(made((EMBED,), full(0.6))).bottleneck is None


# figures


def test_where_the_time_went() -> None:
    stages = (Stage("read", "loop"), Stage("parse", "processes"))
    slices = [
        Slice(0, 0, 0.0, 2.0, (0,), 3, waited=0.5),
        Slice(0, 0, 1.0, 2.0, (1,), outcome=FAILED),
        Slice(0, 0, 6.0, 6.5, (2,)),
        *row(1, 1, every(1.0, first=4.0), 0.5, 0.25),
    ]
    counters = (
        # Parsing has something before it from 2 s on; nothing was running until 4 s, and reading found the queue full from 3 s on.
        Counter("queue: read", "items", ((0.0, 5.0),)),
        Counter("queue: parse", "items", ((0.0, 0.0), (2.0, 1.0), (3.0, 10.0), (8.0, 0.0))),
    )
    read, parse = advise(made(stages, slices, counters=counters)).stages
    assert (read.calls, read.items, read.failed, read.busy, read.peak) == (3, 5, 1, 3.5, 2)
    assert (read.waited_limit, read.waited_slot) == (0.5, 0.0)
    assert (parse.waited_limit, parse.waited_slot) == (0.0, 1.5)
    assert read.wait_input == 0.0
    assert read.wait_room == pytest.approx(4.5)
    assert parse.wait_input == pytest.approx(
        2.0 + 1.0
    )  # until 2 s, and half of the time from 8 s on
    assert parse.wait_room == 0.0
    assert (parse.busy, parse.at_once, parse.p50) == (3.0, pytest.approx(0.3), pytest.approx(0.5))


def test_cores_in_use_over_time() -> None:
    advice = advise(made((EMBED,), row(0, 0, every(0.1, 5.0), 0.1) + row(1, 0, [0.0], 2.5)))
    assert advice.cores_used == pytest.approx(0.75)
    assert advice.cores_over_time == pytest.approx([2.0] * 5 + [1.0] * 5 + [0.0] * 10)


def test_of_a_recording_whose_beginning_is_gone_the_rest_is_judged() -> None:
    late = [one for one in full() if one.began >= 5.0]
    assert said(made((EMBED,), late))[0] == "none"
    advice = advise(dataclasses.replace(made((EMBED,), late), lost=1_234))
    assert (advice.kind, advice.duration) == ("cores", pytest.approx(5.0))
    assert "the first 1,234 events are gone" in advice.lines[-1]


def test_the_lines_are_a_table_and_what_follows() -> None:
    lines = advise(ingest(900)).lines
    assert lines[0].split() == ["stage", "on", "calls", "items", "busy", "for", "slot", "at", "limit", "no", "input", "at", "once", "median"]  # fmt: skip
    assert [line.split()[:3] for line in lines[1:4]] == [["fetch", "loop", "300"], ["parse", "processes", "292"], ["embed", "threads", "292"]]  # fmt: skip
    assert lines[4].startswith("cores: ")
    assert lines[5].startswith("bottleneck: parse at 100%, ceiling ")
    assert all(len(line) <= 90 for line in lines)


def test_it_is_plain_data() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = json.dumps(advise(ingest()).as_dict(), allow_nan=False)
    assert json.loads(text, parse_constant=refuse)["kind"] == "cores"


MAKERS: list[Callable[[], Recording]] = [
    Recording,
    ingest,
    lambda: dataclasses.replace(ingest(), duration=0.0),
    lambda: dataclasses.replace(ingest(), inputs={}, counters=(), marks=(), lost=9),
    lambda: dataclasses.replace(
        ingest(), slices=tuple(one._replace(stage=-1) for one in ingest().slices)
    ),
    lambda: dataclasses.replace(ingest(), stages=(*ingest().stages, Stage("gather", "engine"))),
    lambda: dataclasses.replace(ingest(), slices=(Slice(0, 0, 1.0, 1.0),) * 20, duration=1.0),
]


@pytest.mark.parametrize("make", MAKERS)
def test_anything_that_can_be_recorded_gets_an_answer(make: Callable[[], Recording]) -> None:
    advice = advise(make())
    assert isinstance(advice, Advice)
    assert advice.sentence
    assert advice.lines
    assert 0 <= advice.utilisation <= 1


# steps


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=20))
def test_steps_count_what_is_under_way(pairs: list[tuple[int, int]]) -> None:
    spans = [(float(min(pair)), float(max(pair))) for pair in pairs]
    steps = Steps.of_spans(spans)
    for second in range(51):
        under_way = sum(began <= second < ended for began, ended in spans)
        assert steps.at(second) == under_way
        assert steps.area(second, second + 1) == pytest.approx(under_way)
    assert steps.peak == steps.usual_peak(0.0) == max(map(steps.at, range(51)))
    pieces = list(together((steps, Steps([(10.0, 3.0)])), 5.0, 40.0))
    assert sum(length for length, _ in pieces) == pytest.approx(35.0)
    assert sum(length * a for length, (a, _) in pieces) == pytest.approx(steps.area(5.0, 40.0))
    assert sum(length * b for length, (_, b) in pieces) == pytest.approx(90.0)


def test_long_names_are_cut_where_they_are_only_mentioned() -> None:
    name = "x" * 300
    advice = advise(made((Stage(name, "processes"),), full()))
    assert advice.bottleneck == name
    assert max(map(len, advice.lines)) < 150
    assert advice.statement.startswith(f"{'x' * 39}\N{HORIZONTAL ELLIPSIS} is the bottleneck")
    assert len(advice.statement) < 200


def test_a_statement_is_a_sentence_and_a_stage_keeps_its_letters() -> None:
    assert advise(made((EMBED,), full())).statement.startswith("embed is ")
    slow = made((EMBED,), row(0, 0, every(0.1), 0.06), inputs=[(0.1 * n, 0.1 * n + 0.1) for n in range(100)])  # fmt: skip
    assert advise(slow).statement.startswith("The source is the bottleneck: ")
    assert advise(slow).statement.endswith(".")
