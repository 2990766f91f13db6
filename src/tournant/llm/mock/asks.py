"""Request bodies: read and checked as OpenAI's API does it, as far as it matters for the answer.

What is not named here (``temperature``, ``tools``, ...) is taken and has no effect, unless a model stands behind the
provider: it gets everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from tournant.llm.mock.settings import MOST_DIMENSIONS, MOST_TOKENS, MockSettings
from tournant.llm.mock.tokens import tokens_in

CHAT, COMPLETION, EMBEDDING = "chat", "completion", "embedding"
_MOST_TEXTS = 2_048
#: What a model in the place of the made-up answers gets none of: it is between the caller and the provider.
_OURS = frozenset(
    {"model", "messages", "prompt", "input", "stream", "stream_options", "n", "user", "store", "metadata",
     "service_tier", "encoding_format", "dimensions"}
)  # fmt: skip


class BadBody(Exception):
    """A body is refused with 400.

    Args:
        message: What is wrong with it, for whoever sent it.
        param: The field it is about.
        code: OpenAI's word for it.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class _Part(msgspec.Struct):
    text: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Common(msgspec.Struct, kw_only=True):
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None


class _Chat(_Common):
    messages: list[_Message]
    max_completion_tokens: int | None = None


class _Completion(_Common):
    prompt: str | list[str | int | list[int]]


class _Embedding(msgspec.Struct):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: int | None = None


_chat = msgspec.json.Decoder(_Chat)
_completion = msgspec.json.Decoder(_Completion)
_embedding = msgspec.json.Decoder(_Embedding)
_anything = msgspec.json.Decoder()


@dataclass(slots=True)
class Ask:
    """What a call asks for.

    Attributes:
        kind: `CHAT`, `COMPLETION` or `EMBEDDING`.
        model: The model's name.
        texts: What each answer is made from: the last message of a conversation, the prompts, the texts to embed.
        tokens_in: Tokens of everything that was sent.
        longest_in: Tokens of the longest text that has a context of its own: the conversation, or one prompt.
        most: The longest answer that is wanted, in tokens, or ``None`` where the call doesn't say.
        stop: Where an answer ends early.
        streamed: Whether the answer comes as a stream.
        with_usage: Whether the stream says at its end what it cost.
        base64: Whether vectors come as base64.
        dimensions: How long vectors are to be, or ``None``.
    """

    kind: str
    model: str
    texts: list[str]
    tokens_in: int
    longest_in: int
    most: int | None = None
    stop: tuple[str, ...] = ()
    streamed: bool = False
    with_usage: bool = False
    base64: bool = False
    dimensions: int | None = None

    def longest(self, settings: MockSettings) -> int:
        """Return how many tokens each answer has at most, within the model's context."""
        if self.kind == EMBEDDING:
            return 0
        wanted = settings.answer_tokens if self.most is None else self.most
        if settings.context is not None:
            wanted = min(wanted, max(0, settings.context - self.longest_in))
        return wanted


def read_ask(kind: str, body: bytes) -> Ask:
    """Read a body.

    Raises:
        BadBody: when it is no JSON, or a field is missing or can't be.
    """
    try:
        if kind == CHAT:
            return _read_chat(_chat.decode(body))
        if kind == COMPLETION:
            return _read_completion(_completion.decode(body))
        return _read_embedding(_embedding.decode(body))
    except msgspec.ValidationError as error:
        text = str(error)
        field = text.rpartition("`$.")[2].rstrip("`") if "`$." in text else None
        raise BadBody(f"Invalid request: {text}.", field) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadBody(f"We could not parse the JSON body of your request: {error}.") from None


def everything(body: bytes) -> dict[str, Any]:
    """Return all of a body that has been read before."""
    whole: dict[str, Any] = _anything.decode(body)
    return whole


def options_of(whole: dict[str, Any]) -> dict[str, Any]:
    """Return what of a body a model gets: its options, as far as they are given."""
    return {name: value for name, value in whole.items() if name not in _OURS and value is not None}


def _read_chat(said: _Chat) -> Ask:
    if not said.messages:
        raise BadBody(
            "Invalid 'messages': empty array. Give at least one message.", "messages", "empty_array"
        )
    total, last, user = 0, "", None
    for message in said.messages:
        content = message.content
        if content is None:
            last = ""
        elif isinstance(content, str):
            last = content
        else:
            last = " ".join(part.text for part in content if part.text)
        total += len(last)
        if message.role == "user":
            user = last
    most = said.max_tokens if said.max_completion_tokens is None else said.max_completion_tokens
    tokens = tokens_in(total)
    return _with_options(said, CHAT, [last if user is None else user], (tokens, tokens), most)


def _read_completion(said: _Completion) -> Ask:
    texts, tokens = _texts(said.prompt, "prompt")
    return _with_options(said, COMPLETION, texts, tokens, said.max_tokens)


def _with_options(
    said: _Common, kind: str, texts: list[str], tokens: tuple[int, int], most: int | None
) -> Ask:
    if said.n not in (None, 1):
        raise BadBody(
            "Unsupported value: 'n' is 1 here. Ask again for further answers.",
            "n",
            "unsupported_value",
        )
    if most is not None and not 0 < most <= MOST_TOKENS:
        raise BadBody(
            f"Invalid 'max_tokens': give a whole number from 1 to {MOST_TOKENS}.",
            "max_tokens",
            "integer_below_min_value" if most < 1 else "integer_above_max_value",
        )
    stop = said.stop
    if not stop:
        stops: tuple[str, ...] = ()
    else:
        stops = (stop,) if isinstance(stop, str) else tuple(word for word in stop if word)
    options = said.stream_options
    with_usage = options is not None and bool(options.include_usage)
    return Ask(kind, said.model, texts, *tokens, most, stops, bool(said.stream), with_usage)


def _read_embedding(said: _Embedding) -> Ask:
    texts, tokens = _texts(said.input, "input")
    if said.encoding_format not in (None, "float", "base64"):
        raise BadBody(
            "Invalid 'encoding_format': give 'float' or 'base64'.",
            "encoding_format",
            "invalid_value",
        )
    if said.dimensions is not None and not 0 < said.dimensions <= MOST_DIMENSIONS:
        raise BadBody(
            f"Invalid 'dimensions': give a whole number from 1 to {MOST_DIMENSIONS}.", "dimensions"
        )
    return Ask(
        EMBEDDING,
        said.model,
        texts,
        *tokens,
        base64=said.encoding_format == "base64",
        dimensions=said.dimensions,
    )


def _texts(
    given: str | list[str | int | list[int]], name: str
) -> tuple[list[str], tuple[int, int]]:
    """Return the texts of a field that takes one or many, as text or as token numbers; and their tokens: all, and the most."""
    if isinstance(given, str):
        tokens = tokens_in(len(given))
        return [given], (tokens, tokens)
    if not given or len(given) > _MOST_TEXTS:
        raise BadBody(f"Invalid '{name}': give from 1 to {_MOST_TEXTS} texts.", name)
    numbers = [one for one in given if isinstance(one, int)]
    if numbers and len(numbers) == len(given):
        # One text, as its tokens' numbers.
        return [_from_numbers(numbers)], (len(numbers), len(numbers))
    texts, counts = [], []
    for one in given:
        if isinstance(one, str):
            texts.append(one)
            counts.append(tokens_in(len(one)))
        elif isinstance(one, list):
            texts.append(_from_numbers(one))
            counts.append(len(one))
        else:
            raise BadBody(f"Invalid '{name}': a list holds texts or token numbers, not both.", name)
    return texts, (sum(counts), max(counts))


def _from_numbers(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))
