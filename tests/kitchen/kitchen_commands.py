"""Runs the command as `tournant` does, on a parser that knows no other; and tells who lives."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from tournant.cli import kitchen


def kitchen_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tournant")
    common = argparse.ArgumentParser(add_help=False)
    kitchen.add_to(parser.add_subparsers(required=True), common)
    return parser


def run_kitchen(*argv: str) -> int:
    args = kitchen_parser().parse_args(["kitchen", *argv])
    command: Callable[[argparse.Namespace], int] = args.run
    return command(args)


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and that nobody has asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return not Path("/proc/self").exists()
