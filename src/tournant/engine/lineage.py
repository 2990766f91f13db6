"""Which input an item descends from, and when an input is finished.

Every input has one `Input` with the number of its live descendants. A batch is a node of the same kind (`Batch`):
when its own descendants have finished, it finishes each of its members.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tournant.engine.barriers import Barrier

# States of an input: bits that its descendants set as they end.
FAILED = 1
DROPPED = 2
ARRIVED = 4
#: The input itself was dropped, not only some descendant.
REFUSED = 8
CLOSED = 16


class Closer(Protocol):
    """Who is told that an input has finished: the run."""

    def close_input(self, origin: Input) -> None:
        """Count the outcome of `origin`."""

    def end_item(self, item: Item, state: int) -> None:
        """End `item`, with what the run keeps about it."""


class Input:
    """One value of the source.

    Attributes:
        key: names the input in messages and in the ledger.
        index: its place among the inputs that run (those the ledger skips are not counted).
        pending: live descendants.
        state: bits above.
        held: what the barrier that the input heads for holds of it.
        fingerprint: for the ledger.
        outputs: descendants that came through the last stage.
    """

    __slots__ = ("barrier", "fingerprint", "held", "index", "key", "outputs", "pending", "state")

    def __init__(self, key: Any, index: int, barrier: Barrier | None, fingerprint: Any) -> None:
        self.key = key
        self.index = index
        self.barrier = barrier
        self.fingerprint = fingerprint
        self.pending = 1
        self.state = 0
        self.outputs = 0
        self.held: list[Item] | None = None

    def end(self, state: int, run: Closer) -> None:
        """Count one descendant as ended, setting the bits of `state`."""
        self.state |= state
        self.pending -= 1
        if state & ARRIVED:
            self.outputs += 1
        if self.barrier is not None:
            self.barrier.descendant_ended(self)
        elif not self.pending:
            run.close_input(self)


class Item:
    """One value travelling through a pipeline.

    Attributes:
        value: the value.
        origin: the input or batch that it descends from.
        pos: where it stands among its origin's descendants: one number per fan-out that it came through.
        size: its estimated bytes, where the run has a memory limit.
    """

    __slots__ = ("origin", "pos", "size", "value")

    def __init__(
        self, value: Any, origin: Input | Batch, pos: tuple[int, ...] = (), size: int = 0
    ) -> None:
        self.value = value
        self.origin = origin
        self.pos = pos
        self.size = size


class Batch:
    """A batch of items as an origin: what happens to its descendants happens to each member.

    Attributes:
        index: what the run's events know it by: a number below 0.
        members: the items in the batch.
        pending: live descendants of the batch.
        state: bits as for an input.
    """

    __slots__ = ("index", "members", "pending", "state")

    def __init__(self, members: list[Item], index: int = -1) -> None:
        self.index = index
        self.members = members
        self.pending = 1
        self.state = 0

    @property
    def key(self) -> Any:
        """The keys of all members."""
        keys: list[Any] = []
        for member in self.members:
            key = member.origin.key
            keys.extend(key) if isinstance(member.origin, Batch) else keys.append(key)
        return tuple(dict.fromkeys(keys))

    def end(self, state: int, run: Closer) -> None:
        """Count one descendant as ended; with the last one every member ends."""
        self.state |= state
        self.pending -= 1
        if not self.pending:
            for member in self.members:
                # That the batch was refused drops its members, not the inputs that they are only a part of.
                run.end_item(member, self.state & ~REFUSED if member.pos else self.state)


def inputs_of(origin: Input | Batch) -> list[Input]:
    """Return every input that `origin` stands for."""
    if isinstance(origin, Input):
        return [origin]
    return [i for member in origin.members for i in inputs_of(member.origin)]
