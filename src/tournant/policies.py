"""What a stage does about failure, and what each worker keeps: frozen, validated when built."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tournant.errors import InvalidPipeline


@dataclass(frozen=True, slots=True)
class Retry:
    """Try an item again after a failure: exponential backoff with full jitter.

    Before attempt ``n`` (counted from 1, so the first retry is attempt 2) the item waits a random time
    between 0 and ``min(max_delay, delay * factor ** (n - 2))`` seconds. While it waits it holds no slot and no
    place in the stage's concurrency. Source: "Exponential Backoff And Jitter", M. Brooker, 2015.

    Where the exception says when to come back (an attribute ``retry_after`` in seconds, or the header ``Retry-After`` of its
    ``response``), it waits at least so long, even beyond `max_delay`.

    An exception whose attribute ``transient`` is ``False`` says that a second attempt can't help, and ends the attempts. It
    is tried again only where `on` is a predicate that says so, or names a class that is itself ``transient = False``.

    Attributes:
        attempts: attempts in all, the first included. Default 3.
        delay: seconds, the upper bound of the first wait. Default 0.1.
        max_delay: seconds, the upper bound of any wait. Default 30.
        factor: growth of the bound from wait to wait. Default 2.
        on: exception class, tuple of classes, or a predicate of the exception. Only what matches is tried
            again. Default: every `Exception`.
    """

    attempts: int = 3
    delay: float = 0.1
    max_delay: float = 30.0
    factor: float = 2.0
    on: type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool] = Exception

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        if (
            not isinstance(self.attempts, int)
            or isinstance(self.attempts, bool)
            or self.attempts < 1
        ):
            raise InvalidPipeline(
                f"Retry(attempts={self.attempts!r}): attempts counts the first try too, so give a whole number >= 1"
            )
        for name in ("delay", "max_delay"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not value >= 0:
                raise InvalidPipeline(f"Retry({name}={value!r}): give seconds, 0 or more")
        if not isinstance(self.factor, (int, float)) or not self.factor >= 1:
            raise InvalidPipeline(f"Retry(factor={self.factor!r}): give a factor of 1 or more")
        classes = self.on if isinstance(self.on, tuple) else (self.on,)
        if not all(isinstance(c, type) and issubclass(c, BaseException) for c in classes) and not (
            callable(self.on) and not isinstance(self.on, type)
        ):
            raise InvalidPipeline(
                f"Retry(on={self.on!r}): give an exception class, a tuple of them, or a predicate"
            )

    def wants(self, error: BaseException, attempts: int) -> bool:
        """Tell whether an item that failed with `error` on its attempt number `attempts` is tried again."""
        if attempts >= self.attempts or not isinstance(error, Exception):
            return False
        if isinstance(self.on, (type, tuple)):
            if getattr(error, "transient", None) is not False:
                return isinstance(error, self.on)
            named = self.on if isinstance(self.on, tuple) else (self.on,)
            hopeless = tuple(one for one in named if getattr(one, "transient", None) is False)
            return isinstance(error, hopeless)
        return bool(self.on(error))

    def wait(self, attempts: int, rng: Callable[[], float] = random.random) -> float:
        """Return the seconds of backoff after failed attempt number `attempts`."""
        try:
            bound = self.delay * self.factor ** (attempts - 1)
        except OverflowError:
            bound = self.max_delay
        return min(self.max_delay, bound) * rng()


def asked_to_wait(error: BaseException) -> float:
    """Return the seconds after which `error` says to come back; 0 where it says nothing."""
    from tournant.limits.verdict import retry_after_of

    return retry_after_of(error, time.time()) or 0.0


@dataclass(frozen=True, slots=True)
class PerWorker:
    """State that every worker of a stage builds once and keeps, such as a loaded model.

    ``.map(tag, on="processes", state=tn.PerWorker(load_model))`` calls ``tag(item, model)``. Each thread or
    process of the stage calls the factory once per run, before its first item; a loop stage has one worker,
    the loop. What a process builds lives in that process and is never pickled.

    Attributes:
        factory: called without arguments in the worker. For process stages it is pickled like the stage's callable.
        close: called with the state when the run ends. Default: nothing.
    """

    factory: Callable[[], Any]
    close: Callable[[Any], None] | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be called."""
        if not callable(self.factory):
            raise InvalidPipeline(
                f"PerWorker({self.factory!r}): give a callable that builds the state, for example the class itself"
            )
        if self.close is not None and not callable(self.close):
            raise InvalidPipeline(
                f"PerWorker(close={self.close!r}): give a callable or leave it out"
            )


def is_count_or_share(value: Any) -> bool:
    """Tell whether `value` is a count (int, 0 or more) or a share (float between 0 and 1)."""
    if isinstance(value, bool):
        return False
    return (isinstance(value, int) and value >= 0) or (isinstance(value, float) and 0 <= value <= 1)
