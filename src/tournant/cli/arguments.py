"""Kinds of arguments that several commands share."""

from __future__ import annotations

import argparse
import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)", re.IGNORECASE)


def byte_size(text: str) -> int:
    """Return the number of bytes that ``10MB``, ``1.5GiB``, ``64k`` or ``4096`` stands for.

    ``KB``, ``MB`` and so on are powers of 1,000; ``K``, ``M``, ``KiB``, ``MiB`` and so on of 1,024.

    Raises:
        argparse.ArgumentTypeError: It stands for none, or for zero.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 4096, 64K, 10MB or 1.5GiB")
    decimal = bool(match[4]) and not match[3]
    base = 1_000 if decimal else 1_024
    amount = int(float(match[1]) * base ** " kmgt".index(match[2].lower() or " "))
    if amount < 1:
        raise argparse.ArgumentTypeError("a size is at least one byte")
    return amount


def positive(text: str) -> int:
    """Return a whole number from 1 on.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    number = natural(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is too small: give a whole number from 1 on")
    return number


def natural(text: str) -> int:
    """Return a whole number from 0 on.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)
