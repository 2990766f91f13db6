"""The URL of an index in PostgreSQL, and how it is shown: never with a password.

It is libpq's URL with two parameters more: ``index`` names the index, which is a schema of the database, and ``language``
says how its texts are cut into words. Everything else (several hosts, ``sslmode``, ``passfile``, ``service``) is libpq's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from tournant.ingest.errors import InvalidOption, MissingExtra

DEFAULT_INDEX = "tournant"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_OWN = ("index", "language")
#: What of a URL's parameters may be shown.
_SHOWN = frozenset({"host", "hostaddr", "port", "dbname", "user", "service", "sslmode", *_OWN})
#: A server that has gone without a word is noticed after about a minute, not after two hours.
_DEFAULTS = {
    "application_name": "tournant",
    "connect_timeout": "10",
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
#: Documents are copied in as UTF-8, whatever PGCLIENTENCODING or the database say.
_ALWAYS = {"client_encoding": "UTF8"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where an index lies.

    Attributes:
        conninfo: what libpq needs to connect, the password included.
        schema: the schema of the index.
        language: the text search configuration that was asked for, or None.
        shown: the URL for messages.
        secrets: what must not be in any message.
    """

    conninfo: str = field(repr=False)
    schema: str
    language: str | None
    shown: str
    secrets: tuple[str, ...] = field(repr=False)

    def scrub(self, text: str) -> str:
        """Take the secrets out of a text that came from elsewhere."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def is_postgres(index: str) -> bool:
    """Tell whether an index is named by a URL of PostgreSQL."""
    return index.startswith(("postgresql://", "postgres://"))


def redacted(url: str) -> str:
    """Return a URL without its password and without parameters that could hold a secret. It need not be valid."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    user, at, place = rest.rpartition("@")
    place, _, query = place.partition("?")
    kept = [part for part in query.split("&") if part.partition("=")[0] in _SHOWN]
    name = user.partition(":")[0]
    return scheme + separator + name + at + place + ("?" + "&".join(kept) if kept else "")


def parse(url: str) -> Address:
    """Read a URL.

    Raises:
        InvalidOption: it can't be understood, or the index's name is none.
        MissingExtra: psycopg is not installed.
    """
    shown = redacted(url)
    scheme, _, behind = url.partition("://")
    # As libpq does: what stands before the first @, when no / comes earlier, is the user and the password.
    before = re.match(r"([^@/]*)@", behind)
    user = "" if before is None else before[0]
    place, _, query = behind.removeprefix(user).partition("?")
    own: dict[str, str] = {}
    rest = []
    for part in query.split("&") if query else []:
        name, _, value = part.partition("=")
        if name in _OWN:
            own[name] = unquote(value)
        else:
            rest.append(part)
    schema, language = own.get("index", DEFAULT_INDEX), own.get("language")
    if not _NAME.fullmatch(schema) or schema.startswith("pg_") or schema == "information_schema":
        raise InvalidOption(
            f"index {shown!r}: {schema!r} can't name an index; use up to 63 small letters, digits and underscores that "
            "begin with a letter, not with 'pg_'"
        )
    if language is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", language):
        raise InvalidOption(
            f"index {shown!r}: language={language!r} is no text search configuration; use a name such as english, "
            "german or simple"
        )
    psycopg = driver()
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    # A password with a bare @ or / in it: what libpq would take for a host or a port, it would also print.
    odd = "@" in place
    base = f"{scheme}://{user}{place}"
    try:
        given = {} if odd else conninfo_to_dict(base + ("?" + "&".join(rest) if rest else ""))
    except psycopg.Error:
        odd = True  # its own words may quote a part of the password
    if odd:
        raise InvalidOption(
            f"index {shown!r}: this is no URL that PostgreSQL understands; write "
            "postgresql://USER@HOST:PORT/DATABASE?index=NAME, with %XX for special characters (%40 for @, %2F for /)"
        )
    values = {name: str(value) for name, value in given.items() if value is not None}
    found = [values.get("password", ""), values.get("sslpassword", "")]
    found.append(user.removesuffix("@").partition(":")[2])
    secrets = tuple(sorted({secret for secret in found if secret}, key=len, reverse=True))
    conninfo = make_conninfo("", **{**_DEFAULTS, **values, **_ALWAYS})
    return Address(conninfo, schema, language, shown, secrets)


def driver() -> Any:
    """Import psycopg.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import psycopg
    except ImportError as error:
        raise MissingExtra("an index in PostgreSQL", error.name or "psycopg", "postgres") from error
    return psycopg
