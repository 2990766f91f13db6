"""What held a run up, and what would mend it: one rule for each answer, the most certain first."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from tournant.observe.figures import Figures, in_words
from tournant.observe.usage import Steps, together
from tournant.report import BOTTLENECK as _BOTTLENECK
from tournant.report import paced

#: Below this a run tells nothing.
_SECONDS_AT_LEAST, _CALLS_AT_LEAST = 0.5, 8
#: From this share on those who hold cores' places are said to use the cores.
MOSTLY_COMPUTING = 0.7
#: Share of the run from which on a blocked loop, or a last call that everything waits for, is what to mend first.
_BLOCKED, _TAIL = 0.2, 0.3
#: The same for items that wait for their next attempt, and for results that nobody takes.
_RETRYING, _UNTAKEN = 0.5, 0.7
#: Seconds from which on a call is not too small for what handing it out costs.
_SUBSTANTIAL = 0.005


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found.

    Attributes:
        kind: as of an `Advice`.
        sentence: what to do, and the numbers that say so.
        bottleneck: the stage, ``"source"`` or ``"consumer"``.
        share: the share of its capacity that was used.
    """

    kind: str
    sentence: str
    bottleneck: str | None = None
    share: float = 0.0


def verdict(figures: Figures) -> Verdict:
    """Return what the first rule says that has something to say."""
    rules = (
        _short,
        _inline,
        _blocked,
        _tail,
        _gil,
        _busiest,
        _consumer,
        _retrying,
        _overhead,
        _source,
    )
    for rule in rules:
        if (found := rule(figures)) is not None:
            return found
    share, n = max((_share(figures, n), n) for n in _working(figures))
    stage = figures.stages[n]
    used = (
        f"the busiest stage, {stage.label}, is used to {share:.0%}"
        if share < _BOTTLENECK
        else f"the busiest stage, {stage.label}, has {stage.at_once:.1f} calls under way on average, but nothing waits for it"
    )
    return Verdict(
        "none",
        f"nothing stands out: {used}, and {_cores_used(figures)}; look at the lanes for what waits for what",
        None,
        share,
    )


def _short(figures: Figures) -> Verdict | None:
    count = sum(map(len, figures.calls))
    if count and figures.length >= _SECONDS_AT_LEAST and count >= _CALLS_AT_LEAST:
        return None
    if not count and not figures.recording.lost:
        return Verdict(
            "short",
            "no call was recorded: there was nothing to do, or TOURNANT_EVENTS=0 in the environment switches recording off",
        )
    calls = "1 call" if count == 1 else f"{count:,} calls"
    if figures.recording.lost:
        return Verdict(
            "short",
            f"too little is left of the run to say anything (its last {in_words(figures.length)}, {calls}): what came before was "
            "overwritten; TOURNANT_EVENTS=1000000 in the environment keeps more",
        )
    return Verdict(
        "short",
        f"the run was too short to say anything ({in_words(figures.length)}, {calls}): most of such a run is starting up; record one "
        "of some seconds",
    )


def _inline(figures: Figures) -> Verdict | None:
    """Whether everything ran in one thread, one call after the other."""
    lanes = figures.recording.lanes
    if not lanes or any(lane.name != "inline" for lane in lanes):
        return None
    parts = ", ".join(
        f"{stage.label} took {stage.busy / figures.length:.0%} of it"
        for stage in figures.stages
        if stage.busy >= 0.05 * figures.length
    )
    return Verdict(
        "inline",
        f"the run was inline, one call after the other in one thread{': ' if parts else ''}{parts}; without inline=True its stages "
        "work side by side",
    )


