"""What other programs take of the machine: a comparison of times is worth nothing while they take much."""

from __future__ import annotations

import os
from typing import NamedTuple

#: Cores of others from which on they count.
_NOTICED = 0.2
#: Share of the cores that is at work where there is no room for more.
_FULL = 0.85


class Load(NamedTuple):
    """How much the cores that we may use have computed up to a moment.

    Attributes:
        computed: seconds, for anybody; ``None`` where the system does not say.
        cores: how many cores.
    """

    computed: float | None
    cores: int

    @classmethod
    def now(cls) -> Load:
        """Return how much it is now."""
        try:
            mine = os.sched_getaffinity(0)
            with open("/proc/stat", encoding="ascii") as file:
                lines = [line.split() for line in file if line.startswith("cpu")]
            ticks = [
                sum(int(line[n]) for n in (1, 2, 3, 6, 7, 8))  # neither idle nor waiting for a disk
                for line in lines
                if line[0][3:].isdigit() and int(line[0][3:]) in mine
            ]
            return cls(sum(ticks) / os.sysconf("SC_CLK_TCK"), len(mine))
        except (AttributeError, OSError, ValueError, IndexError):
            return cls(None, os.cpu_count() or 1)

    def others(self, cpu: float, seconds: float) -> float:
        """Return how many cores other programs have kept busy since.

        Args:
            cpu: seconds of computing since that were ours.
            seconds: how long it has been.
        """
        now = Load.now().computed
        if self.computed is None or now is None or seconds <= 0:
            return 0.0
        return max(0.0, (now - self.computed - cpu) / seconds)

    def crowded(self, others: float, ours: float) -> bool:
        """Return whether other programs left less than we could have used.

        Args:
            others: cores that they kept busy.
            ours: cores that we kept busy.
        """
        return others >= _NOTICED and others + ours > _FULL * self.cores


def process_seconds(pid: int) -> float:
    """Return the seconds that a process has computed so far; 0 where the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError, IndexError):
        return 0.0
