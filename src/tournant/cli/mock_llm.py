"""``tournant mock-llm``: a model provider to test against."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from tournant.cli.arguments import byte_size, natural, positive
from tournant.cli.text import Exit, counted, finish, put

if TYPE_CHECKING:
    from tournant.llm.mock import MockSettings
    from tournant.llm.model import Model

_LATENCY = "seconds, or uniform:LOW,HIGH, exponential:MEAN, lognormal:MEDIAN,SIGMA"
_SHARES = (
    ("error", "answered 500"),
    ("overload", "answered 503 at once"),
    ("hang", "accepted and never answered"),
    ("garbage", "answered with HTML and status 200"),
    ("half", "answered with half a JSON and status 200"),
    ("reset", "answered by resetting the connection"),
    ("cut", "ended in the middle of a stream"),
    ("stream-error", "ended by an error event in the middle of a stream"),
)


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "mock-llm",
        parents=[common],
        help="run a model provider to test against",
        description="Run an OpenAI-compatible provider to test against: /v1/chat/completions, /v1/completions, "
        "/v1/embeddings and /v1/models, with limits, latency and faults. Answers repeat the words of their prompt; four "
        "characters are a token. GET /stats says what it saw, POST /control changes the settings while it runs.",
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="(default: %(default)s)"
    )
    where.add_argument(
        "--port",
        type=natural,
        default=8080,
        metavar="N",
        help="0 takes a free one (default: %(default)s)",
    )
    where.add_argument(
        "--api-key-env",
        metavar="NAME",
        help="the environment variable that holds the key calls must carry",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--rpm", type=float, metavar="N", help="requests a minute")
    limits.add_argument("--tpm", type=float, metavar="N", help="tokens a minute")
    limits.add_argument(
        "--burst",
        type=float,
        metavar="SECONDS",
        help="how many seconds' worth may come at once (default: 1)",
    )
    limits.add_argument(
        "--headers",
        choices=("openai", "anthropic", "none"),
        help="how the limits are told (default: openai)",
    )
    limits.add_argument(
        "--context", type=positive, metavar="N", help="tokens of the model's context"
    )
    limits.add_argument(
        "--quota", type=natural, metavar="N", help="tokens until the account is used up"
    )
    limits.add_argument(
        "--max-body",
        type=byte_size,
        metavar="SIZE",
        help="the longest request body (default: 32MiB)",
    )
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--latency", metavar="TIME", help=f"to the first token: {_LATENCY} (default: 0)"
    )
    speed.add_argument(
        "--token-interval", metavar="TIME", help="from one token to the next, likewise (default: 0)"
    )
    speed.add_argument(
        "--knee",
        type=positive,
        metavar="N",
        help="beyond so many calls at once throughput stays flat",
    )
    faults = parser.add_argument_group("faults", "shares of calls, 0 to 1")
    for name, what in _SHARES:
        faults.add_argument(f"--{name}-rate", type=float, metavar="SHARE", help=what)
    faults.add_argument(
        "--seed", type=int, metavar="N", help="what fate is drawn with (default: 0)"
    )
    answers = parser.add_argument_group("answers")
    answers.add_argument(
        "--model",
        dest="models",
        action="append",
        metavar="NAME",
        help="a model it has; repeat for more (default: any)",
    )
    answers.add_argument(
        "--model-file", metavar="FILE.gguf", help="let this model answer (needs the extra 'local')"
    )
    answers.add_argument(
        "--answer-tokens",
        type=natural,
        metavar="N",
        help="length of an answer if a call says none (default: 16)",
    )
    answers.add_argument(
        "--dimensions",
        type=positive,
        metavar="N",
        help="length of a vector if a call says none (default: 256)",
    )
    parser.set_defaults(run=run)


_NAMES = (
    "host", "port", "rpm", "tpm", "burst", "headers", "context", "quota", "max_body", "latency", "token_interval", "knee",
    "seed", "models", "answer_tokens", "dimensions", *(f"{name.replace('-', '_')}_rate" for name, _ in _SHARES),
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes, and return the exit code."""
    import asyncio

    from tournant.llm.mock import InvalidMockSettings, MockSettings
    from tournant.sync import new_loop

    given = {name: getattr(args, name) for name in _NAMES if getattr(args, name) is not None}
    if "models" in given:
        given["models"] = tuple(given["models"])
    if args.api_key_env is not None:
        key = os.environ.get(args.api_key_env, "")
        if not key:
            put(
                sys.stderr,
                f"tournant: --api-key-env {args.api_key_env}: this environment variable is not set; "
                "export the key in it, or leave the option out to ask for none",
            )
            return Exit.USAGE
        given["api_key"] = key
    try:
        settings = MockSettings(**given)
    except InvalidMockSettings as error:
        put(sys.stderr, f"tournant: {error}")
        return Exit.USAGE
    _raise_descriptors()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        stats = runner.run(_serve(settings, args.model_file))
    put(sys.stdout, summary(stats))
    return Exit.OK


async def _serve(settings: MockSettings, model_file: str | None) -> dict[str, Any]:
    import asyncio

    from tournant.llm.mock import MockServer

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    watched = [
        number
        for number in (signal.SIGINT, signal.SIGTERM)
        # What was ignored (nohup, a shell's background job) stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    with suppress(ValueError, RuntimeError):  # not in the main thread, where no signal comes
        for number in watched:
            loop.add_signal_handler(number, stop.set)
    try:
        async with AsyncExitStack() as stack:
            model = _model(model_file)
            if model is not None:
                await stack.enter_async_context(model)
            server = await stack.enter_async_context(MockServer(settings, model))
            put(sys.stdout, f"mock-llm listening on {server.url} (Ctrl-C stops it)")
            put(sys.stdout, f"GET {server.root}/stats, POST {server.root}/control")
            finish(sys.stdout)
            await stop.wait()
            return server.stats()
    finally:
        for number in watched:
            loop.remove_signal_handler(number)


def _model(model_file: str | None) -> Model | None:
    if model_file is None:
        return None
    from tournant.llm import local

    put(sys.stderr, f"Loading {model_file} ...")
    return local(model_file)


def _raise_descriptors() -> None:
    """Allow as many descriptors as the system lets this process have: each connection is one."""
    try:
        import resource
    except ImportError:  # not on this platform, and no such limit either
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft != resource.RLIM_INFINITY and soft < 4_096:
        put(
            sys.stderr,
            f"Only {soft:,} files and connections may be open in this process; raise the hard limit "
            "(`ulimit -Hn`) to test with thousands of connections.",
        )


def summary(stats: dict[str, Any]) -> str:
    """Return what the provider saw, in two lines for people and one for machines."""
    faults = {
        "500": stats["errors"], "503": stats["overloads"], "hung": stats["hung"], "HTML": stats["garbage"],
        "half": stats["half"], "reset": stats["resets"], "cut": stats["cut"], "stream errors": stats["stream_errors"],
        "left by their client": stats["left"],
    }  # fmt: skip
    said = ", ".join(f"{count:,} {name}" for name, count in faults.items() if count)
    return "\n".join(
        [
            f"{counted(stats['requests'], 'request')}: {stats['ok']:,} answered, {stats['refused']:,} times 429"
            + (f", {said}" if said else "")
            + f"; at most {stats['peak']:,} at once",
            f"{stats['tokens_in']:,} tokens in, {stats['tokens_out']:,} out; "
            f"{counted(stats['bodies']['distinct'], 'distinct body', 'distinct bodies')}, "
            f"{stats['bodies']['answered_again']:,} answered more than once",
            json.dumps(stats),
        ]
    )
