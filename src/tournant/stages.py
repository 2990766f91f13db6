"""The stage kinds: frozen, and refused when they are added rather than when they run.

A `Stage` is inert. What runs it lives in `tournant.engine`.
"""

from __future__ import annotations

import functools
import inspect
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_origin

from tournant.errors import InvalidPipeline, short
from tournant.policies import PerWorker, Retry

if TYPE_CHECKING:
    from tournant.limits.adaptive import Adaptive
    from tournant.limits.rate import RateLimit

Cost = float | Callable[[Any], float]
Placement = Literal["loop", "threads", "processes", "auto"]
Kind = Literal[
    "map",
    "flat_map",
    "map_batches",
    "filter",
    "tap",
    "for_each",
    "batch",
    "unbatch",
    "gather",
    "ordered",
    "remote",
]

#: Kinds that call the user's callable on items; the others only move items about.
CALLING = frozenset({"map", "flat_map", "map_batches", "filter", "tap", "for_each"})
DEFAULT_CONCURRENCY = 64


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a pipeline.

    Attributes:
        kind: what the step does with the callable's result.
        name: unique in its pipeline; the callable's name unless given.
        fn: the callable; ``None`` for stages that only move items; for ``"remote"``, what makes the segment of a run.
        on: where it runs.
        is_async: the callable is a coroutine or async generator function, or a flat_map's that is annotated to return an async iterator.
        concurrency: calls at once, for loop stages and ``blocking`` thread stages; with `adaptive`, the most it may come to.
        adaptive: the concurrency that finds itself; ``None`` where it is a number.
        limit: the rate at which calls begin.
        cost: tokens that a call is expected to use: a number, or a callable of what the stage's callable takes.
        max_workers: cap on the pool's workers for a CPU stage; ``None`` leaves it to the pool.
        blocking: a thread stage that waits rather than computes: threads of its own, no core taken.
        retry: see `Retry`.
        timeout: seconds for one attempt.
        on_error: ``"stop"`` or ``"skip"``; ``None`` takes the pipeline's.
        state: see `PerWorker`.
        size: items per batch.
        max_wait: seconds after which a partial batch goes.
        weight: callable that weighs an item for ``max_weight``.
        max_weight: the weight at which a batch is full.
        window: inputs that the source may run ahead of the oldest unfinished one.
    """

    kind: Kind
    name: str
    fn: Callable[..., Any] | None = None
    on: Placement = "loop"
    is_async: bool = False
    concurrency: int = DEFAULT_CONCURRENCY
    adaptive: Adaptive | None = None
    limit: RateLimit | None = None
    cost: Cost | None = None
    max_workers: int | None = None
    blocking: bool = False
    retry: Retry | None = None
    timeout: float | None = None
    on_error: Literal["stop", "skip"] | None = None
    state: PerWorker | None = None
    size: int | None = None
    max_wait: float | None = None
    weight: Callable[[Any], float] | None = None
    max_weight: float | None = None
    window: int = 1000

    @property
    def limited(self) -> bool:
        """Whether its calls have to be admitted, by a rate or by an adaptive concurrency."""
        return self.limit is not None or self.adaptive is not None


def calling_stage(
    kind: Kind,
    fn: Callable[..., Any],
    *,
    name: str | None,
    on: str | None,
    concurrency: int | Adaptive | None,
    limit: RateLimit | None,
    cost: Cost | None,
    max_workers: int | None,
    blocking: bool,
    retry: Retry | None,
    timeout: float | None,
    on_error: str | None,
    state: PerWorker | None,
    size: int | None = None,
    max_wait: float | None = None,
) -> Stage:
    """Build a stage that calls `fn`, or raise `InvalidPipeline` with the mend."""
    where = f".{kind}({name or callable_name(fn) if callable(fn) else short(fn)})"
    if not callable(fn):
        raise InvalidPipeline(f"{where}: a stage needs a callable, got {type(fn).__name__}")
    is_async = (
        is_coroutine_callable(fn)
        or is_async_generator_callable(fn)
        or (kind == "flat_map" and returns_async_iterator(fn))
    )
    if is_async_generator_callable(fn) and kind != "flat_map":
        raise InvalidPipeline(
            f"{where}: an async generator yields many results per item; use .flat_map() for it"
        )
    if inspect.isgeneratorfunction(unwrapped(fn)) and kind != "flat_map":
        raise InvalidPipeline(
            f"{where}: a generator yields many results per item; use .flat_map() for it"
        )
    if on is None:
        on = "loop" if is_async else "threads"
    if on not in ("loop", "threads", "processes", "auto"):
        raise InvalidPipeline(
            f'{where}: on={on!r} is no place; give "loop", "threads", "processes" or "auto"'
        )
    if on == "auto" and is_async:
        on = "loop"
    if is_async and on != "loop":
        raise InvalidPipeline(
            f"{where}: on={on!r}, but an async def, or what returns an async iterator, runs on the event loop; leave on out, or make it "
            f"a plain def to run it in {on}"
        )
    if blocking and on != "threads":
        raise InvalidPipeline(
            f'{where}: blocking=True is for on="threads"; on the {on} it has no meaning'
        )
    pooled = on != "loop" and not blocking
    adaptive = None
    if concurrency is not None and not isinstance(concurrency, int):
        adaptive = _adaptive(where, concurrency)
    if limit is not None or cost is not None:
        _check_limit(where, limit, cost)
    if limit is not None and pooled:
        raise InvalidPipeline(
            f"{where}: limit= counts calls that wait for somebody else's machine, and here they would take a core while they wait; "
            "make it an async def, or give blocking=True for threads of its own"
        )
    if concurrency is not None and pooled:
        raise InvalidPipeline(
            f"{where}: concurrency={short(concurrency)}, but the pool decides how many workers a CPU stage gets; "
            "use max_workers= to cap it, or blocking=True if it waits for I/O"
        )
    if max_workers is not None and not pooled:
        raise InvalidPipeline(f"{where}: max_workers= caps a CPU stage; here use concurrency=")
    for option, value in (
        ("concurrency", concurrency if adaptive is None else adaptive.max),
        ("max_workers", max_workers),
        ("size", size),
    ):
        if value is not None:
            _positive_int(where, option, value)
    for option, seconds in (("timeout", timeout), ("max_wait", max_wait)):
        if seconds is not None:
            _positive(where, option, seconds)
    if retry is not None and not isinstance(retry, Retry):
        raise InvalidPipeline(f"{where}: retry={retry!r}; give tn.Retry(attempts=..., delay=...)")
    if on_error not in (None, "stop", "skip"):
        raise InvalidPipeline(f'{where}: on_error={on_error!r}; give "stop" or "skip"')
    if state is not None and not isinstance(state, PerWorker):
        raise InvalidPipeline(f"{where}: state={short(state)}; give tn.PerWorker(factory)")
    if on == "processes":
        _must_travel(where, fn)
        if state is not None:
            _must_travel(f"{where}: state=PerWorker(factory)", state.factory)
            if state.close is not None:
                _must_travel(f"{where}: state=PerWorker(close=)", state.close)
    return Stage(
        kind=kind,
        name=_name(name, fn, where),
        fn=fn,
        on=on,  # type: ignore[arg-type]
        is_async=is_async,
        concurrency=adaptive.max if adaptive is not None else concurrency or DEFAULT_CONCURRENCY,  # type: ignore[arg-type]
        adaptive=adaptive,
        limit=limit,
        cost=cost,
        max_workers=max_workers,
        blocking=blocking,
        retry=retry,
        timeout=timeout,
        on_error=on_error,  # type: ignore[arg-type]
        state=state,
        size=size,
        max_wait=max_wait,
    )


def batch_stage(
    size: int | None,
    max_wait: float | None,
    weight: Callable[[Any], float] | None,
    max_weight: float | None,
    name: str | None,
) -> Stage:
    """Build a ``batch`` stage, or raise `InvalidPipeline` with the mend."""
    where = ".batch()"
    if size is None and max_weight is None:
        raise InvalidPipeline(
            f"{where}: say when a batch is full: size=, or weight= and max_weight="
        )
    if size is not None:
        _positive_int(where, "size", size)
    if max_wait is not None:
        _positive(where, "max_wait", max_wait)
    if (weight is None) != (max_weight is None):
        raise InvalidPipeline(f"{where}: weight= and max_weight= go together")
    if weight is not None and (not callable(weight) or is_coroutine_callable(weight)):
        raise InvalidPipeline(f"{where}: weight={short(weight)}; give a plain function of one item")
    if max_weight is not None:
        _positive(where, "max_weight", max_weight)
    return Stage(
        "batch", name or "batch", size=size, max_wait=max_wait, weight=weight, max_weight=max_weight
    )


def ordered_stage(window: int, name: str | None) -> Stage:
    """Build an ``ordered`` stage, or raise `InvalidPipeline` with the mend."""
    _positive_int(".ordered()", "window", window)
    return Stage("ordered", name or "ordered", window=window)


def check_place(before: tuple[Stage, ...], stage: Stage) -> Stage:
    """Return `stage` with a name unique among `before`, or refuse it where it can't stand."""
    if before and before[-1].kind == "for_each":
        raise InvalidPipeline(
            f".{stage.kind}() after .for_each({before[-1].name}): a sink is the last stage; "
            "use .tap() to look at items and pass them on"
        )
    if stage.kind == "unbatch" and _open_batches(before) == 0:
        raise InvalidPipeline(
            ".unbatch(): nothing is batched here; put .batch() before it, or .flat_map() to unpack lists of your own"
        )
    if stage.kind in ("gather", "ordered") and _open_batches(before):
        raise InvalidPipeline(
            f".{stage.kind}() after .batch(): a batch mixes inputs and has no place in their order; "
            f"put .unbatch() before it or move .{stage.kind}() in front of .batch()"
        )
    for earlier in before:
        if (
            stage.adaptive is not None
            and stage.adaptive is earlier.adaptive
            and earlier.kind == "flat_map"
            and earlier.retry is None
        ):
            raise InvalidPipeline(
                f".{stage.kind}({stage.name}): it shares its Adaptive with .flat_map({earlier.name}), whose calls keep their places "
                "while their results wait for room, so each could wait for the other for ever; give each stage an Adaptive of its own"
            )
    taken = {s.name for s in before}
    name, n = stage.name, 2
    while name in taken:
        name, n = f"{stage.name}-{n}", n + 1
    if name == stage.name:
        return stage
    values = {field: getattr(stage, field) for field in Stage.__slots__}
    return Stage(**{**values, "name": name})


