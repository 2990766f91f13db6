"""A loaded model and the threads that call it. Internal to `tournant.llm.gguf`.

The native library has its own scheduler: it works on as many answers at once as it was given slots, token by token. A
call of it blocks its thread until the answer is complete, so every call has a thread here, and there are never more calls than
slots: whoever is beyond waits in a queue that can be left. Threads end when there is nothing to do.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import secrets
import shutil
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol

from tournant.llm.errors import LLMError

#: Tokens of a prompt that are read between two looks at whether anybody still waits for the answer.
_PROMPT_PART = 256
_SOCKET_PATH = 60  # bytes for the folder; a socket's whole path may have some 100


class Job(Protocol):
    """One call. Any thread may call `fail`, also while `run` runs and after it; the first ending counts."""

    abandoned: bool

    def run(self, server: Any) -> None:
        """Make the call. Must not raise."""
        ...

    def fail(self, error: LLMError) -> None:
        """Take in that the call was not made."""
        ...


class Engine:
    """Calls a model, in threads of its own; loads it before the first call.

    Args:
        name: What the threads are called.
        slots: The most calls at once.
        load: Loads the model.
        closed: Makes the error for calls after the end.
    """

    def __init__(
        self, name: str, slots: int, load: Callable[[], Any], closed: Callable[[], LLMError]
    ) -> None:
        self._name = name
        self._slots = slots
        self._load = load
        self._closed_error = closed
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._threads = 0
        self._closing = False
        self._freed: Future[None] = Future()
        self._loading = threading.Lock()
        self._attempts = 0
        self._failure: LLMError | None = None
        self._server: Any = None
        _open.add(self)

    def submit(self, job: Job) -> None:
        """Have a job run as soon as a slot is free, in the order of submission."""
        with self._lock:
            if not self._closing:
                self._waiting.append(job)
                if self._threads < self._slots:
                    self._threads += 1
                    self._start(self._work)
                return
        job.fail(self._closed_error())

    def forget(self, job: Job) -> None:
        """Take a job that nobody waits for out of the queue, if it is still there."""
        with self._lock:
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self) -> Future[None]:
        """End what runs at its next token, refuse what waits, free the model. Returns a future of the end; may be called again."""
        with self._lock:
            first, self._closing = not self._closing, True
            refused = list(self._waiting)
            self._waiting.clear()
            for job in self._running:
                job.abandoned = True
            running = list(self._running)
            if first and not self._threads:
                self._start(self._free)
        for job in refused + running:
            job.fail(self._closed_error())
        return self._freed

    def _start(self, work: Callable[[], None]) -> None:
        # Daemonic, so that a program can end while a model writes; `_close_all` comes before it does.
        threading.Thread(target=work, name=f"tournant-local-{self._name}", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                job = self._next()
                if job is None:
                    self._threads -= 1
                    last = self._closing and not self._threads
                    break
            try:
                server = self._loaded()
            except LLMError as error:
                job.fail(error)
            else:
                job.run(server)
                del server
            with self._lock:
                self._running.discard(job)
            del job
        if last:
            self._free()

    def _next(self) -> Job | None:
        while self._waiting:
            job = self._waiting.popleft()
            if not job.abandoned:
                self._running.add(job)
                return job
        return None

    def _loaded(self) -> Any:
        """Return the loaded model; those who waited for a load that failed share its failure."""
        attempt = self._attempts
        with self._loading:
            if self._server is None:
                if self._failure is not None and attempt != self._attempts:
                    raise _again(self._failure)
                self._attempts += 1
                self._failure = None
                if self._closing:
                    raise self._closed_error()
                try:
                    self._server = self._load()
                except LLMError as error:
                    self._failure = error
                    raise
            return self._server

    def _free(self) -> None:
        self._server = None  # the last reference: its end waits for the native threads
        _give_memory_back()
        _open.discard(self)
        self._freed.set_result(None)


def _again(error: LLMError) -> LLMError:
    """Return an equal error: one instance raised in several places would gather all their tracebacks."""
    return type(error)(str(error))


_open: weakref.WeakSet[Engine] = weakref.WeakSet()


def _close_all() -> None:
    """Free every model while the interpreter still stands: native threads must not outlive it."""
    for ending in [engine.close() for engine in list(_open)]:
        ending.result()


atexit.register(_close_all)


def _give_memory_back() -> None:
    """Return freed pages to the system where the C library keeps them (glibc does, up to hundreds of megabytes)."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def start_server(
    path: str,
    *,
    context: int,
    parallel: int,
    threads: int,
    template: str = "",
    embeddings: bool = False,
    own_pooling: bool = False,
    verbose: bool = False,
) -> Any:
    """Load a model.

    The library always opens a door for HTTP as well. It is put where nobody can knock: a Unix socket in a folder that is
    gone before this function returns, and behind a key that nobody knows.

    Args:
        path: The file.
        context: Tokens in one slot.
        parallel: Slots.
        threads: Threads that calculate.
        template: A chat template instead of the file's.
        embeddings: Load it for embeddings.
        own_pooling: The file says how states become a vector; otherwise their mean is taken.
        verbose: Let the library write to standard error.

    Raises:
        RuntimeError: it can't be loaded.
        ImportError: there is no xllamacpp.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = context * parallel
    params.n_parallel = parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = 3 if verbose else -1
    params.warmup = False
    # Trying out what fits loads the model twice.
    params.fit_params = False
    # Old prompts would be kept in up to 8 GiB.
    params.cache_ram_mib = 0
    if template:
        params.chat_template = template
    if embeddings:
        params.embedding = True
        # Otherwise texts of unequal length that are embedded together are cut to equal lengths, and a vector is the mean of
        # the last piece alone.
        params.kv_unified = True
        if not own_pooling:
            params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.n_batch = params.n_ubatch = context  # a text must go through in one piece
    else:
        params.n_batch = params.n_ubatch = min(_PROMPT_PART, context)
    temporary = tempfile.gettempdir()
    if len(os.fsencode(temporary)) > _SOCKET_PATH:
        temporary = "/tmp"
    folder = tempfile.mkdtemp(prefix="tournant-", dir=temporary)
    try:
        params.hostnames = [os.path.join(folder, "model.sock")]
        params.api_keys = [secrets.token_hex()]
        params.n_threads_http = 1
        params.ui = params.endpoint_slots = False
        return xllamacpp.Server(params)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
