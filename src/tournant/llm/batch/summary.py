"""What is said of a batch when it has ended, for people."""

from __future__ import annotations

from tournant.llm.batch.lines import REFUSED_KINDS
from tournant.llm.batch.outcome import BatchOutcome
from tournant.llm.batch.progress import money

_LISTED = 20


def problems(outcome: BatchOutcome) -> list[str]:
    """Return what went wrong, as lines; none where nothing did."""
    lines = []
    if outcome.bad_count:
        lines.append(f"{outcome.bad_count:,} line(s) of the input are no requests:")
        lines += [f"  line {bad.line}: {bad.reason}" for bad in outcome.bad[:_LISTED]]
        if outcome.bad_count > _LISTED:
            lines.append(f"  and {outcome.bad_count - _LISTED:,} more")
    failed = sum(outcome.failed.values())
    if failed:
        lines.append(f"{failed:,} request(s) failed:")
        for kind, count in outcome.failed.items():
            lines.append(f"  {kind}: {count:,}, first {outcome.examples.get(kind, '')}")
        if outcome.failed.keys() - REFUSED_KINDS:
            lines.append("Run it again to ask again those that may succeed.")
    refused = outcome.refused_before + sum(outcome.failed.get(kind, 0) for kind in REFUSED_KINDS)
    if outcome.refused_before:
        lines.append(f"{outcome.refused_before:,} request(s) had been refused in an earlier run.")
    if refused:
        lines.append(
            "What the provider refuses is not asked again: mend these requests, and run with --retry-failed."
        )
    return lines


def totals(outcome: BatchOutcome, *, interrupted: bool) -> str:
    """Return the counts, as one line."""
    done = outcome.answered + outcome.answered_before
    words = [f"{done:,} of {outcome.requests:,} requests answered"]
    if outcome.answered_before:
        words.append(f"{outcome.answered_before:,} of them before")
    failed = sum(outcome.failed.values())
    if failed:
        words.append(f"{failed:,} failed")
    tokens = outcome.prompt_tokens + outcome.completion_tokens
    if tokens:
        words.append(f"{tokens:,} tokens")
    if outcome.cost is not None:
        words.append(f"cost {money(outcome.cost)}")
    words.append(f"{outcome.seconds:.1f} s")
    if interrupted and outcome.unfinished:
        words.append("stopped before the end; run it again to go on")
    return ", ".join(words) + "."
