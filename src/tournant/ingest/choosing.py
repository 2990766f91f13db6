"""Which of the files that a walk comes upon an ingest takes, and which it has taken."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Sequence

from tournant.ingest.walk import absolute


class PathSet:
    """Which paths a walk has found. It keeps a 64-bit hash of each: a million paths would be 200 MB."""

    def __init__(self) -> None:
        self._hashes: set[int] = set()

    def add(self, path: str) -> None:
        """Add a path."""
        self._hashes.add(hash(path))

    def __contains__(self, path: object) -> bool:
        return hash(path) in self._hashes

    def __len__(self) -> int:
        return len(self._hashes)


def matcher(globs: Sequence[str]) -> Callable[[str, str], bool]:
    """Match a path by its name, as it is below the argument, as it is seen from here, or as a whole."""
    tidy = [glob.removeprefix("./").rstrip("/") or "/" for glob in globs]
    fits = re.compile("|".join(map(fnmatch.translate, tidy))).match
    here = os.path.join(os.getcwd(), "")

    def matches(path: str, root: str) -> bool:
        if fits(os.path.basename(path)) or fits(path):
            return True
        bases = (os.path.join(root, ""), here)
        return any(path.startswith(base) and fits(path[len(base) :]) for base in bases)

    return matches


def on_the_way(matches: Callable[[str, str], bool], path: str, root: str) -> bool:
    """Match a path, or a folder between its argument and it."""
    while not matches(path, root):
        path = os.path.dirname(path)
        if len(path) <= len(root):
            return False
    return True


def places(directory: str, paths: Sequence[str]) -> list[str]:
    """Name a folder as a walk over these paths comes upon it, though a path be a link or lead through one."""
    real = os.path.realpath(directory)
    places = [directory]
    for path in map(absolute, paths):
        base = os.path.join(os.path.realpath(path), "")
        if real.startswith(base):
            places.append(os.path.join(path, real[len(base) :]))
        elif real + "/" == base:
            places.append(path)
    return places
