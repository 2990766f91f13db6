"""The classic mistakes: which there are, what to see in each, and where their programs lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tournant.errors import short
from tournant.kitchen.errors import KitchenError

_FOLDER = Path(__file__).with_name("pitfalls")


class Pitfall(NamedTuple):
    """One mistake, as a program that makes it and one that does not.

    Attributes:
        name: what it is called on the command line.
        title: the mistake in a few words.
        bare: what Python by itself makes of it.
        mend: what is different in the mended program.
        culprits: code that is to blame; a guard names one of the lines with it.
        hangs: whether the program never ends by itself.
        cores: whether its point is how many cores are at work, so that it needs more than one that nobody else uses.
    """

    name: str
    title: str
    bare: str
    mend: str
    culprits: tuple[str, ...]
    hangs: bool = False
    cores: bool = False

    @property
    def program(self) -> Path:
        """The program that makes the mistake."""
        return _FOLDER / f"{self.name.replace('-', '_')}.py"

    @property
    def lines(self) -> tuple[int, ...]:
        """The numbers of the lines that are to blame."""
        lines = self.program.read_text(encoding="utf-8").splitlines()
        return tuple(
            number
            for number, line in enumerate(lines, 1)
            if any(culprit in line for culprit in self.culprits)
        )

    @property
    def mended(self) -> Path:
        """The same program without it."""
        return _FOLDER / f"{self.name.replace('-', '_')}_mended.py"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that ``json.dumps`` takes."""
        return {
            "name": self.name,
            "title": self.title,
            "bare": self.bare,
            "mend": self.mend,
            "hangs": self.hangs,
            "lines": list(self.lines),
            "program": str(self.program),
            "mended": str(self.mended),
        }


PITFALLS = {
    pitfall.name: pitfall
    for pitfall in (
        Pitfall(
            "blocking-call",
            "a blocking call in async code",
            "It works, slowly: one call stops everybody else, and nobody is told which.",
            "asyncio.to_thread() gives the call a thread to block.",
            ("time.sleep(", "call_supplier()"),
        ),
        Pitfall(
            "sync-over-async",
            "waiting synchronously for async code",
            "It hangs for ever: the loop waits for a result that only the loop can make.",
            "The caller is a coroutine too, and awaits.",
            ("future.result()",),
            hangs=True,
        ),
        Pitfall(
            "fire-and-forget",
            "tasks that nobody waits for",
            "It says that all is well and ends with success. The salad was cut off, the soup is a message that nobody handles.",
            "gather() waits for the tasks, and their exceptions are looked at.",
            ("create_task(", "raise ValueError"),
        ),
        Pitfall(
            "forgotten-await",
            "a coroutine that nobody awaits",
            "It goes on with a wrong answer, as a coroutine counts as true. There is a warning, later.",
            "With await, the condition is the answer.",
            ("if is_of_age(",),
        ),
        Pitfall(
            "threads-and-the-gil",
            "threads for Python code that computes",
            "It works. That the threads take turns at the GIL, nothing says.",
            "Processes have a GIL each.",
            ("total += ", "for grain in", "cooks.map("),
            cores=True,
        ),
        Pitfall(
            "unbounded-gather",
            "everything begun at once",
            "It runs out of memory: here at a limit of 512 MiB, else on the machine that others use too.",
            "A pipeline holds what is under way, and no more.",
            ("asyncio.gather(",),
        ),
        Pitfall(
            "collected-task",
            "a task that nobody holds",
            "The bread is never done, and the program ends with success.",
            "A TaskGroup holds its tasks and waits for them.",
            ("create_task(",),
        ),
        Pitfall(
            "lock-while-blocking",
            "a thread's lock held across an await",
            "It hangs for ever: Ben blocks the loop for the knife, and Ann needs the loop to put it back.",
            "asyncio.Lock lets the loop go on while somebody waits.",
            ("with knife:",),
            hangs=True,
        ),
    )
}


def choose(names: list[str] | tuple[str, ...]) -> list[Pitfall]:
    """Return the pitfalls with these names, in the order of `PITFALLS`; all where there are no names.

    Raises:
        KitchenError: there is no such pitfall.
    """
    for name in names:
        if name not in PITFALLS:
            raise KitchenError(
                f"there is no pitfall {short(name)}; choose from {', '.join(PITFALLS)}"
            )
    return [pitfall for pitfall in PITFALLS.values() if not names or pitfall.name in names]
