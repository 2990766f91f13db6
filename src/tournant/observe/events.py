"""What a run keeps of itself while it runs: bounded ring buffers, always on, from which its `Recording` is made when somebody asks.

Every stage has a ring of its own, so that a busy one doesn't overwrite what a quiet one did: the last `CAPACITY` calls of each, and
the last `CAPACITY` inputs. That holds a whole ingest of 10,000 documents, and much larger runs of whose stages none makes more than 100,000
calls; beyond that the oldest go, and `Recording.lost` counts them. A call on the loop takes 24 bytes (numbers, in arrays), a chunk that went to a
worker about 400 and counts as one more call than it has items, an input up to 200: a full ring takes between 2 and 20 MB, and a small run next to
nothing. No item is ever held, and keys are shortened.

``TOURNANT_EVENTS=0`` in the environment switches it off, ``TOURNANT_EVENTS=20000`` sets the capacity.

The hot path is two appends to lists, beside the one that a stage makes for its own seconds anyway, of objects that exist already: about 20
nanoseconds, where a tuple in a ``deque(maxlen=...)`` takes 30 and the garbage collector's attention, and storing into preallocated arrays 80. The
lists move into arrays in bulk, where the stages fold their seconds. Clocks are read where the engine reads them in any case, and once for
each input, chunk and batch. Worker processes measure with the same clock as their parent: it is the machine's.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from itertools import islice
from time import perf_counter, time
from typing import TYPE_CHECKING, Any, NamedTuple

from tournant.errors import TournantError, short
from tournant.observe import garbage
from tournant.observe.recording import OK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tournant.observe.recording import Recording

#: Calls per stage, and inputs, that are kept.
CAPACITY = 100_000
#: Seconds of a unit from which on the units of a chunk are kept, and shown, one by one.
HEAVY = 0.0005
#: Letters of a key.
KEY_LETTERS = 80
#: Marks of a run.
_MARKS = 4096
#: Samples of the queues; when there are so many, every other one goes, and they are taken half as often.
_SAMPLES = 4096
#: Seconds between two samples of the queues, at least.
_EVERY = 0.02
#: Seconds below which a wait for a permit is none.
_LEAST_WAIT = 1e-5


def capacity() -> int:
    """Return how many events a stage keeps: ``TOURNANT_EVENTS``, or `CAPACITY`; 0 is none.

    Raises:
        TournantError: ``TOURNANT_EVENTS`` is no whole number.
    """
    said = os.environ.get("TOURNANT_EVENTS")
    if said is None:
        return CAPACITY
    if not said.isdecimal():
        raise TournantError(
            f"TOURNANT_EVENTS={said!r}: give how many events each stage should keep, 0 for none, or unset it"
        )
    return int(said)


class Call(NamedTuple):
    """A call, or a stay, that is kept by itself: of many items, or one that did not go well.

    Attributes:
        began: on the clock.
        ended: on the clock.
        who: the number of its input or batch, or those of many.
        items: items in it.
        outcome: as of a `Slice`.
        waited: seconds.
        lane: index into `Events.lanes`; -1 for the loop.
    """

    began: float
    ended: float
    who: int | Sequence[int]
    items: int = 1
    outcome: str = OK
    waited: float = 0.0
    lane: int = -1


class Odd(NamedTuple):
    """A unit of a chunk that didn't go through every step.

    Attributes:
        unit: which one.
        step: the step that failed or dropped it; below 0 if not even the first was called, ``None`` if all were.
        outcome: of the call of that step, of the first where all were called.
        timed: whether that call is among the step's seconds.
    """

    unit: int
    step: int | None
    outcome: str
    timed: bool


class Stretch(NamedTuple):
    """What a worker did without a break: one part of a chunk.

    Attributes:
        lane: index into `Events.lanes`.
        began: on the clock.
        ended: on the clock, when it was told.
        who: numbers, one per row.
        sizes: rows per unit, for batches; otherwise ``None``: a unit is a row.
        times: per step the seconds of each call, or, where calls are cheap, their sum and number.
        odd: those that failed or were dropped.
        waited: seconds that its chunk had been ready before it began.
        flat: the last step fans out.
        open: number of the input whose fan-out went on after it; ``None`` if there is none.
    """

    lane: int
    began: float
    ended: float
    who: Sequence[int]
    sizes: tuple[int, ...] | None
    times: tuple[Any, ...]
    odd: Sequence[Odd] = ()
    waited: float = 0.0
    flat: bool = False
    open: int | None = None


class Calls:
    """The ring of one stage.

    Attributes:
        lost: calls that were overwritten.
        blocks: what `pack` was given, as arrays of seconds, ends and numbers.
        said: what was said one by one.
        waits: pairs of a call's beginning and the seconds that it had waited for a permit.
    """

    __slots__ = ("_count", "_room", "_weight", "blocks", "lost", "said", "waits")

    def __init__(self, room: int) -> None:
        self._room = room
        self._count = self._weight = 0
        self.lost = 0
        self.blocks: deque[tuple[array[float], array[float], array[int]]] = deque()
        self.said: deque[Call] = deque()
        self.waits: deque[tuple[float, float]] = deque(maxlen=room)

    def pack(self, seconds: list[float], ends: list[float], who: list[int]) -> None:
        """Take over what a stage has gathered of calls of single items that went well."""
        self.blocks.append((array("d", seconds), array("d", ends), array("q", who)))
        self._count += len(who)
        while self._count > self._room:
            oldest = self.blocks[0]
            excess = min(self._count - self._room, len(oldest[0]))
            if excess == len(oldest[0]):
                self.blocks.popleft()
            else:
                for column in oldest:
                    del column[:excess]
            self._count -= excess
            self.lost += excess

    def say(
        self,
        began: float,
        ended: float,
        who: int | Sequence[int],
        items: int = 1,
        outcome: str = OK,
    ) -> None:
        """Take one call by itself."""
        self.put(Call(began, ended, who, items, outcome))

    def put(self, call: Call) -> None:
        """Take one call by itself."""
        self.said.append(call)
        self._weight += 1 if isinstance(call.who, int) else len(call.who)
        while self._weight > self._room and len(self.said) > 1:
            gone = self.said.popleft().who
            self._weight -= 1 if isinstance(gone, int) else len(gone)
            self.lost += 1

    def waited(self, began: float, seconds: float) -> None:
        """Note that the call that begins now had waited."""
        if seconds > _LEAST_WAIT:
            self.waits.append((began, seconds))


class Stretches:
    """The ring of one pool segment.

    Attributes:
        first: index of its first stage.
        steps: how many stages it has; 0 before the first chunk has ended.
        kept: oldest first.
        lost: items in what was overwritten.
        busy: seconds of the calls of the chunks that have ended.
        cpu: CPU seconds in them.
    """

    __slots__ = ("_count", "_room", "busy", "cpu", "first", "kept", "lost", "steps")

    def __init__(self, room: int, first: int) -> None:
        self._room = room
        self._count = 0
        self.first = first
        self.steps = 0
        self.lost = 0
        self.busy = self.cpu = 0.0
        self.kept: deque[Stretch] = deque()

    def add(self, stretch: Stretch) -> None:
        """Take one."""
        self.kept.append(stretch)
        self._count += len(stretch.who) + 1
        while self._count > self._room and len(self.kept) > 1:
            gone = len(self.kept.popleft().who)
            self._count -= gone + 1
            self.lost += gone or 1

    def measured(self, steps: int, busy: float, cpu: float) -> None:
        """Add what one chunk took, of time and of CPU time."""
        self.steps = steps
        self.busy += busy
        self.cpu += cpu


class Inputs:
    """The ring of the inputs, by number: their keys, when they were taken, how and when they ended.

    An input ends with the last call for it, which the stages keep; what is kept here is between which looks it was.

    Attributes:
        keys: by number, where the key is not the number itself.
        since: pairs of an input's number and the time from which on inputs were taken.
        skipped: (number of the next input that runs, key, time) of what the ledger knew.
        ended: numbers of those that ended since the last look; the run appends.
        looks: pairs of a time and the numbers of those that ended since the look before.
        outcomes: by number, of those that are not done.
        lost: inputs that were overwritten.
        known: numbers from which on nothing was overwritten.
        behind: numbers below `known` that were not overwritten: inputs that end late, or never.
    """

    __slots__ = (
        "_kept", "_room", "behind", "ended", "keys", "known", "looks", "lost", "outcomes", "since", "skipped",
    )  # fmt: skip

    def __init__(self, room: int) -> None:
        self._room = room
        self._kept = 0
        self.keys: dict[int, Any] = {}
        self.since: deque[tuple[int, float]] = deque(maxlen=room)
        self.skipped: deque[tuple[int, Any, float]] = deque(maxlen=room)
        self.ended: list[int] = []
        self.looks: deque[tuple[float, array[int]]] = deque()
        self.outcomes: dict[int, str] = {}
        self.lost = 0
        self.known = 0
        self.behind: set[int] = set()

    def taking(self, number: int) -> None:
        """Inputs from `number` on are taken now."""
        self.since.append((number, perf_counter()))

    def name(self, number: int, key: Any) -> None:
        """Keep the key of an input."""
        if type(key) is not str or len(key) > KEY_LETTERS:
            key = shortened(key)
        self.keys[number] = key

    def skip(self, number: int, key: Any) -> None:
        """The ledger knew an input, before the one with `number`."""
        if len(self.skipped) == self._room:
            self.lost += 1
        self.skipped.append((number, shortened(key), perf_counter()))

    def look(self, now: float) -> None:
        """Put what has gathered into arrays, and let the oldest go."""
        if self.ended:
            self.looks.append((now, array("q", self.ended)))
            self._kept += len(self.ended)
            self.ended.clear()
            while self._kept > self._room and len(self.looks) > 1:
                self._forget(self.looks.popleft()[1])
        excess = len(self.keys) - self._room
        for number in list(islice(self.keys, max(0, excess))):
            del self.keys[number]

    def _forget(self, numbers: array[int]) -> None:
        """Overwrite inputs that have ended. They end in any order, so some from before them may be kept."""
        self._kept -= len(numbers)
        self.lost += len(numbers)
        upto = max(numbers) + 1
        if upto > self.known:
            self.behind.update(range(self.known, upto))
            self.known = upto
        self.behind.difference_update(numbers)
        if self.outcomes:
            for number in numbers:
                self.outcomes.pop(number, None)


class Events:
    """The buffers of one run. Everything but `mark` is called on the run's loop.

    Holds nothing of the run but plain data, and stays behind in the run's report.

    Args:
        stages: name and placement of each stage.
        queues: what stands behind each queue.
        began: when the run began, by ``time.perf_counter``; by default now.
        inline: everything runs in one thread, in order.

    Attributes:
        on: whether anything is kept.
        began: on the clock.
        stages: name and placement.
        calls: one ring per stage.
        inputs: the inputs' ring.
        stretches: by the number of a segment's first stage, the rings of pool segments.
        lanes: (kind, name, pid, when its process began) of workers, in the order in which they were met.
        batches: by their numbers, the numbers of their members.
        samples: pairs of a time and the depths of `queues`.
        limits: by name and unit, pairs of a time and a limit.
    """

    def __init__(
        self,
        stages: Sequence[tuple[str, str]],
        queues: Sequence[str],
        *,
        began: float | None = None,
        inline: bool = False,
    ) -> None:
        room = capacity()
        self.on = room > 0
        self.began = perf_counter() if began is None else began
        self.unix = time() - (perf_counter() - self.began)
        self.ended: float | None = None
        self.cores = 1
        self.taken = 0
        self.inline = inline
        self.pid = os.getpid()
        self.stages = tuple(stages)
        self.calls = [Calls(room) for _ in stages]
        self.inputs = Inputs(room)
        self.stretches: dict[int, Stretches] = {}
        self.lanes: list[tuple[str, str, int, float]] = []
        self._lane_numbers: dict[tuple[str, int], int] = {}
        self.batches: dict[int, Sequence[int]] = {}
        self._batches = self._batch_room = 0
        self.queues = tuple(queues)
        self.samples: list[tuple[float, tuple[int, ...]]] = []
        self._every = _EVERY
        self.limits: dict[tuple[str, str], deque[tuple[float, float]]] = {}
        self.marks: deque[tuple[str, float, str, float]] = deque(maxlen=_MARKS)
        self.marks_lost = 0
        self._room = room
        self._recording: Recording | None = None

    def segment(self, first: int) -> Stretches:
        """Return the ring of the pool segment whose first stage has the index `first`."""
        return self.stretches.setdefault(first, Stretches(self._room, first))

    def start(self) -> None:
        """Begin to listen to the garbage collector."""
        if self.on:
            garbage.listen(self)

    def stop(self) -> None:
        """Listen to the garbage collector no more."""
        garbage.listen_no_more(self)

    def end(self, ended: float, cores: int, taken: int) -> None:
        """Close the books: the run ended at `ended`, having shared so many cores and taken so many inputs."""
        self.stop()
        self.inputs.look(ended)
        self.ended, self.cores, self.taken = ended, cores, taken

    # What is said while the run goes on.

    def mark(self, kind: str, text: str, *, lasted: float = 0.0, at: float | None = None) -> None:
        """Note something that happened; from any thread.

        Args:
            kind: as of a `tournant.observe.recording.Mark`.
            text: one sentence.
            lasted: seconds.
            at: when it began, by ``time.perf_counter``; by default so long ago as it lasted.
        """
        if self.on and self.ended is None:
            if len(self.marks) == _MARKS:
                self.marks_lost += 1
            self.marks.append((kind, perf_counter() - lasted if at is None else at, text, lasted))

    def lane(self, kind: str, name: str, pid: int, since: float) -> int:
        """Return the number of a worker."""
        number = self._lane_numbers.get((name, pid))
        if number is None:
            number = self._lane_numbers[name, pid] = len(self.lanes)
            self.lanes.append((kind, name, pid, since))
        return number

    def batch(self, members: Sequence[int]) -> int:
        """Return a number, below 0, for a batch of inputs and batches."""
        self._batches -= 1
        if self.on:
            self.batches[self._batches] = array("q", members)
            self._batch_room += len(members)
            while self._batch_room > self._room and len(self.batches) > 1:
                self._batch_room -= len(self.batches.pop(next(iter(self.batches))))
        return self._batches

    def wants_sample(self, now: float) -> bool:
        """Tell whether the queues should be looked at."""
        return self.on and (not self.samples or now - self.samples[-1][0] >= self._every)

    def sample(self, now: float, depths: tuple[int, ...]) -> None:
        """Keep how deep the queues are."""
        self.samples.append((now, depths))
        if len(self.samples) >= _SAMPLES:
            del self.samples[1::2]
            self._every *= 2

    def limit(self, now: float, name: str, unit: str, value: float) -> None:
        """Keep a limit, if it has changed."""
        kept = self.limits.setdefault((name, unit), deque(maxlen=_SAMPLES))
        if not kept or kept[-1][1] != value:
            kept.append((now, value))

    # Afterwards.

    @property
    def lost(self) -> int:
        """Events that were overwritten."""
        rings: list[Any] = [*self.calls, *self.stretches.values(), self.inputs]
        lost: int = sum(ring.lost for ring in rings)
        return lost + self.marks_lost

    def recording(self, summary: str) -> Recording:
        """Return the recording, made on first use."""
        if self._recording is None:
            from tournant.observe.assemble import assemble

            self._recording = assemble(self, summary)
        return self._recording

    def __deepcopy__(self, memo: Any) -> Events:
        return self


def shortened(key: Any) -> Any:
    """Return a key that holds nothing alive: a number, or text of at most `KEY_LETTERS`."""
    if type(key) is int:
        return key
    text = str.__str__(key) if isinstance(key, str) else short(key, KEY_LETTERS)
    return text if len(text) <= KEY_LETTERS else text[: KEY_LETTERS - 1] + "…"
