"""What becomes of a call, drawn by seed: the same calls meet the same fate in every run, whatever the timing.

The numbers come from blake2b over the seed, the request's body and how often that body has been admitted
before. So neither the order of arrival nor the number of connections matters, a refusal (429) changes nothing, and
a second attempt at the same body is drawn anew. What depends on timing is left: the limits and the knee.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b

from tournant.llm.mock.latency import Latency, latency_from
from tournant.llm.mock.settings import RATES, STREAM_RATES, MockSettings

_NUMBERS = struct.Struct("<5Q")


class Fate(Enum):
    """How a call ends."""

    ANSWERED = "answered"
    ERROR = "error"
    OVERLOAD = "overload"
    HANG = "hang"
    GARBAGE = "garbage"
    HALF = "half"
    RESET = "reset"
    CUT = "cut"
    CUT_HARD = "cut hard"
    STREAM_ERROR = "stream error"


@dataclass(frozen=True, slots=True)
class Lot:
    """What was drawn for one call.

    Attributes:
        fate: How it ends.
        latency: Seconds to the first token.
        interval: Seconds from token to token.
        where: For a stream that ends too early: at which share of its tokens.
    """

    fate: Fate
    latency: float
    interval: float
    where: float = 0.0


def digest_of(body: bytes) -> bytes:
    """Return 16 bytes that stand for a request's body."""
    return blake2b(body, digest_size=16).digest()


class Lottery:
    """Draws for the settings in force."""

    def __init__(self, settings: MockSettings) -> None:
        self._key = blake2b(str(settings.seed).encode(), digest_size=16).digest()
        self._latency: Latency = latency_from(settings.latency, "latency")
        self._interval: Latency = latency_from(settings.token_interval, "token_interval")
        fates = (Fate.ERROR, Fate.OVERLOAD, Fate.HANG, Fate.GARBAGE, Fate.HALF, Fate.RESET)
        self._fates = [
            (getattr(settings, name), fate)
            for name, fate in zip(RATES, fates, strict=True)
            if getattr(settings, name)
        ]
        cut, stream_error = (getattr(settings, name) for name in STREAM_RATES)
        self._stream_fates = [
            (share, fate)
            for share, fate in (
                (cut / 2, Fate.CUT), (cut / 2, Fate.CUT_HARD), (stream_error, Fate.STREAM_ERROR),
            )
            if share
        ]  # fmt: skip
        self._always: Lot | None = None
        if (
            self._latency.constant
            and self._interval.constant
            and not self._fates
            and not self._stream_fates
        ):
            self._always = Lot(Fate.ANSWERED, self._latency.first, self._interval.first)

    def draw(self, digest: bytes, attempt: int, *, streamed: bool) -> Lot:
        """Draw for one call.

        Args:
            digest: What `digest_of` gave for its body.
            attempt: How often that body was admitted before.
            streamed: Whether its answer is a stream.
        """
        if self._always is not None:
            return self._always
        raw = blake2b(digest + attempt.to_bytes(8, "little"), key=self._key, digest_size=40)
        # 53 bits and a half: never 0 and never 1, which some distributions can't take.
        first, second, third, fourth, fifth = (
            ((number >> 11) + 0.5) / 2**53 for number in _NUMBERS.unpack(raw.digest())
        )
        fate = _pick(self._fates, first)
        if fate is Fate.ANSWERED and streamed:
            fate = _pick(self._stream_fates, fourth)
        return Lot(fate, self._latency.draw(second), self._interval.draw(third), fifth)


def _pick(shares: list[tuple[float, Fate]], chance: float) -> Fate:
    for share, fate in shares:
        chance -= share
        if chance < 0:
            return fate
    return Fate.ANSWERED
