"""The server: token streams, embeddings and search over HTTP, behind one event loop that never blocks.

The public names, loaded on first use: nothing here imports a server or a model before one is asked for. This room uses the core,
`llm` and `ingest`; none of them knows of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tournant.serve.app import make_app
    from tournant.serve.errors import HTTPError, InvalidSettings, ServeError
    from tournant.serve.run import run
    from tournant.serve.settings import ServeSettings

_HOMES = {
    "make_app": "tournant.serve.app",
    "HTTPError": "tournant.serve.errors",
    "InvalidSettings": "tournant.serve.errors",
    "ServeError": "tournant.serve.errors",
    "run": "tournant.serve.run",
    "ServeSettings": "tournant.serve.settings",
}

__all__ = ["HTTPError", "InvalidSettings", "ServeError", "ServeSettings", "make_app", "run"]


def __getattr__(name: str) -> Any:
    import importlib

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tournant.serve' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
