"""`python -m benchmarks [NAME] [options]`: one benchmark by its name, or without a name all that need no more than this repository.

README.md beside this file says what each measures. Those marked with * have options of their own: `python -m benchmarks NAME --help`.

    engine ingest startup cache api serve recording auto* timeline* embeddings* pgvector* cluster* simulate*
"""

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks import harness

#: In the order in which they run where none is named.
SHARED = ["startup", "engine", "cache", "api", "recording", "ingest", "serve"]
#: Modules that read the command line themselves.
OWN = ["auto", "timeline", "embeddings", "pgvector", "cluster", "simulate"]


def main() -> int:
    """Run what was asked for; without a name, everything that needs no corpus, and ingest if one is given."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in OWN:
        # Imported, not run as __main__: worker processes find its functions by its name.
        del sys.argv[1]
        return importlib.import_module(f"benchmarks.{name}").main() or 0
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what", nargs="?", metavar="NAME", choices=["all", *SHARED, *OWN], default="all"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the items: a look, not a figure"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="SCENE",
        help="one scene of the benchmark (repeatable)",
    )
    parser.add_argument(
        "--corpus", type=Path, action="append", default=[], help="a folder of documents, for ingest"
    )
    parser.add_argument(
        "--runs", type=int, default=None, help="runs of each, for ingest, recording and serve"
    )
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
    named = [arguments.what]
    if arguments.what == "all":
        # The server's scenes take long, and an ingest needs documents.
        named = SHARED[:-2] + (["ingest"] if arguments.corpus else [])
    code = 0
    for name in named:
        code |= run(name, arguments, arguments.only if arguments.what == name else [])
    return code


def run(name: str, arguments: argparse.Namespace, only: list[str]) -> int:
    """Run one of the benchmarks that share their options; return its exit code."""
    module = importlib.import_module(f"benchmarks.{name}")
    quick, runs = arguments.quick, arguments.runs
    given = {
        "startup": (),
        "engine": (only, quick),
        "cache": (quick,),
        "api": (only, quick),
        "recording": (only, quick, runs),
        "ingest": (arguments.corpus, only, quick, runs),
        "serve": (only, quick, runs or 3),
    }[name]
    return module.main(*given) or 0


if __name__ == "__main__":
    sys.exit(main())
