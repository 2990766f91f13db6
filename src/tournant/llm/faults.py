"""From what a provider answered to the error that it means, for the spellings of OpenAI, Anthropic and their look-alikes.

Pure reading; no HTTP client is imported. Nothing that a provider sent gets into a message before the secrets are out of it:
some echo the key they refuse.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from tournant.limits.headers import read_headers
from tournant.llm.errors import (
    AuthenticationFailed,
    BadReply,
    BadRequest,
    ContextTooLong,
    LLMError,
    NotFound,
    Overloaded,
    ProviderFailed,
    QuotaExhausted,
    RateLimited,
    StreamFailed,
)

_SHOWN = 300
_READ = 1_000_000
_HIDDEN = "[hidden]"
_DEEPEST = 64
_QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_QUOTA_TEXT = re.compile(r"credit balance is too low|exceeded your current quota", re.I)
_CONTEXT = frozenset(
    {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
)
_CONTEXT_TEXT = re.compile(
    r"maximum context length|context (size|length|window)|prompt is too long|input token count|too many (input )?tokens",
    re.I,
)
_STATUS_OF = {
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "too_many_requests": 429,
    "insufficient_quota": 429,
    "overloaded_error": 529,
    "overloaded": 529,
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "request_too_large": 413,
    "api_error": 500,
    "server_error": 500,
    "internal_server_error": 500,
}
# A lock, a proxy's time-out and "too early" are the provider's side of things, whatever their number says.
_THEIRS = frozenset({408, 409, 425})
_MEND: dict[type[LLMError], str] = {
    RateLimited: "slow down and try again (retry=tn.Retry(on=llm.TRANSIENT), and limit=)",
    QuotaExhausted: "the account's quota is used up, which waiting does not mend: look at its plan and billing",
    Overloaded: "try again later, or with a lower concurrency",
    ProviderFailed: "try again later",
    BadRequest: "mend the request; the same one would be refused again",
    ContextTooLong: "shorten the prompt or lower max_tokens",
    NotFound: "check base_url and the model's name",
}


@dataclass(frozen=True, slots=True)
class Said:
    """What the body of an error says.

    Attributes:
        message: In words, made fit for one line; empty where there are none.
        code: The provider's name for the error; ``None`` where there is none.
        kind: The provider's class of error (``type``); ``None`` where there is none.
        status: The HTTP status that it stands for, where the body tells; otherwise ``None``.
    """

    message: str = ""
    code: str | None = None
    kind: str | None = None
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Faults:
    """Makes errors for one client: it knows what must not be shown, and where the key comes from.

    Attributes:
        secrets: What is taken out of every text.
        key_from: How messages call the place where the key comes from; empty when no key was given.
    """

    secrets: tuple[str, ...] = field(default=(), repr=False)
    key_from: str = ""

    def clean(self, text: str) -> str:
        """Return `text` without secrets, on one line, without control characters, and not too long."""
        text = self._hidden(text)
        text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * _SHOWN]).split())
        return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."

    def scrubbed(self, value: Any, depth: int = 0) -> Any:
        """Return a parsed JSON value without secrets in any of its strings; what is nested too deeply is left out."""
        if isinstance(value, str):
            return self._hidden(value)
        if isinstance(value, (Mapping, list)) and depth == _DEEPEST:
            return "..."
        if isinstance(value, Mapping):
            return {
                self._hidden(name): self.scrubbed(part, depth + 1) for name, part in value.items()
            }
        if isinstance(value, list):
            return [self.scrubbed(part, depth + 1) for part in value]
        return value

    def refused(
        self, call: str, status: int, headers: Mapping[str, str], body: Any, data: bytes = b""
    ) -> LLMError:
        """Return the error that a reply with this status, or a 200 with an error in its body, means.

        Args:
            call: What was called, for the message: ``POST http://...``.
            status: The HTTP status.
            headers: The reply's headers.
            body: The body, parsed; ``None`` where it is no JSON.
            data: The body as it came, shown where it is no JSON.
        """
        said = self.read(body)
        told = status if not 200 <= status < 300 else said.status
        kind = _class_of(told, said)
        text = said.message or self.clean(data[:_READ].decode(errors="replace"))
        facts = read_headers(headers, time.time())
        error = kind(
            f"{call} answered {self._named(status, said)}"
            f"{': ' + text.rstrip('.') if text else ''}; {self._mend(kind, status, headers)}",
            status=told if told is not None else status,
            retry_after=facts.retry_after,
            code=said.code or said.kind,
        )
        if isinstance(error, RateLimited):
            error.of = _limit_of(said)
        error.body = self.scrubbed(body) if len(data) <= 65_536 else None
        error.request_id = headers.get("x-request-id") or headers.get("request-id")
        return error

    def failed_midway(self, call: str, body: Any, pieces: int) -> StreamFailed:
        """Return the error for an error event in a stream of which `pieces` pieces had come."""
        said = self.read(body)
        error = StreamFailed(
            f"{call}: the provider reported an error after {pieces} pieces of its answer"
            f"{' (' + said.code + ')' if said.code else ''}: {said.message or self.clean(_words(body))}; "
            "what came so far is a part, so ask again",
            status=said.status,
            code=said.code or said.kind,
        )
        error.body = self.scrubbed(body)
        return error

    def no_answer(self, call: str, status: int, what: str, data: bytes = b"") -> BadReply:
        """Return the error for a reply that is no answer; `what` says what it is instead."""
        text = self.clean(data[:_READ].decode(errors="replace"))
        return BadReply(
            f"{call} answered {status} with {what}{': ' + text if text else ''}; "
            "check that base_url is the API's address (it usually ends in /v1), or try again if it is",
            status=status,
        )

    def read(self, body: Any) -> Said:
        """Read an error's body, in any of the shapes in use."""
        if not isinstance(body, Mapping):
            return Said(self.clean(body) if isinstance(body, str) else "")
        inner = body.get("error")
        if not isinstance(inner, Mapping):
            # {"error": "words"}, {"detail": ...}, {"message": ...}
            words = inner if isinstance(inner, str) else body.get("message") or body.get("detail")
            inner = {**body, "message": words}
        message = inner.get("message")
        if message is not None and not isinstance(message, str):
            message = _words(message)
        code, kind = inner.get("code"), inner.get("type")
        status = next((n for n in (code, inner.get("status")) if _is_status(n)), None)
        names = [self.clean(name) for name in (code, kind) if isinstance(name, str) and name]
        if status is None:
            status = next((_STATUS_OF[name] for name in names if name in _STATUS_OF), None)
        return Said(
            self.clean(message or ""),
            self.clean(_words(code)) if code not in (None, "") else None,
            self.clean(kind) if isinstance(kind, str) and kind else None,
            status,
        )

    def _hidden(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, _HIDDEN)
        if self.secrets and any(mark in text for mark in "\\&%"):
            text = _spelled(self.secrets).sub(_HIDDEN, text)
        return text

    def _mend(self, kind: type[LLMError], status: int, headers: Mapping[str, str]) -> str:
        if kind is AuthenticationFailed:
            if not self.key_from:
                return "no API key was sent: give api_key_env='NAME', the variable that holds it"
            return f"check the key in {self.key_from}, and what it may do"
        if 300 <= status < 400:
            there = self.clean(headers.get("location", "") or "another address")
            return f"redirects are not followed, since a key would go with them: give the address it points to ({there}) as base_url"
        return _MEND.get(kind, "try again later")

    def _named(self, status: int, said: Said) -> str:
        name = said.code or said.kind
        return f"{status} ({name})" if name and name != str(status) else str(status)


