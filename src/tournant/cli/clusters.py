"""``--cluster`` and ``--nodes``, which several commands share."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING

from tournant.cli.arguments import positive

if TYPE_CHECKING:
    from tournant.cluster import Ray


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command."""
    parser.add_argument(
        "--cluster",
        type=_cluster,
        metavar="ray[://HOST:PORT]",
        help="work on the nodes of a Ray cluster: the one that this machine is a node of (or RAY_ADDRESS names), or the one at an address",
    )
    parser.add_argument(
        "--nodes",
        type=positive,
        metavar="N",
        help="with --cluster: the most nodes to use (default: all, also those that join later)",
    )


def cluster_of(args: argparse.Namespace) -> Ray | None:
    """Return the cluster that was asked for, if any.

    Raises:
        InvalidOption: the options don't go together.
    """
    from dataclasses import replace

    cluster: Ray | None = args.cluster
    if args.nodes is None:
        return cluster
    if cluster is None:
        from tournant.ingest.errors import InvalidOption

        raise InvalidOption(
            "--nodes says how much of a cluster is used: give --cluster ray as well, or leave it out"
        )
    return replace(cluster, nodes=args.nodes)


def own_output(args: argparse.Namespace) -> AbstractContextManager[object]:
    """Keep standard output for the command while a run is on a cluster: Ray writes there what it has to say of its nodes."""
    return nullcontext() if args.cluster is None else redirect_stdout(sys.stderr)


def _cluster(text: str) -> Ray:
    from tournant.cluster import settings_of
    from tournant.errors import InvalidPipeline

    if text.partition(":")[0] == "ray":
        try:
            return settings_of(text)
        except InvalidPipeline:
            pass
    raise argparse.ArgumentTypeError(
        f"{text!r}: give ray, or ray://HOST:PORT with the address that `ray start --head` told"
    )
