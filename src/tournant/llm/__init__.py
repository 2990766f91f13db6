"""Language models: an HTTP client, a model in this process, and the one interface they share.

The public names, loaded on first use: nothing here imports an HTTP client or a model before one is asked for. This room
uses the core (pipeline, limits); the core knows nothing of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tournant.llm.client import Client, RawReply
    from tournant.llm.errors import (
        TRANSIENT,
        AuthenticationFailed,
        BadReply,
        BadRequest,
        ConnectionFailed,
        ContextTooLong,
        InvalidClient,
        LLMError,
        LLMTimeout,
        MissingExtra,
        NotFound,
        Overloaded,
        ProviderFailed,
        QuotaExhausted,
        RateLimited,
        StreamFailed,
        StreamTruncated,
    )
    from tournant.llm.gguf import Local, LocalMissing, ModelFailed, ModelUnusable, local
    from tournant.llm.model import Chunk, ChunkStream, Messages, Model, Reply, Usage
    from tournant.llm.stream import Stream
    from tournant.llm.timeouts import Timeouts

_HOMES = {
    "tournant.llm.client": ("Client", "RawReply"),
    "tournant.llm.errors": (
        "AuthenticationFailed", "BadReply", "BadRequest", "ConnectionFailed", "ContextTooLong", "InvalidClient",
        "LLMError", "LLMTimeout", "MissingExtra", "NotFound", "Overloaded", "ProviderFailed", "QuotaExhausted", "RateLimited",
        "StreamFailed", "StreamTruncated", "TRANSIENT",
    ),
    "tournant.llm.gguf": ("Local", "LocalMissing", "ModelFailed", "ModelUnusable", "local"),
    "tournant.llm.model": ("Chunk", "ChunkStream", "Messages", "Model", "Reply", "Usage"),
    "tournant.llm.stream": ("Stream",),
    "tournant.llm.timeouts": ("Timeouts",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "TRANSIENT",
    "AuthenticationFailed",
    "BadReply",
    "BadRequest",
    "Chunk",
    "ChunkStream",
    "Client",
    "ConnectionFailed",
    "ContextTooLong",
    "InvalidClient",
    "LLMError",
    "LLMTimeout",
    "Local",
    "LocalMissing",
    "Messages",
    "MissingExtra",
    "Model",
    "ModelFailed",
    "ModelUnusable",
    "NotFound",
    "Overloaded",
    "ProviderFailed",
    "QuotaExhausted",
    "RateLimited",
    "RawReply",
    "Reply",
    "Stream",
    "StreamFailed",
    "StreamTruncated",
    "Timeouts",
    "Usage",
    "local",
]


def __getattr__(name: str) -> Any:
    import importlib

    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'tournant.llm' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
