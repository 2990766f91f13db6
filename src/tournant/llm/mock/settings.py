"""What the provider does, as one frozen value: validated when built, and again whenever it is changed while it runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tournant.errors import short
from tournant.llm.mock.latency import InvalidMockSettings, latency_from

__all__ = ["FIXED", "RATES", "InvalidMockSettings", "MockSettings"]

RATES = (
    "error_rate", "overload_rate", "hang_rate", "garbage_rate", "half_rate", "reset_rate",
)  # fmt: skip
"""The shares of calls that end badly, each in its way; together no more than 1."""
STREAM_RATES = ("cut_rate", "stream_error_rate")
"""The shares of streams that end badly; together no more than 1."""
FIXED = ("host", "port", "api_key", "max_body")
"""What can't change while it runs."""
_HEADERS = ("openai", "anthropic", "none")
_WHOLE = {
    "knee": 1,
    "context": 1,
    "quota": 0,
    "answer_tokens": 0,
    "dimensions": 1,
    "seed": None,
    "max_body": 1,
}
_OPTIONAL = ("rpm", "tpm", "knee", "context", "quota")
MOST_TOKENS = 131_072
"""The longest answer, in tokens."""
MOST_DIMENSIONS = 16_384


@dataclass(frozen=True, slots=True)
class MockSettings:
    """What the provider does.

    Attributes:
        host: The address to listen on. Default 127.0.0.1: this machine alone.
        port: The port to listen on; 0, the default, takes a free one.
        rpm: Requests a minute, or ``None``, the default, for no limit.
        tpm: Tokens a minute, prompts and answers together, or ``None``.
        burst: How many seconds' worth of each limit may come at once after a pause. Default 1, because providers count in
            shorter slices than they advertise; 60 allows the whole minute's at one blow. Never less than one request.
        headers: How the limits are told: ``"openai"`` (``x-ratelimit-...``, ``retry-after``, ``retry-after-ms``), ``"anthropic"``
            (``anthropic-ratelimit-...``, ``retry-after``) or ``"none"`` (not at all, not even ``retry-after``).
        latency: Seconds to the first token: a number or a distribution, see `latency_from`. Default 0.
        token_interval: Seconds from one token of an answer to the next: a number, or a distribution from which one is drawn
            for each answer. An answer that is not streamed comes when its last token would have. Default 0.
        knee: Beyond so many calls at once everything takes longer in proportion, so that throughput stays
            flat. Default ``None``: it never does.
        error_rate: The share of calls answered 500, after their latency. Default 0, as for all shares.
        overload_rate: The share of calls answered 503, at once.
        hang_rate: The share of calls that are accepted and never answered.
        garbage_rate: The share of calls answered with an HTML page and status 200.
        half_rate: The share of calls answered with half of their JSON and status 200.
        reset_rate: The share of calls whose connection is reset after their latency.
        cut_rate: The share of streams that end too early: half of them as if they were complete but for ``[DONE]``, the other
            half with the connection.
        stream_error_rate: The share of streams that end too early with an error event.
        api_key: The key that calls must carry, or ``None``. It is never shown.
        context: The model's context in tokens, or ``None``: prompt and answer beyond it are refused with 400.
        quota: Tokens until the account is used up (429 ``insufficient_quota``), or ``None``.
        models: The models it has; others are answered 404. Empty, the default: any name will do.
        answer_tokens: The length of an answer when the call says none (``max_tokens``); 0 for empty ones. Default 16.
        dimensions: The length of a vector when the call says none. Default 256.
        seed: What fate and latency are drawn with: a whole number. Default 0.
        max_body: Bytes of the longest request body; longer ones are answered 413. Default 32 MiB.

    Raises:
        InvalidMockSettings: when a value can't be.
    """

    host: str = "127.0.0.1"
    port: int = 0
    rpm: float | None = None
    tpm: float | None = None
    burst: float = 1.0
    headers: str = "openai"
    latency: float | str = 0.0
    token_interval: float | str = 0.0
    knee: int | None = None
    error_rate: float = 0.0
    overload_rate: float = 0.0
    hang_rate: float = 0.0
    garbage_rate: float = 0.0
    half_rate: float = 0.0
    reset_rate: float = 0.0
    cut_rate: float = 0.0
    stream_error_rate: float = 0.0
    api_key: str | None = field(default=None, repr=False)
    context: int | None = None
    quota: int | None = None
    models: tuple[str, ...] = ()
    answer_tokens: int = 16
    dimensions: int = 256
    seed: int = 0
    max_body: int = 32 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        if not isinstance(self.host, str) or not self.host:
            raise InvalidMockSettings(
                f"host={short(self.host)}: give an address, for example 127.0.0.1"
            )
        if not _whole(self.port) or not 0 <= self.port <= 65_535:
            raise InvalidMockSettings(
                f"port={short(self.port)}: give a whole number from 0 (any free port) to 65535"
            )
        for name in ("rpm", "tpm", "burst"):
            self._check_positive(name, getattr(self, name))
        if self.headers not in _HEADERS:
            raise InvalidMockSettings(
                f"headers={short(self.headers)}: give one of {', '.join(_HEADERS)}"
            )
        latency_from(self.latency, "latency")
        latency_from(self.token_interval, "token_interval")
        for name, least in _WHOLE.items():
            self._check_whole(name, getattr(self, name), least)
        self._check_shares(RATES)
        self._check_shares(STREAM_RATES)
        if self.api_key is not None and (not isinstance(self.api_key, str) or not self.api_key):
            raise InvalidMockSettings("api_key: give a string that is not empty, or None")
        if isinstance(self.models, list):  # JSON has no tuples
            object.__setattr__(self, "models", tuple(self.models))
        if not isinstance(self.models, tuple) or not all(
            isinstance(name, str) and name for name in self.models
        ):
            raise InvalidMockSettings(
                f"models={short(self.models)}: give a list of names; an empty one takes any name"
            )
        if self.answer_tokens > MOST_TOKENS:
            raise InvalidMockSettings(
                f"answer_tokens={self.answer_tokens}: the longest answer has {MOST_TOKENS} tokens"
            )
        if self.dimensions > MOST_DIMENSIONS:
            raise InvalidMockSettings(
                f"dimensions={self.dimensions}: the longest vector has {MOST_DIMENSIONS} numbers"
            )

    def _check_positive(self, name: str, value: object) -> None:
        if value is None and name in _OPTIONAL:
            return
        if not _number(value) or not 0 < value < math.inf:  # type: ignore[operator]
            none = ", or null for no limit" if name in _OPTIONAL else ""
            raise InvalidMockSettings(f"{name}={short(value)}: give a number above 0{none}")

    def _check_whole(self, name: str, value: object, least: int | None) -> None:
        if value is None and name in _OPTIONAL:
            return
        if not _whole(value) or (least is not None and value < least):  # type: ignore[operator]
            wanted = "a whole number" if least is None else f"a whole number from {least} on"
            none = ", or null for none" if name in _OPTIONAL else ""
            raise InvalidMockSettings(f"{name}={short(value)}: give {wanted}{none}")

    def _check_shares(self, names: tuple[str, ...]) -> None:
        for name in names:
            value = getattr(self, name)
            if not _number(value) or not 0 <= value <= 1:
                raise InvalidMockSettings(
                    f"{name}={short(value)}: give a share from 0 to 1; 1 % is 0.01"
                )
        total = math.fsum(getattr(self, name) for name in names)
        if total > 1 + 1e-9:
            raise InvalidMockSettings(
                f"{' + '.join(names)} = {total:g}: a call has one fate, so together they are at most 1"
            )

    def changed(self, changes: Mapping[str, Any]) -> MockSettings:
        """Return these settings with others in their place.

        Raises:
            InvalidMockSettings: for a name that is none, one that can't change while it runs, or a value that can't be.
        """
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                import difflib

                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise InvalidMockSettings(
                    f"there is no setting {short(name)}; {hint}The settings: {', '.join(n for n in known if n not in FIXED)}"
                )
            if name in FIXED:
                raise InvalidMockSettings(
                    f"{name} can't change while the provider runs: start it again with another one"
                )
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON has them; of the key no more than whether one is asked for."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["api_key"] = self.api_key is not None
        values["models"] = list(self.models)
        return values


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
