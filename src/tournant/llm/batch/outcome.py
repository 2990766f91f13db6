"""What a batch has done: counted while it runs, and told afterwards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tournant.errors import short
from tournant.llm.batch.requests import BadLine
from tournant.llm.model import Usage
from tournant.report import Report


class Tally:
    """The counts of a batch while it runs. They are changed on the run's event loop, and may be read from any thread.

    Attributes:
        answered: Requests with an answer.
        failed: Requests that failed for good, by kind.
        examples: The first failure of each kind.
        prompt_tokens: Tokens read, as far as the provider says.
        completion_tokens: Tokens written, likewise.
        in_flight: Requests that are under way now.
        attempts: Requests that were sent, each as often as it was.
    """

    def __init__(self, price: tuple[float, float] | None) -> None:
        self.answered = 0
        self.failed: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.prompt_tokens = self.completion_tokens = 0
        self.in_flight = 0
        self.attempts = 0
        self._price = price

    def answer(self, usage: Usage | None) -> None:
        """Count an answer."""
        self.answered += 1
        if usage is not None:
            self.prompt_tokens += usage.prompt_tokens
            self.completion_tokens += usage.completion_tokens

    def failure(self, kind: str, custom_id: str, message: str) -> None:
        """Count a request that failed for good."""
        if kind not in self.failed:
            self.examples[kind] = f"{short(custom_id)}: {message}"
        self.failed[kind] += 1

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def cost(self) -> float | None:
        """What the tokens cost; ``None`` where nobody said the price."""
        if self._price is None:
            return None
        read, written = self._price
        return (self.prompt_tokens * read + self.completion_tokens * written) / 1e6


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What a batch did.

    Attributes:
        requests: Requests in the input.
        answered: Those that were answered in this run.
        answered_before: Those that had an answer already.
        failed: Those that failed for good in this run, by kind: how many.
        examples: The first failure of each kind, in words.
        refused_before: Those that the provider refused in an earlier run, and that were not asked again.
        unfinished: Those that were not finished, because the run was stopped.
        bad: Lines of the input that are no requests: the first 1,000.
        bad_count: How many there are.
        prompt_tokens: Tokens read in this run, as far as the provider says.
        completion_tokens: Tokens written, likewise.
        cost: What these tokens cost, in the currency of the price; ``None`` where nobody said the price.
        attempts: Requests that were sent, each as often as it was.
        seconds: How long it took.
        report: The run's report; ``None`` when there was nothing to ask.
    """

    requests: int
    answered: int = 0
    answered_before: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    refused_before: int = 0
    unfinished: int = 0
    bad: tuple[BadLine, ...] = ()
    bad_count: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    attempts: int = 0
    seconds: float = 0.0
    report: Report | None = None

    @property
    def complete(self) -> bool:
        """Whether every line of the input is a request that has its answer."""
        return self.answered + self.answered_before == self.requests and not self.bad_count

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        plain["bad"] = [bad._asdict() for bad in self.bad]
        plain["report"] = None
        if self.report is not None:
            plain["report"] = self.report.as_dict()
            del plain["report"]["failures"]
        return plain
