"""What the operating system knows of a thread: its CPU time, how long it stood in the run queue, how often it gave its core away.

Threads are named by their native id. A clock made of that id answers with an error once the thread has ended, where one made of a
``pthread_t`` may take the process down.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

_LINUX = sys.platform == "linux"
#: Bits of a Linux clock id that mean "the CPU time of one thread" (``CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED``).
_PER_THREAD = 4 | 2
_LONGEST = 128
_libc: Any = None
_buffer: Any = None

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


def prepare() -> None:
    """Let `queued_seconds` answer without giving the interpreter lock away, from now on.

    Reading a file gives it away, and behind threads that compute it takes some ten milliseconds to get it back: three times for
    one answer, so the watchdog would mostly wait for itself.
    """
    global _libc, _buffer
    if _LINUX and _libc is None:
        try:
            import ctypes

            _libc = ctypes.PyDLL(None)
            _libc.read.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
            _buffer = ctypes.create_string_buffer
        except (ImportError, OSError, AttributeError):
            _libc = None


def queued_seconds(thread: int) -> float | None:
    """Return how long a thread has been ready to run without getting a core; ``None`` where the system doesn't tell."""
    if not _LINUX:
        return None
    path = f"/proc/self/task/{thread}/schedstat"
    try:
        return int(_contents(path).split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


def _contents(path: str) -> bytes:
    libc = _libc
    if libc is None:
        with open(path, "rb") as file:
            return file.read()
    descriptor = libc.open(path.encode(), os.O_RDONLY | os.O_CLOEXEC)
    if descriptor < 0:
        return b""
    try:
        buffer = _buffer(_LONGEST)
        length = libc.read(descriptor, buffer, _LONGEST)
        return bytes(buffer.raw[: max(0, int(length))])
    finally:
        libc.close(descriptor)


def memory_bytes() -> int:
    """Return the resident memory of this process in bytes; 0 where the system doesn't tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
