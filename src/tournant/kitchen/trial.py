"""Running a pitfall's programs for real: each in a process of its own, which is ended when it hangs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tournant.kitchen.pitfall import Pitfall

#: Seconds after which a program that is known to hang is ended; the same under the guards, which begin before it; and any other.
HANGS, HANGS_GUARDED, TOO_LONG = 2.0, 4.0, 60.0


@dataclass(frozen=True)
class Trial:
    """How a program went.

    Attributes:
        code: its exit code; negative for the number of the signal that ended it; ``None`` when it hung.
        said: the lines that it wrote to standard output and standard error, without the paths of this machine.
        seconds: how long it ran.
    """

    code: int | None
    said: tuple[str, ...]
    seconds: float

    @property
    def hung(self) -> bool:
        """Whether it had to be ended."""
        return self.code is None

    @property
    def end(self) -> str:
        """How it ended, in a few words."""
        if self.code is None:
            return f"hung, and was ended after {self.seconds:.1f} s"
        if self.code < 0:
            return f"killed by signal {-self.code} after {self.seconds:.1f} s"
        return f"exit code {self.code} after {self.seconds:.1f} s"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that ``json.dumps`` takes."""
        return {
            "code": self.code,
            "hung": self.hung,
            "said": list(self.said),
            "seconds": self.seconds,
        }


def attempt(program: Path, *, guarded: bool = False, timeout: float = TOO_LONG) -> Trial:
    """Run a program and return how it went.

    Args:
        program: the script.
        guarded: run it under ``tournant watch``.
        timeout: seconds after which it is killed, with its children. Default 60.
    """
    home = str(Path(__file__).resolve().parent.parent.parent)
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    # What a person at a terminal would see, in the order in which it was said, and nothing of the caller's own settings.
    environ = {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    for name in ("PYTHONWARNINGS", "PYTHONASYNCIODEBUG", "PYTHONDEVMODE", "PYTHONTRACEMALLOC"):
        environ.pop(name, None)
    watch = ["-m", "tournant", "watch"] if guarded else []
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *watch, program.name],
        cwd=program.parent,  # so that files have the names that a reader knows
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environ,
        start_new_session=True,  # so that a program's own children end with it
    )
    code: int | None = None
    try:
        out, _ = process.communicate(timeout=timeout)
        code = process.returncode
    except subprocess.TimeoutExpired:
        out = _end(process)
    finally:
        if process.poll() is None:
            _end(process)
    seconds = time.monotonic() - began if code is not None else timeout
    return Trial(code, tuple(_shown(out.decode("utf-8", "replace"), program)), seconds)


def _end(process: subprocess.Popen[bytes]) -> bytes:
    """End a program and its children; return what it has written."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    out, _ = process.communicate()
    return out


def _shown(text: str, program: Path) -> list[str]:
    """Return the lines, without this machine's folders."""
    library = sysconfig.get_path("stdlib")
    for folder in (str(program.parent), library, os.path.realpath(library)):
        text = text.replace(folder + os.sep, "")
    # A traceback's underlining says nothing once its lines are wrapped.
    return [line.rstrip() for line in text.splitlines() if not line.strip() or line.strip(" ^~")]


@dataclass(frozen=True)
class Demonstration:
    """A pitfall in three runs.

    Attributes:
        pitfall: which one.
        bare: its program under Python alone.
        guarded: the same program under ``tournant watch``.
        mended: the mended program under Python alone.
    """

    pitfall: Pitfall
    bare: Trial
    guarded: Trial
    mended: Trial

    @property
    def named_lines(self) -> tuple[int, ...]:
        """The lines of the program that the guards named."""
        name = re.escape(self.pitfall.program.name)
        found = re.findall(rf"{name}(?::|\", line )(\d+)", "\n".join(self.guarded.said))
        return tuple(sorted({int(number) for number in found}))

    @property
    def problems(self) -> tuple[str, ...]:
        """What did not go as it should, as sentences; empty when the demonstration holds."""
        found = []
        if self.bare.hung != self.pitfall.hangs:
            found.append("the program hung" if self.bare.hung else "the program did not hang")
        if not set(self.named_lines) & set(self.pitfall.lines):
            found.append("the guards did not name the line")
        if self.mended.code != 0:
            found.append(f"the mended program failed: {self.mended.end}")
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data that ``json.dumps`` takes."""
        trials = {name: getattr(self, name).as_dict() for name in ("bare", "guarded", "mended")}
        return {
            "name": self.pitfall.name,
            "title": self.pitfall.title,
            **trials,
            "problems": list(self.problems),
        }


def demonstrate(
    pitfall: Pitfall, on_trial: Callable[[str, Trial], None] | None = None
) -> Demonstration:
    """Run a pitfall's programs, one after the other.

    Args:
        pitfall: which one.
        on_trial: called with ``"bare"``, ``"guarded"`` or ``"mended"`` and how it went, as soon as each has ended.
    """
    trials = {}
    hangs = pitfall.hangs
    for name, program, timeout in (
        ("bare", pitfall.program, HANGS if hangs else TOO_LONG),
        ("guarded", pitfall.program, HANGS_GUARDED if hangs else TOO_LONG),
        ("mended", pitfall.mended, TOO_LONG),
    ):
        trials[name] = attempt(program, guarded=name == "guarded", timeout=timeout)
        if on_trial is not None:
            on_trial(name, trials[name])
    return Demonstration(pitfall, **trials)
