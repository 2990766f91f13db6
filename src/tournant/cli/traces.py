"""``--trace FILE``: what ran where and when, written when a command's run has ended, however it ended."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from tournant.cli.text import counted, put, shown_path
from tournant.errors import TournantError

if TYPE_CHECKING:
    from tournant.report import Report


class TraceRefused(TournantError):
    """The file of ``--trace`` can't be written, or there would be nothing to write into it."""


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--trace`` to a command."""
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="write what ran where and when: a timeline for the browser if FILE ends in .html, else a trace for Perfetto "
        "and 'tournant trace'; also when the run fails or is interrupted",
    )


class TraceFile:
    """Writes the trace of what runs while it is entered.

    Args:
        path: the file; ``None`` for none.
        report: gives the run's report once the run has ended, or ``None`` if there was no run.
        json: standard output is for a JSON document; say where the file is on standard error.
        quiet: don't say where the file is.
    """

    def __init__(
        self,
        path: str | None,
        report: Callable[[], Report | None],
        *,
        json: bool = False,
        quiet: bool = False,
    ) -> None:
        self._path = path
        self._report = report
        self._json = json
        self._quiet = quiet

    def __enter__(self) -> TraceFile:
        """Refuse now what could not be written in the end.

        Raises:
            TraceRefused: the folder is not there, or can't be written; or the recording is switched off.
        """
        if self._path is None:
            return self
        from tournant.observe.events import capacity

        if not self._path:
            raise TraceRefused("--trace needs the name of a file")
        try:
            os.stat(self._path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise TraceRefused(
                f"--trace {shown_path(self._path)}: it can't be written: {error.strerror or error}; give it another name"
            ) from error
        folder = os.path.dirname(os.path.abspath(self._path))
        if os.path.isdir(self._path):
            raise TraceRefused(f"--trace {shown_path(self._path)} is a folder: name a file in it")
        if not os.path.isdir(folder):
            raise TraceRefused(
                f"--trace {shown_path(self._path)}: the folder {shown_path(folder)} is not there; make it first"
            )
        if not os.access(self._path if os.path.exists(self._path) else folder, os.W_OK):
            raise TraceRefused(
                f"--trace {shown_path(self._path)}: it can't be written; name a file in another folder"
            )
        if not capacity():
            raise TraceRefused(
                "--trace has nothing to write while TOURNANT_EVENTS=0 switches recording off: unset it"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write it, and say where it is.

        Raises:
            TraceRefused: it can't be written, and nothing else went wrong.
        """
        if self._path is None:
            return
        report = self._report()
        if report is None:
            if error is None:
                put(sys.stderr, "No trace was written: there was nothing to do.")
            return
        name = shown_path(self._path)
        page = self._path.lower().endswith((".html", ".htm"))
        try:
            (report.save_timeline if page else report.save_trace)(self._path)
        except OSError as problem:
            refused = TraceRefused(
                f"the trace can't be written to {name}: {problem.strerror or problem}; the run itself has ended"
            )
            if error is None:
                raise refused from problem
            put(sys.stderr, str(refused))
            return
        if self._quiet:
            return
        lost = report.recording.lost
        if lost:
            words = counted(lost, "event")
            put(
                sys.stderr,
                f"The trace lacks the oldest {words}: set TOURNANT_EVENTS above 100000 to keep more of each stage.",
            )
        how = "open it in a browser" if page else f"'tournant trace {name}', or https://ui.perfetto.dev, shows it"  # fmt: skip
        put(sys.stderr if self._json else sys.stdout, f"{'Timeline' if page else 'Trace'}: {name} ({how}).")  # fmt: skip
