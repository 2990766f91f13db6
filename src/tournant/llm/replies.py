"""From the JSON that providers send to `Reply`, `Chunk` and vectors, and the tolerance that this takes.

Pure reading. What is not of the expected shape raises `WrongShape`, which the caller turns into a `BadReply`.
"""

from __future__ import annotations

import base64
import binascii
from array import array
from collections.abc import Mapping
from typing import Any

from tournant.llm.model import Chunk, Reply, Usage


class WrongShape(ValueError):
    """JSON that is no answer; the text says what is missing."""


def read_usage(body: Any) -> Usage | None:
    """Return what a reply says it cost, or ``None``. Knows the names of chat and those of the Responses API."""
    said = body.get("usage") if isinstance(body, Mapping) else None
    if not isinstance(said, Mapping):
        return None
    prompt = said.get("prompt_tokens", said.get("input_tokens"))
    answer = said.get("completion_tokens", said.get("output_tokens"))
    if not _is_count(prompt):
        return None
    return Usage(prompt, answer if _is_count(answer) else 0)


def read_reply(body: Any, chat: bool) -> Reply:
    """Return the first answer in a reply.

    Args:
        body: The parsed body.
        chat: Whether it answers a conversation; otherwise it continues a text.

    Raises:
        WrongShape: when there is no answer in it.
    """
    choice = _first_choice(body)
    if chat:
        message = choice.get("message")
        if not isinstance(message, Mapping):
            raise WrongShape("JSON whose first choice has no message")
        text = text_of(message.get("content"))
    else:
        text = text_of(choice.get("text"))
    model = body.get("model")
    return Reply(
        text,
        _word(choice.get("finish_reason")),
        read_usage(body),
        model if isinstance(model, str) else "",
        body,
    )


def read_chunk(event: Any, chat: bool) -> Chunk | None:
    """Return the piece of an answer in one event of a stream, or ``None`` when the event says nothing.

    Raises:
        WrongShape: when the event is nothing of the kind.
    """
    if not isinstance(event, Mapping):
        raise WrongShape("an event that is no JSON object")
    usage = read_usage(event) if event.get("usage") else None
    choices = event.get("choices")
    if not choices:
        return None if usage is None else Chunk("", None, usage, event)
    choice = choices[0] if isinstance(choices, list) else None
    if not isinstance(choice, Mapping):
        raise WrongShape("an event whose choices are no list of objects")
    finish = choice.get("finish_reason")
    if not chat:
        text = choice.get("text")
        more = False
    else:
        delta = choice.get("delta")
        if not isinstance(delta, Mapping):
            if finish is None and usage is None:
                raise WrongShape("an event whose first choice has no delta")
            delta = {}
        text = delta.get("content")
        # Calls of tools, refusals and reasoning have no text of the answer, and are pieces all the same.
        more = any(value for name, value in delta.items() if name not in ("content", "role"))
    if type(text) is not str:
        text = text_of(text)
    if not text and finish is None and usage is None and not more:
        return None
    return Chunk(text, _word(finish), usage, event)


def read_vectors(body: Any, texts: int) -> list[list[float]]:
    """Return the vectors in a reply, in the order of the texts.

    Raises:
        WrongShape: when there is not one vector for each of the texts.
    """
    rows = body.get("data") if isinstance(body, Mapping) else None
    if not isinstance(rows, list):
        raise WrongShape('JSON without a list "data"')
    if len(rows) != texts:
        raise WrongShape(f"{len(rows)} vectors for {texts} texts")
    vectors: list[list[float] | None] = [None] * texts
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise WrongShape("a row that is no JSON object")
        index = row.get("index", place)
        if not _is_count(index) or index >= texts or vectors[index] is not None:
            raise WrongShape(f"a vector with the index {index!r} among those of {texts} texts")
        vectors[index] = _vector(row.get("embedding"))
    return [vector for vector in vectors if vector is not None]


def text_of(content: Any) -> str:
    """Return the text of a message's content: a string, ``None``, or a list of parts.

    Raises:
        WrongShape: when it is something else.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "".join(text for text in texts if isinstance(text, str))
    raise WrongShape("JSON whose text is no string")


def _first_choice(body: Any) -> Mapping[str, Any]:
    choices = body.get("choices") if isinstance(body, Mapping) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise WrongShape('JSON without "choices"')
    return choices[0]


def _vector(value: Any) -> list[float]:
    if isinstance(value, list) and value and all(type(x) is float or _is_number(x) for x in value):
        return value
    if isinstance(value, str):
        try:
            # encoding_format="base64": 32-bit floats, little-endian
            floats = array("f", base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError):
            raise WrongShape("a vector that is neither numbers nor base64") from None
        if _BIG_ENDIAN:
            floats.byteswap()
        if floats:
            return floats.tolist()
    raise WrongShape("a vector that is no list of numbers")


_BIG_ENDIAN = array("H", [1]).tobytes()[0] == 0


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
