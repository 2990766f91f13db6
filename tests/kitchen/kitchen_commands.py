"""Runs the command as `tournant` does, on a parser that knows no other."""

from __future__ import annotations

import argparse
from collections.abc import Callable

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
