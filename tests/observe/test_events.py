"""The rings that a run's recording is made of, and the making."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from array import array

import pytest

from tournant.errors import TournantError
from tournant.observe import garbage
from tournant.observe.events import (
    CAPACITY,
    Call,
    Calls,
    Events,
    Inputs,
    Odd,
    Stretch,
    Stretches,
    capacity,
    shortened,
)
from tournant.observe.recording import CANCELLED, FAILED, RETRIED, Lane, Recording, Slice

STAGES = [("read", "loop"), ("parse", "processes"), ("embed", "processes")]


def events_of(stages=STAGES, queues=(), **options) -> Events:
    return Events(stages, queues, began=100.0, **options)


def made(events: Events, ended: float = 110.0, taken: int = 0) -> Recording:
    events.end(ended, 2, taken)
    return events.recording("what the report says")


def brief(recording: Recording):
    """Each slice as (lane's name, stage, began, ended, inputs, items, outcome)."""
    return [
        (recording.lanes[s.lane].name, s.stage, round(s.began, 6), round(s.ended, 6), s.inputs, s.items, s.outcome)
        for s in recording.slices
    ]  # fmt: skip


def worked(events: Events, first: int = 1, name: str = "lane-1", pid: int = 7, **stretch) -> None:
    lane = events.lane("processes", name, pid, 0.0)
    given = {"who": array("q", [0]), "sizes": None, "times": (array("d", [1.0]),)}
    events.segment(first).add(
        Stretch(**{"lane": lane, "began": 101.0, "ended": 102.0, **given, **stretch})
    )


# The rings.


def test_the_oldest_calls_go_and_are_counted():
    calls = Calls(10)
    for begin in range(0, 30, 4):
        calls.pack([0.5] * 4, [float(n) for n in range(begin, begin + 4)], [begin] * 4)
    ends = [end for _, block, _ in calls.blocks for end in block]
    assert ends == [float(n) for n in range(22, 32)]
    assert calls.lost == 22
    for columns in calls.blocks:
        assert len({len(column) for column in columns}) == 1


def test_calls_of_many_rows_take_as_much_room_as_they_have_rows():
    calls = Calls(10)
    for n in range(5):
        calls.say(n, n + 1, array("q", range(4)), 4)
    assert [call.began for call in calls.said] == [3, 4]
    assert calls.lost == 3
    calls.say(9, 9, array("q", range(50)), 50)
    assert [call.began for call in calls.said] == [9], "one call is always kept"


def test_a_wait_that_is_none_is_not_kept():
    calls = Calls(3)
    calls.waited(1.0, 1e-7)
    calls.waited(2.0, 0.5)
    assert list(calls.waits) == [(2.0, 0.5)]


def test_chunks_are_bounded_by_their_items():
    ring = Stretches(10, 0)
    for n in range(4):
        ring.add(Stretch(0, n, n, array("q", [1, 2, 3]), None, ((1.0, 3),)))
    assert [stretch.began for stretch in ring.kept] == [2, 3]
    assert ring.lost == 6


def test_inputs_are_bounded_and_counted():
    inputs = Inputs(10)
    for begin in range(0, 40, 5):
        for number in range(begin, begin + 5):
            inputs.name(number, f"key {number}")
            inputs.outcomes[number] = "failed"
            inputs.ended.append(number)
        inputs.look(float(begin))
    assert [n for _, numbers in inputs.looks for n in numbers] == list(range(30, 40))
    assert list(inputs.keys) == list(inputs.outcomes) == list(range(30, 40))
    assert inputs.lost == 30


def test_inputs_that_ended_out_of_order_are_overwritten_and_not_taken_for_unfinished(monkeypatch):
    monkeypatch.setenv("TOURNANT_EVENTS", "4")
    events = events_of()
    for numbers in ([1, 2], [5, 6, 7], [3, 4], [8, 9], [0]):
        events.inputs.ended += numbers
        events.inputs.outcomes[numbers[0]] = "failed"
        events.inputs.look(101.0)
    recording = made(events, taken=12)
    assert {n: life.outcome for n, life in recording.inputs.items()} == {
        0: "failed", 8: "failed", 9: "done", 10: "interrupted", 11: "interrupted"
    }  # fmt: skip
    assert events.inputs.lost == 7
    assert set(events.inputs.outcomes) == {0, 8}, "what is overwritten leaves nothing behind"


def test_how_inputs_failed_is_kept_as_long_as_that_they_ended():
    inputs = Inputs(4)
    inputs.ended += range(8)
    inputs.outcomes.update(dict.fromkeys(range(8), "failed"))
    inputs.look(1.0)
    assert len(inputs.outcomes) == 8, "one look is always kept"


def test_keys_are_short_and_hold_nothing_alive():
    class Odd(str):
        __slots__ = ()

        def __str__(self):
            return "something else"

    assert shortened(12345678901234567890) == 12345678901234567890
    assert shortened("x" * 80) == "x" * 80
    assert shortened("x" * 81) == "x" * 79 + "…"
    assert type(shortened(Odd("odd"))) is str
    assert shortened(Odd("odd")) == "odd"
    assert shortened(("a", 1)) == "('a', 1)"
    assert shortened(True) == "True"
    assert len(shortened([0] * 1000)) <= 80


# Sizing.


@pytest.mark.parametrize(("said", "room"), [(None, CAPACITY), ("0", 0), ("20000", 20000)])
def test_the_environment_sizes_the_rings(monkeypatch, said, room):
    if said is None:
        monkeypatch.delenv("TOURNANT_EVENTS", raising=False)
    else:
        monkeypatch.setenv("TOURNANT_EVENTS", said)
    assert capacity() == room
    assert events_of().on == (room > 0)


@pytest.mark.parametrize("said", ["", "-1", "many", "1e5", "2.5"])
def test_a_size_that_is_none_is_refused_by_name(monkeypatch, said):
    monkeypatch.setenv("TOURNANT_EVENTS", said)
    with pytest.raises(TournantError, match=r"TOURNANT_EVENTS='.*': give how many events"):
        events_of()


# Making the recording.


def test_calls_on_the_loop_lie_in_a_lane_of_their_stage_with_their_waits():
    events = events_of()
    began, ended = 100.1 + 0.7, 103.3
    events.calls[0].pack([ended - began, 0.25], [ended, 104.0], [0, 1])
    events.calls[0].waited(began, 0.5)
    events.calls[0].say(105.0, 106.0, 1, outcome=FAILED)
    recording = made(events, taken=2)
    assert recording.lanes == (Lane("loop", "read", events.pid),)
    assert [s.waited for s in recording.slices] == [0.5, 0.0, 0.0]
    assert brief(recording) == [
        ("read", 0, 0.8, 3.3, (0,), 1, "ok"),
        ("read", 0, 3.75, 4.0, (1,), 1, "ok"),
        ("read", 0, 5.0, 6.0, (1,), 1, "failed"),
    ]


def test_an_inline_run_has_one_lane():
    events = events_of(inline=True)
    for number in range(3):
        events.calls[number].pack([0.5], [101.0 + number], [0])
    recording = made(events, taken=1)
    assert [lane.name for lane in recording.lanes] == ["inline"]
    assert [s.stage for s in recording.slices] == [0, 1, 2]


def test_heavy_items_of_a_chunk_are_shown_one_by_one_in_the_order_of_the_work():
    events = events_of()
    times = (array("d", [0.1, 0.2]), array("d", [0.3, 0.4]))
    worked(events, who=array("q", [4, 5]), times=times, waited=0.05)
    recording = made(events, taken=6)
    assert brief(recording) == [
        ("process 1", 1, 1.0, 1.1, (4,), 1, "ok"),
        ("process 1", 2, 1.1, 1.4, (4,), 1, "ok"),
        ("process 1", 1, 1.4, 1.6, (5,), 1, "ok"),
        ("process 1", 2, 1.6, 2.0, (5,), 1, "ok"),
    ]
    assert [s.waited for s in recording.slices] == [0.05, 0, 0, 0]


def test_cheap_items_of_a_chunk_are_one_slice_per_stage():
    events = events_of()
    worked(events, who=array("q", [1, 2, 3]), times=((0.3, 3), (0.2, 2)))
    assert brief(made(events, taken=4)) == [
        ("process 1", 1, 1.0, 1.3, (1, 2, 3), 3, "ok"),
        ("process 1", 2, 1.3, 1.5, (1, 2, 3), 2, "ok"),
    ]


def test_what_failed_in_a_chunk_of_cheap_items_stands_by_itself():
    events = events_of()
    times = (array("d", [1e-4] * 5), array("d", [1e-4] * 3))
    odd = [Odd(1, 1, RETRIED, False), Odd(3, 1, FAILED, False)]
    worked(events, who=array("q", range(5)), times=times, odd=odd)
    assert [row[1:2] + row[4:] for row in brief(made(events, taken=5))] == [
        (1, (0,), 1, "ok"),
        (2, (0,), 1, "ok"),
        (1, (1,), 1, "ok"),
        (2, (1,), 1, "retried"),
        (1, (2,), 1, "ok"),
        (2, (2,), 1, "ok"),
        (1, (3,), 1, "ok"),
        (2, (3,), 1, "failed"),
        (1, (4,), 1, "ok"),
        (2, (4,), 1, "ok"),
    ]


def test_a_call_whose_seconds_are_not_told_takes_none_of_the_others():
    events = events_of()
    times = (array("d", [0.1, 0.2, 0.3]), array("d", [1.0, 2.0]))
    worked(events, who=array("q", range(3)), times=times, odd=[Odd(1, 1, FAILED, False)])
    spans = [(s.stage, round(s.ended - s.began, 6)) for s in made(events, taken=3).slices]
    assert spans == [(1, 0.1), (2, 1.0), (1, 0.2), (2, 0.0), (1, 0.3), (2, 2.0)]


def test_what_a_filter_dropped_ends_there():
    events = events_of()
    times = (array("d", [0.1, 0.2]), array("d", [0.3]))
    worked(events, who=array("q", [0, 1]), times=times, odd=[Odd(0, 0, "ok", True)])
    assert brief(made(events, taken=2)) == [
        ("process 1", 1, 1.0, 1.1, (0,), 1, "ok"),
        ("process 1", 1, 1.1, 1.3, (1,), 1, "ok"),
        ("process 1", 2, 1.3, 1.6, (1,), 1, "ok"),
    ]


def test_a_fan_out_that_goes_on_is_shown_up_to_now_and_what_it_did_before_is_not_shown_twice():
    events = events_of()
    worked(events, began=101.0, ended=101.5, who=array("q"), times=(array("d"),), flat=True, open=3)
    worked(
        events, began=102.0, ended=102.75, who=array("q", [3, 4]), times=(array("d", [1.0, 0.25]),), flat=True
    )  # fmt: skip
    assert brief(made(events, taken=5)) == [
        ("process 1", 1, 1.0, 1.5, (3,), 0, "ok"),
        ("process 1", 1, 2.0, 2.5, (3,), 1, "ok"),
        ("process 1", 1, 2.5, 2.75, (4,), 1, "ok"),
    ]


def test_batches_have_as_many_items_as_rows():
    events = events_of()
    worked(events, who=array("q", [0, 1, 1, 2]), sizes=(3, 1), times=(array("d", [0.5, 0.25]),))
    assert brief(made(events, taken=3)) == [
        ("process 1", 1, 1.0, 1.5, (0, 1), 3, "ok"),
        ("process 1", 1, 1.5, 1.75, (2,), 1, "ok"),
    ]


def test_slices_of_a_worker_never_overlap():
    events = events_of()
    lane = events.lane("processes", "lane-1", 7, 0.0)
    events.calls[1].put(Call(101.0, 104.0, array("q", [0]), 1, CANCELLED, 0.0, lane))
    worked(events, began=103.0, times=(array("d", [1.0]),))
    assert [row[2:4] for row in brief(made(events, taken=1))] == [(1.0, 3.0), (3.0, 4.0)]


def test_batches_of_batches_stand_for_their_inputs():
    events = events_of()
    inner = events.batch([0, 1])
    outer = events.batch([inner, 2, 1])
    assert outer < inner < 0
    events.calls[0].say(101.0, 102.0, outer, 3)
    assert made(events, taken=3).slices[0].inputs == (0, 1, 2)


def test_the_members_of_batches_are_bounded(monkeypatch):
    monkeypatch.setenv("TOURNANT_EVENTS", "10")
    events = events_of()
    numbers = [events.batch(range(4)) for _ in range(5)]
    assert list(events.batches) == numbers[-2:]


def test_everything_is_cut_to_the_run():
    events = events_of()
    events.calls[0].say(99.0, 101.0, 0)
    events.calls[0].say(109.0, 120.0, 0)
    recording = made(events, taken=1)
    assert [(s.began, s.ended) for s in recording.slices] == [(0.0, 1.0), (9.0, 10.0)]


def test_inputs_have_a_life_and_the_ledgers_have_their_places_among_them():
    events = events_of()
    inputs = events.inputs
    inputs.since.extend([(0, 101.0), (1, 102.0)])
    inputs.skipped.append((0, "known before", 100.5))
    inputs.skipped.append((1, "known between", 101.5))
    for number, key in enumerate(("a", "b", "c")):
        inputs.name(number, key)
    events.calls[0].pack([0.5, 0.5], [103.0, 104.0], [0, 1])
    inputs.ended += [0, 1]
    inputs.outcomes[1] = "filtered"
    inputs.look(105.0)
    recording = made(events, taken=3)
    assert {n: tuple(span) for n, span in recording.inputs.items()} == {
        0: ("known before", 0.5, 0.5, "skipped"),
        1: ("a", 1.0, 3.0, "done"),
        2: ("known between", 1.5, 1.5, "skipped"),
        3: ("b", 2.0, 4.0, "filtered"),
        4: ("c", 2.0, 10.0, "interrupted"),
    }
    assert [s.inputs for s in recording.slices] == [(1,), (3,)]


def test_an_input_ends_between_two_looks_whatever_is_left_of_its_calls():
    events = events_of()
    inputs = events.inputs
    inputs.since.append((0, 100.0))
    events.calls[0].pack([0.5, 0.5], [101.0, 109.0], [0, 1])
    inputs.look(102.0)
    inputs.ended += [2]
    inputs.look(103.0)
    inputs.ended += [0, 1]
    inputs.look(104.0)
    spans = made(events, taken=3).inputs
    assert spans[2].ended == 0.0, "nothing but a look tells of it, and that is its latest end"
    assert spans[0].ended == 3.0, "it was handed over after the look at 3"
    assert spans[1].ended == 4.0, "it had ended at the look at 4"


def test_cores_in_use_are_what_the_workers_did_and_blocking_threads_take_none():
    events = events_of()
    worked(events, began=101.0)
    worked(events, began=101.5, name="lane-2", pid=8)
    blocking = events.lane("blocking", "lane-3", 9, 0.0)
    events.calls[0].put(Call(101.0, 109.0, 0, lane=blocking))
    recording = made(events, taken=1)
    cores = next(counter for counter in recording.counters if counter.name == "cores")
    assert cores.samples == ((0.0, 0.0), (1.0, 1.0), (1.5, 2.0), (2.0, 1.0), (2.5, 0.0))
    assert [(lane.kind, lane.name) for lane in recording.lanes] == [
        ("thread", "blocking thread 1"),
        ("process", "process 1"),
        ("process", "process 2"),
    ]


def test_cores_of_very_many_slices_are_averages_with_the_same_sum():
    events = events_of()
    for n in range(2000):
        worked(events, began=100 + n * 0.005, times=(array("d", [0.002]),))
    cores = next(c for c in made(events, taken=1).counters if c.name == "cores")
    assert len(cores.samples) <= 1001
    width = 10.0 / 1000
    assert sum(level for _, level in cores.samples) * width == pytest.approx(4.0, rel=1e-3)


def test_queues_are_sampled_ever_less_often_and_shown_where_they_change():
    events = events_of(queues=("read", "parse"))
    now, taken = 100.0, 0
    for n in range(40_000):
        now += 0.01
        if events.wants_sample(now):
            taken += 1
            events.sample(now, (n % 2, 0))
    assert len(events.samples) < 4096 < taken
    recording = made(events, ended=now)
    (queue,) = [c for c in recording.counters if c.name.startswith("queue")]
    assert (queue.name, queue.unit) == ("queue: read", "items")
    assert all(a[1] != b[1] for a, b in zip(queue.samples, queue.samples[1:], strict=False))


def test_limits_are_kept_when_they_change():
    events = events_of()
    for n, value in enumerate([4.0, 4.0, 5.0, 5.0, 4.0]):
        events.limit(100.0 + n, "concurrency: ask", "calls", value)
    (limit,) = made(events).counters
    assert limit.samples == ((0.0, 4.0), (2.0, 5.0), (4.0, 4.0))


def test_marks_come_from_any_thread_and_none_after_the_end():
    events = Events(STAGES, ())
    thread = threading.Thread(
        target=events.mark, args=("blocked", "it slept"), kwargs={"lasted": 0.5}
    )
    thread.start()
    thread.join()
    events.mark("note", "at a moment", at=events.began + 0.25)
    events.end(events.began + 1.0, 2, 0)
    events.mark("note", "too late")
    marks = events.recording("").marks
    assert {mark.text for mark in marks} == {"it slept", "at a moment"}
    assert next(m.at for m in marks if m.text == "at a moment") == pytest.approx(0.25)
    assert next(m.lasted for m in marks if m.text == "it slept") <= 0.5


def test_too_many_marks_lose_the_oldest_and_say_so():
    events = events_of()
    for n in range(5000):
        events.mark("note", str(n), at=101.0)
    recording = made(events)
    assert len(recording.marks) + recording.lost == 5000
    assert recording.marks[-1].text == "4999"


def test_nothing_is_kept_where_it_is_switched_off(monkeypatch):
    monkeypatch.setenv("TOURNANT_EVENTS", "0")
    events = events_of()
    events.start()
    events.mark("note", "unheard")
    events.batch([1, 2])
    assert gc_listeners() == ()
    recording = made(events)
    assert (recording.slices, recording.marks, events.batches) == ((), (), {})


def gc_listeners():
    return garbage._listeners


def test_garbage_collections_are_marked_while_somebody_listens(monkeypatch):
    monkeypatch.setattr(garbage, "LEAST", 0.0)
    before = list(gc.callbacks)
    first, second = Events(STAGES, ()), Events(STAGES, ())
    first.start()
    second.start()
    gc.collect()
    first.end(first.began + 10, 2, 0)
    gc.collect()
    second.end(second.began + 10, 2, 0)
    gc.collect()
    assert gc.callbacks == before
    counts = [
        sum(m[0] == "gc" and "generation 2" in m[2] for m in e.marks) for e in (first, second)
    ]
    assert counts[1] == counts[0] + 1 >= 2


def test_workers_that_started_during_the_run_are_marked():
    events = events_of()
    events.lane("processes", "lane-1", 7, 99.0)
    events.lane("processes", "lane-2", 8, 101.0)
    assert events.lane("processes", "lane-2", 8, 101.0) == 1
    (mark,) = made(events).marks
    assert (mark.kind, mark.at, mark.text) == ("worker", 1.0, "worker process 8 started")
    assert events.recording("").lanes[mark.lane].pid == 8


def test_the_recording_is_made_once_and_the_events_travel():
    events = events_of()
    events.calls[0].pack([0.5], [101.0], [0])
    worked(events)
    recording = made(events, taken=1)
    assert events.recording("other") is recording
    assert recording.summary == "what the report says"
    assert recording.title == "read > parse > embed"
    assert copy.deepcopy(events) is events
    assert pickle.loads(pickle.dumps(events)).recording("") == recording


def test_slices_are_plain_tuples_in_the_order_of_their_beginnings():
    events = events_of()
    events.calls[0].pack([0.5, 0.5], [105.0, 101.0], [0, 0])
    recording = made(events, taken=1)
    assert all(type(one) is Slice for one in recording.slices)
    assert [one.began for one in recording.slices] == [0.5, 4.5]
