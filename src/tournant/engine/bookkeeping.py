"""A run's side of the ledger: opened before the first input, told of each outcome, closed after the last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tournant.engine.ledger_writer import LedgerWriter
from tournant.errors import LedgerError
from tournant.ledger import Entry, Ledger
from tournant.report import Failure, Report

if TYPE_CHECKING:
    from tournant.engine.lineage import Input

_SUMMARY = (
    "sourced",
    "done",
    "failed",
    "skipped",
    "filtered",
    "interrupted",
    "outputs",
    "duration",
)


class Bookkeeping:
    """Records what becomes of a run's inputs.

    Args:
        ledger: the ledger.
        version: the pipeline's version.
        on_error: called, on any thread, when a write has failed.
    """

    def __init__(
        self, ledger: Ledger, version: str, on_error: Callable[[LedgerError], None]
    ) -> None:
        self._ledger = ledger
        self._version = version
        self._on_error = on_error
        self._writer: LedgerWriter | None = None
        self._run: int | None = None

    async def open(self) -> None:
        """Open the ledger and begin a run in it.

        Raises:
            LedgerError: it can't be opened, or another run uses it.
        """
        await asyncio.to_thread(self._ledger.open)
        try:
            self._run = await asyncio.to_thread(self._ledger.begin_run, self._version)
            self._writer = LedgerWriter(self._ledger, on_error=self._on_error)
        except BaseException:
            self._ledger.close()
            raise

    async def pending(self, keys: list[Any], fingerprints: list[Any]) -> list[bool]:
        """Tell for each input whether it has to run."""
        return await asyncio.to_thread(self._ledger.pending, keys, fingerprints, self._version)

    async def room(self) -> None:
        """Wait while so much is unwritten that no new input should start."""
        while self._writer is not None and self._writer.full and self._writer.error is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def settled(self, origin: Input, outcome: Any) -> None:
        """Record an input as done or filtered."""
        self._put(Entry(origin.key, origin.fingerprint, self._version, outcome, origin.outputs))

    def failed(self, origin: Input, failure: Failure) -> None:
        """Record an input as failed."""
        text = f"{type(failure.error).__name__}: {failure.error}"
        self._put(
            Entry(
                origin.key,
                origin.fingerprint,
                self._version,
                "failed",
                origin.outputs,
                failure.stage,
                text,
                failure.attempts,
            )
        )

    def _put(self, entry: Entry) -> None:
        if self._writer is not None:
            self._writer.put(entry)

    async def flush(self) -> None:
        """Write what is not written yet.

        Raises:
            LedgerError: a write failed, now or earlier.
        """
        if self._writer is not None:
            await asyncio.to_thread(self._writer.close)

    async def close(self, report: Report) -> None:
        """Note the run's end and close the ledger.

        Raises:
            LedgerError: the ledger could not be written.
        """
        summary = {name: getattr(report, name) for name in _SUMMARY}
        try:
            if self._run is not None and (self._writer is None or self._writer.error is None):
                await asyncio.to_thread(self._ledger.end_run, self._run, summary)
        finally:
            await asyncio.to_thread(self._ledger.close)
