"""``tournant watch``: run an unchanged program under the guards, and say what they found."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

from tournant.cli.text import Exit, counted, put

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec

    from tournant.guards.finding import Finding
    from tournant.guards.watch import Watch


def add_to(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "watch",
        parents=[common],
        help="run a program and name its mistakes with concurrency",
        usage="tournant watch [--fail] [--threshold SECONDS] (SCRIPT | FOLDER | -m MODULE) [ARGUMENT ...]",
        description="Run a Python program as it is, and watch it meanwhile: what blocks an event loop, a loop that waits for "
        "itself, threads behind the interpreter lock, tasks and exceptions that get lost, coroutines that nobody awaits. What was "
        "found is written to stderr when the program has ended; its exit code is kept.",
    )
    parser.add_argument(
        "--fail",
        action="store_true",
        help="exit with 1 if anything was found and the program itself succeeded",
    )
    parser.add_argument(
        "--threshold",
        type=_seconds,
        default=0.1,
        metavar="SECONDS",
        help="from when on a loop counts as blocked (default: %(default)s)",
    )
    parser.add_argument(
        "-m", dest="module", action="store_true", help="the program is a module, as with python -m"
    )
    parser.add_argument(
        "program",
        metavar="SCRIPT",
        nargs="?",
        help="the program, and after it its arguments; of a folder or a zip file its __main__.py, as with python",
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(run=_run)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.03 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: give seconds between 0.03 and 3600")
    return seconds


def _run(args: argparse.Namespace) -> int:
    from tournant.guards.watch import watch

    try:
        program = _program(args)
    except _NoProgram as problem:
        put(sys.stderr, f"tournant watch: {problem}")
        return Exit.USAGE
    with watch(threshold=args.threshold, report=_at_once) as guards:
        code = _code_of(program, args.program, args.arguments)
    _flush()
    _tell(guards)
    _wait_for_the_watchdog()
    return Exit.FAILED if args.fail and guards.findings and code == 0 else code


class _NoProgram(Exception):
    """There is nothing to run."""


def _program(args: argparse.Namespace) -> Callable[[], None]:
    """Return what runs the program.

    Raises:
        _NoProgram: There is none.
    """
    from importlib.machinery import PathFinder

    name: str | None = args.program
    if args.module:
        if not name:
            raise _NoProgram("-m needs a module's name: tournant watch -m package.module")
        return lambda: _module(name)
    if not name:
        raise _NoProgram(
            "name the program to run: tournant watch script.py, or tournant watch -m package.module"
        )
    if not os.path.exists(name):
        raise _NoProgram(
            f"there is no file {name!r}; give a Python program, or -m and a module's name"
        )
    # What lies in a folder or a zip file is found as a module is; of any other file there is no such thing.
    path = os.path.abspath(name)
    spec = PathFinder.find_spec("__main__", [path])
    if spec is not None:
        return lambda: _packed(path, spec)
    if os.path.isdir(name):
        raise _NoProgram(
            f"the folder {name!r} has no __main__.py to run; give a Python program, or -m and a package's name"
        )
    try:
        with open(name, "rb"):
            pass
    except OSError as error:
        raise _NoProgram(f"{name!r} can't be read: {error.strerror or error}") from error
    return lambda: _script(path)


def _script(path: str) -> None:
    """Run a file as ``python path`` does."""
    sys.path[0] = os.path.dirname(os.path.realpath(path))
    main = _main(path)
    code: CodeType | None = None
    if path.endswith(".pyc"):
        from pkgutil import read_code

        with open(path, "rb") as file:
            code = read_code(file)
    # Not with the `from __future__` lines of this very file.
    code = code or compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    exec(code, main.__dict__)


def _packed(path: str, spec: ModuleSpec) -> None:
    """Run the ``__main__.py`` of a folder or a zip file as ``python path`` does."""
    sys.path[0] = path
    main = _main(spec.origin or path)
    main.__spec__, main.__loader__, main.__package__ = spec, spec.loader, ""
    exec(spec.loader.get_code("__main__"), main.__dict__)  # type: ignore[union-attr]


def _main(path: str) -> ModuleType:
    """Return a new main module, for a program that lies there."""
    from tournant.guards import places

    main = ModuleType("__main__")
    main.__file__ = path
    main.__dict__["__builtins__"] = __builtins__
    # It stays: functions that are called at the very end, and workers that unpickle, look for it there.
    sys.modules["__main__"] = main
    places.declare(path)
    return main


def _module(name: str) -> None:
    """Run a module as ``python -m name`` does."""
    import runpy

    sys.path[0] = os.getcwd()
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _code_of(program: Callable[[], None], name: str, arguments: list[str]) -> int:
    """Run a program and return its exit code, saying on the way out what Python says."""
    sys.argv = [name, *arguments]
    try:
        program()
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        put(sys.stderr, str(leaving.code))
        return 1
    except KeyboardInterrupt as error:
        _show(error)
        return Exit.INTERRUPTED
    except BaseException as error:
        _show(error)
        return 1
    return 0


def _show(error: BaseException) -> None:
    """Show a traceback without what only runs the program."""
    trace = error.__traceback__
    here = {
        __file__,
        "<frozen runpy>",
        "<frozen importlib._bootstrap>",
        "<frozen importlib._bootstrap_external>",
    }
    while trace is not None and trace.tb_frame.f_code.co_filename in here:
        trace = trace.tb_next
    # A program may have a hook of its own.
    sys.excepthook(type(error), error.with_traceback(trace), trace)


def _at_once(finding: Finding) -> None:
    """Say at once what may keep the program from ever ending."""
    if finding.kind == "deadlock" or finding.seconds >= 5:
        put(sys.stderr, f"tournant watch: {finding.text}")


def _tell(guards: Watch) -> None:
    findings = guards.findings
    notes = [notice for notice in guards.notices if notice.kind == "unbounded-tasks"]
    put(sys.stderr, f"tournant watch: {counted(len(findings), 'finding')}")
    for finding in findings:
        times = f" ({finding.count} times)" if finding.count > 1 else ""
        put(sys.stderr, f"- {finding.text}{times}")
    for notice in notes:
        put(sys.stderr, f"- note: {notice.text}")


def _wait_for_the_watchdog() -> None:
    """Let the watchdog's thread end by itself, which it does within a tenth of a second.

    The interpreter's own end would cut it off, for which the system loads a library: after a program that has used up its memory there
    may be no room for that, and the process would be aborted.
    """
    from tournant.guards.patrol import on_patrol

    due = time.monotonic() + 2.0
    while on_patrol() and time.monotonic() < due:
        time.sleep(0.005)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
