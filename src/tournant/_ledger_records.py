"""What a ledger holds: keys, fingerprints, outcomes and runs, and how each is stored.

Internal to `tournant.ledger`, which exports the public names. Nothing here touches the file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from tournant.errors import LedgerError, short

Key: TypeAlias = "str | bytes | int | os.PathLike[str] | os.PathLike[bytes]"
"""What can name an input. ``"1"``, ``b"1"`` and ``1`` are three different keys."""

Fingerprint: TypeAlias = "str | bytes | int | float | tuple[Fingerprint, ...] | None"
"""What can tell two states of an input apart."""

Outcome = Literal["done", "failed", "filtered", "open"]
"""How an input ended. ``"open"``: it was settled, has changed since, and has not ended again."""

OPEN, DONE, FAILED, FILTERED = 0, 1, 2, 3
_CODES = {"done": DONE, "failed": FAILED, "filtered": FILTERED}
_OUTCOMES: tuple[Outcome, ...] = ("open", "done", "failed", "filtered")

_ERROR_CHARS = 4_000


class Entry(NamedTuple):
    """How one input ended.

    Attributes:
        key: The input's key. Read back, a path is the ``str`` (or ``bytes``) that it stands for.
        fingerprint: What told this state of the input from others (a hash, or size and time of change).
        version: The version of the pipeline that processed it.
        outcome: ``"done"``, ``"failed"`` or ``"filtered"``. ``"open"`` is only ever read.
        outputs: How many items of this input the sink took.
        stage: The stage that failed; ``None`` unless failed.
        error: What it said; ``None`` unless failed. Longer than 4,000 characters is cut.
        attempts: How often that stage tried; 0 unless failed.
    """

    key: Key
    fingerprint: Fingerprint
    version: str
    outcome: Outcome
    outputs: int = 0
    stage: str | None = None
    error: str | None = None
    attempts: int = 0


class Counts(NamedTuple):
    """How many inputs the ledger knows, by their last outcome."""

    done: int
    failed: int
    filtered: int
    open: int


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run, as the ledger remembers it.

    Attributes:
        id: The run's number in this ledger, counted from 1.
        started: Seconds since the epoch.
        ended: Seconds since the epoch; ``None`` when the run is still going or was killed.
        version: The version of its pipeline.
        summary: What the run said of itself at its end; ``None`` as long as ``ended`` is.
    """

    id: int
    started: float
    ended: float | None
    version: str
    summary: dict[str, Any] | None


# Values. One letter says the type, so that values of different types never meet. "surrogatepass" is the
# one text encoding here that is lossless *and* injective for file names that are not UTF-8:
# "surrogateescape" would store the names "\udcc3\udca9" and "é" as the same two bytes.


def encode_key(key: Key) -> bytes:
    """Turn a key into the bytes that stand for it.

    Raises:
        LedgerError: The key is of another type than `Key`.
    """
    if isinstance(key, os.PathLike):
        key = os.fspath(key)
    if isinstance(key, (str, bytes, int)):
        return encode_value(key)
    raise LedgerError(
        f"{short(key)} of type {type(key).__name__} cannot be a key in a ledger: give the "
        "pipeline a key=... that returns a str, bytes, an int or a path."
    )


def decode_key(data: bytes) -> str | bytes | int:
    """Turn stored bytes back into the key."""
    key = decode_value(data)
    assert isinstance(key, (str, bytes, int))
    return key


def encode_value(value: Fingerprint) -> bytes:
    """Turn a fingerprint into bytes that are equal exactly when the values are.

    Raises:
        LedgerError: The value is of another type than `Fingerprint`.
    """
    if isinstance(value, str):
        return b"s" + value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return b"b" + value
    if isinstance(value, int):
        return b"i%x" % value
    if isinstance(value, tuple):
        parts = map(encode_value, value)
        return b"t" + b"".join(b"%d:%b" % (len(part), part) for part in parts)
    if value is None:
        return b"n"
    if isinstance(value, float):
        return b"f" + value.hex().encode()
    raise LedgerError(
        f"{short(value)} of type {type(value).__name__} cannot be a fingerprint: return a str, "
        "bytes, a number, None or a tuple of those."
    )


def decode_value(data: bytes) -> Fingerprint:
    """Turn stored bytes back into the value."""
    kind, rest = data[:1], data[1:]
    if kind == b"s":
        return rest.decode("utf-8", "surrogatepass")
    if kind == b"b":
        return rest
    if kind == b"i":
        return int(rest, 16)
    if kind == b"f":
        return float.fromhex(rest.decode())
    if kind == b"t":
        parts: list[Fingerprint] = []
        while rest:
            size, _, rest = rest.partition(b":")
            parts.append(decode_value(rest[: int(size)]))
            rest = rest[int(size) :]
        return tuple(parts)
    return None


def plain_text(text: str) -> str:
    r"""Return text that SQLite can store: lone surrogates become ``\udc..``."""
    return text.encode("utf-8", "backslashreplace").decode()


def to_row(entry: Entry) -> tuple[Any, ...]:
    """Return what is stored of an entry.

    Raises:
        LedgerError: Its key, fingerprint or outcome cannot be stored.
    """
    code = _CODES.get(entry.outcome)
    if code is None:
        raise LedgerError(
            f"The outcome {entry.outcome!r} of {entry.key!r} cannot be recorded: "
            "an input ends as 'done', 'failed' or 'filtered'."
        )
    return (
        encode_key(entry.key),
        encode_value(entry.fingerprint),
        plain_text(entry.version),
        code,
        code == DONE,
        entry.outputs,
        entry.attempts,
        None if entry.stage is None else plain_text(entry.stage),
        None if entry.error is None else plain_text(entry.error[:_ERROR_CHARS]),
    )


def to_entry(row: tuple[Any, ...]) -> Entry:
    """Return the entry that a stored row stands for."""
    key, fingerprint, version, outcome, outputs, attempts, stage, error = row
    return Entry(
        decode_key(key),
        decode_value(fingerprint),
        version,
        _OUTCOMES[outcome],
        outputs,
        stage,
        error,
        attempts,
    )
