"""Where `tournant.cache` keeps values: the protocol, and the store in memory.

Internal; `tournant.cache` exports the public names.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

from tournant.engine.budget import parse_bytes, size_of
from tournant.errors import InvalidPipeline, TournantError

V = TypeVar("V")

_OVERHEAD = 200  # an entry, its slots in dict and circle


class CacheError(TournantError):
    """A cache's store can't be opened, read or written, or was given a value that it can't keep."""


class InvalidCache(CacheError, ValueError):
    """A cache's function, key or option can't be as it was given."""


class Missing(enum.Enum):
    """The type of `MISSING`."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return False


MISSING: Final = Missing.MISSING
"""What stands for a value that isn't there. ``None`` is a value like any other."""


class Store(Protocol):
    """Keeps values by key. It may forget any of them at any time; it must never give another value than it was given.

    The methods are called from the event loop and must not block it. Trouble that only costs time (a lock, a full disk) is logged
    once, and the store goes on as if it held nothing; trouble that only the user can mend is a `CacheError`.
    """

    async def get_many(self, keys: Iterable[Hashable]) -> dict[Any, Any]:
        """Return the values of those keys that are here."""
        ...

    async def put_many(self, values: Mapping[Any, Any]) -> None:
        """Keep values, in place of those that their keys had."""
        ...

    async def delete_many(self, keys: Iterable[Hashable]) -> None:
        """Forget what those keys have."""
        ...


class Entry(Generic[V]):
    """A value in memory, and whether it was used since the clock's hand last came by."""

    __slots__ = ("size", "used", "value")

    def __init__(self, value: V, size: int) -> None:
        self.value = value
        self.size = size
        self.used = False


class MemoryStore:
    """Keeps values in memory, up to a number of bytes; then the least recently used go first.

    Recency is kept as a clock keeps it: a hit only marks its entry, and when room is needed the entries are gone through in a
    circle, where a marked one loses its mark and stays. That is what makes `peek` nearly as cheap as a look into a dict.
    Source: "A Paging Experiment with the Multics System", F. J. Corbato, 1968.

    Args:
        max_bytes: Bytes of keys and values together, with some 200 for each entry; a number, or text such as ``"64MiB"``. Arrays,
            strings and bytes are counted exactly, the insides of other objects estimated. A value larger than this isn't kept.

    Attributes:
        entries: for `Cache`, which looks into it directly.
        bytes: how many are held.
        evicted: how many values were dropped for want of room.

    Raises:
        InvalidCache: `max_bytes` is no such number.
    """

    def __init__(self, max_bytes: int | str = "64MiB") -> None:
        self.entries: dict[Hashable, Entry[Any]] = {}
        self.bytes = 0
        self.evicted = 0
        self._max_bytes = as_bytes("MemoryStore", "max_bytes", max_bytes)
        self._circle: deque[tuple[Hashable, Entry[Any]]] = deque()  # the hand is at its left end
        # Runs on loops of several threads may share a cache. Reentrant, for a value's finalizer may come here.
        self._lock = threading.RLock()

    def peek(self, key: Hashable) -> Any:
        """Return a key's value, or `MISSING`. For any thread."""
        try:
            entry = self.entries[key]
        except KeyError:
            return MISSING
        entry.used = True
        return entry.value

    def put(self, key: Hashable, value: Any) -> None:
        """Keep a value."""
        size = size_of(value) + size_of(key) + _OVERHEAD
        with self._lock:
            self.delete(key)
            if size > self._max_bytes:
                return
            while self.bytes + size > self._max_bytes:
                self._evict()
            entry = Entry(value, size)
            self.entries[key] = entry
            self.bytes += size
            self._circle.append((key, entry))
            if len(self._circle) > 2 * len(self.entries) + 64:
                self._circle = deque(self.entries.items())

    def delete(self, key: Hashable) -> None:
        """Forget a key's value."""
        with self._lock:
            entry = self.entries.pop(key, None)
            if entry is not None:
                self.bytes -= entry.size
                # The circle holds the entry until the hand comes by; another thread may be about to look into it.
                entry.value = MISSING

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self.entries.clear()
            self._circle.clear()
            self.bytes = 0

    async def get_many(self, keys: Iterable[Hashable]) -> dict[Any, Any]:
        """See `Store`."""
        found = ((key, self.peek(key)) for key in keys)
        return {key: value for key, value in found if value is not MISSING}

    async def put_many(self, values: Mapping[Any, Any]) -> None:
        """See `Store`."""
        for key, value in values.items():
            self.put(key, value)

    async def delete_many(self, keys: Iterable[Hashable]) -> None:
        """See `Store`."""
        for key in keys:
            self.delete(key)

    def __len__(self) -> int:
        """Return the number of values held."""
        return len(self.entries)

    def _evict(self) -> None:
        key, entry = self._circle.popleft()
        if self.entries.get(key) is not entry:
            return  # it was deleted or replaced
        if entry.used:
            entry.used = False
            self._circle.append((key, entry))
            return
        del self.entries[key]
        self.bytes -= entry.size
        self.evicted += 1


def as_bytes(where: str, option: str, value: int | str) -> int:
    """Return a number of bytes given as a number or text.

    Raises:
        InvalidCache: it is neither.
    """
    try:
        return parse_bytes(value)
    except InvalidPipeline:
        raise InvalidCache(
            f'{where}(): {option}={value!r}; give bytes as a whole number above 0, or text such as "512MiB"'
        ) from None
