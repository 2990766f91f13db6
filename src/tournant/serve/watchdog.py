"""Naming whatever blocks the event loop: one blocking call delays every stream of every client, so it is worth a line in the log.

The guards do the watching; here their findings become log lines and figures.
"""

from __future__ import annotations

import logging

from tournant.guards.finding import Finding
from tournant.guards.loopwatch import Loopwatch

_LIMIT = 0.25
_log = logging.getLogger("tournant.serve")


class Watchdog:
    """Watches one event loop. Start it on the loop's own thread.

    Args:
        limit: From how many seconds on the loop counts as blocked.
    """

    def __init__(self, limit: float = _LIMIT) -> None:
        self._watch = Loopwatch(limit, on_finding=_report)

    @property
    def blocked(self) -> int:
        """How many times the loop was blocked."""
        self._watch.flush()
        return sum(finding.count for finding in self._watch.findings)

    def start(self) -> None:
        """Begin to watch the loop that runs in this thread."""
        self._watch.start()

    def stop(self) -> None:
        """End."""
        self._watch.stop()


def _report(finding: Finding) -> None:
    # Once for each place: what blocks the loop for one client does so for the next. The figures count every time.
    _log.warning("%s\n%s", finding.text, finding.stack)
