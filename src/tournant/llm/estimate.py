"""A cheap guess at how many tokens a request will use, to reserve before it is sent.

It has to be quick, not right: it is settled from the reply's usage. A token is taken as four bytes of UTF-8, which is close
for English, and a little high for most other languages and for code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BYTES_PER_TOKEN = 4
PER_MESSAGE = 4
"""Tokens that a message costs beside its text (its role and its marks)."""
PER_ATTACHMENT = 800
"""Tokens for a picture, a sound or a file: of the order of a picture of a million pixels."""
UNSAID = 256
"""Tokens of an answer where the request sets no ``max_tokens``."""

_ANSWER = ("max_completion_tokens", "max_tokens", "max_output_tokens")


def estimate_tokens(body: Mapping[str, Any]) -> int:
    """Return about how many tokens the request with this body will use: its prompt and the answer it allows.

    That is a quarter of the prompt's bytes, 4 for each message, 800 for each picture or other attachment, and for the
    answer what ``max_completion_tokens`` or ``max_tokens`` allows (256 where neither is given), times ``n``. Requests for
    embeddings have no answer. What can't be read counts as nothing; a wrong body is the provider's to refuse.

    Args:
        body: The body of a request for chat, completions or embeddings.

    Returns:
        Tokens, 1 or more.
    """
    size = float(estimate_prompt(body))
    if body.get("messages") is not None or "prompt" in body:
        size += _answer(body)
    return max(1, round(size))


def estimate_prompt(body: Mapping[str, Any]) -> int:
    """Return about how many tokens the request with this body will have read; see `estimate_tokens`."""
    size = 0.0
    messages = body.get("messages")
    if isinstance(messages, Sequence) and not isinstance(messages, str):
        for message in messages:
            size += PER_MESSAGE
            if isinstance(message, Mapping):
                size += _tokens(message.get("content"))
                calls = message.get("tool_calls")
                if calls:
                    size += len(str(calls)) / BYTES_PER_TOKEN
    for name in ("prompt", "input"):
        if name in body:
            size += _tokens(body[name])
    tools = body.get("tools")
    if tools:
        size += len(str(tools)) / BYTES_PER_TOKEN
    return round(size)


def _answer(body: Mapping[str, Any]) -> float:
    allowed: Any = next((body[name] for name in _ANSWER if body.get(name) is not None), UNSAID)
    times = body.get("n")
    if not isinstance(allowed, (int, float)) or not 0 <= allowed < 1e12:
        allowed = UNSAID
    if not isinstance(times, int) or not 0 < times < 1_000:
        times = 1
    return float(allowed * times)


def _tokens(value: Any) -> float:
    """Return the tokens of a text, of a list of texts or parts, or of a list of token numbers."""
    if isinstance(value, str):
        size = len(value) if value.isascii() else len(value.encode(errors="replace"))
        return size / BYTES_PER_TOKEN
    if isinstance(value, Mapping):
        text = value.get("text")
        return _tokens(text) if isinstance(text, str) else PER_ATTACHMENT
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        if value and isinstance(value[0], int):
            return len(value)
        return sum(map(_tokens, value))
    return 0.0
