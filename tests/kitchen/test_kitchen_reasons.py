"""The sentences are held against measurements that are made up, so that they can be of any kind."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace

import pytest

from tournant.kitchen import WAYS, WORKS, Cooked, Plate, Setting, Step, why
from tournant.kitchen.load import Load, process_seconds
from tournant.kitchen.reasons import cooks
from tournant.kitchen.show import cooked_text, table, who

SETTING = Setting(("127.0.0.1", 1), ("127.0.0.1", 2), 8)


def measured(
    work: str = "thinking",
    way: str = "threads",
    *,
    seconds: float = 1.0,
    cpu: float = 1.0,
    alone: float | None = 1.0,
    at_once: int = 4,
    cores: int = 2,
    others: float = 0.0,
    crowded: bool = False,
    gil: bool = True,
    workers: int = 4,
    pool: int = 0,
) -> Cooked:
    """Four orders with one step each, of which so many are under way at once."""
    name = WORKS[work].plain[0].__name__
    plates = []
    for order in range(4):
        began = 10.0 + 0.1 * (order // at_once)
        worker = order % workers
        pid = 100 + worker if way == "processes" else 100
        step = Step(
            name, order + 1, began, began + 0.1, 0.1, pid, "", worker, "order" if way == "concurrent" else "", (worker % 2,)
        )  # fmt: skip
        plates.append(Plate(order + 1, SETTING, steps=(step,)))
    return Cooked(
        work, way, seconds, cpu, cores, tuple(plates), 100, 10.0, alone, others=others, crowded=crowded, gil=gil, workers=pool
    )  # fmt: skip


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("way", [way for way in WAYS if way != "synchronous"])
@pytest.mark.parametrize("cpu", [0.02, 0.7, 1.0, 1.9])
def test_no_speed_up_is_claimed_that_did_not_happen(work: str, way: str, cpu: float) -> None:
    for cores in (1, 2, 8):
        for gil in (True, False):
            case = {"cpu": cpu, "cores": cores, "gil": gil}
            same = why(measured(work, way, alone=1.05, **case))  # type: ignore[arg-type]
            assert same.startswith("No faster than one after the other: ")
            slower = why(measured(work, way, alone=0.5, **case))  # type: ignore[arg-type]
            assert slower.startswith("Slower than one after the other (0.50 of its speed): ")
            faster = why(measured(work, way, alone=3.0, **case))  # type: ignore[arg-type]
            assert faster.startswith("3.0 times as fast as one after the other: ")
            unknown = why(measured(work, way, alone=None, **case))  # type: ignore[arg-type]
            assert "one after the other" not in unknown
            for sentence in (same, slower, faster, unknown):
                assert f"{cpu:.2f} cores at work" in sentence
                assert sentence[0].isupper() or sentence[0].isdigit()
                assert sentence.endswith(".")


def test_the_gil_is_blamed_only_where_there_is_one_and_it_held_threads_up() -> None:
    assert "only the thread that holds the GIL" in why(measured())
    assert "no GIL" in why(measured(gil=False, cpu=1.9))
    assert "GIL" not in why(measured(cores=1))
    assert "one core for all" in why(measured(cores=1))
    assert "one core for all" in why(measured(way="hybrid", cores=1))
    assert "do compute at once" in why(measured("native", cpu=1.9))
    assert "zlib lets go of the GIL, but 4 threads had about one core" in why(
        measured("native", cpu=1.02)
    )


@pytest.mark.parametrize("cpu", [0.05, 0.13, 0.5, 0.79])
def test_less_than_a_core_is_not_called_one(cpu: float) -> None:
    for cooked in (
        measured("native", cpu=cpu),
        measured("native", "processes", cpu=cpu, workers=2),
        measured("thinking", "processes", cpu=cpu, workers=2),
        measured("thinking", gil=False, cpu=cpu),
    ):
        sentence = why(cooked)
        assert "had less than one core between them" in sentence
        assert "about one core" not in sentence
        assert "at once (" not in sentence


def test_the_time_at_steps_that_wait_is_not_taken_from_the_cores_at_work() -> None:
    """On a busy machine a step that computes stands still as well, but it does not wait for a server."""
    names = [task.__name__ for task in WORKS["meal"].plain]
    steps, at = [], 10.0
    for name, seconds in zip(names, (1.0, 4.0, 3.0, 2.0), strict=True):
        steps.append(Step(name, 1, at, at + seconds, 0.1, 100, "", 1, "", ()))
        at += seconds
    plate = Plate(1, SETTING, steps=tuple(steps))
    for crowded in (True, False):
        cooked = Cooked(
            "meal", "synchronous", 10.0, 0.4, 2, (plate,), 100, 10.0, 10.0, others=1.9, crowded=crowded
        )  # fmt: skip
        assert "30% of the time at steps that wait, and 70% at steps that compute" in why(cooked)
        assert cooked.waiting_share == pytest.approx(0.3)


def test_on_one_core_nothing_is_said_of_many() -> None:
    for work in WORKS:
        for way in WAYS:
            sentence = why(measured(work, way, cores=1, cpu=0.9, pool=1, workers=1, at_once=1))
            assert "side by side" not in sentence
            assert "at once" not in sentence
    assert "there is one core for all workers" in why(measured(way="hybrid", cores=1))
    assert "TOURNANT_CORES=1 lets the pipeline compute one step at a time" in why(
        measured(way="hybrid", cores=2, pool=1)
    )
    # Two cores, of which the pool may use one: threads have both.
    assert "do compute at once" in why(measured("native", cores=2, pool=1, cpu=1.9))
    assert cooks(measured(way="processes", pool=1)) == "one cook with a stove: one process"
    assert cooks(measured(way="processes", cores=2, pool=8)).startswith("8 cooks, 2 stoves: ")
    assert cooks(measured(way="processes")) == WAYS["processes"]
    assert "no GIL" in cooks(measured(gil=False))


def test_steps_that_got_no_core_are_noticed_whatever_the_system_says_of_others() -> None:
    assert not measured(way="concurrent", at_once=1).starved

    def slowed(way: str, **options: int) -> Cooked:
        cooked = measured("thinking", way, **options)  # type: ignore[arg-type]
        plates = tuple(
            replace(plate, steps=(plate.steps[0]._replace(cpu=0.05),)) for plate in cooked.plates
        )
        return replace(cooked, plates=plates)

    assert slowed("synchronous", at_once=1).starved
    assert slowed("processes").starved
    assert not slowed("threads").starved, "they wait for the GIL"
    assert not slowed("processes", cores=1, pool=2).starved, "they wait for each other"


def test_waiting_is_told_from_thinking() -> None:
    alone = measured("waiting", "synchronous", cpu=0.02, at_once=1)
    assert "96% of the time the cook stands and waits" in why(replace(alone, answers=0.96))
    assert "%" not in why(alone), "the servers answer at once, so nobody knows what took the time"
    assert "waits" not in why(measured("thinking", "synchronous", cpu=0.4, at_once=1))
    assert "does not give the loop back" in why(measured("thinking", "concurrent", at_once=1))
    assert "4 waits at once on one thread" in why(measured("waiting", "concurrent", cpu=0.02))
    assert "the loop stood still" in why(measured("meal", "concurrent", cpu=0.8))


def test_processes_are_counted() -> None:
    assert "2 processes have a GIL each" in why(measured(way="processes", cpu=1.8, workers=2))
    assert "one process did it all" in why(measured(way="processes", workers=1))
    assert "2 processes had about one core between them" in why(
        measured(way="processes", workers=2)
    )
    assert "1 process" not in why(measured("meal", "processes", cpu=1.0, workers=2))
    assert "2 processes made 2 waits at once" in why(
        measured("waiting", "processes", cpu=0.02, workers=2, at_once=2)
    )


def test_other_programs_are_named_where_they_took_cores() -> None:
    busy = measured(others=1.1, crowded=True)
    assert "1.00 cores at work, and 1.1 for other programs" in why(busy)
    assert "other programs" not in why(measured(others=1.1))
    waiting = measured("waiting", "threads", cpu=0.02, others=1.9, crowded=True)
    assert "other programs" not in why(waiting)


def test_other_programs_count_where_they_left_no_room() -> None:
    load = Load(10.0, 2)
    assert load.crowded(1.1, 0.9)
    assert not load.crowded(0.1, 1.9), "that is noise"
    assert not load.crowded(0.5, 0.6), "there was room for both"
    assert Load(None, 2).others(0.0, 1.0) == 0.0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not say")
def test_what_a_process_computes_is_counted_once() -> None:
    before, mine = Load.now(), time.process_time()
    assert before.computed is not None
    while time.process_time() - mine < 0.1:
        pass
    now = Load.now()
    assert now.computed is not None
    assert now.computed - before.computed >= 0.05, "ticks of ten milliseconds"
    assert before.others(1e9, 1.0) == 0.0, "it was all ours"
    assert before.cores == len(os.sched_getaffinity(0))
    assert process_seconds(os.getpid()) >= 0.05
    assert process_seconds(1 << 30) == 0.0


def test_a_comparison_that_was_disturbed_is_none() -> None:
    quiet = measured(alone=3.0)
    assert "threads helped: thinking (3.0x)" in table([quiet])
    disturbed = replace(quiet, disturbed=True)
    assert why(disturbed).startswith("The machine was busy, so the times are not comparable: ")
    assert "3.0 times" not in why(disturbed)
    text = table([disturbed, measured("waiting", "threads", cpu=0.02, alone=3.0)])
    assert "threads helped: waiting (3.0x)\n" in text
    assert text.endswith("not comparable, as the machine was busy: thinking")


def test_at_once_and_busy_cores_are_what_was_measured() -> None:
    cooked = measured(seconds=2.0, cpu=3.0, at_once=2, alone=5.0)
    assert (cooked.at_once, cooked.busy_cores, cooked.speedup) == (2, 1.5, 2.5)
    assert measured(at_once=1).at_once == 1, (
        "a step that begins where another ends is not beside it"
    )


def test_the_table_marks_the_fastest_and_who_is_as_fast() -> None:
    everything = [
        measured("waiting", "synchronous", seconds=4.0, at_once=1),
        measured("waiting", "concurrent", seconds=1.1, alone=4.0),
        measured("waiting", "threads", seconds=1.0, alone=4.0),
        measured("thinking", "synchronous", seconds=2.0, at_once=1, alone=2.0),
        measured("thinking", "threads", seconds=2.05, alone=2.0),
    ]
    text = table(everything)
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert rows["waiting"].split() == ["waiting", "thinking"]
    assert rows["synchronous"].split() == ["synchronous", "4.00", "2.00", "*"]
    assert text.splitlines()[4].split() == ["concurrent", "1.10", "*"]
    assert "concurrent helped: waiting (3.6x)" in text
    assert "threads helped: waiting (4.0x); did not: thinking" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "\x1b[32m" in table(everything, color=True)


def test_a_star_is_for_times_that_are_comparable_and_more_than_one() -> None:
    calm = [measured("waiting", way, cpu=0.02, alone=3.0) for way in ("concurrent", "threads")]
    busy = [replace(measured("native", way), disturbed=way == "threads") for way in ("concurrent", "threads")]  # fmt: skip
    starred = [line for line in table(calm + busy).splitlines() if line.endswith("*")]
    assert starred == [], "the star stands at the first of two columns"
    assert table(calm + busy).count("*") == 3
    text = table(busy)
    assert "*" not in text
    assert "helped" not in text
    alone = table([measured("waiting", "threads"), measured("native", "concurrent")])
    assert "*" not in alone, "the only one is no fastest"
    assert "threads did not help: waiting" in alone


def test_a_way_as_text_fits_the_projector() -> None:
    cooked = replace(
        measured(way="processes", workers=2, at_once=2, cpu=1.8, alone=1.9), hiring=0.25
    )
    for ascii in (False, True):
        text = cooked_text(cooked, 80, ascii=ascii)
        lines = text.strip().splitlines()
        assert lines[0] == "processes      1.00 s   at once 2   cores 1.80"
        assert "  who: 2 processes (100, 101); 2 threads; cores 0, 1" in lines
        assert "  ready after 0.25 s, which the stopwatch leaves out" in lines
        assert lines[-2].startswith("  why: 1.9 times as fast as one after the other: 2 processes")
        assert any(line.startswith("process 1") for line in lines)
        assert max(map(len, lines)) <= 80
        assert text.isascii() == ascii
    assert "\x1b[1m" in cooked_text(cooked, 80, color=True)


def test_who_did_it_names_tasks_and_leaves_out_what_the_system_does_not_say() -> None:
    assert who(measured(way="concurrent", workers=1)) == "1 process (100); 1 thread; 1 task; core 0"
    cooked = measured(workers=1)
    plates = tuple(
        replace(plate, steps=(plate.steps[0]._replace(cores=()),)) for plate in cooked.plates
    )
    assert who(replace(cooked, plates=plates)) == "1 process (100); 1 thread"


def test_the_page_says_what_is_cooked_and_how() -> None:
    recording = measured("thinking", "synchronous", at_once=1).recording()
    assert recording.summary.startswith(
        "Image processing in Python, which holds the GIL; one cook, one dish at a time. 1.00 s. One step at a time"
    )
    assert [stage.on for stage in recording.stages] == ["in the main thread"]


def test_a_moment_between_two_steps_is_not_drawn() -> None:
    steps, at = [], 10.0
    for order in range(3):
        steps.append(Step("blur", order, at, at + 1.0, 1.0, 100, "", 1, "", ()))
        at += 1.0001 if order == 0 else 1.5
    plates = tuple(Plate(step.order, SETTING, steps=(step,)) for step in steps)
    (counter,) = Cooked(
        "thinking", "synchronous", at - 10, 3.0, 2, plates, 100, 10.0
    ).recording().counters  # fmt: skip
    found = [(round(at, 3), depth) for at, depth in counter.samples]
    assert found == [(0.0, 0.0), (0.0, 1.0), (2.0, 0.0), (2.5, 1.0), (3.5, 0.0)]
