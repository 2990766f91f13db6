"""The three tasks: a database query, image processing (in two halves), a file upload.

What waits exists twice, as a plain function that blocks its thread and as a coroutine that gives the loop back: that is what ``async`` is.
What thinks exists once: a coroutine has no other way to compute than to compute.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import socket
import zlib
from dataclasses import replace
from typing import Any

from tournant.kitchen.errors import ServersFailed
from tournant.kitchen.pictures import convolve, photograph, png
from tournant.kitchen.plates import Plate, Row, recorded

_SQL = (
    "SELECT menu.name, wanted.number, menu.price FROM wanted JOIN menu ON menu.id = wanted.dish "
    "WHERE wanted.guest = ? ORDER BY menu.name"
)
#: Seconds without a byte after which a server counts as gone.
_PATIENCE = 60.0
#: So long a line the database server may send.
_LONGEST = 1 << 20


@recorded
def query(plate: Plate) -> Plate:
    """Ask the database what the guest ordered; the thread waits for the answer."""
    with socket.create_connection(plate.setting.database, _PATIENCE) as connection:
        connection.sendall(_question(plate))
        with connection.makefile("rb") as reply:
            return replace(plate, rows=_rows(reply.readline()))


@recorded
async def async_query(plate: Plate) -> Plate:
    """Ask the database what the guest ordered; the loop goes on meanwhile."""
    reader, writer = await asyncio.open_connection(*plate.setting.database, limit=_LONGEST)
    try:
        writer.write(_question(plate))
        return replace(plate, rows=_rows(await reader.readline()))
    finally:
        writer.close()


@recorded
def blur(plate: Plate) -> Plate:
    """Take a photograph of what was ordered and soften it: pure Python, which holds the GIL."""
    side = plate.setting.side
    return replace(plate, image=convolve(photograph(_seed(plate), side), side))


@recorded
def compress(plate: Plate) -> Plate:
    """Make a PNG file of the photograph: zlib, which lets go of the GIL."""
    return replace(plate, png=png(plate.image, plate.setting.side))


@recorded
def upload(plate: Plate) -> Plate:
    """Send the PNG file, or the bill where there is none, to the upload server; the thread waits."""
    connection = http.client.HTTPConnection(*plate.setting.uploads, timeout=_PATIENCE)
    try:
        connection.request("POST", _path(plate), _body(plate))
        reply = connection.getresponse()
        return replace(plate, digest=_digest(reply.status, reply.read()))
    finally:
        connection.close()


@recorded
async def async_upload(plate: Plate) -> Plate:
    """Send the PNG file, or the bill where there is none, to the upload server; the loop goes on meanwhile."""
    host, port = plate.setting.uploads
    body = _body(plate)
    reader, writer = await asyncio.open_connection(host, port)
    try:
        head = f"POST {_path(plate)} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        status = (await reader.readline()).split()
        length = 0
        while (line := (await reader.readline()).strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        answer = await reader.readexactly(length)
        return replace(plate, digest=_digest(int(status[1]) if status else 0, answer))
    finally:
        writer.close()


def _question(plate: Plate) -> bytes:
    return json.dumps({"sql": _SQL, "parameters": [plate.order]}).encode() + b"\n"


def _rows(line: bytes) -> tuple[Row, ...]:
    if not line.endswith(b"\n"):
        raise ServersFailed(
            "the database server closed the connection before it had answered; start the kitchen again"
        )
    answer: dict[str, Any] = json.loads(line)
    if "rows" not in answer:
        raise ServersFailed(f"the database server refused the query: {answer.get('error')}")
    return tuple((name, number, price) for name, number, price in answer["rows"])


def _seed(plate: Plate) -> int:
    return zlib.crc32(repr((plate.order, plate.rows)).encode())


def _path(plate: Plate) -> str:
    return f"/uploads/order-{plate.order}"


def _body(plate: Plate) -> bytes:
    return plate.png or json.dumps([plate.order, plate.rows]).encode()


def sent_digest(plate: Plate) -> str:
    """Return the SHA-256 of what `upload` sends for this plate."""
    return hashlib.sha256(_body(plate)).hexdigest()


def _digest(status: int, answer: bytes) -> str:
    if status != 201:
        raise ServersFailed(
            f"the upload server answered {status or 'nothing'} instead of 201; start the kitchen again"
        )
    return str(json.loads(answer)["sha256"])
