"""What the kitchen has to say, as text for a projector: 80 columns, colour only where it is wanted."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tournant.kitchen.cooked import Cooked
from tournant.kitchen.cooking import WAIT, Kitchen, has_gil
from tournant.kitchen.pitfall import PITFALLS, Pitfall
from tournant.kitchen.reasons import NOTICED, cooks, why
from tournant.kitchen.trial import Trial, silence
from tournant.kitchen.ways import WAYS, WORKS
from tournant.pool.slots import cores, usable_cores

BOLD, DIM, RED, GREEN = "1", "2", "31", "32"


def styled(text: str, style: str, color: bool) -> str:
    """Return text in a style of the terminal's, or as it is."""
    return f"\x1b[{style}m{text}\x1b[0m" if color and style else text


def wrapped(text: str, width: int, head: str = "  ") -> list[str]:
    """Return text as lines below each other, the first of which begins with `head`."""
    rest = head if head.strip() == "|" else " " * len(head)
    return textwrap.wrap(
        text, width, initial_indent=head, subsequent_indent=rest, break_on_hyphens=False
    )


def opening(kitchen: Kitchen, width: int, color: bool = False) -> str:
    """Return what is cooked here, and on what machine."""
    lock = "with a GIL" if has_gil() else "without a GIL"
    given = _counted(kitchen.cores, "core")
    if kitchen.workers != kitchen.cores:
        given += f" (TOURNANT_CORES={kitchen.workers})"
    orders = _counted(kitchen.orders, "order")
    head = f"The kitchen: {orders}, {given}, Python {platform.python_version()} {lock}"
    lines = [styled(head, BOLD, color)]
    lines += wrapped(
        f"Each answer of a server takes {WAIT * kitchen.waits:.2g} s; a photograph has {kitchen.side} x {kitchen.side} pixels. "
        "At once: steps under way at the same time, at most (concurrency). Cores: cores at work, on average (parallelism).",
        width,
        "",
    )
    return "\n".join(lines)


def work_heading(work: str, width: int, color: bool = False) -> str:
    """Return the title of a work."""
    title = f"{work.upper()}: {WORKS[work].title}"
    return f"\n{styled(title, BOLD, color)}\n{'=' * min(width, len(title))}"


def cooked_text(cooked: Cooked, width: int, color: bool = False, *, ascii: bool = False) -> str:
    """Return how one way went: the stopwatch, who did what, the lanes, and why.

    Args:
        cooked: what came of it.
        width: columns to fill.
        color: whether there may be escape sequences.
        ascii: whether there may be no letters beyond ASCII.
    """
    from tournant.observe.chart import draw

    figures = (
        f"{cooked.seconds:7.2f} s   at once {cooked.at_once:<2}  cores {cooked.busy_cores:4.2f}"
    )
    lines = [
        f"\n{styled(f'{cooked.way:12}', BOLD, color)}{styled(figures, BOLD, color)}",
        f"  {cooks(cooked)}",
        *wrapped(f"who: {who(cooked)}", width),
    ]
    if cooked.hiring >= 0.01:
        lines += wrapped(
            f"ready after {cooked.hiring:.2f} s, which the stopwatch leaves out", width
        )
    for line in draw(cooked.recording(), width, color, ascii=ascii).split("\n"):
        # The legend may be longer than a line.
        lines += wrapped(line, width, "") if line.startswith("stages:") else [line]
    lines += wrapped(why(cooked), width, "  why: ")
    return "\n".join(lines)


def who(cooked: Cooked) -> str:
    """Return which processes, threads and tasks did it, and on which cores."""
    processes, threads, tasks, seen = (
        cooked.processes, cooked.threads, cooked.tasks, cooked.seen_cores
    )  # fmt: skip
    pids = ", ".join(map(str, sorted(processes)[:4])) + (", ..." if len(processes) > 4 else "")
    parts = [f"{_counted(len(processes), 'process', 'processes')} ({pids})"]
    parts.append(_counted(len(threads), "thread"))
    if tasks:
        parts.append(_counted(len(tasks), "task"))
    if seen:
        numbers = ", ".join(map(str, seen))
        parts.append(f"{'core' if len(seen) == 1 else 'cores'} {numbers}")
    return "; ".join(parts)


