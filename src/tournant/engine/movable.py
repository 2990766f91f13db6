"""May a plain function move from threads to processes without changing what the program means?

It has to travel, and it must not depend on what threads share and processes have copies of: an object that it is bound to, a list that
it closes over, a global that it changes, a lock. What can be seen of that is looked at here: the function and those of the
program's own that it calls by name. What can't be seen (a module of somebody else that keeps state) is the user's to know.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import queue
import re
import sys
import threading
from collections.abc import MutableMapping, MutableSequence, MutableSet
from pathlib import PurePath
from types import CodeType, FunctionType, ModuleType
from typing import Any

from tournant.engine.strays import is_users
from tournant.errors import short
from tournant.stages import Stage, callable_name, travels_by_reference

_CONSTANT = (
    type(None), bool, int, float, complex, str, bytes, range, PurePath, enum.Enum, re.Pattern, ModuleType, type,
)  # fmt: skip
#: The same, of modules that may not have been imported.
_ALSO_CONSTANT = (
    ("datetime", "date"), ("datetime", "time"), ("datetime", "timedelta"), ("datetime", "tzinfo"), ("decimal", "Decimal"),
    ("uuid", "UUID"),
)  # fmt: skip
_MUTABLE = (MutableSequence, MutableMapping, MutableSet)
_SHARED = (
    type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event, threading.Semaphore,
    threading.Barrier, threading.local, queue.Queue, queue.SimpleQueue,
)  # fmt: skip
_CHANGES = frozenset({
    "add", "append", "appendleft", "clear", "discard", "extend", "extendleft", "insert", "pop",
    "popitem", "popleft", "remove", "reverse", "setdefault", "sort", "update", "difference_update", "intersection_update", "symmetric_difference_update", "move_to_end",
})  # fmt: skip
#: Functions that call functions that call functions.
_DEPTH = 4


def why_not(stages: list[Stage]) -> str | None:
    """Return why stages can't move to processes by themselves, as a clause with "it"; ``None`` if they can."""
    for stage in stages:
        callables = [stage.fn]
        if stage.state is not None:
            callables += [stage.state.factory, stage.state.close]
        for fn in callables:
            problem = None if fn is None else _of_callable(fn, 0, set())
            if problem is not None:
                return problem
            if fn is not None and not travels_by_reference(fn):
                problem = _pickled(fn)
                if problem is not None:
                    return problem
    return None


def _pickled(fn: Any) -> str | None:
    import pickle

    import cloudpickle

    try:
        pickle.loads(cloudpickle.dumps(fn))
    except Exception as error:
        return f"it can't be pickled ({type(error).__name__}: {error})"
    return None


def _of_callable(fn: Any, depth: int, seen: set[int]) -> str | None:
    if id(fn) in seen or depth > _DEPTH:
        return None
    seen.add(id(fn))
    if isinstance(fn, functools.partial):
        for value in (*fn.args, *fn.keywords.values()):
            problem = _of_value(value, f"it is given {short(value, 40)}", depth, seen)
            if problem is not None:
                return problem
        return _of_callable(fn.func, depth, seen)
    if inspect.isclass(fn):
        return None
    owner = getattr(fn, "__self__", None)
    if owner is not None and not isinstance(owner, (ModuleType, type)):
        problem = _of_value(owner, f"it is a method of {short(owner, 40)}", depth, seen)
        if problem is not None:
            return problem
    fn = inspect.unwrap(getattr(fn, "__func__", fn))
    if isinstance(fn, FunctionType):
        return _of_function(fn, depth, seen)
    if inspect.isroutine(fn):
        return None
    return _of_value(fn, f"it is the object {short(fn, 40)}", depth, seen)


def _of_function(fn: FunctionType, depth: int, seen: set[int]) -> str | None:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:
            continue
        problem = _of_value(value, f"it closes over {name!r}", depth, seen)
        if problem is not None:
            return problem
    for value in (*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()):
        problem = _of_value(value, f"it has the default {short(value, 40)}", depth, seen)
        if problem is not None:
            return problem
    return _of_code(fn.__code__, fn, depth, seen)


def _of_code(code: CodeType, fn: FunctionType, depth: int, seen: set[int]) -> str | None:
    """Look for globals that are changed, or shared between threads."""
    import dis

    called = "it" if depth == 0 else f"{fn.__qualname__}(), which it calls,"
    loaded: set[str] = set()
    changes = False
    for instruction in dis.get_instructions(code):
        operation, name = instruction.opname, instruction.argval
        if operation in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            return f"{called} sets the global {name!r}"
        if operation in ("LOAD_GLOBAL", "LOAD_NAME"):
            loaded.add(name)
        elif operation in ("STORE_SUBSCR", "DELETE_SUBSCR") or (
            operation in ("LOAD_METHOD", "LOAD_ATTR") and name in _CHANGES
        ):
            changes = True
    for name in sorted(loaded):
        value = fn.__globals__.get(name)
        if isinstance(value, _SHARED):
            return f"{called} uses {name!r}, a {type(value).__name__} that threads share"
        if changes and isinstance(value, _MUTABLE):
            return f"{called} may change the global {name!r}"
        if (
            isinstance(value, FunctionType)
            and is_users(value.__code__.co_filename)
            and (problem := _of_callable(value, depth + 1, seen)) is not None
        ):
            return problem
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            problem = _of_code(inner, fn, depth, seen)
            if problem is not None:
                return problem
    return None


def _of_value(value: Any, what: str, depth: int, seen: set[int]) -> str | None:
    if isinstance(value, (tuple, frozenset)):
        for each in value:
            problem = _of_value(each, what, depth, seen)
            if problem is not None:
                return problem
        return None
    if isinstance(value, _CONSTANT) or any(
        isinstance(value, getattr(sys.modules[module], name))
        for module, name in _ALSO_CONSTANT
        if module in sys.modules
    ):
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            for part in dataclasses.fields(value):
                problem = _of_value(getattr(value, part.name, None), what, depth, seen)
                if problem is not None:
                    return problem
            return None
    elif callable(value) and (inspect.isroutine(value) or isinstance(value, functools.partial)):
        problem = _of_callable(value, depth + 1, seen)
        return None if problem is None else f"{what}, {callable_name(value)}(): {problem}"
    kind = type(value).__name__
    return f"{what}, a {kind}, of which every process would have a copy of its own"
