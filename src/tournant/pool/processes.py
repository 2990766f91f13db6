"""Process lanes: a thread of the pool with a fresh interpreter behind it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tournant.errors import NotPicklable, WorkerDied, note, short
from tournant.pool import wire
from tournant.pool.lanes import Job, Lane, Spec, World
from tournant.pool.steps import Failed, Part

if TYPE_CHECKING:
    from tournant.pool.lanes import Pool

#: Bytes that a pipe holds; the kernel's own 64 KiB make both sides wait for each other.
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031


class ProcessLane(Lane):
    """A lane that has a worker process run its chunks."""

    kind = "processes"

    def __init__(self, pool: Pool, name: str) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._requests = self._results = -1
        self._reader: wire.Reader | None = None
        self._defined: set[int] = set()
        self._world: World | None = None
        self._environ: dict[str, str] = {}
        self._job: Job | None = None
        self._alive = threading.Lock()
        super().__init__(pool, name)
        self.pid = 0
        # The interpreter starts now, while its first chunk is still being read.
        self.jobs.put(self._start_early)

    def _start_early(self) -> None:
        with contextlib.suppress(Exception):
            self._ensure()

    def kill(self, job: Job) -> bool:
        """Kill the process if it is `job` that it works on, from any thread; the job is told that it died."""
        with self._alive:
            if self._job is job and self.process is not None and self.process.returncode is None:
                self.process.kill()
        return True

    def prepare(self, spec: Spec) -> None:
        """Send the steps of `spec` ahead; what goes wrong is told when a chunk comes."""
        with contextlib.suppress(Exception):
            self._define(spec)

    def ready(self, spec: Spec) -> BaseException | None:
        """Start the process if need be, define `spec` in it and wait for its answer; return what went wrong."""
        try:
            self._define(spec)
            wire.write(self._requests, wire.dump(("ping", spec.number)))
            assert self._reader is not None
            while True:
                what, body = self._reader.read()
                if what == "log":
                    _relog(body)
                elif what == "pong":
                    problem: BaseException | None = body
                    return problem
        except (OSError, EOFError):
            return WorkerDied(f"the worker process ended while it got ready ({self._bury()})")

    def knows(self, spec: Spec) -> bool:
        """Tell whether the process was told of `spec`."""
        return spec.number in self._defined or not self.jobs.empty()

    def drop(self, spec: Spec) -> None:
        """Have the process close the state of `spec`, and wait for that where there is some."""
        if spec.number not in self._defined:
            return
        self._defined.discard(spec.number)
        try:
            wire.write(self._requests, wire.dump(("forget", spec.number, spec.closing)))
            while spec.closing:
                assert self._reader is not None
                what, body = self._reader.read()
                if what == "log":
                    _relog(body)
                elif what == "forgot":
                    if body is not None:
                        raise body
                    break
        except (OSError, EOFError):
            self._bury()

    def execute(self, job: Job) -> None:
        """Send the chunk and pass its parts on."""
        try:
            pieces, unsent = self._pickled(job)
            self._ensure()
        except Exception as error:
            # Every value was tried by itself, so what fails here is the segment, or the start of the process.
            self._put_back()
            job.failed(error)
            return
        with self._alive:
            self._job = job
        try:
            if job.abandoned:
                raise EOFError
            self._define(job.spec)
            wire.write(self._requests, pieces)
            self._receive(job, unsent)
        except (OSError, EOFError):
            how = self._bury()
            self._put_back()
            job.died(how)
        except BaseException as error:
            self._bury()
            self._put_back()
            job.failed(error)

    def _put_back(self) -> None:
        with self._alive:
            self._job = None
        self.pool.put_back(self)

    def close(self) -> None:
        """Let the process end by closing its pipe, and make sure that it does."""
        self._bury(wait=5.0)

    def _pickled(self, job: Job) -> tuple[wire.Pieces, list[tuple[int, Failed]]]:
        """Pickle the chunk; values that can't be pickled are set aside with the failure that says so."""
        job.spec.payload()
        message = ("run", job.spec.number, job.values, job.skip, job.hold, job.announce)
        try:
            return wire.dump(message), []
        except Exception:
            good, unsent = [], []
            for n, value in enumerate(job.values):
                try:
                    wire.dump(value)
                    good.append(value)
                except Exception as error:
                    problem = NotPicklable(
                        f"{short(value)} can't be sent to a worker process ({type(error).__name__}: {error}); pass plain "
                        'data between stages, or run this stage on="threads"'
                    )
                    unsent.append((n, Failed(-1, problem)))
            return wire.dump(
                ("run", job.spec.number, good, job.skip, job.hold, job.announce)
            ), unsent

    def _receive(self, job: Job, unsent: list[tuple[int, Failed]]) -> None:
        assert self._reader is not None
        merge = _Merge(unsent, job.spec.flat) if unsent else None
        while True:
            try:
                what, body = self._reader.read()
            except (EOFError, OSError):
                raise
            except Exception as error:
                note(error, "raised while a worker process's results were unpickled in the parent")
                raise
            if what == "began":
                job.began()
            elif what == "part":
                part = body if merge is None else merge(body)
                if part.last:
                    self._put_back()
                    job.part(part)
                    return
                job.part(part)
                # Not reading is what holds the worker back: its pipe fills.
                if not job.wanted():
                    raise EOFError
            elif what == "failed":
                self._put_back()
                job.failed(body)
                return
            elif what == "log":
                _relog(body)

    def _ensure(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            self._bury()
        if self.process is None:
            try:
                self._spawn()
            except OSError as error:
                self._bury()
                raise WorkerDied(
                    f"a worker process can't be started with {sys.executable!r} ({error}); look at the limits on processes "
                    "and open files (ulimit -u, ulimit -n)"
                ) from error

    def _spawn(self) -> None:
        requests, self._requests = os.pipe()
        try:
            self._results, results = os.pipe()
        except OSError:
            os.close(requests)
            raise
        for fd in (requests, results):
            _enlarge(fd)
        home = str(Path(__file__).resolve().parents[2])
        environ = dict(os.environ)
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [home, environ.get("PYTHONPATH")]))
        flags = ["-O" * sys.flags.optimize] if sys.flags.optimize else []
        flags += [f"-W{option}" for option in sys.warnoptions]
        # Ctrl-C in the first milliseconds must not reach the child: it inherits our mask until it ignores SIGINT.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with self._alive:
                self.process = subprocess.Popen(
                    [
                        sys.executable,
                        *flags,
                        # Without it, a pickle.py in the working directory would be imported for the real one.
                        "-P",
                        "-m",
                        "tournant.pool.worker",
                        str(requests),
                        str(results),
                    ],
                    pass_fds=(requests, results),
                    stdin=subprocess.DEVNULL,
                    env=environ,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(requests)
            os.close(results)
        self.pid, self.since = self.process.pid, perf_counter()
        self._reader = wire.Reader(self._results)
        self._defined.clear()
        self._world = None
        self._environ = environ

    def _define(self, spec: Spec) -> None:
        self._ensure()
        world = spec.world
        if world is not self._world:
            changes: dict[str, str | None] = {
                k: v for k, v in world.environ.items() if self._environ.get(k) != v
            }
            changes.update({k: None for k in self._environ if k not in world.environ})
            wire.write(
                self._requests,
                wire.dump(("world", world.cwd, changes, world.path, world.log_levels)),
            )
            self._world, self._environ = world, world.environ
        if spec.number not in self._defined:
            wire.write(
                self._requests, wire.dump(("define", spec.number, spec.payload(), spec.part_bytes))
            )
            self._defined.add(spec.number)

    def _bury(self, wait: float | None = None) -> str:
        """End the process and close its pipes; return how it ended."""
        for fd in (self._requests, self._results):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._requests = self._results = -1
        self._reader = None
        self._defined.clear()
        process = self.process
        if process is None:
            return "never started"
        try:
            process.wait(1.0 if wait is None else wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with self._alive:
            self.process = None
        code = process.returncode
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"


class _Merge:
    """Puts the failures of values that were never sent back between the results of those that were."""

    def __init__(self, unsent: list[tuple[int, Failed]], flat: bool) -> None:
        self._unsent = unsent
        self._flat = flat
        self._at = 0

    def __call__(self, part: Part) -> Part:
        if self._flat:
            # Before the children of an item in work comes the end of whatever was unsent in front of it.
            ends: list[Any] = [(0, failed) for failed in self._due()]
            for n, what in part.ends or ():
                ends.append((n, what))
                self._at += 1
                ends += [(n, failed) for failed in self._due()]
            return Part(
                part.values, ends, True, part.times, part.last, part.since, part.sent, part.used
            )
        values: list[Any] = list(self._due())
        for value in part.values:
            values.append(value)
            self._at += 1
            values += self._due()
        return Part(values, None, True, part.times, part.last, part.since, part.sent, part.used)

    def _due(self) -> list[Failed]:
        due = []
        while self._unsent and self._unsent[0][0] == self._at:
            due.append(self._unsent.pop(0)[1])
            self._at += 1
        return due


def _enlarge(fd: int) -> None:
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE_BYTES)


def _relog(fields: dict[str, Any]) -> None:
    import logging

    logger = logging.getLogger(fields["name"])
    if logger.isEnabledFor(fields["levelno"]):
        logger.handle(logging.makeLogRecord(fields))
