"""What a stage's call leaves behind: here the coroutines that it made and never awaited.

Python tells of such a coroutine when it is freed, in the thread and context in which that happens: almost always inside the very call that
forgot it. So a context variable that says whose call it is costs nothing until something is forgotten. Light on purpose: worker
processes import it before their first item. What only a loop can leave behind, tasks, is dealt with in `tournant.engine.strays`.
"""

from __future__ import annotations

import gc
import sys
import threading
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType
from typing import Any

from tournant.errors import ForgottenAwait, short

_HOME = str(Path(__file__).resolve().parents[1])
#: Types of results that were looked at and found to be no awaitables; bounded, since a program may make types for ever.
FINE: set[type] = set()
_MOST_TYPES = 1024


class Leftovers(dict[Any, Any]):
    """What the call in progress of one worker has left behind: empty, and so false, after nearly every call."""

    __slots__ = ()

    def mine(self) -> bool:
        """Tell whether the code that runs now belongs to the call in progress."""
        return True

    def first_error(self, fn: Any = None) -> ForgottenAwait:
        """Return the failure of the call, with the others as notes, and forget them all."""
        forgotten = [entry for entry in self if type(entry) is Forgotten]
        self.clear()
        error = forgotten[0].error(fn)
        for other in forgotten[1:]:
            error.add_note(str(other.error(fn)))
        return error


class Forgotten:
    """A coroutine that was never awaited.

    Attributes:
        name: of the coroutine function.
        code: its code.
        place: file and line of its making, if that could be told; `sure` says that it was seen and not guessed.
    """

    __slots__ = ("code", "name", "place", "sure")

    def __init__(self, coroutine: Any) -> None:
        self.name: str = coroutine.__qualname__
        self.code: CodeType = coroutine.cr_code
        self.place, self.sure = _place_of(coroutine)

    def error(self, fn: Any = None) -> ForgottenAwait:
        """Return the failure; `fn` is the stage's callable, to look for the place in if nothing else told it."""
        place, sure = self.place, self.sure
        if not sure:
            code: CodeType | None = getattr(getattr(fn, "__func__", fn), "__code__", None)
            lines = _lines_naming(code, self.code.co_name) if code is not None else []
            if lines and code is not None:
                place, sure = (code.co_filename, lines[0]), True
        if place is None:
            where = f"is defined at {self.code.co_filename}:{self.code.co_firstlineno}"
        else:
            where = f"was {'made' if sure else 'dropped'} at {place[0]}:{place[1]}"
        return ForgottenAwait(
            f"the coroutine {self.name}() {where} and never awaited, so it never ran; write `await {self.code.co_name}(...)` "
            "there, or hand it to a task that you await"
        )


#: Whose call the present code belongs to; ``None`` outside of the stages' calls.
present: ContextVar[Leftovers | None] = ContextVar("tournant_leftovers", default=None)

_watching = False
_collecting = 0
_original: Callable[[Any], None] | None = None


def watch() -> None:
    """From now on a coroutine that is never awaited fails the call that made it. May be called again and again."""
    global _watching, _original
    if _watching:
        return
    _watching = True
    gc.callbacks.append(_on_collection)
    # What the interpreter calls, by this name, for every coroutine that is freed before it was awaited.
    _original = getattr(warnings, "_warn_unawaited_coroutine", None)
    warnings._warn_unawaited_coroutine = _never_awaited  # type: ignore[attr-defined]


def _on_collection(phase: str, _info: dict[str, int]) -> None:
    global _collecting
    # What the collector frees was made at some other time, by whoever it was.
    _collecting = threading.get_ident() if phase == "start" else 0


def _never_awaited(coroutine: Any) -> None:
    left = present.get()
    if left is not None and _collecting != threading.get_ident() and left.mine():
        left[Forgotten(coroutine)] = None
    elif _original is not None:
        try:
            from tournant.guards.hooks import warn_as_ever
        except ImportError:  # The interpreter is about to end.
            _original(coroutine)
        else:
            warn_as_ever(coroutine, _original)


