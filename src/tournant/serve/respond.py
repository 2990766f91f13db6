"""Whole responses: JSON and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from tournant.serve.bodies import Message, Receive, Scope, Send, header
from tournant.serve.errors import HTTPError

JSON = b"application/json"
_NOSNIFF = (b"x-content-type-options", b"nosniff")
_DISCARDED = 256 * 1024
_PATIENCE = 1.0


async def respond(
    send: Send,
    status: int,
    body: bytes,
    kind: bytes = JSON,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Send a whole response.

    Args:
        send: The request's ``send``.
        status: The status.
        body: The body.
        kind: Its type.
        headers: More headers.
    """
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", kind),
                (b"content-length", b"%d" % len(body)),
                _NOSNIFF,
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def respond_json(send: Send, value: Any, status: int = 200) -> None:
    """Send a value as JSON."""
    await respond(send, status, msgspec.json.encode(value))


class Incoming:
    """A request's ``receive``, which knows whether the body has come to its end.

    Args:
        receive: The one of the server.

    Attributes:
        ended: Whether it has.
    """

    __slots__ = ("_receive", "ended")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended = False

    async def __call__(self) -> Message:
        """Receive."""
        message = await self._receive()
        if not message.get("more_body", False):
            self.ended = True
        return message


async def respond_error(scope: Scope, incoming: Incoming, send: Send, error: HTTPError) -> None:
    """Send an error.

    Where the request's body has not been read, a small one is read first, because closing the connection would lose the
    response with it; behind a large one, or one that nobody announced, the connection is closed.
    """
    headers = [
        (name.encode(), value.encode("latin-1", "replace")) for name, value in error.headers.items()
    ]
    if scope["method"] == "POST" and not await _read_to_its_end(scope, incoming, error.status):
        headers.append((b"connection", b"close"))
    await respond(send, error.status, error.body(), headers=headers)


async def _read_to_its_end(scope: Scope, incoming: Incoming, status: int) -> bool:
    if incoming.ended:
        return True
    length = header(scope, b"content-length")
    announced = int(length[:20]) if length is not None and length.isdecimal() else _DISCARDED + 1
    if status == 408 or announced > _DISCARDED or header(scope, b"expect") is not None:
        return False
    try:
        async with asyncio.timeout(_PATIENCE):
            while not incoming.ended:
                await incoming()
    except TimeoutError:
        return False
    return True
