"""What `tournant.streams` refuses: its errors, and the checks of sources and options. Internal; `tournant.streams` exports the errors."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, TypeVar

from tournant.errors import TournantError, short

T = TypeVar("T")


class InvalidStream(TournantError, ValueError):
    """An operator's source or option can't be as it was given."""


class StreamTimeout(TournantError, TimeoutError):
    """A stream's next item took longer than `timeout` allows."""


class StreamBusy(TournantError, RuntimeError):
    """A stream was read or closed while another task waited for its next item."""


def iterator(operator: str, source: AsyncIterable[T]) -> AsyncIterator[T]:
    """Return the iterator of a source, or refuse what has none."""
    try:
        return aiter(source)
    except TypeError as error:
        if hasattr(source, "__aiter__"):
            raise
        hint = (
            " (call it: a function is not what it yields)"
            if callable(source)
            else " (await it first)"
            if hasattr(source, "__await__")
            else ""
        )
        raise InvalidStream(
            f"{operator}(): {short(source)} is not an async iterable{hint}; give what `async for` can read"
        ) from error


def whole(operator: str, option: str, value: Any) -> None:
    """Refuse what is no count."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidStream(f"{operator}(): {option}={value!r}; give a whole number of 1 or more")


def seconds(operator: str, option: str, value: Any) -> None:
    """Refuse what is no time to wait; ``None`` is none."""
    if value is not None and (
        not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0
    ):
        raise InvalidStream(f"{operator}(): {option}={value!r}; give seconds, above 0")
