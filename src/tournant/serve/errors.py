"""What the server refuses, and how a refusal reads: one place for OpenAI-shaped error bodies.

Every endpoint raises `HTTPError`; the app renders it. After a stream has begun no status can be sent any more, and the same
error becomes an event (`error_event`). No text here may hold an API key or a part of a request's body.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tournant.errors import TournantError


class ServeError(TournantError):
    """The root of everything that goes wrong in the server."""


class InvalidSettings(ServeError, ValueError):
    """A setting of the server can't be as it was given."""


class MissingExtra(ServeError, ImportError):
    """A package that the server needs is not installed.

    Args:
        purpose: What was asked for, as the subject of a sentence ("the server").
        package: The package that is missing.
        extra: The extra of Tournant that brings it.
    """

    def __init__(self, purpose: str, package: str, extra: str = "serve") -> None:
        super().__init__(purpose, package, extra)
        self.purpose, self.package, self.extra = purpose, package, extra

    def __str__(self) -> str:
        return (
            f"{self.purpose} needs the package {self.package!r}, which is not installed; "
            f"pip install 'tournant[{self.extra}]'"
        )


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_CODES = {
    400: "invalid_request", 401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    408: "request_timeout", 409: "conflict", 413: "too_large", 415: "unsupported_media_type", 421: "wrong_host",
    429: "rate_limit_exceeded", 431: "headers_too_large", 500: "internal_error", 502: "upstream_failed",
    503: "overloaded", 504: "upstream_timeout",
}  # fmt: skip


class HTTPError(ServeError):
    """A request is refused with this status.

    Args:
        status: The HTTP status, 400 to 599.
        message: What is wrong, where, and how to mend it: a sentence for the caller.
        code: A short word for programs; the status's own by default.
        headers: More response headers, such as ``{"retry-after": "3"}``.
        param: The field of the body that is wrong.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(status, message, code, headers, param)
        self.status = status
        self.message = message
        self.code = code or _CODES.get(status, "error")
        self.headers = dict(headers or {})
        self.param = param

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"

    @property
    def kind(self) -> str:
        """The error's type, in OpenAI's words."""
        if self.status >= 500:
            return "server_error"
        return _TYPES.get(self.status, "invalid_request_error")

    def body(self) -> bytes:
        """Return the body of the response: ``{"error": {"message", "type", "param", "code"}}``."""
        return error_body(self.message, self.kind, self.code, self.param)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> HTTPError:
    """Return a 400 for a body that is wrong in the field `param`."""
    return HTTPError(400, message, code, param=param)


def busy(status: int, message: str, seconds: float, code: str | None = None) -> HTTPError:
    """Return a refusal (429 or 503) that says when to come again: `seconds` from now, rounded up to whole seconds, at least 1."""
    wait = max(1, math.ceil(min(seconds, 86_400.0)))
    return HTTPError(status, message, code, {"retry-after": str(wait)})


def error_body(message: str, kind: str, code: str, param: str | None = None) -> bytes:
    """Return an error in OpenAI's shape, as JSON."""
    import msgspec

    error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
    return msgspec.json.encode({"error": error})


def error_event(error: HTTPError) -> bytes:
    """Return the server-sent event that ends a stream which can't go on."""
    return b"event: error\ndata: " + error.body() + b"\n\n"
