"""Why a way took as long as it did, in one sentence that says nothing but what was measured.

No speed-up is claimed that did not happen: every sentence starts from the stopwatch, and goes on with the two numbers that explain it,
how many steps were under way at once and how many cores worked. What other programs took of the machine is said too.
"""

from __future__ import annotations

from tournant.kitchen.cooked import Cooked
from tournant.kitchen.ways import WAYS, WORKS

#: From this ratio on, two times differ by more than the noise of a machine that does other things as well.
NOTICED = 1.15
#: From here on more than one core was at work.
_PARALLEL = 1.15
#: Up to here it was one core.
_ONE_CORE = 0.8
#: Up to here it was waiting that the time went to.
_IDLE = 0.5
#: Up to here next to no core was at work.
_NO_CORE = 0.15


def why(cooked: Cooked) -> str:
    """Return the reason as a sentence."""
    reason = f"{_REASONS[cooked.way](cooked)} ({_cores(cooked)})."
    if cooked.way == "synchronous" or cooked.speedup is None:
        return reason[0].upper() + reason[1:]
    if cooked.disturbed:
        return f"The machine was busy, so the times are not comparable: {reason}"
    return f"{_speed(cooked.speedup)}: {reason}"


def cooks(cooked: Cooked) -> str:
    """Return what the way is in a kitchen, here and now."""
    workers = cooked.workers or cooked.cores
    if cooked.way == "threads" and not cooked.gil:
        return "many cooks, and no GIL: a thread for each dish"
    if cooked.way == "processes" and workers == 1:
        return "one cook with a stove: one process"
    if cooked.way == "processes" and workers != cooked.cores:
        stoves = _counted(cooked.cores, "stove")
        return f"{workers} cooks, {stoves}: {workers} processes, as TOURNANT_CORES says"
    return WAYS[cooked.way]


def _speed(speedup: float) -> str:
    if speedup >= NOTICED:
        return f"{speedup:.1f} times as fast as one after the other"
    if speedup <= 1 / NOTICED:
        return f"Slower than one after the other ({speedup:.2f} of its speed)"
    return "No faster than one after the other"


def _cores(cooked: Cooked) -> str:
    said = f"{cooked.busy_cores:.2f} cores at work"
    if cooked.crowded and not _waited(cooked):
        said += f", and {cooked.others:.1f} for other programs"
    return said


def _waited(cooked: Cooked) -> bool:
    """Tell whether it was waiting, not computing, that the time went to."""
    work = WORKS[cooked.work]
    return work.waits and not work.thinks and cooked.busy_cores < _IDLE


def _synchronous(cooked: Cooked) -> str:
    work = WORKS[cooked.work]
    if work.waits and work.thinks:
        share = cooked.waiting_share
        return f"one step at a time, never two: {share:.0%} of the time at steps that wait, and {1 - share:.0%} at steps that compute"
    if not work.waits:
        return "one step at a time, so one core at the most"
    if cooked.answers:
        share = min(1.0, cooked.answers / cooked.seconds)
        return f"one step at a time, and {share:.0%} of the time the cook stands and waits for a server"
    return "one step at a time, each of which is a question to a server"


def _concurrent(cooked: Cooked) -> str:
    if not WORKS[cooked.work].waits:
        return (
            "a coroutine that computes does not give the loop back, so there was one step at a time"
        )
    if _waited(cooked):
        idle = cooked.busy_cores < _NO_CORE
        return f"{_at_once(cooked, 'wait')} on one thread" + (
            ", and waiting takes next to no core" if idle else ""
        )
    return f"{_beside(cooked)} one thread did all the computing, and the loop stood still for it"


def _threads(cooked: Cooked) -> str:
    count = _counted(len(cooked.threads), "thread")
    if len(cooked.threads) == 1:
        return "one thread did it all, one step at a time"
    if _waited(cooked):
        return f"{_at_once(cooked, 'wait')} in {count}; who waits holds neither the GIL nor a core"
    if cooked.cores == 1:
        return f"{_at_once(cooked, 'step')}, but there is one core for all of them"
    if not cooked.gil:
        if cooked.busy_cores >= _PARALLEL:
            return f"this Python has no GIL, and {count} computed at once"
        return f"this Python has no GIL, but {_between(cooked, count)}"
    if cooked.work == "native":
        if cooked.busy_cores >= _PARALLEL:
            return "zlib lets go of the GIL while it computes, so the threads do compute at once"
        return f"zlib lets go of the GIL, but {_between(cooked, count)}"
    if WORKS[cooked.work].waits:
        return f"{_beside(cooked)} for Python code the {count} took turns at the GIL"
    return f"{_at_once(cooked, 'step')}, but only the thread that holds the GIL runs Python code"


def _processes(cooked: Cooked) -> str:
    count = _counted(len(cooked.processes), "process", "processes")
    if len(cooked.processes) == 1:
        return "one process did it all, one step at a time"
    if _waited(cooked):
        return (
            f"a process waits for one answer at a time, so {count} made {_at_once(cooked, 'wait')}"
        )
    if WORKS[cooked.work].waits:
        if cooked.thinking_cores >= _PARALLEL:
            return f"{count} computed side by side, but each stands still while its own dish waits"
        return f"{count}, each of which stands still while its own dish waits"
    if cooked.busy_cores >= _PARALLEL:
        return f"{count} have a GIL each, and computed at once"
    if cooked.cores == 1:
        return f"there is one core for {count}"
    return _between(cooked, count)


def _hybrid(cooked: Cooked) -> str:
    work = WORKS[cooked.work]
    if _waited(cooked):
        return f"the pipeline waits on its loop, {_at_once(cooked, 'wait')} on one thread"
    if work.waits and work.thinks:
        return f"{_at_once(cooked, 'step')}: the loop waits, processes run the Python code, threads run zlib"
    if cooked.cores == 1:
        return "there is one core for all workers of the pipeline"
    if cooked.workers == 1:
        return "TOURNANT_CORES=1 lets the pipeline compute one step at a time"
    if cooked.work == "native":
        return "the pipeline runs zlib in threads, and nothing has to be copied to another process"
    if cooked.work == "thinking":
        return "the pipeline runs the Python code in processes, which have a GIL each"
    return f"the pipeline had {_at_once(cooked, 'step')} on its loop"


def _between(cooked: Cooked, count: str) -> str:
    """Say how little it was that the machine gave."""
    if cooked.busy_cores >= _ONE_CORE:
        return f"{count} had about one core between them"
    return f"{count} had less than one core between them"


def _beside(cooked: Cooked) -> str:
    if cooked.at_once == 1:
        return "one step at a time:"
    return f"{_at_once(cooked, 'step')}, waiting side by side, but"


_REASONS = {
    "synchronous": _synchronous,
    "concurrent": _concurrent,
    "threads": _threads,
    "processes": _processes,
    "hybrid": _hybrid,
}


def _at_once(cooked: Cooked, what: str) -> str:
    if cooked.at_once == 1:
        return f"one {what} at a time"
    return f"{_counted(cooked.at_once, what)} at once"


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
