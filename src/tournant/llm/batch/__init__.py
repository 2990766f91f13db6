"""Batches: a file of requests in, a file of results out, in OpenAI's batch format.

``run_batch(BatchOptions(input=..., output=...))`` is what ``tournant batch`` runs. The names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tournant.llm.batch.errors import (
        BatchError,
        BatchStopped,
        InputRefused,
        InvalidBatch,
        ResultsRefused,
    )
    from tournant.llm.batch.job import BatchRun, run_batch
    from tournant.llm.batch.options import BatchOptions
    from tournant.llm.batch.outcome import BatchOutcome
    from tournant.llm.batch.progress import BatchSnapshot

_HOMES = {
    "tournant.llm.batch.errors": (
        "BatchError", "BatchStopped", "InputRefused", "InvalidBatch", "ResultsRefused",
    ),
    "tournant.llm.batch.job": ("BatchRun", "run_batch"),
    "tournant.llm.batch.options": ("BatchOptions",),
    "tournant.llm.batch.outcome": ("BatchOutcome",),
    "tournant.llm.batch.progress": ("BatchSnapshot",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BatchError",
    "BatchOptions",
    "BatchOutcome",
    "BatchRun",
    "BatchSnapshot",
    "BatchStopped",
    "InputRefused",
    "InvalidBatch",
    "ResultsRefused",
    "run_batch",
]


def __getattr__(name: str) -> Any:
    import importlib

    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'tournant.llm.batch' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
