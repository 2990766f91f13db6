"""Where a run's time went, what held it up, and one sentence on what would make it faster.

Everything is reckoned from the recording's slices and counters by the same rules as a run's report: CPU stages share the cores, every other
stage is a resource of its own, and the utilisation law (Denning and Buzen, 1978) gives the ceiling. A recording does not say how
many calls a stage may have at once unless a counter ``limit: NAME`` does; the most that ever ran at once stands in for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tournant.observe.figures import Figures, StageTime, in_words
from tournant.observe.recording import Recording
from tournant.observe.verdict import MOSTLY_COMPUTING, verdict
from tournant.report import BOTTLENECK, labelled, paced

__all__ = ["Advice", "StageTime", "advise"]


@dataclass(frozen=True, slots=True)
class Advice:
    """What a recording says about its run.

    Attributes:
        sentence: what to do, with the numbers that say so.
        kind: the sentence's kind: ``"short"``, ``"inline"``, ``"blocked"``, ``"gil"``, ``"tail"``, ``"cores"``, ``"waiting"``, ``"rate"``,
            ``"concurrency"``, ``"worker"``, ``"consumer"``, ``"retry"``, ``"overhead"``, ``"source"`` or ``"none"``.
        duration: seconds that were looked at.
        inputs: inputs that ended.
        stages: where the time went, in the pipeline's order.
        cores: cores that there were for CPU stages.
        cores_used: the mean of those in use.
        computing: the share of their time in which the workers that held those cores used them, 0 to 1; ``None`` where it was not measured.
        cores_over_time: the mean in each twentieth of the run.
        bottleneck: the stage, ``"source"`` or ``"consumer"``; ``None`` where nothing stands out.
        utilisation: the share of the bottleneck's capacity in use, 0 to 1.
        ceiling: inputs per second at full use of the bottleneck; ``None`` where that is not known, or less than 70 % of it were used.
        lost: events that the recording lacks.
    """

    sentence: str
    kind: str
    duration: float
    inputs: int
    stages: tuple[StageTime, ...]
    cores: int
    cores_used: float
    computing: float | None
    cores_over_time: tuple[float, ...]
    bottleneck: str | None
    utilisation: float
    ceiling: float | None
    lost: int

    @property
    def statement(self) -> str:
        """The sentence as it stands by itself, with a capital and a full stop; a stage's name keeps its letters."""
        named = any(self.sentence.startswith(f"{stage.label} ") for stage in self.stages)
        first = self.sentence[:1] if named else self.sentence[:1].upper()
        return f"{first}{self.sentence[1:]}."

    @property
    def lines(self) -> tuple[str, ...]:
        """The figures as a table, and what follows from them."""
        return tuple(_lines(self))

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that ``json.dumps`` takes."""
        return asdict(self)


def advise(recording: Recording) -> Advice:
    """Return where the time of a recording went and what would make its run faster."""
    figures = Figures(recording)
    found = verdict(figures)
    rate = figures.ended / figures.length if figures.length else 0.0
    # What is seldom at work may hold a run up all the same, but nobody has seen what it does at full use.
    full = found.bottleneck is not None and found.share >= BOTTLENECK
    ceiling = rate / found.share if full and rate else None
    return Advice(
        sentence=found.sentence,
        kind=found.kind,
        duration=figures.length,
        inputs=figures.ended,
        stages=figures.stages,
        cores=recording.cores,
        cores_used=figures.cores.mean(figures.start, figures.end),
        computing=figures.computing,
        cores_over_time=tuple(figures.cores_over_time()),
        bottleneck=found.bottleneck,
        utilisation=min(1.0, found.share),
        ceiling=ceiling,
        lost=recording.lost,
    )


def _lines(advice: Advice) -> Iterator[str]:
    head = (
        "stage",
        "on",
        "calls",
        "items",
        "busy",
        "for slot",
        "at limit",
        "no input",
        "no room",
        "at once",
        "median",
    )
    rows: list[tuple[str, ...]] = [head]
    rows += [
        (
            stage.label,
            stage.on,
            f"{stage.calls:,}",
            f"{stage.items:,}",
            *map(
                in_words,
                (
                    stage.busy,
                    stage.waited_slot,
                    stage.waited_limit,
                    stage.wait_input,
                    stage.wait_room,
                ),
            ),
            f"{stage.at_once:.1f}",
            in_words(stage.p50),
        )
        for stage in advice.stages
    ]
    # What applies to no stage of the run would only take room.
    kept = [
        i for i in range(len(head)) if i < 2 or any(row[i] not in ("-", "0 s") for row in rows[1:])
    ]
    widths = {i: max(len(row[i]) for row in rows) for i in kept}
    for row in rows:
        cells = [row[i].ljust(widths[i]) if i < 2 else row[i].rjust(widths[i]) for i in kept]
        yield "  ".join(cells).rstrip()
    cores = f"cores: {advice.cores_used:.2f} of {advice.cores} in use on average"
    low = advice.computing is not None and advice.computing < MOSTLY_COMPUTING
    yield f"{cores} ({advice.computing:.0%} of that is CPU time)" if low else cores
    if advice.bottleneck is not None and advice.utilisation >= BOTTLENECK:
        ceiling = f", ceiling {paced(advice.ceiling)}" if advice.ceiling else ""
        yield f"bottleneck: {labelled(advice.bottleneck)} at {advice.utilisation:.0%}{ceiling}"
    if advice.lost:
        yield f"the first {advice.lost:,} events are gone: they were overwritten by later ones, and all figures are of what is left"
