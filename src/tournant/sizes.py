"""How many bytes a value holds on to, by estimate."""

from __future__ import annotations

import sys
from typing import Any

_SAMPLE = 16


def size_of(value: Any, depth: int = 4) -> int:
    """Estimate the bytes that `value` holds on to.

    Exact for strings, bytes and arrays; containers and dataclasses are followed a few levels down, long lists by a
    sample. What the estimate cannot see into counts as its own shallow size.
    """
    buffer_size = getattr(value, "nbytes", None)
    if isinstance(buffer_size, int):
        return buffer_size + 64
    size = sys.getsizeof(value, 64)
    if depth == 0 or isinstance(value, (str, bytes, bytearray, int, float, bool, type(None))):
        return size
    inside: Any = None
    count = 0
    if isinstance(value, dict):
        inside, count = list(value.values()), len(value)
        size += sum(sys.getsizeof(key, 64) for key in list(value)[:_SAMPLE])
    elif isinstance(value, (list, tuple, set, frozenset)):
        inside, count = list(value), len(value)
    elif hasattr(value, "__dict__"):
        inside = list(vars(value).values())
        count = len(inside)
    elif hasattr(type(value), "__slots__"):
        inside = [
            getattr(value, name, None) for name in type(value).__slots__ if isinstance(name, str)
        ]
        count = len(inside)
    if not count:
        return size
    if count <= _SAMPLE * 4:
        return size + sum(size_of(part, depth - 1) for part in inside)
    sample = inside[:: max(1, count // _SAMPLE)]
    return size + sum(size_of(part, depth - 1) for part in sample) * count // len(sample)
