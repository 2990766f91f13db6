"""The web page and its files: read once, served from memory, under a policy that lets nothing in from outside."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from tournant.serve.bodies import Receive, Scope, Send, header
from tournant.serve.respond import respond

FOLDER = Path(__file__).parent / "page"
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".png": b"image/png",
    ".ico": b"image/x-icon",
    ".json": b"application/json",
    ".webmanifest": b"application/manifest+json",
    ".woff2": b"font/woff2",
}
_PLACEHOLDER = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Tournant</title>
<h1>Tournant</h1><p>This server speaks HTTP: see <a href="/openapi.json">/openapi.json</a>.</p></html>
"""
SECURITY: tuple[tuple[bytes, bytes], ...] = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        b"connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
)


class _File(NamedTuple):
    kind: bytes
    body: bytes
    tag: bytes


class Pages:
    """The files of the page.

    Args:
        folder: Where they are. What is not there when the server starts is not served, and nothing outside of it ever is.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files: dict[str, _File] = {}
        if folder.is_dir():
            for path in sorted(folder.rglob("*")):
                kind = _TYPES.get(path.suffix)
                if kind is not None and path.is_file():
                    self._add("/" + path.relative_to(folder).as_posix(), kind, path.read_bytes())
        if "/index.html" in self._files:
            self._files["/"] = self._files["/index.html"]
        else:
            self._add("/", _TYPES[".html"], _PLACEHOLDER)

    def __contains__(self, path: str) -> bool:
        return path in self._files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``GET`` and ``HEAD``."""
        file = self._files[scope["path"]]
        headers = [*SECURITY, (b"etag", file.tag)]
        if header(scope, b"if-none-match") == file.tag.decode():
            await respond(send, 304, b"", file.kind, headers)
        else:
            await respond(send, 200, file.body, file.kind, headers)

    def _add(self, path: str, kind: bytes, body: bytes) -> None:
        tag = b'"' + hashlib.blake2b(body, digest_size=9).hexdigest().encode() + b'"'
        self._files[path] = _File(kind, body, tag)
