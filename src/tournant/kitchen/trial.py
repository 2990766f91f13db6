"""Running a pitfall's programs for real: each in a process of its own, which is ended when it hangs."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tournant.kitchen.load import Load
from tournant.kitchen.pitfall import Pitfall
from tournant.pool.slots import usable_cores

#: Seconds without a sign of life after which a program that is known to hang is ended, and those after which any is.
HANGS, TOO_LONG = 1.5, 60.0
#: Seconds from one look at a running program to the next.
_LOOK = 0.05
#: How the guards begin what they have to say.
_GUARDS = b"tournant watch:"


@dataclass(frozen=True)
class Trial:
    """How a program went.

    Attributes:
        code: its exit code; negative for the number of the signal that ended it; ``None`` when it hung.
        said: the lines that it wrote to standard output and standard error, without the paths of this machine.
        seconds: how long it ran.
        others: cores that other programs kept busy meanwhile; 0 where the system does not say.
        busy: whether they left no core that it could have used besides.
    """

    code: int | None
    said: tuple[str, ...]
    seconds: float
    others: float = 0.0
    busy: bool = False

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
            "other_programs": self.others,
        }


def attempt(
    program: Path, *, guarded: bool = False, hangs: bool = False, timeout: float = TOO_LONG
) -> Trial:
    """Run a program and return how it went.

    Args:
        program: the script.
        guarded: run it under ``tournant watch``.
        hangs: it is known to hang: end it when it has neither computed nor said anything for some time (`HANGS`), and the guards, if
            there are any, have spoken.
        timeout: seconds after which it is killed in any case, with its children. Default 60.
    """
    watch = ["-m", "tournant", "watch"] if guarded else []
    leash = [sys.executable, "-I", "-S", str(Path(__file__).with_name("leash.py"))]
    held, hold = os.pipe()
    before, began = Load.now(), time.monotonic()
    try:
        process = subprocess.Popen(
            [*leash, sys.executable, *watch, program.name],
            cwd=program.parent,  # so that files have the names that a reader knows
            stdin=held,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environ(),
            start_new_session=True,  # so that a program's own children end with it
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
    except BaseException:
        os.close(hold)
        raise
    finally:
        os.close(held)
    said = bytearray()
    try:
        usage = _ended(process, said, _Quiet(process.pid, guarded) if hangs else None, began + timeout)  # fmt: skip
    finally:
        if process.returncode is None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.close(hold)
        _read(process, said)
        process.stdout.close()
    seconds = time.monotonic() - began
    shown = tuple(_shown(said.decode("utf-8", "replace"), program))
    if usage is None:
        return Trial(None, shown, seconds)
    cpu = usage.ru_utime + usage.ru_stime
    others = before.others(cpu, seconds)
    return Trial(process.returncode, shown, seconds, others, before.crowded(others, cpu / seconds))


def _environ() -> dict[str, str]:
    """Return what a person at a terminal would have: what is said comes in its order, and nothing of the caller's own settings."""
    home = str(Path(__file__).resolve().parent.parent.parent)
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    strange = ("PYTHONWARNINGS", "PYTHONASYNCIODEBUG", "PYTHONDEVMODE", "PYTHONTRACEMALLOC")
    return {
        **{name: value for name, value in os.environ.items() if name not in strange},
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }


def _ended(
    process: subprocess.Popen[bytes], said: bytearray, quiet: _Quiet | None, due: float
) -> resource.struct_rusage | None:
    """Wait for a program to end, and collect what it says; return what it used, or ``None`` if it has to be ended."""
    while True:
        output = _read(process, said)
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage
        if time.monotonic() > due or (quiet is not None and quiet.enough(bytes(said))):
            return None
        select.select([output], [], [], _LOOK)
        time.sleep(0.005)  # where the program has closed its output, that is readable for ever


def _read(process: subprocess.Popen[bytes], said: bytearray) -> int:
    """Collect what a program has said by now; return the descriptor that it says it on."""
    assert process.stdout is not None
    output = process.stdout.fileno()
    with contextlib.suppress(BlockingIOError):
        while part := os.read(output, 1 << 16):
            said += part
    return output


class _Quiet:
    """Tells when a program that hangs has shown all that there is to see."""

    def __init__(self, leash: int, guarded: bool) -> None:
        self._leash, self._guarded = leash, guarded
        self._last: tuple[object, ...] = ()
        self._since = time.monotonic()

    def enough(self, said: bytes) -> bool:
        now = time.monotonic()
        # The guards look round all the time, so their program is never idle; but they have the last word.
        seen = (len(said), *(() if self._guarded else self._work()))
        if seen != self._last or (self._guarded and _GUARDS not in said):
            self._last, self._since = seen, now
        return now - self._since >= HANGS

    def _work(self) -> tuple[object, ...]:
        """Return what changes as long as the program computes or wants to; nothing where the system does not say."""
        try:
            children = Path(f"/proc/{self._leash}/task/{self._leash}/children").read_text()
            if not children:
                return (time.monotonic(),)  # it has yet to begin
            stat = Path(f"/proc/{children.split()[0]}/stat").read_text().rsplit(")", 1)[1].split()
            return (time.monotonic(),) if stat[0] in "RD" else (stat[11], stat[12])
        except OSError:
            return ()


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
        return named_lines(self.pitfall, self.guarded)

    @property
    def note(self) -> str:
        """Why the guards had nothing to say, where that is as it should be; else empty."""
        return silence(self.pitfall, self.guarded)

    @property
    def problems(self) -> tuple[str, ...]:
        """What did not go as it should, as sentences; empty when the demonstration holds."""
        found = []
        if self.bare.hung != self.pitfall.hangs:
            found.append("the program hung" if self.bare.hung else "the program did not hang")
        if not set(self.named_lines) & set(self.pitfall.lines) and not self.note:
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
            "named_lines": list(self.named_lines),
            "note": self.note,
            "problems": list(self.problems),
        }


def named_lines(pitfall: Pitfall, guarded: Trial) -> tuple[int, ...]:
    """Return the lines of a pitfall's program that the guards named, not Python."""
    name = re.escape(pitfall.program.name)
    said = "\n".join(guarded.said)
    found = re.findall(rf"{name}:(\d+)", said[max(0, said.find(_GUARDS.decode())) :])
    return tuple(sorted({int(number) for number in found}))


def silence(pitfall: Pitfall, guarded: Trial) -> str:
    """Return why the guards had nothing to say of a pitfall on this machine; empty where they had, or should have."""
    if not pitfall.cores or set(named_lines(pitfall, guarded)) & set(pitfall.lines):
        return ""
    if usable_cores() == 1:
        return "The guards say nothing of the GIL: there is one core, which threads share anyway."
    if guarded.busy:
        return (
            f"The guards say nothing of the GIL, as other programs left no core for a second thread: {guarded.others:.1f} cores "
            "were theirs. Run it again when the machine has time."
        )
    return ""


def demonstrate(
    pitfall: Pitfall, on_trial: Callable[[str, Trial], None] | None = None
) -> Demonstration:
    """Run a pitfall's programs, one after the other.

    Args:
        pitfall: which one.
        on_trial: called with ``"bare"``, ``"guarded"`` or ``"mended"`` and how it went, as soon as each has ended.
    """
    trials = {}
    for name in ("bare", "guarded", "mended"):
        program = pitfall.mended if name == "mended" else pitfall.program
        trials[name] = attempt(
            program, guarded=name == "guarded", hangs=pitfall.hangs and name != "mended"
        )
        if on_trial is not None:
            on_trial(name, trials[name])
    return Demonstration(pitfall, **trials)
