"""From a stack to the line that is to blame: the user's own innermost frame, and what stood below and above it."""

from __future__ import annotations

import ast
import linecache
import os
import sys
import sysconfig
import threading
from collections.abc import Iterable
from types import CodeType, FrameType
from typing import NamedTuple

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = tuple({
    os.path.realpath(path) + os.sep
    for name in ("stdlib", "platstdlib")
    if (path := sysconfig.get_path(name))
} | {os.path.dirname(os.__file__) + os.sep})  # fmt: skip
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
#: Files that are the user's whatever their path says: a program that was named to be watched.
_declared: set[str] = set()
_owners: dict[str, str] = {}
#: Where somebody sits who stops the program on purpose.
_DEBUGGERS = ("/bdb.py", "/pdb.py", "/pydevd", "/debugpy/", "/_pydev", "/ipdb/", "/pudb/", "/pdbpp", "/IPython/core/debugger")  # fmt: skip


class Place(NamedTuple):
    """A line of code.

    Attributes:
        file: as Python names it.
        line: the line, from 1.
        function: its function's qualified name.
    """

    file: str
    line: int
    function: str

    @property
    def source(self) -> str:
        """The line itself, empty if the source isn't there."""
        return linecache.getline(self.file, self.line).strip()

    def __str__(self) -> str:
        """Return ``function (file:line)``."""
        name = "the module" if self.function == "<module>" else self.function
        return f"{name} ({self.short()})"

    def short(self) -> str:
        """Return ``file:line``, the file relative to the working directory where it lies below it."""
        file = self.file
        try:
            relative = os.path.relpath(file)
        except (OSError, ValueError):
            relative = file
        if os.path.isabs(file) and not relative.startswith(os.pardir):
            file = relative
        return f"{file}:{self.line}"


def declare(file: str) -> None:
    """Say that a file is the user's own, wherever it lies."""
    _declared.add(file)
    _owners.pop(file, None)


def owner(file: str) -> str:
    """Return whose a file is: ``"user"``, ``"library"``, ``"stdlib"`` or ``"tournant"``."""
    known = _owners.get(file)
    if known is None:
        known = _owners[file] = _owner(file)
    return known


def _owner(file: str) -> str:
    if file in _declared:
        return "user"
    if file.startswith("<frozen"):
        return "stdlib"
    if any(part in file for part in _INSTALLED):
        return "library"
    if file.startswith(_HERE):
        return "tournant"
    if file.startswith(_STDLIB) or os.path.realpath(file).startswith(_STDLIB):
        return "stdlib"
    return "user"


def place_of(frame: FrameType) -> Place:
    """Return where a frame stands."""
    code = frame.f_code
    return Place(code.co_filename, frame.f_lineno or code.co_firstlineno, code.co_qualname)


def beginning_of(code: CodeType) -> Place:
    """Return where a function begins."""
    return Place(code.co_filename, code.co_firstlineno, code.co_qualname)


def frames_of(thread: int) -> list[FrameType]:
    """Return the frames of a thread, the innermost first; empty if it has ended, or where looking is not safe.

    Without the interpreter lock the thread runs on while it is looked at.
    """
    from tournant.guards.gil import gil_enabled

    if not gil_enabled():
        return []
    frame = sys._current_frames().get(thread)
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def frames_of_native(native: int) -> list[FrameType]:
    """Return the same for a thread that is named by its native id."""
    for thread in threading.enumerate():
        if thread.native_id == native and thread.ident is not None:
            return frames_of(thread.ident)
    return []


def name_of_native(native: int) -> str:
    """Return the name of the thread with this native id; empty if it has ended."""
    return next((one.name for one in threading.enumerate() if one.native_id == native), "")


def culprit(frames: Iterable[FrameType]) -> FrameType | None:
    """Return the frame to name, of frames with the innermost first: the user's own, else a library's, else the innermost."""
    best: FrameType | None = None
    rank = 0
    for frame in frames:
        whose = owner(frame.f_code.co_filename)
        if whose == "user":
            return frame
        new = {"library": 3, "tournant": 2}.get(whose, 1)
        if new > rank:
            best, rank = frame, new
    return best


def caller(depth: int = 2) -> Place:
    """Return the user's own line that led to this call; `depth` frames up and above."""
    frame: FrameType | None = sys._getframe(depth)
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    found = culprit(frames)
    return place_of(found if found is not None else frames[0])


def debugged(frames: Iterable[FrameType]) -> bool:
    """Tell whether somebody stopped the program in a debugger."""
    return any(
        mark in frame.f_code.co_filename.replace(os.sep, "/")
        for frame in frames
        for mark in _DEBUGGERS
    )


_trees: dict[str, ast.AST] = {}
_MOST_TREES = 16


def tree(file: str) -> ast.AST:
    """Return a source file as a syntax tree, an empty one if it isn't there or can't be read as Python."""
    known = _trees.get(file)
    if known is None:
        try:
            known = ast.parse("".join(linecache.getlines(file)))
        except (SyntaxError, ValueError):
            known = ast.Module([], [])
        except (SystemError, RecursionError, MemoryError):
            # Python 3.11 refuses what another thread parses at the same time. The next time it may go well.
            return ast.Module([], [])
        if len(_trees) >= _MOST_TREES:
            _trees.clear()
        _trees[file] = known
    return known


def written(frames: Iterable[FrameType], most: int = 12) -> str:
    """Return a stack as text, of frames with the innermost first: the innermost last, at most `most` of them."""
    lines = []
    # All at once: reading the sources gives the interpreter lock away, and the frames go on.
    for place in [place_of(frame) for frame in list(frames)[:most]]:
        source = place.source
        lines.append(
            f'  File "{place.file}", line {place.line}, in {place.function}'
            + (f"\n    {source}" if source else "")
        )
    return "\n".join(reversed(lines))
