"""What the operating system knows of a thread: its CPU time, how long it stood in the run queue, how often it gave its core away.

Threads are named by their native id. A clock made of that id answers with an error once the thread has ended, where one made of a
``pthread_t`` may take the process down.
"""

from __future__ import annotations

import os
import sys
import time

_LINUX = sys.platform == "linux"
#: Bits of a Linux clock id that mean "the CPU time of one thread" (``CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED``).
_PER_THREAD = 4 | 2

try:
    import resource

    _USAGE: int | None = getattr(resource, "RUSAGE_THREAD", None)
except ImportError:  # No POSIX.
    _USAGE = None


def cpu_seconds(thread: int) -> float | None:
    """Return the CPU time that a thread of this process has used, by native id; ``None`` if it has ended or nobody can tell."""
    if not _LINUX:
        return None
    try:
        return time.clock_gettime((~thread << 3) | _PER_THREAD)
    except OSError:
        return None


def switches() -> int | None:
    """Return how often the calling thread has given its core away of its own accord; ``None`` where the system doesn't tell.

    A thread that wakes up and finds the interpreter lock free has done so once, for the sleep itself. Each switch interval that it
    waits for the lock counts once more. Waiting for a core does not count, so this tells a held lock from a busy machine.
    """
    if _USAGE is None:
        return None
    return resource.getrusage(_USAGE).ru_nvcsw


def queued_seconds(thread: int) -> float | None:
    """Return how long a thread has been ready to run without getting a core; ``None`` where the system doesn't tell."""
    if not _LINUX:
        return None
    try:
        with open(f"/proc/self/task/{thread}/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


def memory_bytes() -> int:
    """Return the resident memory of this process in bytes; 0 where the system doesn't tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
