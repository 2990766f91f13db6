"""Reading the JSON bodies of requests: bounded in size, time, depth and length of text, and parsed off the loop when large.

Nothing here knows what a body means; who asks for one checks its fields with the small helpers below, which raise the
`HTTPError` that the caller deserves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tournant.errors import short
from tournant.serve.errors import HTTPError, MissingExtra, bad_request
from tournant.serve.settings import ServeSettings

try:
    import msgspec
except ImportError:
    raise MissingExtra("the server", "msgspec") from None

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Endpoint = Callable[[Scope, Receive, Send], Awaitable[None]]

DIRECT = "tournant.connection"
#: Where a request's scope holds how many tokens it used.
TOKENS = "tournant.tokens"
"""Where a request's scope holds its connection, under a server of our own."""
ON_THE_LOOP = 64 * 1024
"""Up to so many bytes a body is parsed on the loop: about 0.2 ms, less than a hop to a thread costs under load."""

_threads: ThreadPoolExecutor | None = None
_decode = msgspec.json.Decoder().decode


class ClientLeft(Exception):
    """The client closed its connection before its request was complete: there is nobody to answer."""


def header(scope: Scope, name: bytes) -> str | None:
    """Return a request header's value, or ``None``; `name` is in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


async def read_body(scope: Scope, receive: Receive, limits: ServeSettings) -> bytes:
    """Read a request's whole body.

    Raises:
        HTTPError: 413 when it is larger than ``max_body_bytes`` (before it is read, where its length is announced),
            408 when it is not complete after ``body_seconds``.
        ClientLeft: the client closed the connection.
    """
    most = limits.max_body_bytes
    announced = header(scope, b"content-length")
    if announced is not None and announced.isdecimal() and int(announced[:20]) > most:
        raise _too_large(most)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                data: bytes = message.get("body", b"")
                size += len(data)
                if size > most:
                    raise _too_large(most)
                if not message.get("more_body", False):
                    break
                pieces.append(data)
    except TimeoutError:
        raise _too_late(limits.body_seconds) from None
    return b"".join([*pieces, data]) if pieces else data


async def read_json(scope: Scope, receive: Receive, limits: ServeSettings) -> Any:
    """Read and parse a request's JSON body.

    Large bodies are parsed on a thread. Strings are checked against ``max_text_chars``, the depth against ``max_nesting``.

    Raises:
        HTTPError: 400, 408 or 413, with what is wrong.
        ClientLeft: the client closed the connection.
    """
    return await parse_json(await read_body(scope, receive, limits), limits)


async def parse_json(data: bytes, limits: ServeSettings) -> Any:
    """Parse a JSON body that was read already; see `read_json`."""
    if len(data) <= ON_THE_LOOP:
        return _parse(data, limits.max_nesting, limits.max_text_chars)
    return await off_the_loop(_parse, data, limits.max_nesting, limits.max_text_chars)


async def off_the_loop(call: Callable[..., Any], *args: Any) -> Any:
    """Run a short, CPU-bound call (parsing, checking, serialising) on one of two threads kept for that."""
    global _threads
    if _threads is None:
        _threads = ThreadPoolExecutor(2, thread_name_prefix="tournant-serve")
    return await asyncio.get_running_loop().run_in_executor(_threads, call, *args)


def _parse(data: bytes, max_nesting: int, max_text_chars: int) -> Any:
    if not data:
        raise bad_request("the request has no body; send a JSON object")
    try:
        value = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise bad_request(f"the body is no valid JSON: {_told(error)}") from None
    except RecursionError:
        raise _too_deep(max_nesting) from None
    # Brackets inside strings count as well here: more than enough of them only means that it is worth looking.
    if data.count(b"[") + data.count(b"{") > max_nesting or len(data) > max_text_chars:
        _inspect(value, max_nesting, max_text_chars)
    return value


def _inspect(value: Any, max_nesting: int, max_text_chars: int) -> None:
    """Refuse what is nested too deep or holds a text that is too long, without recursion."""
    level: list[Any] = [value]
    for _ in range(max_nesting + 1):
        below: list[Any] = []
        for one in level:
            if isinstance(one, str):
                if len(one) > max_text_chars:
                    raise HTTPError(
                        413,
                        f"a text of the body has {len(one):,} characters; at most {max_text_chars:,} are taken: cut it",
                        "text_too_long",
                    )
            elif isinstance(one, dict):
                below.extend(one.values())
            elif isinstance(one, list):
                below.extend(one)
        if not below:
            return
        level = below
    raise _too_deep(max_nesting)


# Checking fields


def an_object(value: Any) -> dict[str, Any]:
    """Return `value`, which must be a JSON object."""
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object")
    return value


def field(
    body: dict[str, Any], name: str, kind: type | tuple[type, ...], default: Any = None
) -> Any:
    """Return a field of a body, or `default` where it is missing or null.

    Args:
        body: The body.
        name: The field.
        kind: The type that it must have. ``bool`` is no ``int`` here, and an ``int`` is a ``float``.
        default: What stands for a field that is not there.

    Raises:
        HTTPError: 400 when it has another type.
    """
    value = body.get(name)
    if value is None:
        return default
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool):
        fits = bool in kinds
    else:
        fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
    if not fits:
        wanted = " or ".join(_NAMES.get(one, one.__name__) for one in kinds)
        raise bad_request(f"{name}={short(value)} must be {wanted}", name)
    return value


def whole(
    body: dict[str, Any], name: str, default: int | None, least: int, most: int
) -> int | None:
    """Return a field that must be a whole number from `least` to `most`."""
    value: int | None = field(body, name, int, default)
    if value is not None and not least <= value <= most:
        raise bad_request(f"{name}={short(value)} must be from {least:,} to {most:,}", name)
    return value


def one_of(body: dict[str, Any], name: str, choices: Iterable[str], default: str) -> str:
    """Return a field that must be one of `choices`."""
    value: str = field(body, name, str, default)
    known = tuple(choices)
    if value not in known:
        raise bad_request(f"{name}={short(value)} must be one of {', '.join(known)}", name)
    return value


_NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _told(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _too_large(most: int) -> HTTPError:
    return HTTPError(
        413, f"the body is larger than {most:,} bytes: send less in one request", "body_too_large"
    )


def _too_late(seconds: float) -> HTTPError:
    return HTTPError(
        408, f"the body was not complete after {seconds:g} s: send the request again, and faster"
    )


def _too_deep(most: int) -> HTTPError:
    return bad_request(
        f"the body nests deeper than {most} levels: flatten it", code="nested_too_deep"
    )
