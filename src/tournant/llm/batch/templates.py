"""Prompts made of fields: ``Summarise: {text}``."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

import msgspec

from tournant.errors import short
from tournant.llm.batch.errors import InvalidBatch


class MissingField(ValueError):
    """A line lacks a field that the prompt names."""


class Template:
    """A text with ``{field}`` in it. ``{{`` and ``}}`` stand for braces.

    Args:
        text: The text.

    Attributes:
        fields: The names in it, each once, in their order.

    Raises:
        InvalidBatch: when its braces don't match, or hold something else than a name.
    """

    def __init__(self, text: str) -> None:
        self._parts: list[tuple[str, str | None]] = []
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise _refused(text, str(error)) from None
        for literal, field, form, conversion in parts:
            if field is not None and (not field.strip() or form or conversion):
                raise _refused(text, "between single braces stands something that is no field")
            self._parts.append((literal, field))
        self.fields = tuple(dict.fromkeys(field for _, field in self._parts if field is not None))
        if not self.fields:
            raise _refused(
                text, "it names no field, so every line would ask the same; name one, as in {text}"
            )

    def fill(self, values: Mapping[str, Any]) -> str:
        """Return the text with the values of its fields. What is no text is written as JSON.

        Raises:
            MissingField: when a field is not there, or ``null``.
        """
        pieces = []
        for literal, field in self._parts:
            pieces.append(literal)
            if field is not None:
                value = values.get(field)
                if value is None:
                    raise MissingField(_lacks(field, values))
                pieces.append(value if isinstance(value, str) else _as_json(value))
        return "".join(pieces)


def _as_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _lacks(field: str, values: Mapping[str, Any]) -> str:
    if field in values:
        return f"its field {short(field)} is null"
    there = ", ".join(short(name, 40) for name in list(values)[:8]) or "none"
    return (
        f"it has no field {short(field)} (its fields: {there}{', ...' if len(values) > 8 else ''})"
    )


def _refused(text: str, why: str) -> InvalidBatch:
    return InvalidBatch(
        f"the prompt {short(text)} can't be used: {why}; write fields as {{name}}, and braces that are none double: {{{{ and }}}}"
    )
