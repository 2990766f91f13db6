"""How long a client waits for what."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tournant.errors import short
from tournant.llm.errors import InvalidClient


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a client waits, in seconds; ``None`` waits for ever. What runs out raises `LLMTimeout`, which names it.

    Attributes:
        connect: For a connection: name look-up, TCP and TLS. Default 10.
        first_token: From the start of a streamed call to its first piece. Comments that a provider sends to keep the
            connection alive are no pieces. Default 60.
        between_tokens: From one piece of a streamed answer to the next. The time in which the reader works on a piece
            does not count. Default 30.
        total: From the start to the end of a call that is not streamed, reading the reply included. Default 600.

    None of them counts while a call waits for its turn under a limit.

    Raises:
        InvalidClient: when a figure can't be.
    """

    connect: float | None = 10.0
    first_token: float | None = 60.0
    between_tokens: float | None = 30.0
    total: float | None = 600.0

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        for name in ("connect", "first_token", "between_tokens", "total"):
            value = getattr(self, name)
            if value is not None and (
                not isinstance(value, (int, float))
                or isinstance(value, bool)
                or not 0 < value < math.inf
            ):
                raise InvalidClient(
                    f"Timeouts({name}={short(value)}): give seconds, more than 0, or None to wait for ever"
                )
