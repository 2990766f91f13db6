from __future__ import annotations

from tournant.engine.lineage import ARRIVED, DROPPED, FAILED, REFUSED, Batch, Input, Item, inputs_of


class Run:
    def __init__(self):
        self.closed = []

    def close_input(self, origin):
        self.closed.append((origin.key, origin.state))

    def end_item(self, item, state):
        item.origin.end(state, self)


def test_an_input_ends_with_its_last_descendant():
    run, origin = Run(), Input("a", 0, None, None)
    origin.pending += 2
    origin.end(0, run)
    origin.end(ARRIVED, run)
    assert run.closed == []
    origin.end(DROPPED, run)
    assert run.closed == [("a", ARRIVED | DROPPED)]
    assert origin.outputs == 1


def test_a_batch_ends_each_member_as_it_ended_itself():
    run = Run()
    inputs = [Input(key, n, None, None) for n, key in enumerate("ab")]
    batch = Batch([Item(0, origin) for origin in inputs])
    batch.pending += 1
    batch.end(0, run)
    batch.end(FAILED, run)
    assert run.closed == [("a", FAILED), ("b", FAILED)]


def test_refusing_a_batch_refuses_only_inputs_that_it_held_whole():
    run = Run()
    whole, part = Input("whole", 0, None, None), Input("part", 1, None, None)
    batch = Batch([Item(0, whole), Item(0, part, (3,))])
    batch.end(DROPPED | REFUSED, run)
    assert run.closed == [("whole", DROPPED | REFUSED), ("part", DROPPED)]


def test_a_batch_is_known_by_all_its_inputs():
    inputs = [Input(key, n, None, None) for n, key in enumerate("abc")]
    inner = Batch([Item(0, inputs[0]), Item(0, inputs[1]), Item(1, inputs[1], (1,))])
    outer = Batch([Item([], inner), Item([], Batch([Item(0, inputs[2])]))])
    assert inner.key == ("a", "b")
    assert outer.key == ("a", "b", "c")
    assert inputs_of(outer) == [inputs[0], inputs[1], inputs[1], inputs[2]]
