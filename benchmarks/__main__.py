"""`python -m benchmarks [engine|ingest|startup|cache|api|serve|recording|cluster] [--quick] [--only NAME] [--corpus DIR]`."""

import argparse
import sys
from pathlib import Path

from benchmarks import harness


def main() -> int:
    """Run what was asked for; without a name, everything that needs no corpus, and ingest if one is given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=[
            "all",
            "engine",
            "ingest",
            "startup",
            "cache",
            "api",
            "serve",
            "recording",
            "cluster",
        ],
        default="all",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the items: a look, not a figure"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="one benchmark (repeatable)"
    )
    parser.add_argument(
        "--corpus", type=Path, action="append", default=[], help="a folder of documents"
    )
    parser.add_argument("--runs", type=int, default=None, help="runs of each ingest (default 3)")
    parser.add_argument(
        "--calm",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="wait before each timing while others are busy",
    )
    arguments = parser.parse_args()
    harness.PATIENCE = arguments.calm

    harness.print_machine()
    code = 0
    if arguments.what in {"all", "startup"}:
        from benchmarks import startup

        code |= startup.main()
    if arguments.what in {"all", "engine"}:
        from benchmarks import engine

        code |= engine.main(arguments.only if arguments.what == "engine" else [], arguments.quick)
    if arguments.what in {"all", "cache"}:
        from benchmarks import cache

        code |= cache.main(arguments.quick)
    if arguments.what in {"all", "api"}:
        from benchmarks import api

        code |= api.main(arguments.only if arguments.what == "api" else [], arguments.quick)
    if arguments.what == "serve":
        from benchmarks import serve

        code |= serve.main(arguments.only, arguments.quick)
    if arguments.what == "cluster":
        from benchmarks import cluster

        code |= cluster.run(arguments.corpus, arguments.quick, arguments.runs)
    if arguments.what in {"all", "recording"}:
        from benchmarks import recording

        only = arguments.only if arguments.what == "recording" else []
        code |= recording.main(only, arguments.quick, arguments.runs)
    if arguments.what == "ingest" or (arguments.what == "all" and arguments.corpus):
        from benchmarks import ingest

        code |= ingest.main(arguments.corpus, arguments.only, arguments.quick, arguments.runs)
    return code


if __name__ == "__main__":
    sys.exit(main())
