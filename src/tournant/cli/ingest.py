"""``tournant ingest``: files in, a searchable index out."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from tournant.cli import clusters
from tournant.cli.arguments import byte_size, natural, positive
from tournant.cli.text import Exit, counted, put, put_json, shown_path
from tournant.cli.traces import TraceFile, add_option
from tournant.errors import TournantError

if TYPE_CHECKING:
    from tournant.handle import Watched
    from tournant.ingest.job import IngestOutcome
    from tournant.report import Report, RunSnapshot

_LISTED = 20
#: What ``--cache`` without a file is.
_USERS_OWN: Any = object()


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "ingest",
        parents=[common],
        help="read files and put them into an index",
        description="Read files (folders are walked), cut them into chunks, embed the chunks and put "
        "them into an index. What has not changed since the last time is skipped. Of the folders "
        "named here the index then holds what was found in them: what has vanished, or is now left out, is "
        "removed from it. A file that can no longer be read keeps its last readable state.",
        epilog="exit codes: 0 all files are in, 3 some were skipped (each is listed with its reason), "
        "1 the run failed, 130 interrupted. Ctrl-C finishes what is in flight; a second one drops it.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a file, or a folder to walk")
    parser.add_argument(
        "--index",
        required=True,
        metavar="DIR",
        help="the index's folder, or its URL (postgresql://, s3://, file://)",
    )
    parser.add_argument(
        "--embedder",
        metavar="SPEC",
        help="'static' (the default: word vectors, fast) or 'onnx:FOLDER' (a transformer)",
    )
    parser.add_argument(
        "--chunk-size",
        type=positive,
        metavar="N",
        help="the most characters in a chunk (default: 800)",
    )
    parser.add_argument(
        "--chunk-overlap",
        type=natural,
        metavar="N",
        help="how many characters neighbouring chunks share (default: 100, or size / 8)",
    )
    parser.add_argument(
        "--include",
        action="append",
        metavar="GLOB",
        help="take only files that match, by name, path or folder; may be given several times",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        metavar="GLOB",
        help="leave out files and folders that match; may be given several times",
    )
    parser.add_argument(
        "--max-file-size",
        type=byte_size,
        metavar="SIZE",
        help="skip larger files, and list them (10MB, 1GiB)",
    )
    parser.add_argument(
        "--memory-limit",
        type=byte_size,
        metavar="SIZE",
        help="the most memory for what is between the stages (512MiB)",
    )
    parser.add_argument(
        "--cache",
        nargs="?",
        const=_USERS_OWN,
        metavar="FILE",
        help="look up the vectors of texts that were embedded before, for this index or another, and keep new ones "
        "(without FILE: ~/.cache/tournant/embeddings.sqlite); write it behind the paths, or as --cache=FILE",
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
    """Ingest, and return the exit code."""
    running: list[Watched] = []

    def report() -> Report | None:
        return running[0].report if running else None

    with TraceFile(args.trace, report, json=args.json, quiet=args.quiet):
        return _ingest(args, running)


def _ingest(args: argparse.Namespace, running: list[Watched]) -> int:
    from tournant.cli.signals import StopOnSignals
    from tournant.observe.progress import ProgressDisplay

    def snapshot() -> RunSnapshot | None:
        return running[0].snapshot() if running else None

    with (
        ProgressDisplay(
            snapshot, style="none" if args.quiet else None, unit="documents"
        ) as display,
        StopOnSignals(display.say) as stop,
    ):
        # Here, so that the display is already there while heavy packages load.
        from tournant.ingest.job import IngestOptions, default_cache, run_ingest

        def started(handle: Watched) -> None:
            running.append(handle)
            stop.attach(handle)

        given = _given(args)
        if args.cache is not None:
            given["cache"] = default_cache() if args.cache is _USERS_OWN else args.cache
        options = IngestOptions(paths=tuple(args.paths), index=args.index, **given)
        try:
            with clusters.own_output(args):
                outcome = run_ingest(options, on_start=started)
        except TournantError as error:
            if stop.cancelled:
                # Whatever comes of cutting a run off is what was asked for.
                raise KeyboardInterrupt from error
            raise
    if args.json:
        put_json(sys.stdout, {**outcome.as_dict(), "interrupted": stop.interrupted})
    else:
        _tell(
            outcome,
            quiet=args.quiet,
            interrupted=stop.interrupted,
            cached=args.cache is not None,
        )
    if stop.interrupted:
        return Exit.INTERRUPTED
    return Exit.SOME_SKIPPED if outcome.rejected else Exit.OK


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given; the job has defaults for the others."""
    options = {
        "embedder": args.embedder,
        "chunk_size": args.chunk_size,
        "chunk_overlap": args.chunk_overlap,
        "include": tuple(args.include) if args.include else None,
        "exclude": tuple(args.exclude) if args.exclude else None,
        "max_file_size": args.max_file_size,
        "memory_limit": args.memory_limit,
        "cluster": clusters.cluster_of(args),
    }
    return {name: value for name, value in options.items() if value is not None}


def _tell(outcome: IngestOutcome, *, quiet: bool, interrupted: bool, cached: bool) -> None:
    """Say how it went: the counts to standard output, what went wrong to standard error."""
    report = outcome.report
    for warning in outcome.warnings:
        put(sys.stderr, f"warning: {warning}")
    if outcome.rejected:
        put(sys.stderr, f"{counted(len(outcome.rejected), 'file')} skipped:")
        for source, reason in outcome.rejected[:_LISTED]:
            put(sys.stderr, f"  {shown_path(source)}: {reason}")
        if len(outcome.rejected) > _LISTED:
            put(
                sys.stderr,
                f"  and {len(outcome.rejected) - _LISTED:,} more: see 'tournant status'",
            )
    if quiet:
        return
    words = [f"{counted(report.done, 'document')} in {report.duration:.1f} s"]
    chunks = counted(outcome.chunks, "chunk")
    if cached:
        chunks += f" ({outcome.cached:,} from the cache)"
    words.append(chunks)
    if report.skipped:
        words.append(f"{report.skipped:,} unchanged")
    if outcome.removed:
        words.append(f"{outcome.removed:,} removed")
    if interrupted:
        words.append("stopped before the end; run it again to go on")
    put(sys.stdout, ", ".join(words) + ".")
