"""``tournant batch``: a file of requests in, a file of answers out."""

from __future__ import annotations

import argparse
import math
import re
import sys
from typing import TYPE_CHECKING, Any

from tournant.cli import clusters
from tournant.cli.arguments import natural, positive
from tournant.cli.text import Exit, error_lines, one_line, put, put_json
from tournant.cli.traces import TraceFile, add_option
from tournant.errors import TournantError

if TYPE_CHECKING:
    from tournant.llm.batch import BatchOutcome, BatchRun, BatchSnapshot
    from tournant.report import Report

#: What messages say to whoever writes Python, and what it is called on the command line.
_SPOKEN = [
    (re.compile(pattern), words)
    for pattern, words in (
        (r"\bClient\(base_url=\.\.\.\)", "--base-url"),
        (r"\bClient\(base_url=((?:'[^']*'|\"[^\"]*\"|[^()])*)\)", r"--base-url \1"),
        (r"\bapi_key_env='NAME', or headers=", "--api-key-env NAME"),
        (r"\bapi_key_env='NAME'", "--api-key-env NAME"),
        (r"\bapi_key_env(=|\b)", "--api-key-env"),
        (r"\bTimeouts\(\w+=\.\.\.\)", "--timeout"),
        (r" \(retry=tn\.Retry\(on=llm\.TRANSIENT\), and limit=\)", " (--retries, --rpm)"),
        (r" \(retry=tn\.Retry\(on=llm\.TRANSIENT\)\)", " (--retries)"),
        (r"(?<!-)\bbase_url\b", "--base-url"),
        (r"\bwith timeout and patience\b", "with --timeout and --patience"),
        (r"(?<!-)\b(base_url|model|prompt|system)(?==\S+: give a text)", r"--\1"),
    )
]


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "batch",
        parents=[common],
        help="send a file of requests to a model API",
        description="Send the requests in a file to an OpenAI-compatible API, as fast as it allows, and append "
        "the answers to another file as they come. Both are in OpenAI's batch format (custom_id, method, url, "
        "body). With --prompt the input is JSON lines or CSV with fields of your own. Run the same command again "
        "to go on after a stop of any kind, and to ask again what failed.",
        epilog="exit codes: 0 all are answered, 3 some failed (in the results, and summed up at the end), 1 the batch was "
        "stopped, 2 wrong usage, 130 interrupted. Ctrl-C waits for what is in flight; a second one drops it.",
    )
    parser.add_argument("input", metavar="REQUESTS", help="the file of requests")
    parser.add_argument(
        "-o", "--output", required=True, metavar="RESULTS", help="the file of results"
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="make requests of the fields of JSON lines or CSV: 'Summarise: {text}'",
    )
    parser.add_argument("--system", metavar="TEXT", help="with --prompt: the system's message")
    parser.add_argument(
        "--max-tokens", type=positive, metavar="N", help="with --prompt: the longest answer"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="send every request to this model, whatever it says itself"
    )
    parser.add_argument(
        "--base-url",
        metavar="URL",
        help="where the API is (default: $OPENAI_BASE_URL, or OpenAI's)",
    )
    parser.add_argument(
        "--api-key-env",
        metavar="NAME",
        help="the environment variable that holds the key (default: OPENAI_API_KEY if it is set)",
    )
    parser.add_argument("--api-key", action=_NoKey, help=argparse.SUPPRESS)
    parser.add_argument(
        "--rpm", type=_amount, metavar="N", help="requests a minute (default: found out)"
    )
    parser.add_argument(
        "--tpm", type=_amount, metavar="N", help="tokens a minute (default: found out)"
    )
    parser.add_argument(
        "--concurrency",
        type=_span,
        metavar="MIN:MAX",
        help="calls at once; found out between the two (default: 1:256)",
    )
    parser.add_argument(
        "--retries",
        type=natural,
        metavar="N",
        help="how often a request that failed is sent again (default: 5)",
    )
    parser.add_argument(
        "--timeout", type=_amount, metavar="SECONDS", help="for one attempt (default: 600)"
    )
    parser.add_argument(
        "--patience",
        type=_amount,
        metavar="SECONDS",
        help="how long a provider that can't be reached is waited for (default: 300)",
    )
    parser.add_argument(
        "--price",
        type=_price,
        metavar="IN:OUT",
        help="what a million tokens cost, read and written; shows the cost",
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="ask again also what the provider refused in an earlier run (400, context too long)",
    )
    clusters.add_options(parser)
    add_option(parser)
    parser.add_argument(
        "--quiet", action="store_true", help="no progress and no summary, only what went wrong"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the outcome as one JSON document"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the batch, and return the exit code."""
    running: list[BatchRun] = []

    def report() -> Report | None:
        return running[0].report if running else None

    with TraceFile(args.trace, report, json=args.json, quiet=args.quiet):
        return _batch(args, running)


def _batch(args: argparse.Namespace, running: list[BatchRun]) -> int:
    from tournant.cli.signals import StopOnSignals
    from tournant.llm.batch.errors import BatchStopped, InvalidBatch
    from tournant.llm.batch.progress import BatchDisplay

    unheard = sys.stderr is None  # closed before the program began

    def snapshot() -> BatchSnapshot | None:
        return running[0].snapshot() if running else None

    with (
        BatchDisplay(snapshot, style="none" if args.quiet or unheard else None) as display,
        StopOnSignals((lambda _: None) if unheard else display.say) as stop,
    ):
        # Here, so that the display is already there while packages load.
        from tournant.llm.batch import BatchOptions, run_batch

        def started(batch: BatchRun) -> None:
            running.append(batch)
            stop.attach(batch)

        try:
            options = BatchOptions(**_given(args))
            with clusters.own_output(args):
                outcome = run_batch(options, on_start=started)
        except InvalidBatch as error:
            wrong = list(error_lines(InvalidBatch(_spoken(str(error)))))
        except BatchStopped as error:
            if stop.cancelled:
                raise KeyboardInterrupt from error
            raise BatchStopped(_spoken(str(error))) from error
        except TournantError as error:
            if stop.cancelled:
                # Whatever comes of cutting a run off is what was asked for.
                raise KeyboardInterrupt from error
            raise
        else:
            wrong = []
    if wrong:
        for line in wrong:
            put(sys.stderr, line)
        return Exit.USAGE
    if args.json:
        put_json(sys.stdout, {**outcome.as_dict(), "interrupted": stop.interrupted})
    _tell(outcome, args, interrupted=stop.interrupted)
    if stop.interrupted:
        return Exit.INTERRUPTED
    return Exit.OK if outcome.complete else Exit.SOME_SKIPPED


def _tell(outcome: BatchOutcome, args: argparse.Namespace, *, interrupted: bool) -> None:
    """Say how it went: the counts to standard output, what went wrong to standard error."""
    from tournant.llm.batch.summary import problems, totals

    if not args.json:
        for line in problems(outcome):
            put(sys.stderr, line[: len(line) - len(line.lstrip())] + one_line(_spoken(line)))
        if not args.quiet:
            put(sys.stdout, totals(outcome, interrupted=interrupted))


def _spoken(message: str) -> str:
    """Return a message with what it calls arguments of Python called options."""
    for pattern, words in _SPOKEN:
        message = pattern.sub(words, message)
    return message


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given; the job has defaults for the others."""
    names = (
        "input", "output", "prompt", "system", "max_tokens", "model", "base_url", "api_key_env", "rpm", "tpm",
        "concurrency", "retries", "timeout", "patience", "price",
    )  # fmt: skip
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    cluster = clusters.cluster_of(args)
    if cluster is not None:
        options["cluster"] = cluster
    return {**options, "retry_refused": args.retry_failed}


class _NoKey(argparse.Action):
    """Refuses the key itself, without saying it back: arguments are seen by everybody on the machine."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.error(
            "the key is no argument, since others can see a program's arguments: export it in an environment "
            "variable, and give that one's name with --api-key-env"
        )


def _amount(text: str) -> float:
    number = _number(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is too small: give a number above 0")
    return number


def _number(text: str) -> float:
    try:
        number = float(text.replace("_", "").replace(",", ""))
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return number


def _span(text: str) -> tuple[int, int]:
    low, colon, high = text.partition(":")
    pair = positive(low), positive(high if colon else low)
    if pair[0] > pair[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: give the smaller number first, as in 1:64")
    return pair


def _price(text: str) -> tuple[float, float]:
    read, colon, written = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give what a million tokens cost, read and written, as in 0.15:0.60"
        )
    return _number(read), _number(written)
