"""What can go wrong with a model: one tree under `LLMError`, the same for every provider and for a model in process.

Each error says what happened, where, and how to mend it; its class says whether trying again can help. Errors can be
pickled. No text here ever holds an API key: whoever builds a message from what a provider sent takes the key out first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from tournant.errors import TournantError


class LLMError(TournantError):
    """A call to a model failed.

    Args:
        message: What happened, where, and how to mend it.
        status: The HTTP status, where there was one.
        retry_after: Seconds to wait before trying again, as the provider says.
        code: The provider's own name for the error.

    Attributes:
        kind: A short word for summaries.
        transient: Whether the same call may succeed later: what ``Retry(on=llm.TRANSIENT)`` goes by.
        status: As above; ``None`` where no reply came.
        retry_after: As above; ``None`` where the provider does not say.
        code: As above; ``None`` where the provider gives none.
        body: The body of the provider's reply, parsed, without secrets; ``None`` where there was none or it is no JSON.
        request_id: What the provider's support asks for; ``None`` where it gives none.
    """

    kind: ClassVar[str] = "failed"
    transient: ClassVar[bool] = False
    body: Any = None
    request_id: str | None = None

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.code = code

    def __reduce__(self) -> tuple[Callable[..., LLMError], tuple[Any, ...], dict[str, Any]]:
        # The state carries the attributes, and the notes with them.
        return _restored, (type(self), self.args), self.__dict__


class RateLimited(LLMError):
    """Too many requests or tokens per time (429): the same call may pass later.

    Attributes:
        of: Which limit it was, ``"requests"`` or ``"tokens"``; ``None`` where the provider does not say.
    """

    kind = "rate_limited"
    transient = True
    of: str | None = None


class QuotaExhausted(LLMError):
    """The account's quota or credit is used up (429 ``insufficient_quota``, 402): waiting does not help."""

    kind = "quota_exhausted"


class Overloaded(LLMError):
    """The provider has too much to do (503, 529)."""

    kind = "overloaded"
    transient = True


class ProviderFailed(LLMError):
    """The provider failed (a 5xx other than 503 and 529), or gave the request up (408, 409, 425)."""

    kind = "provider_failed"
    transient = True


class BadRequest(LLMError):
    """The provider refuses this request (400, 422 and other 4xx): the same request would be refused again."""

    kind = "bad_request"


class ContextTooLong(BadRequest):
    """The prompt and the answer asked for do not fit into the model's context."""

    kind = "context_too_long"


class AuthenticationFailed(LLMError):
    """The provider does not accept the API key, or the key may not do this (401, 403). Every other call would fail too."""

    kind = "authentication_failed"


class NotFound(LLMError):
    """The provider knows no such model or address (404)."""

    kind = "not_found"


class ConnectionFailed(LLMError):
    """No connection, or it broke before the reply was complete: refused, reset, unknown host, TLS.

    Attributes:
        sent: Whether the request may have reached the provider; ``False`` when no connection was made.
    """

    kind = "connection_failed"
    transient = True
    sent: bool = True


class BadReply(LLMError):
    """The reply is no answer: HTML with status 200, half a JSON, or JSON of another shape."""

    kind = "bad_reply"
    transient = True


class StreamTruncated(LLMError):
    """A streamed answer ended without saying that it was complete (no ``[DONE]``): what came so far is a part."""

    kind = "stream_truncated"
    transient = True


class StreamFailed(LLMError):
    """The provider reported an error in the middle of a streamed answer."""

    kind = "stream_failed"
    transient = True


class LLMTimeout(LLMError, TimeoutError):
    """A call took too long.

    Attributes:
        which: The timeout that ran out: ``"connect"``, ``"first_token"``, ``"between_tokens"`` or ``"total"``.
        seconds: How long that timeout is.
    """

    kind = "timeout"
    transient = True
    which: str = "total"
    seconds: float = 0.0


class InvalidClient(LLMError, ValueError):
    """A client or a call is described in a way that can't be."""

    kind = "invalid_client"


class MissingExtra(LLMError, ImportError):
    """A package that this room needs is not installed.

    Args:
        purpose: What was asked for, as the subject of a sentence (``"the model client"``).
        package: The package that is missing.
        extra: The extra of Tournant that brings it.
    """

    kind = "missing_extra"

    def __init__(self, purpose: str, package: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; pip install 'tournant[{extra}]'"
        )


TRANSIENT: tuple[type[LLMError], ...] = (
    RateLimited,
    Overloaded,
    ProviderFailed,
    ConnectionFailed,
    BadReply,
    StreamTruncated,
    StreamFailed,
    LLMTimeout,
)
"""The errors after which the same call may succeed, for ``tn.Retry(on=llm.TRANSIENT)``."""


def _restored(kind: type[LLMError], args: tuple[Any, ...]) -> LLMError:
    # Not through the constructors, which take other arguments than `args` holds.
    error = kind.__new__(kind)
    error.args = args
    return error
