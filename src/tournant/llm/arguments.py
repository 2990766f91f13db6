"""What a client and its calls are given, checked. Everything wrong is refused with the mend; no message shows a key."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from tournant.errors import short
from tournant.limits import Adaptive, RateLimit
from tournant.llm.errors import InvalidClient
from tournant.llm.model import Messages

_FRAMING = frozenset(
    {
        "content-length",
        "transfer-encoding",
        "connection",
        "host",
        "content-type",
        "content-encoding",
    }
)


def key_from(api_key: str | None, api_key_env: str | None) -> tuple[str | None, str]:
    """Return the key, and how messages call the place where it comes from.

    Raises:
        InvalidClient: when both are given, the variable is not set, or what is there is no key.
    """
    if api_key is not None and api_key_env is not None:
        raise InvalidClient("Client(api_key=..., api_key_env=...): give one of the two")
    if api_key_env is not None:
        if not isinstance(api_key_env, str) or not api_key_env:
            raise InvalidClient(
                f"Client(api_key_env={type(api_key_env).__name__}): give the name of an environment variable"
            )
        if not api_key_env.isidentifier():
            # Not shown: a key that was given in place of a name would be.
            raise InvalidClient(
                "Client(api_key_env=...): that is no name of an environment variable; "
                "give the name, such as 'OPENAI_API_KEY', not the key itself"
            )
        key = os.environ.get(api_key_env)
        if key is None or not key.strip():
            raise InvalidClient(
                f"the environment variable {api_key_env}, which is to hold the API key, is "
                f"{'not set' if key is None else 'empty'}; set it (export {api_key_env}=...), "
                "or name another one with api_key_env="
            )
        return _checked(key, api_key_env), f"the environment variable {api_key_env}"
    if api_key is None:
        return None, ""
    if not isinstance(api_key, str) or not api_key.strip():
        raise InvalidClient(
            "Client(api_key=...): give a string that is not empty, or leave it out for a provider that wants none"
        )
    return _checked(api_key, "api_key="), "api_key="


def _checked(key: str, where: str) -> str:
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidClient(
            f"the API key in {where} has characters that no key has (spaces, line breaks or letters beyond ASCII); "
            "copy it again"
        )
    return key


def checked_headers(headers: Mapping[str, str] | None, keyed: bool) -> dict[str, str]:
    """Return a client's further headers.

    Raises:
        InvalidClient: when one can't be sent.
    """
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise InvalidClient(
            f"Client(headers={type(headers).__name__}): give a mapping of names to values"
        )
    for name, value in headers.items():
        if not isinstance(name, str) or not name or not isinstance(value, str):
            raise InvalidClient(
                f"Client(headers=...): the header {short(name)} is no pair of strings; give names and values as str"
            )
        if any(c in value or c in name for c in "\r\n\0"):
            raise InvalidClient(
                f"Client(headers=...): the header {short(name)} has a line break in it; take it out"
            )
        if name.lower() in _FRAMING:
            raise InvalidClient(
                f"Client(headers=...): {name} is set by the client itself; leave it out"
            )
        if keyed and name.lower() == "authorization":
            raise InvalidClient(
                "Client(headers=...): Authorization is made from the API key; give one of the two"
            )
    return dict(headers)


def checked_limit(limit: object) -> RateLimit | None:
    """Return a client's `RateLimit`, or refuse what is none."""
    if limit is None or isinstance(limit, RateLimit):
        return limit
    raise InvalidClient(
        f"Client(limit={short(limit)}): give a tn.limits.RateLimit, such as RateLimit('500/min', '200_000/min')"
    )


def concurrency_from(concurrency: object) -> Adaptive | None:
    """Return a client's concurrency; a fixed number becomes an `Adaptive` that has no choice."""
    if concurrency is None or isinstance(concurrency, Adaptive):
        return concurrency
    if isinstance(concurrency, int) and not isinstance(concurrency, bool) and concurrency >= 1:
        return Adaptive(concurrency, concurrency)
    raise InvalidClient(
        f"Client(concurrency={short(concurrency)}): give a whole number >= 1, a tn.limits.Adaptive, or leave it out"
    )


def conversation(messages: Messages) -> Sequence[Mapping[str, Any]]:
    """Return the messages to send; a string is one message of the user.

    Raises:
        InvalidClient: when it is no conversation.
    """
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if isinstance(messages, Mapping) or not isinstance(messages, Sequence):
        raise InvalidClient(
            f"chat({short(messages)}): give a text, or a list of messages such as [{{'role': 'user', 'content': ...}}]"
        )
    if not messages:
        raise InvalidClient("chat([]): give at least one message")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise InvalidClient(
                f"chat(...): message {place} is {short(message)}; give each as {{'role': ..., 'content': ...}}"
            )
    return cast("Sequence[Mapping[str, Any]]", messages)


def no_number(value: Any, place: str = "") -> str | None:
    """Return where a body has a float that is nan or infinite, as ``logit_bias.50256`` or ``messages.0``; ``None`` where none is."""
    if isinstance(value, float):
        return None if math.isfinite(value) else place
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    for name, part in parts:
        found = no_number(part, f"{place}.{name}" if place else str(name))
        if found is not None:
            return found
    return None


def options_for(model: str | None, options: Mapping[str, Any], *, stream: bool) -> dict[str, Any]:
    """Return the body's fields beside the prompt. An option that is ``None`` is left out.

    Raises:
        InvalidClient: when no model is named, or an option belongs elsewhere.
    """
    body: dict[str, Any] = {} if model is None else {"model": model}
    body.update({name: value for name, value in options.items() if value is not None})
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise InvalidClient(
            "no model is named: give Client(base_url, 'the model') or the option model='the model'"
        )
    if "stream" in body:
        raise InvalidClient(
            f"the option stream={short(body['stream'])} is not taken: call stream() for pieces, chat() for the whole answer"
        )
    if stream:
        if body.get("n", 1) != 1:
            raise InvalidClient(
                f"n={short(body['n'])}: a stream has one answer; call stream() for each"
            )
        body["stream"] = True
    return body
