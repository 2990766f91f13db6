"""The ingest of uploaded files, in a process of its own: ``python -m tournant.serve.ingesting``, started by `documents`.

An ingest in the server's process would share its interpreter lock, and the streams of all clients would stutter. This one runs at a
low priority, can be killed without harm (the ledger knows what is done), and gives its memory back when it ends.

It reads one line of JSON from standard input: ``{"paths", "index", "embedder"}``. It writes lines of JSON to standard output, each with
an ``event``: ``reading`` once the run has begun, ``progress`` with counts, ``done`` and ``failed`` for each file as soon as that is certain,
and last ``summary``, or ``error``. When standard input ends, its server is gone or wants it to stop: then what is in flight is finished, and
a later ingest does the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from typing import Any, TextIO

import tournant as tn
from tournant.ingest.embedders import embedder as make_embedder
from tournant.ingest.errors import IndexBusy, IndexMissing, IndexTrouble, IngestError
from tournant.ingest.indexes.base import Counts, StoredIndex
from tournant.ingest.indexes.locations import open_index
from tournant.ingest.job import VERSION, IngestOptions, reason_of, run_ingest
from tournant.ingest.walk import FoundFile
from tournant.serve.indexes import chunking_of

_LOOK = 0.15  # seconds between two looks at the run
_NICENESS = 10
_STAGES = {"read": "read", "chunk": "cut", "embed": "embedded", "index": "written"}


class Reporter:
    """Tells how a run gets on, from a thread of its own.

    Args:
        paths: The files (and folders) of the run.
        index: The folder or URL of the index.
        out: Where the lines go.
    """

    def __init__(self, paths: list[str], index: str, out: TextIO) -> None:
        self._index = index
        self._out = out
        self._open: dict[str, str] = {}
        for path in paths:
            with contextlib.suppress(OSError):
                if os.path.isfile(path):
                    status = os.stat(path)
                    found = FoundFile(path, path, status.st_size, status.st_mtime_ns)
                    self._open[path] = found.fingerprint
        self._last: dict[str, int] = {}
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._run: tn.Watched | None = None
        self._reading: StoredIndex | None = None
        self._thread = threading.Thread(target=self._watch, name="tournant-report", daemon=True)

    def started(self, run: tn.Watched) -> None:
        """Take the run."""
        self._run = run
        self.say("reading", files=len(self._open))
        self._thread.start()

    def drain(self) -> None:
        """Have the run take nothing more and finish what is in flight."""
        if self._run is not None:
            self._run.drain()
        else:
            os._exit(0)  # nothing has begun

    def stop(self) -> None:
        """Stop watching, with a last look."""
        self._over.set()
        if self._run is not None:
            self._thread.join()
            self._count()

    def say(self, event: str, **what: Any) -> None:
        """Write a line."""
        with self._writing:
            try:
                self._out.write(json.dumps({"event": event, **what}) + "\n")
                self._out.flush()
            except (BrokenPipeError, ValueError):
                pass  # nobody listens any more; the ingest goes on

    def settle(self, outcome: Any) -> None:
        """Tell what became of every file that has not been told of yet, and the summary."""
        reasons = dict(outcome.rejected)
        try:
            counts = self._reader().counts()
        except IndexTrouble:
            counts = Counts(0, 0)
        for path in list(self._open):
            if path in reasons:
                self._tell(path, reasons[path])
        self._look_into_ledger()
        stopped = bool(self._open)
        for path in list(self._open):
            if not os.path.lexists(path):
                self._tell(path, "it was deleted before it could be read")
        self.say(
            "summary",
            documents=outcome.report.done,
            unchanged=outcome.report.skipped,
            failed=len(outcome.rejected),
            chunks=outcome.chunks,
            removed=outcome.removed,
            seconds=round(outcome.report.duration, 3),
            complete=not stopped and not outcome.report.interrupted,
            index={"documents": counts.documents, "chunks": counts.chunks},
        )

    # On the thread

    def _watch(self) -> None:
        while not self._over.wait(_LOOK):
            self._count()
            if self._open:
                with contextlib.suppress(tn.LedgerError, IndexTrouble):  # it is just being made
                    self._look_into_ledger()

    def _count(self) -> None:
        assert self._run is not None
        snapshot = self._run.snapshot()
        stages = {stage.name: stage.items_out for stage in snapshot.stages}
        counts = {name: stages[stage] for stage, name in _STAGES.items() if stage in stages}
        counts["files"] = snapshot.sourced
        if counts != self._last:
            self._last = counts
            self.say("progress", **counts)

    def _look_into_ledger(self) -> None:
        """Tell of the files that are done, which the ledger says only after the index has them, and of those that failed."""
        found = self._reader().ledger(lock=False)
        if found is None:
            return
        with found as ledger:
            keys = list(self._open)
            pending = ledger.pending(keys, [self._open[key] for key in keys], VERSION)
            for key, waits in zip(keys, pending, strict=True):
                if not waits:
                    self._tell(key)

    def _reader(self) -> StoredIndex:
        """Return the index, open to look at.

        Raises:
            IndexTrouble: it isn't there yet, or can't be reached.
        """
        if self._reading is None:
            self._reading = open_index(self._index)
        return self._reading

    def close(self) -> None:
        """Let go of the index."""
        if self._reading is not None:
            self._reading.close()

    def _tell(self, path: str, reason: str | None = None) -> None:
        if self._open.pop(path, None) is None:
            return
        if reason is None:
            self.say("done", path=path)
        else:
            self.say("failed", path=path, reason=reason)


def ingest(job: dict[str, Any], reporter: Reporter) -> None:
    """Run one ingest and tell of it; see the module."""
    index = job["index"]
    sizes: dict[str, int | None] = {}
    try:
        with open_index(index) as there:
            settings = there.settings
    except IndexMissing:
        pass
    else:
        size, overlap = chunking_of(index, settings.chunker).sizes
        sizes = {"chunk_size": size, "chunk_overlap": overlap}
    make_embedder(job["embedder"])
    options = IngestOptions(tuple(job["paths"]), index, job["embedder"], **sizes)  # type: ignore[arg-type]
    try:
        try:
            outcome = run_ingest(options, reporter.started)
        finally:
            reporter.stop()
        reporter.settle(outcome)
    finally:
        reporter.close()


def main() -> int:
    """Ingest what standard input says; return the exit code."""
    # What a library prints must not get among the lines.
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    line = sys.stdin.readline()
    if not line:
        return 0
    job = json.loads(line)
    reporter = Reporter(job["paths"], job["index"], out)

    def watch() -> None:
        sys.stdin.read()
        reporter.drain()

    threading.Thread(target=watch, name="tournant-parent-watch", daemon=True).start()
    try:
        ingest(job, reporter)
    except Exception as error:
        busy = isinstance(error, IndexBusy)
        known = isinstance(error, (IngestError, tn.TournantError))
        message = reason_of(error) if not known else str(error)
        reporter.say("error", message=message, busy=busy)
        return 75 if busy else 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Not through interpreter shutdown: the thread that waits for the parent holds standard input.
    tn.shutdown()
    os._exit(code)
