"""Keys as digests, and values as bytes that are checked when they are read back.

Internal to `tournant.cache`, which exports the public names. Nothing here touches a file.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from array import array
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from tournant._cache_stores import CacheError, InvalidCache
from tournant.errors import short

_DIGEST = 32


def cache_key(*parts: Any) -> bytes:
    """Return a key of 32 bytes for everything that decides a result: model, version, parameters, text.

    It is the blake2b digest of an encoding in which each part ends where it ends: ``("ab", "c")`` and ``("a", "bc")``, ``1`` and
    ``"1"``, ``True`` and ``1`` have different keys, on every machine the same ones. Lists and tuples count as the same, and so do dicts in
    any order.

    Args:
        parts: ``None``, ``bool``, ``int``, ``float``, ``str``, bytes, paths, numpy arrays and scalars, and lists, tuples, sets
            and dicts of such.

    Raises:
        InvalidCache: a part is something else.
    """
    return blake2b(b"".join(_canonical(parts)), digest_size=_DIGEST).digest()


def keyed_by(*parts: Any) -> Callable[[Any], bytes]:
    """Return a function of an item that gives ``cache_key(*parts, item)``; the parts are hashed once.

    ``Cache(embed, key=keyed_by("minilm", "2", {"pooling": "mean"}), store=...)``
    """
    begun = blake2b(b"".join(_canonical(parts)), digest_size=_DIGEST)

    def key(item: Any) -> bytes:
        digest = begun.copy()
        if type(item) is str:  # as `_canonical` has it, in a third of the time
            text = item.encode("utf-8", "surrogatepass")
            digest.update(b"s%x:" % len(text))
            digest.update(text)
        else:
            digest.update(b"".join(_canonical((item,))))
        return digest.digest()

    return key


def _canonical(parts: Any) -> list[bytes]:
    """Encode parts so that every encoding tells its own type and length: none begins another."""
    out: list[bytes] = []
    for part in parts:
        if isinstance(part, str):
            _sized(out, b"s", part.encode("utf-8", "surrogatepass"))
        elif isinstance(part, (bytes, bytearray, memoryview)):
            _sized(out, b"b", bytes(part))
        elif part is None or part is True or part is False:
            out.append({None: b"n", True: b"t", False: b"f"}[part])
        elif type(part).__module__ == "numpy" and hasattr(part, "tobytes"):
            if not _plain_dtype(part.dtype):
                raise _no_key(part)
            _sized(out, b"a", f"{part.dtype.str}{part.shape}".encode())
            _sized(out, b"r", part.tobytes())
        elif isinstance(part, int):
            out.append(b"i%x;" % part)
        elif isinstance(part, float):
            out.append(b"d" + struct.pack(">d", part))
        elif isinstance(part, (list, tuple)):
            out.append(b"l%x:" % len(part))
            out += _canonical(part)
        elif isinstance(part, Mapping):
            pairs = sorted(b"".join(_canonical(pair)) for pair in part.items())
            out += [b"m%x:" % len(pairs), *pairs]
        elif isinstance(part, (set, frozenset)):
            members = sorted(b"".join(_canonical((member,))) for member in part)
            out += [b"u%x:" % len(members), *members]
        elif isinstance(part, os.PathLike):
            _sized(out, b"p", os.fsencode(part))
        else:
            raise _no_key(part)
    return out


def _sized(out: list[bytes], tag: bytes, data: bytes) -> None:
    out.append(b"%c%x:" % (tag, len(data)))
    out.append(data)


def _no_key(part: Any) -> InvalidCache:
    return InvalidCache(
        f"a {type(part).__name__} is no part of a cache key ({short(part)}): nothing says what it is equal to on another day. "
        "Give what decides it as text, numbers, bytes, arrays, lists or dicts"
    )


class Stored(NamedTuple):
    """A value as it is written: a type tag, what the tag needs to know, and the bytes."""

    kind: int
    about: str
    data: bytes


BYTES, ARRAY, SCALAR, FLOATS, JSON = range(1, 6)


class Damaged(Exception):
    """Bytes that no value was written as."""


def encode_value(value: Any) -> Stored:
    """Return a value in the form in which it is written.

    Arrays are written as they lie in memory (float32 as float32), lists of floats as float64, the rest as JSON.

    Raises:
        CacheError: it would not come back as it is.
    """
    if type(value) is bytes:
        return Stored(BYTES, "", value)
    if type(value) is list and value and all(type(number) is float for number in value):
        numbers = array("d", value)
        if sys.byteorder == "big":
            numbers.byteswap()
        return Stored(FLOATS, "", numbers.tobytes())
    if type(value).__module__ == "numpy" and _plain_dtype(getattr(value, "dtype", None)):
        about = json.dumps([value.dtype.str, value.shape])
        if type(value).__name__ == "ndarray":
            return Stored(ARRAY, about, value.tobytes())
        if value.shape == ():
            return Stored(SCALAR, about, value.tobytes())
    _check_json(value, value)
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except ValueError as error:
        raise CacheError(f"a cache can't store {short(value)}: {error}") from error
    return Stored(JSON, "", text.encode("utf-8", "surrogatepass"))


def decode_value(stored: Stored) -> Any:
    """Return the value that was written. Arrays are read-only.

    Raises:
        Damaged: it can't have been written so.
        CacheError: it is an array, and numpy is not installed.
    """
    kind, about, data = stored
    if not (type(kind) is int and type(about) is str and type(data) is bytes):
        raise Damaged
    try:
        if kind == BYTES:
            return data
        if kind in (ARRAY, SCALAR):
            return _decode_array(kind, about, data)
        if kind == FLOATS:
            numbers = array("d", data)
            if sys.byteorder == "big":
                numbers.byteswap()
            return numbers.tolist()
        if kind == JSON:
            return json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, TypeError) as error:
        raise Damaged from error
    raise Damaged


def _decode_array(kind: int, about: str, data: bytes) -> Any:
    try:
        import numpy as np
    except ImportError as error:
        raise CacheError(
            "this cache holds numpy arrays, and numpy is not installed: install it, or give the cache another file"
        ) from error
    spelled, shape = json.loads(about)
    dtype = np.dtype(spelled)
    if not _plain_dtype(dtype) or len(data) != math.prod(shape) * dtype.itemsize:
        raise Damaged
    found = np.frombuffer(data, dtype).reshape(shape) if data else np.empty(shape, dtype)
    found.flags.writeable = False
    return found[()] if kind == SCALAR else found


def frozen(value: Any) -> Any:
    """Return an array that can be shared: read-only, and not a row that keeps its whole batch in memory. Else the value itself."""
    if type(value).__module__ != "numpy" or type(value).__name__ != "ndarray":
        return value
    shared = value.view() if value.base is None else value.copy()
    shared.flags.writeable = False
    return shared


def checksum(key: bytes, stored: Stored) -> bytes:
    """Return eight bytes that tell a damaged row, or one under another's key."""
    digest = blake2b(key, digest_size=8)
    digest.update(b"%d;%d;" % (stored.kind, len(stored.about)))
    digest.update(stored.about.encode())
    digest.update(stored.data)
    return digest.digest()


def _plain_dtype(dtype: Any) -> bool:
    return getattr(dtype, "kind", "O") in "biufcSUmM"


def _check_json(value: Any, whole: Any) -> None:
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return
    if kind is list:
        for part in value:
            _check_json(part, whole)
        return
    if kind is dict and all(type(name) is str for name in value):
        for part in value.values():
            _check_json(part, whole)
        return
    what = "a dict with keys that are no strings" if kind is dict else f"a {kind.__name__}"
    raise CacheError(
        f"a cache can't store {what} so that it comes back the same ({short(whole)}): let the function return numpy arrays, bytes, or "
        "what JSON can hold (None, bool, int, float, str, and lists and dicts of such)"
    )
