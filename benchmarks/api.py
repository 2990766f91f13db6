"""Calling model APIs: `python -m benchmarks api [--only goodput|bulk|CONTESTANT] [--quick]`."""

from collections.abc import Sequence

from benchmarks import bulk, goodput


def main(only: Sequence[str], quick: bool) -> int:
    """Run what was asked for, or both."""
    code = 0
    names = [name for name in only if name not in {"goodput", "bulk"}]
    if not only or "goodput" in only or names:
        code |= goodput.main(names, quick)
    if not only or "bulk" in only:
        code |= bulk.main(quick)
    return code