def _blocked(figures: Figures) -> Verdict | None:
    marks = [mark for mark in figures.recording.marks if mark.kind == "blocked" and mark.lasted > 0]
    held = Steps.of_spans((mark.at, mark.at + mark.lasted) for mark in marks)
    share = (
        sum(length for length, (n,) in together((held,), figures.start, figures.end) if n)
        / figures.length
    )
    if share < _BLOCKED:
        return None
    worst = max(marks, key=lambda mark: mark.lasted)
    return Verdict(
        "blocked",
        # A guard's text says where, why and what to do about it.
        f"the event loop was blocked for {share:.0%} of the run, at worst {in_words(worst.lasted)}, and everything on it stood still: "
        f"{worst.text or 'move that work to a stage with on=processes or on=threads'}",
    )


def _tail(figures: Figures) -> Verdict | None:
    """Whether at the end nothing runs but one long call, and then what follows from it."""
    everything = [call for calls in figures.calls for call in calls]
    running = Steps.of_spans((call.began, call.ended) for call in everything)
    crowds = [at for at, value in zip(running.times, running.values, strict=True) if value > 1]
    if not crowds:
        return None
    # The moment at which the last of several calls at once left one alone.
    since = min(at for at in running.times if at > crowds[-1])
    longest = max(everything, key=lambda call: call.ended - max(call.began, since))
    length = longest.ended - max(longest.began, since)
    if length / figures.length < _TAIL:
        return None
    known = figures.recording.inputs.get(longest.inputs[0]) if longest.inputs else None
    which = f" ({known.key})" if known else ""
    return Verdict(
        "tail",
        f"for its last {length / figures.length:.0%} ({in_words(length)}) the run waits for one call of "
        f"{figures.stages[longest.stage].label}{which}: put the largest inputs first in the source, or split them",
    )


def _gil(figures: Figures) -> Verdict | None:
    for n in figures.pooled:
        stage = figures.stages[n]
        if stage.on != "threads":
            continue
        found = _told(figures, n) or _one_core(figures, n)
        # Who waits holds no lock, whatever its calls take beside others.
        if not found and not figures.waits(n):
            found = _slower_together(figures, n)
        if found:
            return Verdict(
                "gil",
                f"the threads of {stage.label} use one core together: {found}; if it is Python code that holds the interpreter lock, "
                "on='processes' lets it use all cores",
                stage.name,
                min(1.0, stage.at_once),
            )
    return None


def _told(figures: Figures, n: int) -> str | None:
    """Whether a guard saw it while the run went on."""
    name = repr(figures.stages[n].name)
    for mark in figures.recording.marks:
        if mark.kind == "guard" and "interpreter lock" in mark.text and name in mark.text:
            return f"a guard saw it at {in_words(mark.at)}"
    return None


def _one_core(figures: Figures, n: int) -> str | None:
    """Whether the CPU time that was measured is that of one core while several threads of a stage run."""
    if figures.measured is None:
        return None
    seconds = threads = cores = 0.0
    for length, (running, used) in together(
        (figures.running[n], figures.measured), figures.start, figures.end
    ):
        if running >= 2:
            seconds += length
            threads += running * length
            cores += used * length
    # Threads that wait use no core at all; these use one.
    if seconds < figures.length * 0.2 or not 0.7 * seconds <= cores <= 1.25 * seconds:
        return None
    return f"with {threads / seconds:.1f} of them at work, {cores / seconds:.1f} cores were"


def _slower_together(figures: Figures, n: int) -> str | None:
    """Whether calls take as much longer as more of them run at once."""
    single: list[float] = []
    crowd: list[tuple[float, float]] = []
    running = figures.running[n]
    for call in figures.calls[n]:
        at_once = running.mean(call.began, call.ended)
        each = (call.ended - call.began) / max(1, call.items)
        if 0 < at_once <= 1.15:
            single.append(each)
        elif at_once >= 1.85:
            crowd.append((each, at_once))
    if len(single) < 5 or len(crowd) < 5:
        return None
    one, many = median(single), median(each for each, _ in crowd)
    width = median(at_once for _, at_once in crowd)
    # Something else, such as calls of another kind, makes them take very much longer.
    if one <= 0 or not 0.85 * width <= many / one <= 2 * width:
        return None
    return f"a call takes {many / one:.1f} times as long while {width:.0f} run at once"


