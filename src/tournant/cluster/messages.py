"""What driver and nodes say to each other. Values of the user travel as pickles inside, see `pack`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

from tournant.errors import NotPicklable, short
from tournant.pool import wire
from tournant.pool.steps import checked_rows, many
from tournant.report import StageReport


def pack(value: Any) -> bytes:
    """Pickle a value of the user; what lives in ``__main__`` goes by value.

    Plain pickle and cloudpickle are this library's on both sides: Ray has a copy of its own, to which a class
    that came by value would be another class on its way back.

    Raises:
        Exception: whatever the pickler raised.
    """
    return b"".join(wire.dump_in_band(value))


def unpack(data: bytes) -> Any:
    """Return the value that `pack` was given."""
    return pickle.loads(data)


def pack_result(value: Any) -> bytes:
    """Pickle a result.

    Raises:
        NotPicklable: it can't travel.
    """
    try:
        # On a node nothing is ``__main__``'s own: what plain pickle takes is right, also a text that says so.
        return b"".join(wire.dump_in_band(value, in_worker=True))
    except Exception as problem:
        raise NotPicklable(
            f"the result {short(value)} can't be sent back from a node ({type(problem).__name__}: {problem}); return plain data "
            "(strings, numbers, bytes, arrays, dataclasses), or end the pipeline with a sink, which runs on the node"
        ) from problem


class Packed:
    """A result that was pickled where it was made: on its way through the node nobody has to look into it.

    Args:
        data: the pickle.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return Packed, (self.data,)


class Packing:
    """A stage's callable whose results come back as `Packed`.

    Args:
        fn: the callable.
        kind: the stage's.
    """

    def __init__(self, fn: Callable[..., Any], kind: str) -> None:
        self._fn = fn
        self._kind = kind

    def __call__(self, *arguments: Any) -> Any:
        """Call it."""
        result = self._fn(*arguments)
        if self._kind == "map":
            return Packed(pack_result(result))
        if self._kind == "flat_map":
            return (Packed(pack_result(child)) for child in many(result))
        # A wrong number of rows is for the engine to see.
        return [Packed(pack_result(row)) for row in checked_rows(result, len(arguments[0]))]


def pack_error(error: Exception) -> bytes:
    """Pickle an exception, or what stands in for one that can't be pickled."""
    try:
        data = pack(error)
        unpack(data)
    except Exception:
        stand_in = NotPicklable(
            f"the stage raised {type(error).__module__}.{type(error).__qualname__}: {error}; that exception can't be pickled, so "
            "this stands in for it. Give it an __init__ whose arguments are those passed to super().__init__()"
        )
        for text in getattr(error, "__notes__", ()):
            stand_in.add_note(text)
        return pack(stand_in)
    return data


class Dealt(NamedTuple):
    """One input on its way to a node.

    Attributes:
        number: names it between driver and node.
        key: the input's key.
        value: its pickle, or a reference to that in Ray's object store; ``None`` on the way, where that goes beside it.
    """

    number: int
    key: Any
    value: Any


class Member(NamedTuple):
    """An item's place in its input: what a result or a failure belongs to."""

    number: int
    pos: tuple[int, ...]


class Output(NamedTuple):
    """One result. `value` is its pickle; it has several members if it is a batch."""

    members: tuple[Member, ...]
    value: bytes


class Broken(NamedTuple):
    """One item that failed for good. `error` is the exception's pickle."""

    members: tuple[Member, ...]
    stage: str
    error: bytes
    attempts: int


class Closed(NamedTuple):
    """One input of which nothing is left on the node.

    Attributes:
        number: the input's number.
        state: bits of `tournant.engine.lineage`.
        arrived: how many of its items the sink took.
        outputs: results, where the driver wants them.
        broken: its items that failed.
    """

    number: int
    state: int
    arrived: int
    outputs: tuple[Output, ...] = ()
    broken: tuple[Broken, ...] = ()


class Measured(NamedTuple):
    """A stage of a node as it stands.

    Attributes:
        report: the counts and seconds so far, over the node's run.
        buckets: the histogram of call times.
        queued: items that wait in front of it.
        running: items that it works on.
        pressed: seconds in which calls waited for its rate.
        pooled: it shares the node's cores with others.
    """

    report: StageReport
    buckets: dict[int, int]
    queued: int
    running: int
    pressed: float
    pooled: bool


class Ended(NamedTuple):
    """The end of a node's run.

    Attributes:
        warnings: what looked wrong there.
        findings: what the guards found there, pickled.
        duration: seconds.
        recording: the node's `Recording`, pickled, if it has one.
        numbers: the driver's number of each input in that recording.
        error: the pickle of what the run ended with, unless it was a failure of items.
    """

    warnings: tuple[str, ...] = ()
    findings: bytes = pickle.dumps(())
    duration: float = 0.0
    recording: bytes | None = None
    numbers: dict[int, int] = {}  # noqa: RUF012
    error: bytes | None = None


class News(NamedTuple):
    """What a node has to say since the driver last heard of it.

    Attributes:
        closed: inputs that have ended.
        broken: items whose failure stops the run, and at its end those whose inputs have not ended.
        returned: inputs that it was asked for and had not begun.
        pulled: inputs that its engine has taken in so far.
        outputs: items that came out of its last stage so far.
        measured: its stages, now and then.
        ended: the run on the node has ended, and how.
    """

    closed: tuple[Closed, ...]
    broken: tuple[Broken, ...]
    returned: tuple[int, ...]
    pulled: int
    outputs: int
    measured: tuple[Measured, ...] | None = None
    ended: Ended | None = None


class Hello(NamedTuple):
    """What a node says of itself when it is ready.

    Attributes:
        host: its name.
        pid: of the actor's process.
        cores: with which its engine works.
        version: of this library.
        python: of the interpreter.
    """

    host: str
    pid: int
    cores: int
    version: str
    python: str
