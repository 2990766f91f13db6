"""The one tree of errors. Every message says what happened, where, and how to mend it.

Everything here can be pickled: errors cross process boundaries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tournant.report import Failure, Report


class TournantError(Exception):
    """The root: everything that Tournant raises by itself derives from it.

    Attributes:
        report: where the error ended a run, the run's `Report`; otherwise ``None``.
    """

    report: Report | None = None


class InvalidPipeline(TournantError, ValueError):
    """A pipeline's description is refused: a stage or an option can't be as it was given."""


class PipelineFailed(ExceptionGroup[Exception], TournantError):
    """A run stopped because items failed and the policy was ``on_error="stop"``.

    It groups the exceptions of the failed items, so ``except*`` works. Each carries a note that names stage
    and key.

    Attributes:
        failures: the `Failure` records, in the order in which they happened.
    """

    failures: Sequence[Failure] = ()

    def derive(self, excs: Sequence[Exception]) -> PipelineFailed:  # type: ignore[override]
        """Keep report and failures when ``except*`` splits the group."""
        part = PipelineFailed(self.message, excs)
        part.report, part.failures = self.report, self.failures
        return part


class TooManyFailures(TournantError):
    """More inputs failed than ``max_failures`` allows."""


class SourceFailed(TournantError):
    """The pipeline's source raised; the cause is chained."""


class WorkerDied(TournantError):
    """A worker process died twice while it held this item (killed, out of memory, segfault, ``os._exit``)."""


class StageTimeout(TournantError, TimeoutError):
    """One attempt at an item took longer than the stage's ``timeout``."""


class Throttled(TournantError):
    """A stage's result was a refusal in disguise: by its limit's ``is_throttle``, the provider answered that it was asked too often."""


class BatchMismatch(TournantError, ValueError):
    """A batch callable returned another number of results than it was given items."""


class NotPicklable(TournantError, TypeError):
    """A value can't travel to or from a worker process."""


class ForgottenAwait(TournantError, TypeError):
    """A coroutine that nobody awaits: made inside a stage's call and forgotten, or returned from a plain function."""


class LostWork(TournantError):
    """A stage's call returned and left a task running that came to no end: nobody would ever have waited for it."""


class StageExit(TournantError):
    """A stage raised something that is no ``Exception`` (``SystemExit``, ``GeneratorExit``)."""


class LostItems(TournantError):
    """The sum of a run's inputs does not add up. This is a bug in Tournant, never in your code."""


class WouldDeadlock(TournantError, RuntimeError):
    """A synchronous wait was refused because it would block the very loop it waits for."""


class RunClosed(TournantError, RuntimeError):
    """A run was used after it had ended, or before it was opened."""


class LedgerError(TournantError):
    """A ledger can't be opened, read or written."""


class PoolClosed(TournantError, RuntimeError):
    """The pool of workers was shut down while a run still needed it."""


def note(error: BaseException, text: str) -> None:
    """Add a note to `error` unless it is there already."""
    if text not in getattr(error, "__notes__", ()):
        error.add_note(text)


def short(value: Any, limit: int = 80) -> str:
    """Return ``repr(value)``, cut to `limit` characters, for messages."""
    try:
        text = repr(value)
    except Exception:
        text = object.__repr__(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
