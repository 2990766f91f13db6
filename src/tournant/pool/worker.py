"""The worker process: ``python -m tournant.pool.worker REQUESTS RESULTS`` (file descriptors), started by `processes`.

It reads messages, runs chunks and writes parts. It imports as little as it can before the first item, never imports the
parent's ``__main__``, ignores SIGINT (the parent decides what Ctrl-C means) and ends when its parent does.

Messages in: ``("define", id, steps, bytes of a part)``, ``("run", id, values, skip, hold, announce)``, ``("forget", id, answer)``,
``("ping", id)``, ``("world", cwd, environ changes, sys.path, log levels)``. Messages out: ``("part", Part)``, ``("began", None)`` where it was asked for, ``("failed", error)`` for a
chunk that could not even start, ``("forgot", error or None)``, ``("pong", error or None)``, ``("log", record fields)``.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import threading
import time
from typing import Any

from tournant.errors import NotPicklable, note, short
from tournant.pool import leftovers, wire
from tournant.pool.steps import Failed, Outbox, Part, bind, close_all, run_chunk

#: Seconds after which finished results are sent though a long item is still running.
LATE = 0.02

#: Set in worker processes: a run started in one gets a pool of a single slot.
inside = False


class Worker:
    """The loop of one worker process."""

    def __init__(self, requests: int, results: int) -> None:
        self.reader = wire.Reader(requests)
        self.results = results
        self.writing = threading.Lock()
        self.defined: dict[int, tuple[Any, Any]] = {}
        self.part_bytes: dict[int, int | None] = {}
        self.log_levels: dict[str, int] | None = None
        self.logging = False
        self.outbox: Outbox | None = None
        self.busy = threading.Event()

    def serve(self) -> None:
        """Answer messages until the parent is gone."""
        threading.Thread(target=self.flush_late, name="tournant-flush", daemon=True).start()
        while True:
            try:
                message = self.reader.read()
            except EOFError:
                return
            except BaseException as error:
                # The values of a chunk can't be loaded here: a missing module, a class of another version.
                self.send("failed", error)
                continue
            what = message[0]
            if what == "run":
                self.run(*message[1:])
            elif what == "define":
                self.define(*message[1:])
            elif what == "forget":
                self.forget(*message[1:])
            elif what == "ping":
                self.pong(*message[1:])
            elif what == "world":
                self.world(*message[1:])

    def flush_late(self) -> None:
        """Send finished results while a long item keeps the main thread from doing it."""
        while True:
            self.busy.wait()
            time.sleep(LATE)
            outbox = self.outbox
            if outbox is not None and time.perf_counter() - outbox.last_flush > LATE:
                try:
                    outbox.flush_if_free()
                except OSError:
                    os._exit(0)  # Nobody reads any more.

    def define(self, number: int, steps: bytes, part_bytes: int | None) -> None:
        """Build a segment's steps and their state ahead of its first chunk; a failure is told when a chunk comes."""
        self.part_bytes[number] = part_bytes
        try:
            self.defined[number] = bind(pickle.loads(steps))
        except BaseException as error:
            note(
                error,
                "raised in a worker process while it imported the stage's callable or built its PerWorker state",
            )
            self.defined[number] = ([], error)
        self.hook_logging()

    def pong(self, number: int) -> None:
        """Say that everything sent before has been done, and what was wrong with the definition of a segment."""
        _, problem = self.defined[number]
        if isinstance(problem, BaseException):
            self.send("pong", problem)
        else:
            self.write(wire.dump(("pong", None), in_worker=True))

    def forget(self, number: int, answer: bool) -> None:
        """Drop a segment's steps and close their state; `answer` when that has been done."""
        self.part_bytes.pop(number, None)
        _, closing = self.defined.pop(number, (None, ()))
        problem: BaseException | None = None
        if not isinstance(closing, BaseException):
            try:
                close_all(closing)
            except BaseException as error:
                problem = error
        if answer and problem is None:
            self.write(wire.dump(("forgot", None), in_worker=True))
        elif answer and problem is not None:
            self.send("forgot", problem)

    def close(self) -> None:
        """Close whatever state is left: the parent wants no more of this worker."""
        for number in list(self.defined):
            self.forget(number, False)

    def world(
        self,
        cwd: str | None,
        environ: dict[str, str | None],
        path: list[str],
        log_levels: dict[str, int],
    ) -> None:
        """Make the surroundings those of the parent."""
        if cwd is not None:
            try:
                os.chdir(cwd)
            except OSError as error:
                print(f"tournant: a worker can't enter {cwd!r}: {error}", file=sys.stderr)
        for name, value in environ.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        sys.path[:] = path
        self.log_levels = log_levels
        self.logging = False
        self.hook_logging()

    def run(self, number: int, values: list[Any], skip: int, hold: bool, announce: bool) -> None:
        """Run a chunk of a defined segment."""
        steps, problem = self.defined[number]
        if isinstance(problem, BaseException):
            self.send("failed", problem)
            return
        if announce:
            self.write(wire.dump(("began", None), in_worker=True))
        flat = steps[-1][0] == "flat_map"
        self.outbox = outbox = Outbox(len(steps), self.send_part, threading.Lock(), flat)
        self.busy.set()
        run_chunk(steps, values, outbox, None, None, skip, hold, self.part_bytes[number])
        self.busy.clear()
        self.outbox = None
        self.hook_logging()

    def send_part(self, part: Part) -> None:
        """Send a part; what can't be pickled fails its item with the mend."""
        if part.odd:
            for value in part.values:
                if type(value) is Failed:
                    _keep_traceback(value.error)
            for _n, value in part.ends or ():
                if type(value) is Failed:
                    _keep_traceback(value.error)
        try:
            pieces = wire.dump(("part", part), in_worker=True)
            if part.odd:
                _check_errors(part)
        except Exception:
            pieces = wire.dump(("part", _travelling(part)), in_worker=True)
        self.write(pieces)

    def write(self, pieces: wire.Pieces) -> None:
        """Write one message; log records of other threads must not get in between."""
        with self.writing:
            wire.write(self.results, pieces)

    def send(self, what: str, error: BaseException) -> None:
        """Send an error that concerns a whole chunk."""
        _keep_traceback(error)
        try:
            pieces = wire.dump((what, error), in_worker=True)
            _comes_back(error)
        except Exception:
            pieces = wire.dump((what, _stand_in(error)), in_worker=True)
        self.write(pieces)

    def hook_logging(self) -> None:
        """Once somebody has imported logging here, send its records to the parent's loggers."""
        if self.logging or "logging" not in sys.modules or self.log_levels is None:
            return
        self.logging = True
        import logging

        for name, level in self.log_levels.items():
            logging.getLogger(name or None).setLevel(level)
        root = logging.getLogger()
        if any(getattr(handler, "to_parent", False) for handler in root.handlers):
            return

        worker = self

        class ToParent(logging.Handler):
            to_parent = True

            def emit(self, record: logging.LogRecord) -> None:
                fields = dict(record.__dict__)
                fields["msg"], fields["args"] = record.getMessage(), None
                if record.exc_info:
                    fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
                    fields["exc_info"] = None
                try:
                    pieces = wire.dump(("log", fields), in_worker=True)
                except Exception:
                    plain = {
                        k: v
                        for k, v in fields.items()
                        if isinstance(v, (str, int, float, type(None)))
                    }
                    pieces = wire.dump(("log", plain), in_worker=True)
                worker.write(pieces)

        root.addHandler(ToParent())


