"""What a run knows of its failures: the records, the policies, and the error it ends with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tournant.errors import (
    BatchMismatch,
    PipelineFailed,
    Throttled,
    TooManyFailures,
    TournantError,
    note,
    short,
)
from tournant.policies import asked_to_wait
from tournant.report import Failure, Report

if TYPE_CHECKING:
    from tournant.pipeline import Pipeline
    from tournant.stages import Stage

#: A share of failures is judged from this many inputs on, and at the end.
_SHARE_FROM = 20


def backoff(stage: Stage, error: Exception, count: int) -> float:
    """Return the seconds that an item waits after its attempt number `count` in `stage` failed with `error`.

    What the provider asks for is a lower bound. With a limit, the gate spreads those who come back, and its freeze passes
    while they wait here. Without one the backoff is added, or all who were refused together would come back together.
    """
    assert stage.retry is not None
    wait, asked = stage.retry.wait(count), asked_to_wait(error)
    return asked + wait if stage.limit is None else max(asked, wait)


def blames_a_row(error: Exception) -> bool:
    """Tell whether a batch that failed with `error` may have a row that is to blame, for which smaller batches would look.

    A wrong number of results is no row's fault, and smaller batches would only hide it. Nor is a refusal for coming too often,
    and smaller batches would come more often.
    """
    if isinstance(error, (BatchMismatch, Throttled)):
        return False
    from tournant.limits.verdict import TOO_MANY, status_of

    return status_of(error) not in TOO_MANY


class Failures:
    """The failures of one run.

    Attributes:
        items: each item that failed for good.
        fatal: what ended the run as a whole: its source, its ledger, too many failures.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._stopping: set[str] = set()
        self.watch(pipeline.stages)
        self.items: list[Failure] = []
        self.fatal: list[Exception] = []

    def watch(self, stages: Iterable[Stage]) -> None:
        """Apply the policies of stages that one stage of the pipeline stands for."""
        self._stopping.update(
            stage.name for stage in stages if (stage.on_error or self._pipeline.on_error) == "stop"
        )

    def add(self, stage: Stage, key: object, error: Exception, attempts: int) -> Failure:
        """Record that an item failed for good."""
        tries = f", attempt {attempts} of {stage.retry.attempts}" if stage.retry is not None else ""
        note(error, f"in stage {stage.name}, on input {short(key)}{tries}")
        failure = Failure(stage.name, key, error, attempts)
        self.items.append(failure)
        return failure

    def stops(self, stage: Stage) -> bool:
        """Tell whether a failure in `stage` ends the run."""
        return stage.name in self._stopping

    def wants_retry(self, stage: Stage, error: Exception, count: int) -> bool:
        """Ask the stage's policy; a predicate that raises counts as no, and says so."""
        if stage.retry is None:
            return False
        try:
            return stage.retry.wants(error, count)
        except Exception as problem:
            note(error, f"the predicate Retry(on=...) of stage {stage.name} raised {problem!r}")
            return False

    def too_many(self, failed: int, ended: int, *, final: bool = False) -> TooManyFailures | None:
        """Return the error to end with if `failed` of `ended` inputs is more than the pipeline allows."""
        limit = self._pipeline.max_failures
        if limit is None or not failed:
            return None
        if isinstance(limit, float):
            if not final and ended < _SHARE_FROM:
                return None
            over, said = failed > limit * ended, f"{limit:.1%} of the inputs"
        else:
            over, said = failed > limit, f"{limit} inputs"
        if not over:
            return None
        return TooManyFailures(
            f"{failed} of {ended} inputs failed, more than max_failures={said} allows; report.failures lists them"
        )

    def raise_for(self, report: Report) -> None:
        """Raise what the run has to end with, if anything.

        Raises:
            TournantError: the run as a whole failed: its source, its ledger, too many failures.
            PipelineFailed: items failed and the policy was to stop.
        """
        if self.fatal:
            error = self.fatal[0]
            note(error, f"the run ended with {report.done:,} of {report.sourced:,} inputs done")
            if isinstance(error, TournantError):
                error.report = report
            raise error
        if not any(failure.stage in self._stopping for failure in self.items):
            return
        distinct = {id(failure.error): failure.error for failure in self.items}
        first = self.items[0]
        failed = PipelineFailed(
            f"{len(self.items):,} item(s) failed, the first in stage {first.stage} for input "
            f"{short(first.key)}; {report.done:,} of {report.sourced:,} inputs are done, "
            f'{report.interrupted:,} were interrupted. Use on_error="skip" to go on past failures, or '
            "retry=tn.Retry() where they are transient",
            list(distinct.values()),
        )
        failed.report, failed.failures = report, report.failures
        raise failed
