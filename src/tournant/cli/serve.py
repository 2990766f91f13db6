"""``tournant serve``: answers, embeddings and search over HTTP."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from tournant.cli.arguments import byte_size, natural, positive
from tournant.cli.text import Exit, error_lines, put

if TYPE_CHECKING:
    from tournant.serve.settings import ServeSettings


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "serve",
        parents=[common],
        help="serve answers, embeddings and search over HTTP",
        description="Serve an OpenAI-compatible API: answers from an upstream or a model file, embeddings, search in an "
        "index, answers with sources, and a web page. Every part is optional.",
        epilog="The first Ctrl-C (or SIGTERM) lets running answers end within the grace period, a second ends them at once.",
    )
    what = parser.add_argument_group("what is served")
    what.add_argument(
        "--index", metavar="DIR", help="search in this index, a folder or a URL; uploads go into it"
    )
    what.add_argument(
        "--llm",
        metavar="URL",
        help="who answers: the base URL of an OpenAI-compatible API, such as http://127.0.0.1:8080/v1, or local:FILE.gguf",
    )
    what.add_argument(
        "--model", metavar="NAME", help="the model that answers (default: any the upstream has)"
    )
    what.add_argument(
        "--llm-api-key-env",
        metavar="NAME",
        help="the environment variable that holds the upstream's API key",
    )
    what.add_argument(
        "--embedder",
        metavar="SPEC",
        help="static or onnx:FOLDER (default: the index's, else the upstream's)",
    )
    what.add_argument(
        "--uploads",
        metavar="DIR",
        help="keep uploaded files here (default: DIR-uploads beside the index)",
    )
    where = parser.add_argument_group("who may ask")
    where.add_argument(
        "--host", metavar="ADDRESS", help="listen on this address (default: 127.0.0.1)"
    )
    where.add_argument(
        "--port",
        type=natural,
        metavar="N",
        help="listen on this port; 0 takes a free one (default: 8000)",
    )
    where.add_argument(
        "--api-keys", metavar="FILE", help="a file with a name, a key and its limits on each line"
    )
    where.add_argument(
        "--insecure", action="store_true", help="allow a public address without keys"
    )
    where.add_argument(
        "--cors-origin", action="append", default=[], dest="cors_origins", metavar="ORIGIN",
        help="let pages of this origin call the server; may be given several times (default: none)",
    )  # fmt: skip
    where.add_argument(
        "--allowed-host", action="append", default=[], dest="allowed_hosts", metavar="NAME",
        help="answer to this host name too; may be given several times (default: those of the loopback interface)",
    )  # fmt: skip
    limits = parser.add_argument_group("limits")
    for name, kind, metavar, text in _LIMITS:
        limits.add_argument("--" + name.replace("_", "-"), type=kind, metavar=metavar, help=text)
    parser.add_argument(
        "--quiet", action="store_true", help="say nothing when the server starts and ends"
    )
    parser.set_defaults(run=run)


def seconds(text: str) -> float:
    """Return seconds.

    Raises:
        argparse.ArgumentTypeError: It is no number.
    """
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None


_LIMITS: tuple[tuple[str, Any, str, str], ...] = (
    ("max_connections", positive, "N", "connections at once (default: 8192)"),
    ("max_streams", positive, "N", "answers in progress at once; others queue (default: 2048)"),
    ("max_queued_tokens", natural, "N", "tokens of the requests that queue (default: 2000000)"),
    ("queue_seconds", seconds, "S", "the longest time in the queue (default: 30)"),
    ("requests_per_key", str, "RATE", "what a key may ask, such as 600/min (default: no limit)"),
    ("tokens_per_key", str, "RATE", "what a key may use, such as 1M/min (default: no limit)"),
    ("streams_per_key", positive, "N", "answers at once for one key (default: no limit)"),
    ("max_body_bytes", byte_size, "SIZE", "the size of a JSON body (default: 8MiB)"),
    ("max_upload_bytes", byte_size, "SIZE", "the size of an upload (default: 256MiB)"),
    ("slow_reader_seconds", seconds, "S", "close a client that takes nothing for so long (default: 20)"),
    ("first_token_seconds", seconds, "S", "the longest wait for an upstream's first event (default: 120)"),
    ("between_tokens_seconds", seconds, "S", "the longest wait for its next (default: 60)"),
    ("total_seconds", seconds, "S", "the longest wait for an answer that is not streamed (default: 600)"),
    ("grace_seconds", seconds, "S", "how long running answers may go on after the signal to stop (default: 30)"),
)  # fmt: skip
_NAMES = (
    "index", "llm", "model", "llm_api_key_env", "embedder", "uploads", "host", "port", "api_keys", "insecure",
    "cors_origins", "allowed_hosts", *(name for name, *_ in _LIMITS),
)  # fmt: skip


def settings_of(args: argparse.Namespace) -> ServeSettings:
    """Return the settings that the arguments give; what was not given keeps its default.

    Raises:
        InvalidSettings: they can't be.
    """
    from tournant.serve.settings import ServeSettings

    given = {name: getattr(args, name) for name in _NAMES}
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value not in (None, [])
    }
    return ServeSettings(**chosen)


def run(args: argparse.Namespace) -> int:
    """Serve, and return the exit code."""
    from tournant.serve.errors import InvalidSettings

    def ready(url: str) -> None:
        if not args.quiet:
            put(sys.stderr, f"Listening on {url} (Ctrl-C to stop)")
            sys.stderr.flush()

    try:
        settings = settings_of(args)
        from tournant.serve.run import run as serve

        serve(settings, ready)
    except InvalidSettings as error:
        for line in error_lines(error):
            put(sys.stderr, line)
        return Exit.USAGE
    if not args.quiet:
        put(sys.stderr, "Stopped.")
    return Exit.OK
