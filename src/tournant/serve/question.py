"""What a request for chat or completions asks for, as far as the server must know; the rest is the model's to judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from tournant.errors import short
from tournant.llm.estimate import estimate_prompt, estimate_tokens
from tournant.serve.bodies import an_object, field, one_of, whole
from tournant.serve.errors import bad_request
from tournant.serve.settings import ServeSettings

if TYPE_CHECKING:
    from tournant.ingest.indexes.base import Mode

Kind = Literal["chat", "completion"]
RAG = "rag"
_SOURCES = 1_500  # tokens of the passages that are retrieved, see `tournant.serve.retrieval`
_LARGEST = 10_000_000
_SETTINGS_OF_ANSWERS = ("max_tokens", "max_completion_tokens")


class Retrieval(NamedTuple):
    """What is to be retrieved from the index before the answer.

    Attributes:
        k: The most passages.
        mode: How to search.
    """

    k: int
    mode: Mode


@dataclass(slots=True)
class Question:
    """One request for an answer.

    Attributes:
        kind: Chat or completion.
        body: The body, parsed; the field ``retrieve`` has been taken out.
        raw: The body as it came, or empty where it must be written anew.
        model: The model that was asked for, or ``None``.
        stream: Whether the answer is to be streamed.
        wants_usage: Whether a streamed answer is to end with what it cost.
        tokens: What it will cost in tokens, by estimate.
        prompt_tokens: The prompt's share of that.
        retrieve: What is to be retrieved first, or ``None``.
    """

    kind: Kind
    body: dict[str, Any]
    raw: bytes
    model: str | None
    stream: bool
    wants_usage: bool
    tokens: int
    prompt_tokens: int
    retrieve: Retrieval | None


def read_question(value: Any, raw: bytes, kind: Kind, settings: ServeSettings) -> Question:
    """Check a request's body, and say what it asks for.

    Raises:
        HTTPError: 400 for what can't be.
    """
    body = an_object(value)
    model: str | None = field(body, "model", str)
    stream = bool(field(body, "stream", bool, False))
    options: dict[str, Any] = field(body, "stream_options", dict, {})
    wants_usage = bool(field(options, "include_usage", bool, False))
    for name in _SETTINGS_OF_ANSWERS:
        whole(body, name, None, 1, _LARGEST)
    whole(body, "n", None, 1, 128)
    if kind == "chat":
        _check_messages(body, settings)
    else:
        _check_prompt(body, settings)
    retrieve = _retrieval(body, model, settings)
    if "retrieve" in body:
        body = {name: value for name, value in body.items() if name != "retrieve"}
        raw = b""
    tokens = estimate_tokens(body) + (_SOURCES if retrieve is not None else 0)
    return Question(
        kind,
        body,
        raw,
        model,
        stream,
        wants_usage,
        tokens,
        estimate_prompt(body),
        retrieve,
    )


def options_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a body says about how to answer, for `tournant.llm.Model`."""
    mine = ("messages", "prompt", "model", "stream", "stream_options")
    return {name: value for name, value in body.items() if name not in mine and value is not None}


def _check_messages(body: dict[str, Any], settings: ServeSettings) -> None:
    messages = field(body, "messages", list)
    if not messages:
        raise bad_request(
            "messages is missing or empty: send a list with one message or more", "messages"
        )
    if len(messages) > settings.max_texts:
        raise bad_request(
            f"messages has {len(messages):,} entries; at most {settings.max_texts:,} are taken",
            "messages",
        )
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise bad_request(f"{where} must be an object with a role, which is a string", where)
        content = message.get("content")
        if content is not None and not isinstance(content, (str, list)):
            raise bad_request(
                f"{where}.content must be a string or a list of parts", f"{where}.content"
            )


def _check_prompt(body: dict[str, Any], settings: ServeSettings) -> None:
    prompt = field(body, "prompt", (str, list))
    if prompt is None:
        raise bad_request("prompt is missing: send a string", "prompt")
    if isinstance(prompt, list) and not prompt:
        raise bad_request("prompt is an empty list: send a string", "prompt")


def _retrieval(
    body: dict[str, Any], model: str | None, settings: ServeSettings
) -> Retrieval | None:
    wanted = field(body, "retrieve", dict)
    if wanted is None:
        if model != RAG or settings.index is None:
            return None
        wanted = {}
    if settings.index is None:
        raise bad_request(
            "retrieve was given, but this server has no index: leave it out, or ask one that has",
            "retrieve",
        )
    unknown = set(wanted) - {"k", "mode"}
    if unknown:
        raise bad_request(
            f"retrieve has no field {short(min(unknown))}: it has k, the number of passages, and mode",
            "retrieve",
        )
    mode = one_of(wanted, "mode", ("hybrid", "vector", "text"), "hybrid")
    return Retrieval(whole(wanted, "k", 5, 1, settings.max_results) or 5, cast("Mode", mode))
