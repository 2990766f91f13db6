"""The work that the engine benchmarks give to their contestants.

The functions live in a module of their own so that every contestant's workers can import them.
An item that stands for CPU work carries its own amount: the first four bytes of a payload are the
number of rounds to burn, so no contestant needs a closure or a `partial`.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable

KIB = 1024


async def add_one(x: int) -> int:
    return x + 1


async def wait_10_ms(x: int) -> int:
    await asyncio.sleep(0.010)
    return x


async def wait_5_ms(payload: bytes) -> bytes:
    await asyncio.sleep(0.005)
    return payload


async def to_kibibyte(x: int) -> bytes:
    """Give every item a body, so that an unbounded buffer shows in the memory."""
    return x.to_bytes(8, "little") * (KIB // 8)


async def slow_sink(_: bytes) -> None:
    await asyncio.sleep(0.001)


def increment(x: int) -> int:
    return x + 1


def length(payload: bytes) -> int:
    return len(payload)


def native(payload: bytes) -> bytes:
    """Hash `payload`: native code that releases the GIL for anything above 2 KiB."""
    return hashlib.sha256(payload).digest()


def burn(payload: bytes) -> bytes:
    """Work in pure Python for as many rounds as `payload` says, and give as much back."""
    total = 0
    for i in range(int.from_bytes(payload[:4], "little")):
        total = (total * 31 + i) & 0xFFFF
    return total.to_bytes(4, "little") + payload[4:]


def hash_long(payload: bytes) -> bytes:
    """Hash a long buffer in the name of `payload`, whose last four bytes are the length."""
    size = int.from_bytes(payload[-4:], "little")
    return hashlib.sha256(BUFFER[:size]).digest()


def burn_and_hash(payload: bytes) -> bytes:
    """Do the CPU work of the mixed pipeline."""
    return hash_long(burn(payload))


BUFFER = memoryview(bytes(4 << 20))


def seconds_per_call(
    call: Callable[[bytes], object], argument: bytes, budget: float = 0.02
) -> float:
    """Return the fastest of five timings of `call(argument)`, in seconds."""
    best = float("inf")
    for _ in range(5):
        count = 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < budget:
            call(argument)
            count += 1
        best = min(best, elapsed / count)
    return best


def native_payload(seconds: float) -> bytes:
    """Return a buffer that `native` hashes in about `seconds`."""
    probe = bytes(256 * KIB)
    return bytes(max(4 * KIB, int(len(probe) * seconds / seconds_per_call(native, probe))))


def burn_payload(seconds: float, native_seconds: float = 0.0) -> bytes:
    """Return 1 KiB that `burn` works on for about `seconds`, and `hash_long` for `native_seconds`."""
    rounds = 2_000
    probe = rounds.to_bytes(4, "little") + bytes(KIB - 4)
    rounds = int(rounds * seconds / seconds_per_call(burn, probe))
    size = len(native_payload(native_seconds)) if native_seconds else 0
    return rounds.to_bytes(4, "little") + bytes(KIB - 8) + size.to_bytes(4, "little")
