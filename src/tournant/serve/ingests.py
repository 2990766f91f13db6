"""The queue of ingests: one at a time into the index, each a process of its own, and nothing that was stored is forgotten.

What arrives while an ingest runs waits and then goes together. A mark in the folder of uploads says that something in it may not be in the
index yet; after a crash the next start finds it and ingests the folder. An ingest that dies is started again once: the ledger
knows what it had done.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tournant.ingest.errors import IndexTrouble
from tournant.serve.indexes import embedder_of
from tournant.serve.settings import ServeSettings

MARK = ".pending"
_BUSY_WAIT = 2.0
_BUSY_TRIES = 30
_DEATHS = 2
_log = logging.getLogger("tournant.serve")


class Listener(Protocol):
    """Who put files into the queue, and wants to know what becomes of them."""

    @property
    def paths(self) -> Sequence[str]:
        """The files."""
        ...

    def tell(self, event: str, what: dict[str, Any]) -> None:
        """Take an event of the ingest. Those of single files have a ``path``, and reach everyone."""

    def end(self, summary: dict[str, Any] | None, reason: str | None) -> None:
        """Take the end: what the ingest says of itself, or why it failed."""


class Ingests:
    """Ingests into one index. For one event loop.

    Args:
        settings: The server's settings.
        folder: The folder of uploads.

    Attributes:
        waiting: Who waits for the next ingest.
        running: The process id of the ingest that runs, or ``None``.
        ended: How many ingests have ended well.
        failed: How many have failed.
    """

    def __init__(self, settings: ServeSettings, folder: str) -> None:
        self._settings = settings
        self._folder = folder
        self.waiting: list[Listener] = []
        self.running: int | None = None
        self.ended = self.failed = 0
        self._behind = False  # something in the folder may not be in the index
        self._unsettled = 0
        self._marking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._child: _Child | None = None
        self._closing = False

    def start(self, *, behind: bool) -> None:
        """Begin; `behind` when the mark of an earlier server was found."""
        if behind and self._task is None:
            self._behind = True
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def announce(self) -> None:
        """Set the mark, before files are moved to their places."""
        async with self._marking:
            await asyncio.to_thread(_touch, os.path.join(self._folder, MARK))
            self._unsettled += 1

    def add(self, listener: Listener) -> int:
        """Ingest somebody's files; return how many wait in front of them. `announce` must have been called for them."""
        ahead = len(self.waiting) + (self.running is not None)
        self.waiting.append(listener)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())
        return ahead

    async def withdraw(self) -> None:
        """Take back an `announce` after which no file was stored."""
        self._unsettled -= 1
        await self._unmark()

    async def aclose(self, seconds: float) -> None:
        """Have a running ingest finish what is in flight, and kill it after `seconds`; the next start does the rest."""
        self._closing = True
        task = self._task
        if task is None:
            return
        if self._child is not None:
            self._child.stop()
            await asyncio.wait({task}, timeout=seconds)
        if self._child is not None:
            self._child.kill()
        task.cancel()
        await asyncio.wait({task})

    # Inside

    async def _work(self) -> None:
        try:
            while (self.waiting or self._behind) and not self._closing:
                listeners, self.waiting = self.waiting, []
                paths = [path for one in listeners for path in one.paths]
                if self._behind:  # something was left undone before
                    paths = [self._folder, *paths]
                reason, summary = await self._ingest(list(dict.fromkeys(paths)), listeners)
                self._unsettled -= len(listeners)
                self._behind = reason is not None
                await self._unmark()
                for listener in listeners:
                    listener.end(summary, reason)
                if reason is None:
                    self.ended += 1
                else:
                    self.failed += 1
                    _log.warning("an ingest of uploads failed: %s", reason)
                    if not self.waiting:
                        break  # not again before something new arrives, or the server starts again
        finally:
            self._task = None

    async def _unmark(self) -> None:
        async with self._marking:
            if not self._unsettled and not self._behind:
                path = os.path.join(self._folder, MARK)
                await asyncio.to_thread(_remove, path)

    async def _ingest(
        self, paths: list[str], listeners: list[Listener]
    ) -> tuple[str | None, dict[str, Any] | None]:
        """Run one ingest; return why it failed, or its summary."""
        try:
            embedder = await asyncio.to_thread(embedder_of, self._settings)
        except IndexTrouble as error:
            return str(error), None
        job = {"paths": paths, "index": self._settings.index, "embedder": embedder}
        busy = deaths = 0
        while True:
            last: dict[str, Any] = {}

            def heard(line: dict[str, Any], last: dict[str, Any] = last) -> None:
                event = line.pop("event")
                if event in ("summary", "error"):
                    last[event] = line
                    return
                for listener in listeners:
                    listener.tell(event, line)

            try:
                self._child = child = await asyncio.to_thread(_Child, job)
            except OSError as error:
                return (
                    f"the ingest can't be started ({error}); look at the limits on processes",
                    None,
                )
            self.running = child.pid
            try:
                code = await child.listen(heard)
            finally:
                self.running = self._child = None
            if "summary" in last:
                if last["summary"].get("complete"):
                    return None, last["summary"]
                return "the ingest was stopped before the end; the next one does the rest", None
            if self._closing:
                return "the server is stopping; the ingest goes on when it starts again", None
            if last.get("error", {}).get("busy") and busy < _BUSY_TRIES:
                busy += 1
                for listener in listeners:
                    listener.tell("waiting", {"reason": last["error"]["message"]})
                await asyncio.sleep(_BUSY_WAIT)
            elif "error" in last:
                return str(last["error"]["message"]), None
            else:
                deaths += 1
                if deaths >= _DEATHS:
                    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
                    return (
                        f"the ingest died {deaths} times ({how}); the server's log may say why",
                        None,
                    )
                for listener in listeners:
                    listener.tell("waiting", {"reason": "the ingest died; it is started again"})


class _Child:
    """A running ingest: see `tournant.serve.ingesting`. Making one blocks for a moment."""

    def __init__(self, job: dict[str, Any]) -> None:
        home = str(Path(__file__).resolve().parents[2])
        environ = dict(os.environ)
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [home, environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tournant.serve.ingesting"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
            start_new_session=True,  # Ctrl-C is the server's to handle
        )
        self.pid = self._process.pid
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()

    async def listen(self, heard: Callable[[dict[str, Any]], None]) -> int:
        """Hand on what it says, line by line, until it has ended; return its exit code."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()

        def read() -> None:
            process = self._process
            assert process.stdout is not None
            assert process.stdin is not None
            with contextlib.suppress(RuntimeError):  # the loop is closed
                for line in process.stdout:
                    with contextlib.suppress(ValueError):
                        loop.call_soon_threadsafe(heard, json.loads(line))
                process.stdout.close()
                code = process.wait()
                with contextlib.suppress(OSError):
                    process.stdin.close()
                loop.call_soon_threadsafe(_resolve, ended, code)

        threading.Thread(target=read, name="tournant-ingest", daemon=True).start()
        try:
            return await ended
        except asyncio.CancelledError:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask it to finish what is in flight and end."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()


def _resolve(future: asyncio.Future[int], code: int) -> None:
    if not future.done():
        future.set_result(code)


def _touch(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "ab"):
        pass


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