def _share(figures: Figures, n: int) -> float:
    """Return which share of its capacity a stage used."""
    capacity = figures.recording.cores if n in figures.pooled else figures.limit(n)
    return figures.running[n].area(figures.start, figures.end) / (capacity * figures.length)


def _working(figures: Figures) -> list[int]:
    return [n for n in (*figures.pooled, *figures.alone) if figures.calls[n]] or [0]


def _busiest(figures: Figures) -> Verdict | None:
    found: list[Verdict] = []
    if any(figures.calls[n] for n in figures.pooled):
        found += [_pool(figures), *(_worker(figures, n) for n in figures.pooled)]
    found += [_own(figures, n) for n in figures.alone if figures.calls[n]]
    best = max(found, key=lambda one: one.share, default=None)
    return best if best is not None and best.share >= _BOTTLENECK else None


def _pool(figures: Figures) -> Verdict:
    """The CPU stages, together."""
    cores = figures.recording.cores
    stages = sorted((figures.stages[n] for n in figures.pooled), key=lambda s: -s.busy)
    area = sum(figures.running[n].area(figures.start, figures.end) for n in figures.pooled)
    # Where more lanes run than there are cores, they take turns.
    share = min(1.0, area / (cores * figures.length))
    first, whole = stages[0], sum(stage.busy for stage in stages)
    of = "one core" if cores == 1 else f"{_count(cores)} cores"
    number = next(n for n in figures.pooled if figures.stages[n] is first)
    if figures.waits(number):
        computing = figures.recording.stages[number].computing or 0.0
        return Verdict(
            "waiting",
            f"{first.label} is the bottleneck: it holds its places on {of} for {share:.0%} of the run and computes for {computing:.0%} of that, "
            "the rest it waits: more of its calls at once help, with on='threads', blocking=True and a higher concurrency, or as a coroutine; "
            "more cores do not",
            first.name,
            share,
        )
    if len(stages) == 1 or first.busy >= 0.75 * whole:
        who = f"{first.label} is the bottleneck at {share:.0%} of {of}"
    else:
        parts = ", ".join(
            f"{s.label} {s.busy / whole:.0%}" for s in stages if s.busy > 0.05 * whole
        )
        who = f"the CPU stages are the bottleneck at {share:.0%} of {of}, {first.label} first ({parts} of it)"
    return Verdict("cores", f"{who}: more cores help, more concurrency does not", first.name, share)


def _worker(figures: Figures, n: int) -> Verdict:
    """A CPU stage with one worker; where there is but one core, `_pool` says the same and comes first."""
    return _only_one(figures, n) if figures.stages[n].peak == 1 else Verdict("worker", "")


def _only_one(figures: Figures, n: int) -> Verdict:
    stage = figures.stages[n]
    share = stage.at_once
    return Verdict(
        "worker",
        f"{stage.label} is the bottleneck: it works on one call at a time and is busy for {share:.0%} of the run, while "
        f"{_cores_used(figures)}: allow it more at once if what it does bears that, else give it larger batches",
        stage.name,
        share,
    )


def _own(figures: Figures, n: int) -> Verdict:
    """A stage that waits rather than computes: limited by its places or by its rate."""
    stage = figures.stages[n]
    limit = figures.limit(n)
    total, taken = figures.waiting(n)
    share = total / figures.length
    of_time = stage.waited_limit / ((stage.waited_limit + stage.busy) or 1.0)
    # Hardly any waiting says nothing of what the rest of the run was like.
    if share >= _BOTTLENECK and taken < 0.7 * total:
        return Verdict(
            "rate",
            f"{stage.label} waits {of_time:.0%} of its time for its rate limit, in {share:.0%} of the run: only a higher limit, fewer or "
            "smaller calls, or a cache help; more cores and more concurrency do not",
            stage.name,
            share,
        )
    if round(limit) <= 1:
        return _only_one(figures, n)
    occupied = _share(figures, n)
    # A stage that is full by its own peak, while nothing waits for it, is only as busy as what comes in.
    if not total and figures.known_limit(n) is None and not figures.crowded(n):
        occupied = 0.0
    waited = f" and calls waited {of_time:.0%} of their time for one" if of_time >= 0.01 else ""
    return Verdict(
        "concurrency",
        f"{stage.label} is the bottleneck: its {limit:.0f} places are taken for {occupied:.0%} of the run{waited}: a higher concurrency "
        "helps as far as what it calls bears it; more cores do not",
        stage.name,
        occupied,
    )


