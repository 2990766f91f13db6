"""Where `tournant.cache` keeps values: the protocol, and the store in memory.

Internal; `tournant.cache` exports the public names.
"""

from __future__ import annotations

import enum
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Final, Protocol

from tournant.engine.budget import parse_bytes, size_of
from tournant.errors import InvalidPipeline, TournantError


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


class MemoryStore:
    """Keeps values in memory, up to a number of bytes; then the least recently used go first.

    Recency is exact to within a quarter of `max_bytes`: what was used within the last three quarters of it is never dropped. That
    inexactness is what makes `peek` as cheap as a look into a dict.

    Args:
        max_bytes: Bytes of keys and values together, with some 200 for each entry; a number, or text such as ``"64MiB"``. Arrays,
            strings and bytes are counted exactly, the insides of other objects estimated. A value larger than this isn't kept.

    Attributes:
        peek: ``peek(key)`` returns the key's value, or `MISSING`.

    Raises:
        InvalidCache: `max_bytes` is no such number.
    """

    def __init__(self, max_bytes: int | str = "64MiB") -> None:
        self.entries = Entries(as_bytes("MemoryStore", "max_bytes", max_bytes))
        self.peek = self.entries.__getitem__

    def put(self, key: Hashable, value: Any) -> None:
        """Keep a value."""
        self.entries.put(key, value, size_of(value) + size_of(key) + _OVERHEAD)

    def delete(self, key: Hashable) -> None:
        """Forget a key's value."""
        self.entries.drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self.entries.drop_all()

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
            self.entries.drop(key)

    def __len__(self) -> int:
        """Return the number of values held."""
        return len(self.entries.sizes)

    @property
    def bytes(self) -> int:
        """How many bytes are held."""
        return self.entries.bytes

    @property
    def evicted(self) -> int:
        """How many values were dropped for want of room."""
        return self.entries.evicted


_OVERHEAD = 200  # the slots of an entry in the dicts below, and its size as an int
_LATELY = 4  # the newest entries are at most this part of the bytes


class Entries(dict[Hashable, Any]):
    """The newest entries, looked up by C code alone; the others lie in `aged`, in the order of their last use.

    A lookup that misses here comes to `__missing__`, which brings an aged entry back. When the newest have become a quarter of
    the bytes, they all age.
    """

    __slots__ = ("_lock", "aged", "bytes", "evicted", "lately", "max_bytes", "sizes")

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.max_bytes = max_bytes
        self.aged: OrderedDict[Hashable, Any] = OrderedDict()
        self.sizes: dict[Hashable, int] = {}
        self.bytes = 0
        self.lately = 0
        self.evicted = 0
        # Runs on loops of several threads may share a cache. Reentrant, for a value's finalizer may come here.
        self._lock = threading.RLock()

    def __missing__(self, key: Hashable) -> Any:
        if key not in self.sizes:
            return MISSING
        with self._lock:
            value = self.aged.pop(key, MISSING)
            if value is MISSING:
                return self.get(key, MISSING)  # another thread was here
            self[key] = value
            self._newer(self.sizes[key])
            return value

    def put(self, key: Hashable, value: Any, size: int) -> None:
        with self._lock:
            self.drop(key)
            if size > self.max_bytes:
                return
            self[key] = value
            self.sizes[key] = size
            self.bytes += size
            self._newer(size)
            while self.bytes > self.max_bytes:
                oldest, _ = self.aged.popitem(last=False)
                self.bytes -= self.sizes.pop(oldest)
                self.evicted += 1

    def drop(self, key: Hashable) -> None:
        with self._lock:
            size = self.sizes.pop(key, None)
            if size is None:
                return
            self.bytes -= size
            if self.pop(key, MISSING) is MISSING:
                self.aged.pop(key)
            else:
                self.lately -= size

    def drop_all(self) -> None:
        with self._lock:
            self.clear()
            self.aged.clear()
            self.sizes.clear()
            self.bytes = self.lately = 0

    def _newer(self, size: int) -> None:
        self.lately += size
        if self.lately * _LATELY > self.max_bytes:
            self.aged.update(self)
            self.clear()
            self.lately = 0


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
