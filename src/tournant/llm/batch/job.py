"""A batch: requests streamed from a file, one stage that asks, one that writes. An ordinary pipeline.

The file of results is the ledger. What has its answer there is not asked again, so a batch that was stopped, in whatever way, is
gone on with by running it again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import replace
from importlib.util import find_spec
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING

import tournant as tn
from tournant.llm.batch.asking import Asker
from tournant.llm.batch.digests import DigestSet
from tournant.llm.batch.errors import BatchStopped, InputRefused, InvalidBatch, ResultsRefused
from tournant.llm.batch.health import Health, unreachable
from tournant.llm.batch.options import WRITE, BatchOptions, client_of, form_of, limits_of
from tournant.llm.batch.outcome import BatchOutcome, Tally
from tournant.llm.batch.progress import BatchSnapshot
from tournant.llm.batch.results import Kept, ResultsFile
from tournant.llm.batch.source import Checked, InputFile, Unanswered
from tournant.llm.batch.spread import NodeAsker, Told, silent
from tournant.llm.batch.writer import ResultsWriter, Written
from tournant.llm.errors import LLMError, MissingExtra

if TYPE_CHECKING:
    from tournant.llm.client import Client

#: Seconds that calls which are under way get when the batch is given up; their answers are paid for.
_GRACE = 10.0
#: What nodes get on top of that, to come back with what they have.
_BACK = 2.0
#: So much later than silence can have lasted too long is it looked at, so that it is looked at once.
_SLACK = 0.01
_ASK = "ask"
_RETRY = tn.Retry(attempts=1_000_000, delay=1.0, max_delay=30.0, on=LLMError)


class BatchRun:
    """A batch that is running: what ``on_start`` receives. Its methods may be called from any thread."""

    def __init__(self, batch: _Batch, watched: tn.Watched) -> None:
        self._batch = batch
        self._watched = watched
        self._loop = asyncio.get_running_loop()

    def snapshot(self) -> BatchSnapshot:
        """Return the batch as it stands."""
        return self._batch.snapshot(self._watched)

    @property
    def report(self) -> tn.Report | None:
        """The run's report once it has ended, however it ended; ``None`` before."""
        return self._watched.report

    def drain(self) -> None:
        """Ask nothing more, and wait for what is under way."""
        self._watched.drain()
        self._on_loop(self._batch.drained)

    def cancel(self) -> None:
        """Give up what is under way."""
        self._watched.cancel()

    def _on_loop(self, callback: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the run has ended
            self._loop.call_soon_threadsafe(callback)


def run_batch(
    options: BatchOptions, on_start: Callable[[BatchRun], None] | None = None
) -> BatchOutcome:
    """Ask what has no answer yet, and append the answers to the file of results as they come.

    Args:
        options: What, of whom, and how.
        on_start: Called with the run once it is under way, to watch, drain or cancel it.

    Raises:
        InvalidBatch: an option can't be as it was given.
        InputRefused: the file of requests can't be used. Nothing was sent, unless it was changed meanwhile.
        ResultsRefused: the file of results can't be used, or the disk became full; a rerun goes on from there.
        BatchStopped: the key is refused, the quota is used up or the provider is gone; a rerun goes on from there.
        MissingExtra: a package is not installed.
        ClusterError: there is no such cluster, or it has no node left to work.
    """
    for package in ("aiohttp", "msgspec"):
        if find_spec(package) is None:
            raise MissingExtra("a batch", package, "llm")
    form, client = form_of(options), client_of(options)
    limits_of(options)  # refused now, if they have to be
    began = monotonic()
    with (
        closing(InputFile(options.input, form)) as file,
        closing(ResultsFile(options.output)) as results,
    ):
        if os.path.samestat(file.status, os.fstat(results.descriptor)):
            raise InvalidBatch(
                "the file of results is the file of requests: give the results a file of their own"
            )
        checked = file.check()
        kept = results.read(checked.ids, retry_refused=options.retry_refused)
        checked.ids = DigestSet()  # millions of them are worth to be given back
        batch = _Batch(options, client, checked, kept)
        report = batch.run(file, results, on_start) if batch.todo else None
    return batch.outcome(report, monotonic() - began)


class _Batch:
    """One run over what has no answer."""

    def __init__(self, options: BatchOptions, client: Client, checked: Checked, kept: Kept) -> None:
        self.limit, self.adaptive = limits_of(options)
        self.health = Health(options.patience, timeout=options.timeout)
        self.tally = Tally(options.price)
        self.client = client
        self.options = options
        self.cluster = options.cluster
        self.down_for = self.health.down_for
        self.retries = options.retries
        self.checked = checked
        self.kept = kept
        self.todo = checked.requests - kept.answered - kept.refused
        self.fatal: LLMError | None = None
        self._watched: tn.Watched | None = None
        self._ended = False

    def run(
        self,
        file: InputFile,
        results: ResultsFile,
        on_start: Callable[[BatchRun], None] | None,
    ) -> tn.Report:
        def started(watched: tn.Watched) -> None:
            self._watched = watched
            self.watch_silence()
            if on_start is not None:
                on_start(BatchRun(self, watched))

        writer = ResultsWriter(results)
        try:
            source = Unanswered(file, self.kept.settled, self.todo)
            report = self.pipeline(source, writer).run(on_start=started, cluster=self.cluster)
        except (tn.PipelineFailed, tn.SourceFailed) as failed:
            raise _cause_of(failed, writer) from failed
        finally:
            self._ended = True
            writer.end()
        if writer.error is not None:
            raise writer.error
        if self.fatal is not None:
            raise self._stopped(self.fatal) from self.fatal
        return report

    def pipeline(self, source: Unanswered, writer: ResultsWriter) -> tn.Pipeline:
        """Describe the batch."""
        if self.cluster is not None:
            return self.on_nodes(source, writer)
        asker = Asker(
            self.client, self.retries, self.health, self.tally, writer.put, self.give_up, self.idle
        )

        async def write(written: Written | None) -> None:
            if written is not None:
                await writer.wait(written)

        return self.described(source, asker.ask, write)

    def on_nodes(self, source: Unanswered, writer: ResultsWriter) -> tn.Pipeline:
        """Describe the batch for a cluster."""
        options = self.options
        asker = NodeAsker(self.client, options.retries, options.patience, options.timeout)

        async def write(told: Told) -> None:
            self.tally.attempts += told.attempts
            self.health.answered = self.health.answered or told.answered
            if told.given_up is not None and self.fatal is None:
                self.down_for = lambda: told.down_for
                self.give_up(told.given_up)
            if told.line is None:
                return
            if told.failed is not None:
                self.tally.failure(*told.failed)
            else:
                self.tally.answer(told.usage)
            await writer.wait(writer.put(told.line))

        return self.described(source, asker, write)

    def described(
        self,
        source: Unanswered,
        ask: Callable[..., Awaitable[object]],
        write: Callable[..., Awaitable[None]],
    ) -> tn.Pipeline:
        """Return the pipeline that asks with one callable and writes with another."""
        most = self.adaptive.max
        return (
            tn.Pipeline(source, key=attrgetter("custom_id"))
            .map(
                ask,
                limit=self.limit,
                concurrency=self.adaptive,
                cost=attrgetter("tokens"),
                retry=_RETRY,
                name=_ASK,
            )
            .for_each(write, concurrency=most, name=WRITE)
        )

    # Stopping. On the loop.

    def give_up(self, error: LLMError) -> None:
        """Send nothing more; let what is under way end, but not for long."""
        if self.fatal is not None:
            return
        self.fatal = error
        assert self._watched is not None
        self._watched.drain()
        grace = _GRACE if self.cluster is None else _GRACE + _BACK
        asyncio.get_running_loop().call_later(grace, self._watched.cancel)
        self._stop()

    def drained(self) -> None:
        """Take in that nothing more is to be asked."""
        self._stop()  # what the stage has taken in and not sent is not under way

    def watch_silence(self) -> None:
        """Give up when nothing at all comes back for too long; look again when that may be so. On the loop."""
        if self._ended or self.health.stopped or self.cluster is not None:
            return
        left = self.health.silence_left()
        if left > 0:
            asyncio.get_running_loop().call_later(left + _SLACK, self.watch_silence)
            return
        self.give_up(silent(self.health))

    def idle(self) -> None:
        """Drop what waits for another attempt: nothing is under way any more."""
        assert self._watched is not None
        # Soon, not now: the last answer is still to be put down.
        asyncio.get_running_loop().call_soon(self._watched.cancel)

    def _stop(self) -> None:
        self.health.stop()
        # What nodes have under way comes back by itself.
        if self.cluster is None and not self.tally.in_flight:
            self.idle()

    def _stopped(self, error: LLMError) -> BatchStopped:
        answered = self.kept.answered + self.tally.answered
        said = str(error).rstrip(".")
        if unreachable(error):
            said = f"the provider could not be reached for {self.down_for():.0f} s: {said}"
        return BatchStopped(
            f"{said}. The batch was stopped with {answered:,} of {self.checked.requests:,} requests answered; "
            "mend that and run it again to go on"
        )

    # What is told

    def snapshot(self, watched: tn.Watched) -> BatchSnapshot:
        """Return the batch as it stands. From any thread."""
        tally, health = self.tally, self.health
        trouble = ""
        if health.down:
            kind = health.error.kind.replace("_", " ") if health.error is not None else "down"
            trouble = (
                f"the provider does not answer ({kind}, {health.down_for():.0f} s); waiting for it"
            )
        run = watched.snapshot()
        in_flight, limits = tally.in_flight, f"{self.limit.snapshot()}; {self.adaptive.snapshot()}"
        if self.cluster is not None:
            asking = next((stage for stage in run.stages if stage.name == _ASK), None)
            in_flight, limits = (0, "") if asking is None else (asking.running, asking.limits)
        return BatchSnapshot(
            # To the pipeline a failure is a result like an answer.
            run=replace(run, done=tally.answered, failed=tally.failed.total(), stages=()),
            in_flight=in_flight,
            tokens=tally.tokens,
            cost=tally.cost,
            limits=limits,
            trouble=trouble,
        )

    def outcome(self, report: tn.Report | None, seconds: float) -> BatchOutcome:
        tally, kept, checked = self.tally, self.kept, self.checked
        return BatchOutcome(
            requests=checked.requests,
            answered=tally.answered,
            answered_before=kept.answered,
            failed=dict(tally.failed.most_common()),
            examples=dict(tally.examples),
            refused_before=kept.refused,
            unfinished=self.todo - tally.answered - tally.failed.total(),
            bad=tuple(checked.bad),
            bad_count=checked.bad_count,
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            cost=tally.cost,
            attempts=tally.attempts,
            seconds=seconds,
            report=report,
        )


def _cause_of(failed: tn.PipelineFailed | tn.SourceFailed, writer: ResultsWriter) -> Exception:
    """Find what stopped the run: a file that can't be read or written; anything else is a bug, and is raised as it is."""
    if writer.error is not None:
        return writer.error
    if isinstance(failed, tn.SourceFailed):
        return failed.__cause__ if isinstance(failed.__cause__, InputRefused) else failed
    found = failed.subgroup(ResultsRefused)
    return found.exceptions[0] if found is not None else failed
