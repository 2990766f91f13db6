"""JSON, and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tournant.ingest.documents import Document
from tournant.ingest.errors import UnreadableFile
from tournant.ingest.readers.encoding import decode


@dataclass(frozen=True, slots=True)
class JsonReader:
    """One line of text per value, with the path of keys that leads to it."""

    name: str = "json"
    suffixes: dict[str, str] = field(
        default_factory=lambda: dict.fromkeys((".json", ".geojson"), "application/json")
    )

    def read(self, source: str, data: bytes, suffix: str) -> Document:
        """Parse and flatten; see `Reader.read`."""
        media_type = self.suffixes.get(suffix, "application/json")
        text = decode(data)
        if not text.strip():
            return Document(source, "", media_type)
        value = _parse(source, text, None)
        return Document(source, "\n".join(_lines(value)), media_type)


@dataclass(frozen=True, slots=True)
class JsonLinesReader:
    """One paragraph per record."""

    name: str = "jsonl"
    suffixes: dict[str, str] = field(
        default_factory=lambda: dict.fromkeys((".jsonl", ".ndjson"), "application/x-ndjson")
    )

    def read(self, source: str, data: bytes, suffix: str) -> Document:
        """Parse and flatten every record; see `Reader.read`."""
        records = []
        for number, line in enumerate(decode(data).split("\n"), start=1):
            if line.strip():
                records.append("\n".join(_lines(_parse(source, line, number))))
        return Document(source, "\n\n".join(records), "application/x-ndjson")


def _parse(source: str, text: str, line: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line or error.lineno}, column {error.colno}"
        raise UnreadableFile(source, f"it is not valid JSON at {where}: {error.msg}") from error
    except RecursionError as error:
        where = f" in line {line}" if line else ""
        raise UnreadableFile(source, f"its JSON is nested too deeply{where}") from error
    except ValueError as error:  # an integer of thousands of digits
        where = f" in line {line}" if line else ""
        raise UnreadableFile(source, f"its JSON can't be read{where}: {error}") from error


def _lines(value: Any) -> Iterator[str]:
    """Write each leaf as ``path.to.key: value``; a bare value has no path."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        path, item = waiting.pop()
        if isinstance(item, dict):
            waiting += [
                (f"{path}.{key}" if path else key, child) for key, child in reversed(item.items())
            ]
        elif isinstance(item, list):
            waiting += [(path, child) for child in reversed(item)]
        elif item is not None and item != "":
            leaf = item if isinstance(item, str) else json.dumps(item)
            yield f"{path}: {leaf}" if path else leaf
