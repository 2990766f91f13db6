"""The lines of the results: ``{"id": ..., "custom_id": ..., "response": {...}, "error": null}``, written and read.

An answer has a ``response`` with the provider's body, and no ``error``. A failure has an ``error`` with ``code`` and ``message``;
where the provider answered at all, its status and body are in ``response`` too. That is what OpenAI's batches and ``vllm
run-batch`` write, and all three are read.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

from tournant.llm.batch.requests import Request
from tournant.llm.errors import BadRequest, ContextTooLong, LLMError

_encode = msgspec.json.Encoder().encode
#: The provider has looked at these and said no: the same request would be refused again.
REFUSED_KINDS = frozenset({BadRequest.kind, ContextTooLong.kind})
_REFUSED_STATUSES = frozenset({400, 413, 422})
#: What every line begins with that is written here, and by OpenAI.
BEGINNING = b'{"id":"batch_req_'
_BEGINNINGS = (BEGINNING, b'{"id": "batch_req_')
_NUMBER = b"0123456789+-.eE"


class State(Enum):
    """What a line of the results says of its request."""

    ANSWERED = "answered"
    REFUSED = "refused"
    FAILED = "failed"


class _Response(msgspec.Struct, gc=False):
    status_code: Any = 200


class _Line(msgspec.Struct, gc=False):
    custom_id: str
    response: _Response | None = None
    error: Any = None


_line = msgspec.json.Decoder(_Line).decode
_decode = msgspec.json.Decoder().decode


def answer_line(request: Request, status: int, request_id: str, body: bytes) -> bytes:
    """Return the line of an answer.

    Args:
        request: What was asked.
        status: The HTTP status.
        request_id: The provider's name for the call; may be empty.
        body: The reply's body: JSON without line breaks.
    """
    return (
        b'{"id":"batch_req_%b","custom_id":%b,"response":{"status_code":%d,"request_id":%b,"body":%b},"error":null}\n'
        % (
            request.digest.hex().encode(),
            _encode(request.custom_id),
            status,
            _encode(request_id),
            body,
        )
    )


def failure_line(request: Request, error: LLMError) -> bytes:
    """Return the line of a request that failed for good."""
    response = None
    if error.status is not None and error.body is not None:
        response = {
            "status_code": error.status,
            "request_id": error.request_id or "",
            "body": error.body,
        }
    line = {
        "id": f"batch_req_{request.digest.hex()}",
        "custom_id": request.custom_id,
        "response": response,
        "error": {"code": error.kind, "message": str(error)},
    }
    return _encode(line) + b"\n"


def read_line(line: bytes) -> tuple[str, State]:
    """Return whose line it is, and what it says.

    Raises:
        ValueError: when it is no line of results.
    """
    try:
        found = _line(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as wrong:
        raise ValueError(str(wrong)) from None
    response, error = found.response, found.error
    status = response.status_code if response is not None else None
    if error is None and response is None:
        raise ValueError("it has neither a response nor an error")
    if error is None and isinstance(status, int) and 200 <= status < 300:
        return found.custom_id, State.ANSWERED
    code = error.get("code") if isinstance(error, dict) else None
    if code in REFUSED_KINDS or status in _REFUSED_STATUSES:
        return found.custom_id, State.REFUSED
    return found.custom_id, State.FAILED


def is_half(line: bytes) -> bool:
    """Tell whether bytes are the beginning of a line of results, and not all of it: what a kill leaves."""
    if not any(line[: len(begin)] == begin[: len(line)] for begin in _BEGINNINGS):
        return False
    # In the middle of a number a parser sees a wrong one, not a missing end.
    return _is_cut(line) or _is_cut(line.rstrip(_NUMBER))


def _is_cut(text: bytes) -> bool:
    try:
        _decode(text)
    except RecursionError:
        return False
    except (msgspec.MsgspecError, UnicodeDecodeError) as wrong:
        return "truncated" in str(wrong)
    return False
