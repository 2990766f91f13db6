"""The Trace Event Format as a JSON schema, from its public specification ("Trace Event Format", Google, sections on event types)."""

from __future__ import annotations

from typing import Any

_TIME = {"type": "number"}
_TEXT = {"type": "string"}
_BASE: dict[str, Any] = {
    "ph": _TEXT,
    "pid": {"type": "integer", "minimum": 0},
    "tid": {"type": "integer", "minimum": 0},
    "ts": _TIME,
    "name": _TEXT,
    "cat": {"type": "string", "minLength": 1},
    "args": {"type": "object"},
}


def _event(phases: list[str], required: list[str], **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**_BASE, "ph": {"enum": phases}, **more},
        "required": ["ph", "pid", "name", *required],
    }


#: By phase, what an event must have.
EVENTS: dict[str, dict[str, Any]] = {
    "M": _event(
        ["M"],
        ["args"],
        name={
            "enum": [
                "process_name", "process_labels", "process_sort_index", "thread_name", "thread_sort_index",
            ]
        },
    ),
    "X": _event(
        ["X"], ["tid", "ts", "dur", "cat"], dur={"type": "number", "minimum": 0}, cname=_TEXT
    ),
    "b": _event(
        ["b", "e", "n"],
        ["tid", "ts", "cat", "id2"],
        id2={
            "type": "object",
            "properties": {"local": _TEXT},
            "required": ["local"],
            "additionalProperties": False,
        },
    ),
    "s": _event(["s", "t", "f"], ["tid", "ts", "cat", "id"], id={"type": ["integer", "string"]}, bp={"const": "e"}),
    "i": _event(["i"], ["tid", "ts", "s"], s={"enum": ["g", "p", "t"]}),
    "C": _event(
        ["C"],
        ["ts", "args"],
        args={"type": "object", "minProperties": 1, "additionalProperties": {"type": "number"}},
    ),
}  # fmt: skip
EVENTS |= {"e": EVENTS["b"], "t": EVENTS["s"], "f": EVENTS["s"]}

FILE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "traceEvents": {"type": "array", "items": {"type": "object", "required": ["ph"]}},
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"type": "object"},
    },
    "required": ["traceEvents"],
    "additionalProperties": False,
}
