"""The demonstration behind ``make demo``: real documents into an index, with the live progress display, and searches on it.

The documents are the sources and texts of Python's standard library, which every machine with Python has, and this project's
own documentation. Nothing is downloaded. A second run finds everything unchanged.

Exit code 1 when the ingest fails or a search does not find the file that holds the answer.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = (
    "__pycache__",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "encodings",
    "config-*",
)
SEARCHES = (
    ("the dialects and quoting of CSV files", "csv.py"),
    ("insert into a sorted list by binary search", "bisect.py"),
    ("which option bounds what a pipeline holds in bytes: memory_limit", "pipelines.md"),
)
ALL_IN, SOME_SKIPPED = 0, 3


def documents() -> list[str]:
    """Return what to ingest: the standard library and this project's pages, or exit when there is no library to read."""
    library = Path(sysconfig.get_path("stdlib"))
    if not (library / "csv.py").is_file():
        sys.exit(
            f"demo: {library} holds no sources of the standard library; use a Python that has them"
        )
    return [
        str(library),
        *(os.path.relpath(ROOT / name) for name in ("docs", "README.md", "CHANGELOG.md")),
    ]


def tournant(*arguments: str, capture: bool = False) -> tuple[int, str]:
    """Print a command as one would type it, run it, and return its exit code and, if captured, its output."""
    print(f"\n$ {shlex.join(['tournant', *arguments])}", flush=True)
    command = [sys.executable, "-m", "tournant", *arguments]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE if capture else None) as run:
        while True:
            try:
                output, _ = run.communicate()
                return run.returncode, output or ""
            except KeyboardInterrupt:
                pass  # the command has got the Ctrl-C too, says what it does, and ends


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--index", default=os.path.relpath(ROOT / ".demo" / "index"), metavar="DIR")
    index = parser.parse_args().index

    began = time.perf_counter()
    Path(index).parent.mkdir(parents=True, exist_ok=True)
    excluded = [part for glob in LEFT_OUT for part in ("--exclude", glob)]
    code, _ = tournant("ingest", *documents(), "--index", index, *excluded)
    if code not in (ALL_IN, SOME_SKIPPED):
        print(f"demo: the ingest ended with exit code {code}", file=sys.stderr)
        return 130 if code == 130 else 1

    missed = []
    for words, expected in SEARCHES:
        code, output = tournant("search", words, "--index", index, "-k", "3", capture=True)
        print(output, end="", flush=True)
        found = re.findall(r"^\d+\. (.*?)  \d", output, re.MULTILINE)
        if code != 0 or not any(Path(path).name == expected for path in found):
            missed.append(f"{words!r} (exit code {code}) did not find {expected}, but {found}")
    for line in missed:
        print(f"demo: {line}", file=sys.stderr)
    if not missed:
        print(f"\nEvery search found its file. {time.perf_counter() - began:.0f} s in all.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