def _open_batches(stages: tuple[Stage, ...]) -> int:
    return sum({"batch": 1, "unbatch": -1}.get(stage.kind, 0) for stage in stages)


def callable_name(fn: Callable[..., Any]) -> str:
    """Return the name that people know a callable by."""
    fn = unwrapped(fn)
    name = getattr(fn, "__name__", None) or type(fn).__name__
    return "lambda" if name == "<lambda>" else str(name)


def unwrapped(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Look through ``functools.partial``."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn


def is_coroutine_callable(fn: Callable[..., Any]) -> bool:
    """Tell whether calling `fn` gives a coroutine: an ``async def``, a partial of one, an object whose ``__call__`` is one."""
    fn = unwrapped(fn)
    return inspect.iscoroutinefunction(fn) or (
        not inspect.isroutine(fn)
        and not inspect.isclass(fn)
        and inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
    )


def is_async_generator_callable(fn: Callable[..., Any]) -> bool:
    """Tell whether calling `fn` gives an async generator."""
    fn = unwrapped(fn)
    return inspect.isasyncgenfunction(fn) or (
        not inspect.isroutine(fn)
        and not inspect.isclass(fn)
        and inspect.isasyncgenfunction(getattr(fn, "__call__", None))  # noqa: B004
    )


def returns_async_iterator(fn: Callable[..., Any]) -> bool:
    """Tell whether a plain callable says, by its annotation, that it returns an async iterator, as ``Client.stream`` does.

    An annotation that is text is looked up by its first name in the callable's module, and never evaluated.
    """
    fn = unwrapped(fn)
    if not inspect.isroutine(fn):
        return False
    kind = getattr(fn, "__annotations__", {}).get("return")
    if isinstance(kind, str):
        kind = getattr(fn, "__globals__", {}).get(kind.partition("[")[0].strip())
    kind = get_origin(kind) or kind
    return inspect.isclass(kind) and hasattr(kind, "__aiter__")


def travels_by_reference(value: Any) -> bool:
    """Tell whether a worker process can import `value` by its module and name."""
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None)
    if (
        not isinstance(module, str)
        or not isinstance(name, str)
        or module == "__main__"
        or "<" in name
    ):
        return False
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