def _keep_traceback(error: BaseException) -> None:
    """Put the worker's traceback into a note: traceback objects don't travel."""
    if error.__traceback__ is not None:
        import traceback

        text = "".join(traceback.format_exception(error))
        note(error, f"raised in a worker process:\n{text.rstrip()}")
        error.__traceback__ = None


def _check_errors(part: Part) -> None:
    """Raise if an exception among the results would not come out of its pickle again."""
    for value in [*part.values, *(what for _n, what in part.ends or ())]:
        if type(value) is Failed:
            _comes_back(value.error)


def _comes_back(error: BaseException) -> None:
    """Raise if `error` would not come out of its pickle again."""
    for piece in wire.dump_in_band(error):
        pickle.loads(piece)


def _travelling(part: Part) -> Part:
    """Return `part` with everything that can't be pickled replaced by a failure that says so."""
    values = [_checked(value) for value in part.values]
    ends = part.ends
    if ends is not None:
        # A child that can't travel fails its parent: its place is taken by the failure.
        ends = [(n, _checked(what)) for n, what in ends]
    return Part(values, ends, True, part.times, part.last, part.since, part.sent, part.used)


def _checked(value: Any) -> Any:
    try:
        wire.dump(value, in_worker=True)
        if type(value) is Failed:
            _comes_back(value.error)
    except Exception as problem:
        if type(value) is Failed:
            return Failed(value.step, _stand_in(value.error))
        return Failed(
            -1,
            NotPicklable(
                f"the result {short(value)} can't be sent back from a worker process "
                f"({type(problem).__name__}: {problem}); return plain data (strings, numbers, bytes, arrays, dataclasses), "
                'or run the stage on="threads"'
            ),
        )
    return value


def _stand_in(error: BaseException) -> NotPicklable:
    stand_in = NotPicklable(
        f"the stage raised {type(error).__module__}.{type(error).__qualname__}: {error}; "
        "that exception can't be pickled, so this stands in for it. "
        "Give it an __init__ whose arguments are those passed to super().__init__()"
    )
    for text in getattr(error, "__notes__", ()):
        stand_in.add_note(text)
    return stand_in


def _end_with_parent(requests: int) -> None:
    """End when the parent is gone, even in the middle of a long item."""
    parent = os.getppid()

    def watch() -> None:
        poll = select.poll()
        # No event asked for: a hang-up is reported anyway, once the last writer of our requests is gone.
        poll.register(requests, 0)
        poll.poll()
        while os.getppid() == parent:
            # The parent lives and has closed the pipe: the main thread ends by itself after its item.
            time.sleep(LATE)
        os._exit(1)

    threading.Thread(target=watch, name="tournant-parent-watch", daemon=True).start()


def main() -> None:
    """Serve on the descriptors named on the command line."""
    global inside
    inside = True
    sys.modules.setdefault("tournant.pool.worker", sys.modules["__main__"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    requests, results = int(sys.argv[1]), int(sys.argv[2])
    _end_with_parent(requests)
    sys.argv[1:] = []
    for stream in (sys.stdout, sys.stderr):
        # What a stage prints must not wait for the worker's end, which may be a kill.
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    leftovers.watch()
    leftovers.present.set(leftovers.Leftovers())
    worker = Worker(requests, results)
    try:
        worker.serve()
        worker.close()
    except BrokenPipeError:
        pass
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not through interpreter shutdown: a stage's stray threads must not keep a worker alive.
        os._exit(0)


if __name__ == "__main__":
    main()
