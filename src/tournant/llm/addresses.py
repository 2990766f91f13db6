"""The addresses of an API: what its base is, and where its endpoints are."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from tournant.errors import short
from tournant.llm.errors import InvalidClient

_ENDPOINTS = ("/chat/completions", "/completions", "/embeddings", "/responses", "/models")


def base_of(base_url: str) -> str:
    """Return the address below which an API's endpoints lie, checked and without a slash at its end.

    A bare host means its ``/v1``; every other path is taken as it is given. A query (some providers want a version there) is kept.

    Raises:
        InvalidClient: when it is no such address.
    """
    if not isinstance(base_url, str) or not base_url.strip():
        raise _refused(base_url, "give an address such as 'http://127.0.0.1:8000/v1'")
    base_url = base_url.strip()
    try:
        parts = urlsplit(base_url)
        parts.port  # noqa: B018 - it is read to be checked
    except ValueError as error:
        raise _refused(base_url, f"it can't be read ({error})") from None
    if parts.username is not None or parts.password is not None:
        # Not shown: it holds a password.
        raise InvalidClient(
            "Client(base_url=...): an address with a user name and password in it ends up in logs; "
            "leave them out and give api_key_env='NAME', or headers="
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _refused(base_url, "give an address that begins with http:// or https:// and a host")
    if parts.fragment:
        raise _refused(base_url, "leave out what follows the '#'")
    path = parts.path.rstrip("/")
    for endpoint in _ENDPOINTS:
        if path.endswith(endpoint):
            raise _refused(
                base_url, f"that is an endpoint; give what stands before its {endpoint!r}"
            )
    return urlunsplit((parts.scheme, parts.netloc, path or "/v1", parts.query, ""))


def join(base: str, path: str) -> str:
    """Return the address of an endpoint.

    Args:
        base: What `base_of` returned.
        path: The endpoint as OpenAI spells it, with or without its ``/v1``: ``"/v1/chat/completions"``.

    Raises:
        InvalidClient: when `path` is no path.
    """
    if not isinstance(path, str) or not path.startswith("/") or "?" in path or "#" in path:
        raise InvalidClient(
            f"Client.post({short(path)}): give an endpoint such as '/v1/chat/completions'"
        )
    parts = urlsplit(base)
    return urlunsplit(parts._replace(path=parts.path + path.removeprefix("/v1")))


def shown(url: str) -> str:
    """Return an address as messages show it: without its query, which may hold a key."""
    return urlunsplit(urlsplit(url)._replace(query=""))


def _refused(base_url: object, mend: str) -> InvalidClient:
    text = base_url.partition("?")[0] if isinstance(base_url, str) else base_url
    return InvalidClient(f"Client(base_url={short(text)}): {mend}")