def _must_travel(where: str, fn: Callable[..., Any]) -> None:
    if travels_by_reference(fn):
        return
    import cloudpickle

    try:
        pickle.loads(cloudpickle.dumps(fn))
    except Exception as error:
        raise InvalidPipeline(
            f"{where}: it can't be sent to a worker process ({type(error).__name__}: {error}). "
            "Make it a module-level function that closes over nothing unpicklable, and build connections, locks and "
            'models in the worker with state=tn.PerWorker(factory); or run it on="threads"'
        ) from error


def _name(name: str | None, fn: Callable[..., Any], where: str) -> str:
    if name is None:
        return callable_name(fn)
    if not isinstance(name, str) or not name.strip():
        raise InvalidPipeline(f"{where}: name={name!r}; give a non-empty string")
    return name


def _adaptive(where: str, concurrency: Any) -> Adaptive:
    from tournant.limits.adaptive import Adaptive

    if not isinstance(concurrency, Adaptive):
        raise InvalidPipeline(
            f"{where}: concurrency={short(concurrency)}; give a whole number of 1 or more, or tn.limits.Adaptive(min, max)"
        )
    return concurrency


def _check_limit(where: str, limit: Any, cost: Any) -> None:
    from tournant.limits.rate import RateLimit

    if limit is None:
        raise InvalidPipeline(
            f"{where}: cost= is what a call takes of limit=; give both, or leave cost out"
        )
    if not isinstance(limit, RateLimit):
        raise InvalidPipeline(
            f'{where}: limit={short(limit)}; give tn.limits.RateLimit(requests="500/min", tokens="200_000/min"), '
            "or concurrency= for a number of calls at once"
        )
    if cost is None or (callable(cost) and not is_coroutine_callable(cost)):
        return
    if isinstance(cost, (int, float)) and not isinstance(cost, bool) and 0 <= cost < float("inf"):
        return
    raise InvalidPipeline(
        f"{where}: cost={short(cost)}; give a number of tokens, 0 or more, or a plain function that tells it from what the "
        "stage's function takes"
    )


def _positive_int(where: str, option: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidPipeline(f"{where}: {option}={value!r}; give a whole number of 1 or more")


def _positive(where: str, option: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise InvalidPipeline(f"{where}: {option}={value!r}; give a number above 0")
