"""The command line: one file per command, and here what they share.

Nothing heavy is imported before a command runs, so that ``tournant --help`` answers at once.

Exit codes: 0 all went in; 1 the run failed; 2 wrong usage; 3 some inputs were skipped or failed, each with its
reason; 130 interrupted; 141 whoever read the output left early.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from tournant._version import __version__
from tournant.cli import batch, ingest, kitchen, mock_llm, search, serve, status, trace, watch
from tournant.cli.text import Exit, ReaderLeft, error_lines, finish, put
from tournant.errors import TournantError

__all__ = ["main", "make_parser"]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--traceback",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show where in the code an error was raised (also: TOURNANT_TRACEBACK=1)",
    )
    parser = argparse.ArgumentParser(
        prog="tournant",
        description="Pipelines for AI work that wait and think at the same time.",
        epilog="exit codes: 0 all went in, 1 failed, 2 wrong usage, 3 some inputs failed, "
        "130 interrupted",
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"tournant {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (ingest, search, status, batch, mock_llm, serve, trace, watch, kitchen):
        command.add_to(commands, common)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments without the program's name; those of the process by default.

    Returns:
        The exit code. Errors that are no `TournantError` are bugs, and are raised.
    """
    code = _run(argv)
    if argv is None and code == Exit.INTERRUPTED:
        # We are the program, and about to end: whoever presses Ctrl-C once more is right, and shall see no traceback.
        from tournant.cli.signals import end_on_signals

        end_on_signals(code)
    return code


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = make_parser().parse_args(argv)
    except SystemExit as leaving:  # argparse has said what was wrong, or printed the help
        return leaving.code if isinstance(leaving.code, int) else Exit.USAGE
    try:
        code: int = args.run(args)
        finish(sys.stdout)
        return code
    except TournantError as error:
        return _failed(error, trace=getattr(args, "traceback", False))
    except KeyboardInterrupt:
        put(sys.stderr, "Interrupted.")
        return Exit.INTERRUPTED
    except ReaderLeft:
        _silence(sys.stdout)
        return Exit.READER_LEFT


def _silence(stream: TextIO) -> None:
    """Give the interpreter a place for its last flush, which would complain of the closed pipe."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


def _failed(error: TournantError, *, trace: bool) -> int:
    if trace or os.environ.get("TOURNANT_TRACEBACK", "") not in ("", "0"):
        import traceback

        put(sys.stderr, "".join(traceback.format_exception(error)).rstrip())
    else:
        for line in error_lines(error):
            put(sys.stderr, line)
    return Exit.USAGE if _is_usage(error) else Exit.FAILED


def _is_usage(error: TournantError) -> bool:
    from tournant.ingest.errors import InvalidOption

    return isinstance(error, InvalidOption)
