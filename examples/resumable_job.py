"""A resumable job: it is killed in the middle, as ``kill -9`` would do it, and the next run goes on from there.

The ledger records an input after the sink has returned. The sink is idempotent (it writes by key), so what the ledger had
not yet recorded is done again and changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile

import tournant as tn

TICKETS = [f"ticket-{number:03}" for number in range(200)]


async def summarise(ticket: str) -> tuple[str, str]:
    await asyncio.sleep(0.02)  # stands for a call that costs money
    return ticket, f"summary of {ticket}"


class Store:
    """The sink: one row per ticket."""

    def __init__(self, folder: str, die_after: int | None = None) -> None:
        path = os.path.join(folder, "store.db")
        self.database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.database.execute("CREATE TABLE IF NOT EXISTS summaries (ticket PRIMARY KEY, text)")
        self.die_after = die_after
        self.written = 0

    def write(self, row: tuple[str, str]) -> None:
        """Put one row in, and be killed if it is the last that this process may write."""
        self.database.execute("INSERT OR REPLACE INTO summaries VALUES (?, ?)", row)
        self.written += 1
        if self.written == self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def count(self) -> int:
        """Count the rows."""
        return int(self.database.execute("SELECT count(*) FROM summaries").fetchone()[0])


def job(folder: str, die_after: int | None = None) -> tn.Report:
    store = Store(folder, die_after)
    ledger = tn.Ledger(os.path.join(folder, "run.db"))
    pipeline = tn.Pipeline(TICKETS, ledger=ledger).map(summarise, concurrency=8)
    return pipeline.for_each(store.write, blocking=True, concurrency=1).run()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.run([sys.executable, __file__, folder], check=False)
        print(
            f"first run: killed by signal {-child.returncode} with {Store(folder).count()} rows in the store"
        )
        report = job(folder)
        print(f"second run: {report.sourced} in, {report.skipped} skipped, {report.done} done")
        print(f"rows in the store: {Store(folder).count()} of {len(TICKETS)}")
        report = job(folder)
        print(f"third run: {report.sourced} in, {report.skipped} skipped, {report.done} done")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        job(sys.argv[1], die_after=120)
    main()
