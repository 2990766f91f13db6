"""``tournant status``: what an index holds, and what did not get in."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from tournant.cli.text import Exit, counted, put, put_json, shown_path, size

if TYPE_CHECKING:
    from tournant.ingest.job import IndexStatus

_LISTED = 50


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "status",
        parents=[common],
        help="say what an index holds and what did not get in",
        description="Say what an index holds, which files did not get in and why, and how the last "
        "ingest ended. Works while an ingest is running.",
    )
    parser.add_argument(
        "--index",
        required=True,
        metavar="DIR",
        help="the index's folder, or its URL (postgresql://, s3://, file://)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Say the status, and return the exit code."""
    from tournant.ingest.job import status

    found = status(args.index)
    if args.json:
        put_json(sys.stdout, found.as_dict())
    else:
        put(sys.stdout, render(found))
    return Exit.OK


def render(found: IndexStatus) -> str:
    """Return the status as text for people."""
    lines = [
        f"{counted(found.documents, 'document')}, {counted(found.chunks, 'chunk')}, {size(found.bytes)}",
        f"embedder: {found.embedder}",
        f"last run: {_last_run(found)}",
    ]
    if found.failures:
        lines.append(f"{counted(len(found.failures), 'file')} did not get in:")
        lines += [
            f"  {shown_path(source)}: {reason}" for source, reason in found.failures[:_LISTED]
        ]
        if len(found.failures) > _LISTED:
            lines.append(f"  and {len(found.failures) - _LISTED:,} more: see --json")
    return "\n".join(lines)


def _last_run(found: IndexStatus) -> str:
    run = found.last_run
    if run is None:
        return "none"
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.started))
    if run.ended is None:
        return f"{began}, going on" if found.busy else f"{began}, did not end: run it again"
    return f"{began}, took {run.ended - run.started:.1f} s"
