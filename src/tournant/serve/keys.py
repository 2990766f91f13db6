"""Who may ask: the file of API keys, and finding the caller of a request.

A key is never kept, logged or shown: what stays is a digest of it, keyed with a secret of this process. Looking one up compares
digests in constant time, and does the same work for a key that is unknown.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tournant.limits import InvalidLimit, Rate
from tournant.limits.figures import rate_from
from tournant.serve.bodies import Scope, header
from tournant.serve.errors import HTTPError, InvalidSettings

ANONYMOUS = "anonymous"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SHORTEST = 16
_OPTIONS = ("requests", "tokens", "streams")


@dataclass(frozen=True, slots=True)
class Grant:
    """What one key may do.

    Attributes:
        name: What the key is called in metrics and messages.
        requests: How many requests in how long, or ``None`` for the server's default.
        tokens: How many tokens in how long, or ``None`` for the server's default.
        streams: How many answers at once, or ``None`` for the server's default.
    """

    name: str
    requests: Rate | None = None
    tokens: Rate | None = None
    streams: int | None = None


class Keys:
    """The keys of a server, by their digests.

    Args:
        grants: What each key may do.
    """

    def __init__(self, grants: Mapping[str, Grant]) -> None:
        self._secret = os.urandom(32)
        self._grants = {self._digest(key): grant for key, grant in grants.items()}
        self._nobody = self._digest(os.urandom(32).hex())

    def __repr__(self) -> str:
        return f"<Keys of {len(self._grants)} callers>"

    def __len__(self) -> int:
        return len(self._grants)

    def find(self, key: str) -> Grant | None:
        """Return what `key` may do, or ``None`` for one that is unknown."""
        digest = self._digest(key)
        # The digest depends on a secret, so how long the look-up takes says nothing about how much of a key was right.
        known = digest if digest in self._grants else self._nobody
        return self._grants[known] if hmac.compare_digest(known, digest) else None

    def caller(self, scope: Scope) -> Grant:
        """Return the grant of a request's caller, by its ``Authorization: Bearer KEY``.

        Raises:
            HTTPError: 401 when there is no key, or an unknown one.
        """
        given = header(scope, b"authorization")
        if not given:
            raise _refusal("no API key was given: send it as 'Authorization: Bearer KEY'")
        scheme, _, key = given.partition(" ")
        grant = self.find(key.strip()) if scheme.lower() == "bearer" else None
        if grant is None:
            raise _refusal(
                "the API key is not known here: check it, and send it as 'Authorization: Bearer KEY'"
            )
        return grant

    def _digest(self, key: str) -> bytes:
        return hashlib.blake2b(
            key.encode(errors="replace"), key=self._secret, digest_size=32
        ).digest()


def read_keys(path: str) -> Keys:
    """Read a file of API keys.

    One a line: a name, the key, and what it may do, separated by spaces; ``#`` begins a comment. ::

        # name   key                                   limits (all optional)
        alice    sk-3f1c7a52c0e94b0f8d21               requests=600/min tokens=1M/min streams=50
        ci       sk-90ab5d7733e14c1ab1d6

    Args:
        path: The file.

    Raises:
        InvalidSettings: it can't be read, or a line of it can't be; the message names the line, never the key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InvalidSettings(
            f"the file of API keys {path!r} can't be read: {reason}; give a text file with a name and a key on each line"
        ) from None
    grants: dict[str, Grant] = {}
    names: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            raise InvalidSettings(f"{where}: a quote is not closed") from None
        if not words:
            continue
        if len(words) < 2:
            raise InvalidSettings(f"{where}: give a name and a key, separated by a space")
        name, key, *options = words
        if not _NAME.fullmatch(name) or name == ANONYMOUS:
            raise InvalidSettings(
                f"{where}: a name has letters, digits, '.', '_', '@' and '-', at most 64, and is not {ANONYMOUS!r}"
            )
        if len(key) < _SHORTEST or not key.isascii():
            raise InvalidSettings(
                f"{where}: the key of {name!r} must have {_SHORTEST} ASCII characters or more"
            )
        if name in names or key in grants:
            raise InvalidSettings(f"{where}: the name or the key of {name!r} is there twice")
        names.add(name)
        grants[key] = _grant(name, options, where)
    if not grants:
        raise InvalidSettings(
            f"the file of API keys {path!r} holds no key: add a line with a name and a key"
        )
    return Keys(grants)


def _grant(name: str, options: list[str], where: str) -> Grant:
    given: dict[str, str] = {}
    for option in options:
        what, equals, value = option.partition("=")
        if what not in _OPTIONS or not equals:
            raise InvalidSettings(
                f"{where}: behind the key come only requests=, tokens= and streams="
            )
        given[what] = value
    try:
        requests = rate_from(given.get("requests"), "requests")
        tokens = rate_from(given.get("tokens"), "tokens")
    except InvalidLimit as error:
        raise InvalidSettings(f"{where}: {error}") from None
    streams = given.get("streams")
    if streams is not None and (not streams.isdecimal() or not int(streams)):
        raise InvalidSettings(f"{where}: streams={streams!r} must be a whole number from 1 on")
    return Grant(name, requests, tokens, None if streams is None else int(streams))


def _refusal(message: str) -> HTTPError:
    return HTTPError(401, message, headers={"www-authenticate": "Bearer"})