def table(everything: Sequence[Cooked], color: bool = False) -> str:
    """Return all ways and works in one table of seconds.

    The fastest of a work, and who is as fast but for noise, have a star, if the times are comparable and there is more than one.
    """
    cells = {(cooked.way, cooked.work): cooked for cooked in everything}
    works = [work for work in WORKS if any(cooked.work == work for cooked in everything)]
    ways = [way for way in WAYS if any(cooked.way == way for cooked in everything)]
    of = {work: [cooked for cooked in everything if cooked.work == work] for work in works}
    disturbed = [work for work in works if any(cooked.disturbed for cooked in of[work])]
    fastest = {
        work: min(cooked.seconds for cooked in of[work]) * NOTICED
        for work in works
        if work not in disturbed and len(of[work]) > 1
    }
    lines = [styled("Seconds, and beneath them steps at once / cores at work", BOLD, color)]
    lines.append(f"{'':12}" + "".join(f"{work:>15}" for work in works))
    for way in ways:
        seconds, beneath = f"{way:12}", " " * 12
        for work in works:
            cooked = cells.get((way, work))
            if cooked is None:
                seconds, beneath = seconds + " " * 15, beneath + " " * 15
                continue
            star = "*" if cooked.seconds < fastest.get(work, 0.0) else " "
            figure = styled(f"{cooked.seconds:13.2f} {star}", GREEN if star == "*" else "", color)
            seconds += figure
            beneath += f"{cooked.at_once:>7} / {cooked.busy_cores:.2f} "
        lines += [seconds.rstrip(), styled(beneath.rstrip(), DIM, color)]
    if fastest:
        lines.append(f"* the fastest, or within {NOTICED - 1:.0%} of it")
    lines += _taken_home(cells, [work for work in works if work not in disturbed])
    if disturbed:
        lines.append(f"not comparable, as the machine was busy: {', '.join(disturbed)}")
    return "\n".join(lines)


def _taken_home(cells: dict[tuple[str, str], Cooked], works: Sequence[str]) -> list[str]:
    """Return what the numbers of this very run say about async and threads."""
    lines = []
    for way in ("concurrent", "threads"):
        found = [(work, cells[way, work].speedup) for work in works if (way, work) in cells]
        known = [(work, speedup) for work, speedup in found if speedup is not None]
        helped = [f"{work} ({speedup:.1f}x)" for work, speedup in known if speedup >= NOTICED]
        not_ = [work for work, speedup in known if speedup < NOTICED]
        if helped:
            said = f"{way} helped: {', '.join(helped)}"
            lines.append(said + (f"; did not: {', '.join(not_)}" if not_ else ""))
        elif not_:
            lines.append(f"{way} did not help: {', '.join(not_)}")
    return lines


def pitfall_list(pitfalls: Sequence[Pitfall]) -> str:
    """Return the names of pitfalls and what they are."""
    longest = max(map(len, PITFALLS))
    return "\n".join(f"{pitfall.name:{longest}}  {pitfall.title}" for pitfall in pitfalls)


def pitfall_heading(pitfall: Pitfall, width: int, color: bool = False) -> str:
    """Return the title of a pitfall."""
    title = f"{pitfall.name.upper()}: {pitfall.title}"
    return f"\n{styled(title, BOLD, color)}\n{'=' * min(width, len(title))}"


def source_text(program: Path) -> str:
    """Return a program with the numbers of its lines, which the guards name."""
    text = program.read_text(encoding="utf-8")
    lines = [f"{number:3}  {line}".rstrip() for number, line in enumerate(text.splitlines(), 1)]
    return "\n".join([f"  {program.name}:", "", *lines, ""])


def trial_text(pitfall: Pitfall, name: str, trial: Trial, width: int, color: bool = False) -> str:
    """Return how one of a pitfall's programs went: its end, what it said, and a remark."""
    head, remark, most = {
        "bare": (f"Python alone, {pitfall.program.name}", pitfall.bare, 8),
        "guarded": ("under the guards, tournant watch", "", 24),
        "mended": (f"mended, {pitfall.mended.name}", pitfall.mend, 6),
    }[name]
    if name == "guarded":
        remark = silence(pitfall, trial)
    ended = styled(trial.end, GREEN if trial.code == 0 else RED, color)
    lines = [f"{styled(head, BOLD, color)}: {ended}"]
    said = trial.said
    if name == "guarded":
        # What the program says by itself stands above already.
        said = said[
            next((n for n, line in enumerate(said) if line.startswith("tournant watch:")), 0) :
        ]
    if len(said) > most:
        lines.append(f"  | ... {_counted(len(said) - most, 'line')}")
        said = said[-most:]
    for line in said:
        lines += wrapped(line, width, "  | ") if line.strip() else ["  |"]
    if remark:
        lines += wrapped(remark, width)
    if pitfall.cores and name != "guarded" and trial.busy:
        others = f"{trial.others:.1f} cores were at work for other programs"
        lines += wrapped(f"The times are not comparable: {others} meanwhile.", width)
    elif pitfall.cores and name == "mended" and usable_cores() == 1:
        lines += wrapped("There is one core here, which processes share as well.", width)
    elif pitfall.cores and name == "mended" and cores() == 1:
        lines += wrapped("TOURNANT_CORES=1 leaves one process to do it all.", width)
    return "\n".join(lines)


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
