"""``tournant search``: ask an index."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from tournant.cli.arguments import positive
from tournant.cli.text import Exit, bold, one_line, put, put_json, shown_path, width

if TYPE_CHECKING:
    from tournant.ingest.job import Hit

_SNIPPET_LINES = 3


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "search",
        parents=[common],
        help="find passages in an index",
        description="Find the passages of an index that fit some words best.",
    )
    parser.add_argument("words", nargs="+", metavar="WORDS", help="what to look for")
    parser.add_argument(
        "--index",
        required=True,
        metavar="DIR",
        help="the index's folder, or its URL (postgresql://, s3://, file://)",
    )
    parser.add_argument(
        "-k", type=positive, default=5, metavar="N", help="the most passages (default: %(default)s)"
    )
    parser.add_argument(
        "--mode",
        choices=("hybrid", "vector", "text"),
        default="hybrid",
        help="by meaning (vector), by words (text) or both (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search, and return the exit code."""
    from tournant.ingest.job import search

    query = " ".join(args.words)
    hits = search(args.index, query, limit=args.k, mode=args.mode)
    if args.json:
        found = [
            {
                "source": hit.source,
                "score": hit.score,
                "title": hit.title,
                "ordinal": hit.ordinal,
                "start": hit.start,
                "end": hit.end,
                "text": hit.text,
            }
            for hit in hits
        ]
        put_json(sys.stdout, {"query": query, "mode": args.mode, "hits": found})
    elif hits:
        put(sys.stdout, render(hits, query, sys.stdout))
    else:
        put(sys.stderr, "Nothing found.")
    return Exit.OK


def render(hits: Sequence[Hit], query: str, stream: TextIO) -> str:
    """Return what was found as text for people: source, title and score, and the passage below."""
    columns = width(stream)
    blocks = []
    for rank, hit in enumerate(hits, 1):
        title = one_line(hit.title)
        head = f"{rank}. {bold(shown_path(hit.source), stream)}  {hit.score:.3f}"
        lines = [f"{head}  {title}" if title else head]
        lines += textwrap.wrap(
            passage(hit.text, query, columns * _SNIPPET_LINES),
            columns,
            initial_indent="   ",
            subsequent_indent="   ",
            max_lines=_SNIPPET_LINES,
            placeholder=" ...",
        )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def passage(text: str, query: str, length: int) -> str:
    """Return the part of a text that shows best why it was found, on one line.

    It begins a little before the stretch that holds the most different words of the query.

    Args:
        text: A chunk's text.
        query: The words that were looked for.
        length: About how many characters are of use; a little more comes back where the text goes on.
    """
    flat = one_line(text)
    if len(flat) <= length:
        return flat
    words = {word.casefold() for word in re.findall(r"\w+", query)}
    places = [
        (match.start(), match.group().casefold())
        for match in re.finditer(r"\w+", flat)
        if match.group().casefold() in words
    ]
    best, most, left = 0, 0, 0
    within: Counter[str] = Counter()
    for start, word in places:
        within[word] += 1
        while places[left][0] <= start - length * 2 // 3:
            gone = places[left][1]
            within[gone] -= 1
            if not within[gone]:
                del within[gone]
            left += 1
        if len(within) > most:
            best, most = places[left][0], len(within)
    begin = 0 if best <= length // 4 else flat.rfind(" ", 0, best - length // 8) + 1
    # One character more than is asked for tells whoever wraps it that it goes on.
    part = flat[begin : begin + length + 1]
    return f"... {part}" if begin else part
