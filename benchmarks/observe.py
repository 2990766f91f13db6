"""Watching a program from outside: its time, its memory, and when its index first answers.

Every ingest contestant is a program of its own and is watched in the same way, so start-up, worker
processes and libraries are counted for all of them alike.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 1 << 20
SAMPLE = 0.25


@dataclass
class Observed:
    """What was seen of one run.

    Attributes:
        seconds: From the start of the program to its end.
        cpu: CPU seconds of the program and of all the children it waited for.
        peak: The highest sum of proportional set sizes over all its processes, MiB.
        first: Seconds until a query on the index returned a row, or None.
        code: The exit code.
        told: The last JSON object that it printed.
        errors: The last lines of its standard error.
    """

    seconds: float
    cpu: float
    peak: float
    first: float | None
    code: int
    told: dict[str, Any] = field(default_factory=dict)
    errors: str = ""


def watch(command: Sequence[str], index: Path | None = None, timeout: float = 1800.0) -> Observed:
    """Run a program to its end and watch it.

    Args:
        command: The program and its arguments.
        index: The folder to poll for a table that answers; None to leave that out.
        timeout: Seconds after which the program is killed.
    """
    over = threading.Event()
    peak = [0.0]
    probe = Probe(index) if index is not None else None
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        sampler = threading.Thread(
            target=sample_memory, args=(program.pid, peak, over), daemon=True
        )
        sampler.start()
        killer = threading.Timer(timeout, program.kill)
        killer.start()
        errors: list[str] = []
        drain = threading.Thread(target=lambda: errors.extend(program.stderr or ()), daemon=True)
        drain.start()
        printed = program.stdout.read() if program.stdout else ""
        drain.join()
        _, status, usage = os.wait4(program.pid, 0)
        seconds = time.perf_counter() - start
        program.returncode = os.waitstatus_to_exitcode(status)
        killer.cancel()
        over.set()
        sampler.join()
    answered = probe.stop() if probe is not None else None
    return Observed(
        seconds=seconds,
        cpu=usage.ru_utime + usage.ru_stime,
        peak=peak[0],
        first=answered - start if answered is not None else None,
        code=program.returncode,
        told=last_object(printed),
        errors="".join(errors[-20:]),
    )


class Probe:
    """A process of its own that polls an index and notes when it first answers.

    Apart from this one, because the store's threads and a program that starts others do not go together.
    """

    def __init__(self, index: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.probe", "first", str(index)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()  # it has loaded the store and says so

    def stop(self) -> float | None:
        """End it; return the reading of the monotonic clock at the first answer, if there was one."""
        self.process.terminate()
        said, _ = self.process.communicate()
        return float(said) if said.strip() else None


def all_rows(index: Path) -> int | None:
    """Return the rows of all tables of vectors in a folder."""
    command = [sys.executable, "-m", "benchmarks.probe", "count", str(index)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return None if done.returncode else int(done.stdout)


def last_object(printed: str) -> dict[str, Any]:
    """Return the last line that is a JSON object, or the whole of a JSON document, or nothing."""
    for text in [*reversed(printed.strip().splitlines()), printed]:
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return {}


def sample_memory(pid: int, peak: list[float], over: threading.Event) -> None:
    """Keep the highest sum over the process and all that descend from it."""
    import psutil

    while not over.wait(SAMPLE):
        try:
            root = psutil.Process(pid)
            family = [root, *root.children(recursive=True)]
        except psutil.Error:
            return
        peak[0] = max(peak[0], sum(proportional_size(each.pid) for each in family) / MIB)


def proportional_size(pid: int) -> int:
    """Return a process's own memory and its part of what it shares, in bytes."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass
    except OSError:
        return 0
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
