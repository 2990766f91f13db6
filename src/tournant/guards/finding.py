"""What a guard has found, as plain frozen data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake, or one thing worth knowing, with the place that it comes from.

    Attributes:
        kind: ``"blocked-loop"``, ``"deadlock"``, ``"gil-bound"``, ``"stray-task"``, ``"lost-exception"``, ``"never-awaited"``,
            ``"unbounded-tasks"``, ``"stall"``, or what the engine adds.
        text: one sentence: what happened, where, and how to mend it.
        file: the source file; empty where it is not known.
        line: its line; 0 where it is not known.
        stage: the stage of a run that it belongs to; ``None`` for code outside of one.
        seconds: how long it lasted; 0 for what has no duration.
        verdict: for a blocked loop ``"cpu"``, ``"blocking call"``, ``"waits on its own loop"``, ``"another thread"``; among the
            notices ``"garbage collection"``, ``"machine stalled"``, ``"import"`` or ``"debugger"``; for threads ``"gil-bound"``; otherwise empty.
        function: the function that the line is in; empty where it is not known.
        stack: the stack at that moment, the innermost frame last; empty where there is none.
        count: how often it was seen at that place so far.
    """

    kind: str
    text: str
    file: str = ""
    line: int = 0
    stage: str | None = None
    seconds: float = 0.0
    verdict: str = ""
    function: str = ""
    stack: str = ""
    count: int = 1

    @property
    def place(self) -> tuple[str, str, int]:
        """What tells it from others: the kind, the file and the line."""
        return self.kind, self.file, self.line

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that ``json.dumps`` takes."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        """Return the sentence."""
        return self.text
