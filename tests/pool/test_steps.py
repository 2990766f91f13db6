from __future__ import annotations

import threading

import pytest

import core_samples as samples
import tournant as tn
from tournant.errors import BatchMismatch, StageExit
from tournant.pool import steps
from tournant.pool.steps import (
    Dropped,
    Failed,
    Outbox,
    bind,
    checked_rows,
    close_all,
    many,
    plain,
    run_chunk,
)


def run(kinds, values, **options):
    parts = []
    flat = kinds[-1][0] == "flat_map"
    outbox = Outbox(len(kinds), parts.append, threading.Lock(), flat)
    run_chunk(kinds, values, outbox, **options)
    return parts


def test_a_chunk_ends_with_a_last_part_even_if_it_is_empty():
    for kinds in (
        [("map", samples.inc)],
        [("flat_map", samples.upto)],
        [("map", samples.inc), ("tap", samples.inc)],
    ):
        (part,) = run(kinds, [])
        assert part.last
        assert part.values == []


def test_results_are_in_the_order_of_the_values():
    (part,) = run([("map", samples.inc)], [1, 2, 3])
    assert (part.values, part.odd, len(part.times[0])) == ([2, 3, 4], False, 3)


def test_a_failure_takes_the_place_of_its_result():
    (part,) = run([("map", samples.fail_on_odd)], [2, 3, 4])
    assert [type(v) for v in part.values] == [int, Failed, int]
    assert part.odd


def test_fused_steps_tell_which_of_them_dropped_or_failed():
    kinds = [
        ("map", samples.inc),
        ("filter", samples.even),
        ("tap", samples.nothing),
        ("map", samples.fail_on_seven),
    ]
    (part,) = run(kinds, [1, 2, 5])
    assert part.values[0] == 2
    assert type(part.values[1]) is Dropped
    assert part.values[1].step == 1
    assert part.values[2] == 6
    (part,) = run([("map", samples.inc), ("map", samples.fail_on_seven)], [6])
    assert (type(part.values[0]), part.values[0].step) == (Failed, 1)
    assert [len(t) for t in part.times] == [1, 0]


def test_children_and_ends_say_whose_children_they_are():
    (part,) = run([("flat_map", samples.yields_then_fails)], [0, 1, 2])
    assert part.values == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [n for n, _ in part.ends] == [2, 4, 6]
    assert [type(what) for _, what in part.ends] == [type(None), Failed, type(None)]


def test_what_an_earlier_attempt_passed_on_is_skipped():
    (part,) = run([("flat_map", samples.upto)], [5, 2], skip=3)
    assert part.values == [3, 4, 0, 1]


def test_held_children_leave_only_with_their_generators_end():
    (part,) = run([("flat_map", samples.yields_then_fails)], [0, 1], hold=True)
    assert part.values == [(0, 0), (0, 1)]


def test_parts_are_sent_before_the_end_and_each_asks_whether_more_is_wanted(monkeypatch):
    monkeypatch.setattr(steps, "FLUSH", 0.0)
    asked = []

    def wanted():
        asked.append(1)
        return len(asked) < 3

    parts = run([("flat_map", samples.upto)], [10], wanted=wanted)
    assert len(parts) == 3
    assert not parts[-1].last
    parts = run([("map", samples.inc)], range(10), wanted=lambda: True)
    assert [v for part in parts for v in part.values] == list(range(1, 11))
    assert len(parts) > 5


def test_heavy_children_are_sent_by_weight():
    parts = run([("flat_map", lambda n: [b"x" * 1000] * n)], [20], part_bytes=5000)
    assert [len(part.values) for part in parts] == [5, 5, 5, 5, 0]


def test_an_unfinished_chunk_can_be_flushed_from_another_thread():
    parts = []
    outbox = Outbox(1, parts.append, threading.Lock(), False)

    def fn(value):
        if value == 2:
            assert outbox.flush_if_free()
            assert not outbox.flush_if_free()
        return value

    run_chunk([("map", fn)], [0, 1, 2], outbox)
    assert [part.values for part in parts] == [[0, 1], [2]]
    assert [part.last for part in parts] == [False, True]


def test_a_generator_that_is_left_early_is_closed():
    closed = []

    def fn(n):
        try:
            yield from range(n)
        finally:
            closed.append(n)

    import tournant.pool.steps as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FLUSH", 0.0)
        run([("flat_map", fn)], [10], wanted=lambda: False)
    assert closed == [10]


def test_state_is_bound_and_closed():
    closed = []
    state = tn.PerWorker(list, close=closed.append)
    bound, closing = bind([("map", samples.with_state, state), ("tap", samples.inc, None)])
    assert bound[0][1](5) == (5, [])
    close_all(closing)
    assert closed == [[]]


def test_a_factory_that_fails_closes_the_states_before_it():
    closed = []
    good = tn.PerWorker(list, close=closed.append)
    with pytest.raises(RuntimeError):
        bind(
            [("map", samples.inc, good), ("map", samples.inc, tn.PerWorker(samples.broken_factory))]
        )
    assert closed == [[]]


def test_every_state_is_closed_whatever_the_others_raise():
    closed = []

    def broken(state):
        raise OSError(state)

    with pytest.raises(OSError):
        close_all([(broken, 1), (closed.append, 2), (broken, 3), (closed.append, 4)])
    assert closed == [2, 4]


def test_rows_are_counted():
    assert checked_rows((1, 2), 2) == [1, 2]
    assert checked_rows((n for n in range(3)), 3) == [0, 1, 2]
    with pytest.raises(BatchMismatch, match="returned 1 results for 2 items"):
        checked_rows([1], 2)
    with pytest.raises(BatchMismatch, match="returned None for 2 items"):
        checked_rows(None, 2)


def test_strings_and_scalars_are_no_results_of_a_fan_out():
    for wrong in ("abc", b"abc", 5, None):
        with pytest.raises(TypeError, match="wrap a single result in a list"):
            many(wrong)
    assert list(many({1: 2})) == [1]


def test_what_would_end_the_program_becomes_an_exception():
    error = ValueError("x")
    assert plain(error) is error
    wrapped = plain(SystemExit(3))
    assert type(wrapped) is StageExit
    assert isinstance(wrapped.__cause__, SystemExit)
