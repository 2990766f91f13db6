"""Watching one running loop: what blocks it becomes a finding, once for each place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import FrameType
from typing import Any

from tournant.guards import heart
from tournant.guards.block import (
    CALL,
    COLLECTION,
    CPU,
    DEADLOCK,
    IMPORT,
    INNOCENT,
    OTHER,
    Block,
    duration,
)
from tournant.guards.finding import Finding
from tournant.guards.places import Place, owner

#: Seconds from which on a loop counts as blocked.
THRESHOLD = 0.1
ENDED = "in a call of native code that had ended before anybody could look"
_MENDS = {
    CPU: "Move the work out of the loop: to a process if it is Python code (asyncio.to_thread helps only where native code "
    "releases the interpreter lock)",
    CALL: "Use an async library, or await asyncio.to_thread(...)",
}
_STAGE_MENDS = {
    CPU: 'make it a plain def stage with on="processes" (on="threads" where native code does the work)',
    CALL: 'make it a plain def stage (on="threads"), or await an async library',
}


class Loopwatch:
    """Watches one running loop.

    Args:
        threshold: seconds from which on the loop counts as blocked. Default 0.1.
        on_finding: called with each new `Finding`, on the watchdog thread.
        on_notice: called with what held the loop up and is nobody's mistake (a garbage collection, a stalled machine).
        stage_of: names the stage that a stack (frames, the innermost first) and a task belong to, or returns ``None``.

    Attributes:
        findings: one for each place, with the longest duration and the count so far.
        notices: garbage collections and stalls of the machine, the latest hundred.
    """

    def __init__(
        self,
        threshold: float = THRESHOLD,
        *,
        on_finding: Callable[[Finding], None] | None = None,
        on_notice: Callable[[Finding], None] | None = None,
        stage_of: Callable[[list[FrameType], Any], str | None] | None = None,
    ) -> None:
        self.threshold = threshold
        self.choosy = stage_of is not None
        self.findings: list[Finding] = []
        self.notices: list[Finding] = []
        self._on_finding = on_finding
        self._on_notice = on_notice
        self._stage_of = stage_of
        self._heart: heart.Heart | None = None
        #: What is known of the block that lasts, so that its end is not counted as another.
        self._lasting: tuple[Block, Finding] | None = None

    def start(self, loop: asyncio.AbstractEventLoop | None = None) -> Loopwatch:
        """Begin, on the loop's own thread.

        Args:
            loop: the loop, if it does not run yet. Default: the running one.
        """
        if self._heart is None:
            self._heart = heart.listen_to(loop or asyncio.get_running_loop(), self)
        return self

    def stop(self) -> None:
        """End; on the loop's own thread. What blocks the loop at this moment is counted."""
        watched, self._heart = self._heart, None
        if watched is not None:
            heart.unlisten(watched, self)

    def flush(self) -> None:
        """Have every block that has ended counted now; on the loop's own thread."""
        if self._heart is not None:
            self._heart.flush()

    # For the heart.

    def stage_of(self, frames: list[FrameType], task: Any) -> str | None:
        """Name the stage."""
        return self._stage_of(frames, task) if self._stage_of is not None else None

    def blocked(self, block: Block) -> None:
        """Take a block."""
        verdict, seconds = block.verdict(self.threshold)
        if not verdict:
            return
        finding = _finding(block, verdict, seconds)
        if verdict in INNOCENT:
            if not block.lasting:
                self.notices.append(finding)
                del self.notices[:-100]
                if self._on_notice is not None:
                    self._on_notice(finding)
            return
        before = self._lasting
        self._lasting = (block, finding) if block.lasting else None
        if before is not None and before[0] is block:
            self._replace(before[1], finding)
        else:
            self._add(finding)

    def _add(self, finding: Finding) -> None:
        for n, known in enumerate(self.findings):
            if known.place == finding.place and known.stage == finding.stage:
                longest = finding if finding.seconds > known.seconds else known
                self.findings[n] = _counted(longest, known.count + 1)
                return
        self.findings.append(finding)
        if self._on_finding is not None:
            self._on_finding(finding)

    def _replace(self, old: Finding, new: Finding) -> None:
        for n, known in enumerate(self.findings):
            if known.place in (old.place, new.place):
                self.findings[n] = _counted(new, known.count)
                return
        self.findings.append(new)


def _counted(finding: Finding, count: int) -> Finding:
    from dataclasses import replace

    return replace(finding, count=count)


def _finding(block: Block, verdict: str, seconds: float) -> Finding:
    suspect = block.suspect()
    place = (suspect and suspect.place()) or Place("", 0, "the loop itself")
    stack = suspect.stacks.get(place, "") if suspect is not None else ""
    #: Native code that holds the interpreter lock is seen at its end at the earliest, or a line or two later.
    where = "in"
    if verdict == OTHER:
        assert block.worker is not None
        place, stack = block.worker
        where = "in" if block.looks_at_worker > 1 else "in or just before"
        if owner(place.file) != "user":
            # It is back in its pool, or has been given something else to do.
            place, stack = Place("", 0, "?"), ""
    elif verdict == CPU and suspect is not None and suspect.places.total() == 1 and block.gripped:
        where = "in or just before"
    still = " so far" if block.lasting else ""
    who = (
        f"stage {block.stage!r} blocked the event loop"
        if block.stage
        else "the event loop was blocked"
    )
    if suspect is not None and suspect.task is not None and not block.stage:
        who += f" by the task {suspect.task.get_name()!r}"
    line = f": `{place.source}`" if place.source else ""
    at = f"{where} {place}{line}" if place.file else ENDED
    text = f"{who} for {duration(seconds)}{still} {at}"
    if verdict == DEADLOCK:
        assert block.wait is not None
        text = f"{who} and hangs in {place}{line}: {block.wait.what}. {_upper(block.wait.mend)}"
    elif verdict == OTHER:
        other = f"the thread {block.worker_name!r}" if block.worker_name else "another thread"
        text = (
            f"the event loop stood still for {duration(seconds)} because {other} held the interpreter lock {at}. Move that work to "
            "a process"
        )
    elif verdict in INNOCENT:
        what = {
            COLLECTION: "garbage collection",
            IMPORT: "loading a module for the first time",
        }.get(verdict, "the machine or a debugger")
        text = f"{what} held the event loop up for {duration(seconds)}"
    else:
        why = (
            "it computes" if verdict == CPU else "it waits in a blocking call"
        ) + ", and nothing else on the loop runs meanwhile"
        held = block.holding
        lock = (
            f" It holds an asyncio lock from line {held.line} on, so whoever needs that waits too."
            if held
            else ""
        )
        mend = _upper(_STAGE_MENDS[verdict] if block.stage else _MENDS[verdict])
        text = f"{text}: {why}.{lock} {mend}"
    return Finding(
        "deadlock" if verdict == DEADLOCK else "blocked-loop",
        text, place.file, place.line, block.stage, seconds, verdict, place.function, stack,
    )  # fmt: skip


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
