"""Answers that are made up, and can be checked: each is made from its prompt alone.

An answer repeats the words of its prompt until it has as many tokens as were asked for. A vector is drawn from a hash of
its text. Everything here is a pure function, so a test can say beforehand what it will get.
"""

from __future__ import annotations

import base64
from array import array
from hashlib import shake_128
from math import sqrt

from tournant.llm.mock.tokens import CHARACTERS

_NOTHING = "nothing was said "


def answer_to(prompt: str, tokens: int, stop: tuple[str, ...] = ()) -> str:
    """Return the answer to a prompt: its words, over and over, up to `tokens` tokens.

    Args:
        prompt: The last message of the user, or the text to complete.
        tokens: How long the answer gets (`count_tokens`); the last word may be cut.
        stop: Where one of these would begin, the answer ends.
    """
    length = tokens * CHARACTERS
    words = " ".join(prompt.split()) + " "
    if len(words) == 1:
        words = _NOTHING
    text = words[:length] if len(words) >= length else (words * (length // len(words) + 1))[:length]
    for word in stop:
        text = text.partition(word)[0]
    return text


def pieces_of(text: str) -> list[str]:
    """Return the tokens of an answer."""
    return [text[at : at + CHARACTERS] for at in range(0, len(text), CHARACTERS)]


def vector_of(text: str, dimensions: int) -> list[float]:
    """Return the vector of a text: of length 1, the same for the same text, and unlike that of any other.

    Its numbers are 32-bit floats, so both ways of sending them say the same.
    """
    return _vector(text, dimensions).tolist()


def vector_base64(text: str, dimensions: int) -> str:
    """Return `vector_of` as base64 of little-endian 32-bit floats, which is what the official client asks for."""
    return encoded_vector(_vector(text, dimensions))


def encoded_vector(vector: array[float]) -> str:
    """Return 32-bit floats as base64, in little-endian order."""
    import sys

    if sys.byteorder == "big":
        vector = array("f", vector)
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode("ascii")


def _vector(text: str, dimensions: int) -> array[float]:
    raw = shake_128(text.encode("utf-8", "surrogatepass")).digest(2 * dimensions)
    numbers = array("h", raw)
    scale = 1 / (sqrt(sum([number * number for number in numbers])) or 1.0)
    return array("f", [number * scale for number in numbers])
