"""A provider to test against: OpenAI's HTTP surface, with limits, latency and faults that can be set, and a count of what came.

`MockServer` serves it in the running event loop, `serving` in a thread for synchronous tests, ``tournant mock-llm`` on the
command line. The names are loaded on first use. Nothing here is used by the client: they meet only on the wire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tournant.llm.mock.answers import answer_to, vector_of
    from tournant.llm.mock.server import MockServer, ServingThread, serving
    from tournant.llm.mock.settings import InvalidMockSettings, MockSettings
    from tournant.llm.mock.tokens import count_tokens

_HOMES = {
    "tournant.llm.mock.answers": ("answer_to", "vector_of"),
    "tournant.llm.mock.server": ("MockServer", "ServingThread", "serving"),
    "tournant.llm.mock.settings": ("InvalidMockSettings", "MockSettings"),
    "tournant.llm.mock.tokens": ("count_tokens",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "InvalidMockSettings",
    "MockServer",
    "MockSettings",
    "ServingThread",
    "answer_to",
    "count_tokens",
    "serving",
    "vector_of",
]


def __getattr__(name: str) -> Any:
    import importlib

    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'tournant.llm.mock' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
