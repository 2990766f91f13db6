from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tournant.ingest.indexes.base import Hit
from tournant.report import Report, RunSnapshot


@dataclass(frozen=True)
class Options:
    paths: tuple[str, ...]
    index: str
    embedder: str = "static"
    chunk_size: int = 1_000
    chunk_overlap: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_file_size: int | None = None
    memory_limit: int | None = None
    cache: str | None = None


@dataclass(frozen=True)
class Outcome:
    report: Report = field(default_factory=lambda: Report(3, 2, 0, 1, duration=1.25))
    chunks: int = 40
    removed: int = 1
    rejected: tuple[tuple[str, str], ...] = ()
    cached: int = 0
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {"chunks": self.chunks, "rejected": [list(pair) for pair in self.rejected]}


class Handle:
    """Stands for the run that the job has begun; remembers what it was asked to do."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def snapshot(self) -> RunSnapshot:
        return RunSnapshot(1.0, 3, 3, 2, 0, 1, 0)

    def drain(self) -> None:
        self.asked.append("drain")

    def cancel(self) -> None:
        self.asked.append("cancel")


@dataclass
class Job:
    """Stands in for the job's module, so that the commands are tested apart from it."""

    handle: Handle = field(default_factory=Handle)
    options: Options | None = None
    outcome: Outcome = field(default_factory=Outcome)
    during: Callable[[], None] = lambda: None
    hits: list[Hit] = field(default_factory=list)
    asked: tuple[Any, ...] = ()
    found: Any = None

    def run_ingest(self, options: Options, on_start: Callable[[Handle], None]) -> Outcome:
        self.options = options
        on_start(self.handle)
        self.during()
        return self.outcome

    def search(self, directory: str, query: str, *, limit: int, mode: str) -> list[Hit]:
        self.asked = (directory, query, limit, mode)
        return self.hits

    def status(self, directory: str) -> Any:
        self.asked = (directory,)
        return self.found


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    stand_in = Job()
    module = types.ModuleType("tournant.ingest.job")
    vars(module).update(
        IngestOptions=Options,
        run_ingest=stand_in.run_ingest,
        search=stand_in.search,
        status=stand_in.status,
        default_cache=lambda: "the default",
    )
    monkeypatch.setitem(sys.modules, "tournant.ingest.job", module)
    return stand_in
