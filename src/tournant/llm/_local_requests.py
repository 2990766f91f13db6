"""What a model in this process is asked, checked, and what its library says went wrong, in the words of the tree of errors.

Internal to `tournant.llm.gguf`, which exports the errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tournant.errors import short
from tournant.llm.errors import BadRequest, ContextTooLong, InvalidClient, LLMError, StreamFailed

#: What the library calls a request that it refuses.
INVALID = "invalid_request_error"
_TOO_LONG = "exceed_context_size_error"
_TAKEN = ("stream", "stream_options", "messages", "prompt", "return_progress")


class ModelUnusable(LLMError):
    """The model's file can't be used: it is missing, no GGUF, cut off, of a kind that is not known, or too large."""

    kind = "model_unusable"


class ModelFailed(LLMError):
    """The model broke off; its library says why."""

    kind = "model_failed"


class LocalMissing(LLMError, ImportError):
    """The package that runs models in this process is not installed."""

    kind = "local_missing"


def checked_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a request's body; refuse what the library would pass over or not explain.

    Args:
        name: The model's name.
        options: As a call was given them; one that is ``None`` is left out.

    Raises:
        InvalidClient: when an option belongs elsewhere.
        BadRequest: when one can't be.
    """
    body = {option: value for option, value in options.items() if value is not None}
    for option in _TAKEN:
        if option in body:
            raise InvalidClient(
                f"the option {option}= is not taken: call stream() for pieces, chat() for the whole answer"
            )
    if body.get("n", 1) != 1:
        raise _bad(name, f"n={short(body['n'])}: a call has one answer; call once for each")
    for option in ("tools", "functions"):
        if body.get(option):
            raise _bad(name, f"{option}=: a model in this process calls no tools; leave it out")
    for option in ("max_tokens", "max_completion_tokens"):
        value = body.get(option, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise _bad(
                name,
                f"{option}={short(value)}: give a whole number of tokens, 1 or more, or leave it out",
            )
        if option in body:
            body[option] = min(value, 2**31 - 1)
    stop = body.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, (list, tuple)) or not all(isinstance(s, str) and s for s in stops):
        raise _bad(name, f"stop={short(stop)}: give a text or a list of texts, none of them empty")
    if stops:
        body["stop"] = list(stops)
    return body


def check_json(name: str, body: Mapping[str, Any]) -> None:
    """Refuse a request that can't be written as JSON.

    Raises:
        BadRequest: naming what is in the way.
    """
    try:
        text = json.dumps(body, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _bad(name, f"a message or an option is nothing that JSON has: {error}") from None
    check_text(text, f"{name}: a message or an option")


def check_text(text: str, where: str) -> None:
    """Refuse a text with half a character in it.

    Raises:
        BadRequest: with the mend.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(
            f"{where} has half a character in it, {text[error.start]!a}, which no model can read: "
            "text.encode('utf-8', 'replace').decode() replaces it"
        ) from None


def fault(name: str, context: int | None, words: str, kind: str, pieces: int) -> LLMError:
    """Make the error for what the library said of a request.

    Args:
        name: The model's name.
        context: Tokens that a prompt may have.
        words: The library's message.
        kind: The library's name for the error, or ``""``.
        pieces: How many pieces of the answer came before.
    """
    words = re.sub(r"\[json\.exception\.[^]]*\] ", "", words)
    if kind == _TOO_LONG:
        return ContextTooLong(
            f"{name}: the prompt has {_first_number(words)} tokens, and the context {context}: shorten it, or open the model with "
            "a larger context="
        )
    if pieces:
        return StreamFailed(
            f"{name}: the answer broke off after {pieces} pieces: {words}; what came so far is a part, so ask again"
        )
    if kind in (INVALID, "not_supported_error") or re.search(
        "not supported|[Ff]ailed to parse", words
    ):
        return _bad(name, f"{words}; change that option or message")
    return ModelFailed(
        f"{name}: {words or 'the library gives no reason'}; open the model with verbose=True to see more"
    )


def embed_fault(name: str, longest: int, words: str, kind: str) -> LLMError:
    """Make the error for what the library said of texts to embed, of which each may have `longest` tokens."""
    if kind == _TOO_LONG or "too large to process" in words:
        return ContextTooLong(
            f"{name}: a text to embed has {_first_number(words)} tokens, and {longest} are taken: cut it, or open the model with "
            "a larger embeddings="
        )
    return fault(name, None, words, kind, 0)


def _bad(name: str, reason: str) -> BadRequest:
    return BadRequest(f"{name}: {reason}")


def _first_number(words: str) -> str:
    found = re.search(r"\d+", words)
    return found.group() if found else "too many"