def _place_of(coroutine: Any) -> tuple[tuple[str, int] | None, bool]:
    """Return file and line where a coroutine that dies now was made, and whether that is sure."""
    if coroutine.cr_origin:
        return coroutine.cr_origin[0][:2], True
    name = coroutine.cr_code.co_name
    # It dies in the statement that dropped it, or as the function that held it returns, whose frame may be gone by then.
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    innermost: tuple[str, int] | None = None
    while frame is not None and not frame.f_code.co_filename.startswith(_HOME):
        code, now = frame.f_code, frame.f_lineno
        innermost = innermost or (code.co_filename, now)
        lines = _lines_naming(code, name)
        if lines:
            before = [line for line in lines if line <= now]
            return (code.co_filename, before[-1] if before else lines[0]), True
        for inner in _called(frame):
            lines = _lines_naming(inner, name)
            if lines:
                return (inner.co_filename, lines[-1]), True
        frame = frame.f_back
    return innermost, False


def _called(frame: FrameType) -> list[CodeType]:
    """Return the code of the functions that a frame's present line may have called."""
    found = []
    for name in _names_at(frame.f_code, frame.f_lineno):
        value = frame.f_locals.get(name, frame.f_globals.get(name))
        if value is None:
            value = getattr(type(frame.f_locals.get("self")), name, None)
        code = getattr(value, "__code__", None)
        if isinstance(code, CodeType):
            found.append(code)
    return found


def _names_at(code: CodeType, line: int) -> list[str]:
    """Return the names that a line loads, the last first."""
    return [name for at, name in _loads(code) if at == line][::-1]


def _lines_naming(code: CodeType, name: str) -> list[int]:
    """Return the lines of `code`, and of the functions inside it, that use `name`, in order."""
    lines = {line for line, loaded in _loads(code) if loaded == name}
    for inner in code.co_consts:
        if isinstance(inner, CodeType) and inner.co_name != name:
            lines.update(_lines_naming(inner, name))
    return sorted(lines)


def _loads(code: CodeType) -> list[tuple[int, str]]:
    """Return what a function loads by name, with the lines."""
    import dis

    loads, line = [], code.co_firstlineno
    for instruction in dis.get_instructions(code):
        # The attribute has another meaning from Python 3.13 on, where `line_number` says what is wanted.
        line = getattr(instruction, "line_number", instruction.starts_line) or line
        named = instruction.opname.startswith("LOAD") and instruction.opname != "LOAD_CONST"
        if named and isinstance(instruction.argval, str):
            loads.append((line, instruction.argval))
    return loads


def check_result(result: Any, did: str = "returned") -> None:
    """Raise `ForgottenAwait` if `result` is something that nobody would await. Hot paths ask ``type(result) in FINE`` before.

    A coroutine is closed, and a task or future cancelled: nobody will ever look at it.

    Args:
        result: a call's result, or one of its children.
        did: what the callable did with it, for the message.
    """
    kind = type(result)
    name = getattr(result, "__qualname__", kind.__qualname__)
    if kind is CoroutineType:
        result.close()
        raise ForgottenAwait(
            f"the callable {did} the coroutine {name}() that nobody awaits; make the callable an async def and await it there"
        )
    if kind is AsyncGeneratorType:
        raise ForgottenAwait(
            f"the callable {did} the async generator {name}() where a result belongs; use .flat_map() with an async generator "
            "function, or collect it inside an async def: [value async for value in ...]"
        )
    if hasattr(kind, "__await__"):
        cancel = getattr(result, "cancel", None)
        if callable(cancel):
            cancel()
        raise ForgottenAwait(
            f"the callable {did} {short(result)}, an awaitable that nobody awaits; make the callable an async def and await it there"
        )
    if len(FINE) >= _MOST_TYPES:
        FINE.clear()
    FINE.add(kind)
