"""One interface for language models, wherever they run, and the values that pass through it.

`Model` is what the HTTP client, the model in process and the wrappers around them have in common. Everything here is
plain Python: no HTTP client and no JSON library is imported.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

Messages = str | Sequence[Mapping[str, Any]]
"""A conversation: a list of ``{"role": ..., "content": ...}``, or a string, which is one message of the user."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost, in tokens, as the provider counted.

    Attributes:
        prompt_tokens: Tokens read.
        completion_tokens: Tokens written; 0 for embeddings.
    """

    prompt_tokens: int
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer.

    Attributes:
        text: What the model wrote; empty when it only called tools, see `raw`.
        finish_reason: Why it ended: ``"stop"``, ``"length"``, ``"tool_calls"`` and so on; ``None`` where nobody said.
        usage: What it cost, or ``None`` where nobody said.
        model: The model that answered, as it calls itself.
        raw: The body as the provider sent it, parsed; empty for a model in this process.
    """

    text: str
    finish_reason: str | None
    usage: Usage | None
    model: str
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a streamed answer.

    Attributes:
        text: What was written since the last piece; may be empty in a piece that only says how it ended.
        finish_reason: Why it ended, in the piece that says so; otherwise ``None``.
        usage: What it cost, in the piece that says so (usually the last); otherwise ``None``.
        raw: The event as the provider sent it, parsed (calls of tools are there); empty for a model in this process.
    """

    text: str
    finish_reason: str | None = None
    usage: Usage | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@runtime_checkable
class ChunkStream(Protocol):
    """A streamed answer: an async iterator of `Chunk` that can be left at any moment.

    ``async for chunk in stream`` works, and so does ``async with stream as chunks``, which also closes it when the block
    is left. Closing ends the generating at once; closing twice does nothing.
    """

    def __aiter__(self) -> AsyncIterator[Chunk]: ...

    async def __anext__(self) -> Chunk: ...

    async def aclose(self) -> None:
        """Stop generating and let go of whatever the answer held."""
        ...

    async def __aenter__(self) -> ChunkStream: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class Model(Protocol):
    """A language model: `Client` (over HTTP) and `Local` (in this process) are two of them.

    Options are the body fields of the OpenAI API (``max_tokens``, ``temperature``, ``seed``, ``stop``, ...). Errors are
    those of `tournant.llm.errors`.

    Attributes:
        name: What the model is called, for messages.
    """

    name: str

    async def chat(self, messages: Messages, **options: Any) -> Reply:
        """Answer a conversation."""
        ...

    def stream(self, messages: Messages, **options: Any) -> ChunkStream:
        """Answer a conversation piece by piece."""
        ...

    async def complete(self, prompt: str, **options: Any) -> Reply:
        """Continue a text."""
        ...

    def stream_completion(self, prompt: str, **options: Any) -> ChunkStream:
        """Continue a text piece by piece."""
        ...

    async def embed(self, texts: Sequence[str], **options: Any) -> list[list[float]]:
        """Return one vector for each text, in their order."""
        ...

    async def aclose(self) -> None:
        """Let go of connections, threads and memory. Closing twice does nothing."""
        ...

    async def __aenter__(self) -> Model: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