def _consumer(figures: Figures) -> Verdict | None:
    """Whether results stood there and nobody took them."""
    share = figures.untaken
    if share < _UNTAKEN:
        return None
    return Verdict(
        "consumer",
        f"results stood ready for {share:.0%} of the run and were not taken, while {_cores_used(figures)}: whoever reads them is the "
        "bottleneck, and nothing in the pipeline would help; do that work in a stage",
        "consumer",
        share,
    )


def _retrying(figures: Figures) -> Verdict | None:
    """Whether items waited for their next attempt while little else went on."""
    again = [n for n, stage in enumerate(figures.stages) if stage.retried]
    share, n = max(((figures.trying_again(n), n) for n in again), default=(0.0, 0))
    if share < _RETRYING:
        return None
    stage = figures.stages[n]
    return Verdict(
        "retry",
        f"items of {stage.label} wait for their next attempt in {share:.0%} of the run, {stage.retried:,} of its {stage.calls:,} calls "
        "having been tried again: fewer failures or shorter delays help; more cores and more concurrency do not",
        stage.name,
        share,
    )


def _overhead(figures: Figures) -> Verdict | None:
    """Whether work stood before a CPU stage though there were cores for it."""
    for n in figures.pooled:
        stage = figures.stages[n]
        if stage.calls and figures.crowded(n):
            # The last is said only of calls that are small.
            reasons = "other programs had the cores, or the loop that hands work out was too busy to do so"
            mend = "look whether the machine was busy, and what ran on the loop"
            if stage.p50 < _SUBSTANTIAL:
                reasons += f", or its calls (median {in_words(stage.p50)}) are too small for what handing them out costs"
                mend += "; batches or larger pieces help against the last"
            return Verdict(
                "overhead",
                f"work stood before {stage.label} nearly all the time, and yet only {_cores_used(figures)}: {reasons}; {mend}",
                stage.name,
                min(1.0, _share(figures, n)),
            )
    return None


def _source(figures: Figures) -> Verdict | None:
    """Whether inputs still came late in the run, and the stages waited for them."""
    begins = [life.began for life in figures.recording.inputs.values()]
    if not begins or max(begins) < figures.start + 0.8 * figures.length:
        return None
    if any(figures.crowded(n) for n in range(len(figures.stages))):
        return None
    idle = figures.stages[0].wait_input
    waits = (
        f"; {figures.stages[0].label} had nothing to do for {idle / figures.length:.0%} of the run"
        if idle and idle >= 0.1 * figures.length
        else ""
    )
    rate = len(begins) / figures.length
    return Verdict(
        "source",
        f"the source is the bottleneck: it gave {paced(rate)} until the end, while {_cores_used(figures)}{waits}: make the "
        "source faster, or leave it; nothing in the pipeline would help",
        "source",
        1.0,
    )


def _cores_used(figures: Figures) -> str:
    used = figures.cores.mean(figures.start, figures.end)
    said = f"{used:.1f} of {_count(figures.recording.cores)} cores were used"
    computing = figures.computing
    # Who waits on a core's place leaves the core to others.
    low = computing is not None and computing < MOSTLY_COMPUTING
    return f"{said} ({computing:.0%} of that is CPU time)" if low else said


def _count(number: int) -> str:
    names = ("no", "one", "two", "three", "four")
    return names[number] if number < len(names) else str(number)