def secrets_of(key: str | None, headers: Mapping[str, str]) -> tuple[str, ...]:
    """Return what must never be shown: the key, and the values of headers that look like credentials.

    As they are, and as they are mostly written in URLs and JSON; `Faults` knows the rarer spellings.
    """
    values = [key] if key else []
    for name, value in headers.items():
        if re.search(r"auth|key|token|secret|cookie|password", name, re.I):
            values += [value, value.removeprefix("Bearer ").removeprefix("Basic ")]
    spellings: set[str] = set()
    for value in values:
        spellings |= {value, quote(value, safe=""), value.replace("\\", "\\\\").replace('"', '\\"')}
    # The longest first: one may be a part of another.
    return tuple(sorted((s for s in spellings if len(s) >= 4), key=len, reverse=True))


@lru_cache(maxsize=64)
def _spelled(secrets: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern of the secrets in which each character may be written as in JSON, HTML or a URL, be it twice over."""
    return re.compile("|".join("".join(map(_spellings, secret)) for secret in secrets))


@lru_cache(maxsize=256)
def _spellings(character: str) -> str:
    from html.entities import html5

    point = ord(character)
    names = "|".join(
        re.escape(name.rstrip(";")) for name, value in html5.items() if value == character
    )
    entity = rf"#[xX]0{{0,6}}(?i:{point:x})|#0{{0,6}}{point}" + (f"|{names}" if names else "")
    percent = "".join(rf"%(?:25){{0,3}}(?i:{byte:02x})" for byte in character.encode())
    # Every repetition is bounded, so that no text takes longer than in proportion to its length.
    return (
        rf"(?:\\{{0,8}}{re.escape(character)}|\\{{1,8}}u(?i:{point:04x})"
        rf"|&(?:amp;){{0,3}}(?:{entity});?|{percent})"
    )


def _words(value: Any) -> str:
    try:
        return str(value)
    except RecursionError:
        return "what it says is nested too deeply to be shown"


def _class_of(status: int | None, said: Said) -> type[LLMError]:
    names = {said.code, said.kind}
    if status == 402 or names & _QUOTA:
        return QuotaExhausted
    if status in (400, 403, 429) and _QUOTA_TEXT.search(said.message):
        return QuotaExhausted
    if status == 413 or names & _CONTEXT:
        return ContextTooLong
    if status is None or status in _THEIRS:
        return ProviderFailed
    if status == 429:
        return RateLimited
    if status in (503, 529) or "overloaded_error" in names:
        return Overloaded
    if status >= 500:
        return ProviderFailed
    if status in (401, 403):
        return AuthenticationFailed
    if status == 404 or 300 <= status < 400:
        return NotFound
    return ContextTooLong if _CONTEXT_TEXT.search(said.message) else BadRequest


def _limit_of(said: Said) -> str | None:
    """Tell which limit a 429 means: ``"tokens"`` or ``"requests"``, or ``None`` where it does not say."""
    if said.kind in ("tokens", "requests"):
        return said.kind
    found = re.search(r"\b(tokens|requests) per (?:min|day|hour)", said.message, re.I)
    return found[1].lower() if found else None


def _is_status(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600
