"""One answer on its way from a native thread to an event loop. Internal to `tournant.llm.gguf`.

The thread never waits for the reader: the library goes on writing whatever its caller does, so holding the caller back would
only pile the pieces up on the other side, and keep a slot from others. What is not yet read is bounded by the model's context,
which no answer exceeds.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from tournant.llm._local_requests import INVALID
from tournant.llm.errors import InvalidClient, LLMError
from tournant.llm.model import Chunk
from tournant.llm.replies import WrongShape, read_chunk, read_vectors

if TYPE_CHECKING:
    from tournant.llm._local_engine import Engine

#: Makes an error of what the library said: its message, its type, and how many pieces came before.
FaultOf = Callable[[str, str, int], LLMError]
#: Makes the text of a request, and says whether the leading space of the answer is to go.
Prepare = Callable[[Mapping[str, Any]], tuple[str, bool]]


class Pipe:
    """From any thread to one task of one loop. What is put wakes the loop once, however much is put meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._called = False

    def put(self, item: Any) -> bool:
        """Put something in; return whether there is still a loop to read it."""
        self._items.append(item)
        if not self._called:
            self._called = True
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop is closed
                return False
        return True

    def _wake(self) -> None:
        # In this order: what is put from here on calls again.
        self._called = False
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def get(self) -> Any:
        """Wait for the next thing."""
        while not self._items:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._items.popleft()


END: Final = object()
"""Stands at the end of what is put into a pipe, unless an `LLMError` does."""


class Call:
    """A job with one ending, whoever comes first with it; see `engine.Job`."""

    def __init__(self, pipe: Pipe, fault_of: FaultOf) -> None:
        self.abandoned = False
        self.pipe = pipe
        self._fault_of = fault_of
        self._ended = False
        self._pieces = 0

    def run(self, server: Any) -> None:
        """See `Job`."""
        raise NotImplementedError

    def fail(self, error: LLMError) -> None:
        """See `Job`."""
        self.end(error)

    def end(self, last: Any) -> None:
        """Put the last thing into the pipe."""
        if not self._ended:
            self._ended = True
            self.pipe.put(last)

    def raised(self, error: Exception) -> None:
        """End with what the library raised: ValueError for a request that makes no sense, RuntimeError for the rest."""
        kind = INVALID if isinstance(error, ValueError) else ""
        self.fail(self._fault_of(str(error), kind, self._pieces))

    def refused(self, reply: Any) -> bool:
        """End with the error in a reply, if there is one."""
        error = reply.get("error") if isinstance(reply, Mapping) else None
        if error is None:
            return False
        words = error if isinstance(error, Mapping) else {"message": error}
        message, kind = str(words.get("message") or ""), str(words.get("type") or "")
        self.fail(self._fault_of(message, kind, self._pieces))
        return True


class Loading(Call):
    """Only has the model loaded."""

    def run(self, server: Any) -> None:
        """See `Job`."""
        self.end(END)


class Writing(Call):
    """Writes one answer: `Chunk`s, then `END` or an `LLMError`.

    Args:
        chat: Answer a conversation; otherwise continue a text.
        body: The request.
        prepare: Makes the request's text, once the model is loaded, and says whether the answer's leading space is to go.
        pipe: Where the pieces go.
        fault_of: Makes errors.
    """

    def __init__(
        self,
        body: Mapping[str, Any],
        prepare: Prepare,
        pipe: Pipe,
        fault_of: FaultOf,
        *,
        chat: bool,
    ) -> None:
        super().__init__(pipe, fault_of)
        self._chat = chat
        self._body = body
        self._prepare = prepare
        self._strip = False
        self._finished = False

    def run(self, server: Any) -> None:
        """See `Job`."""
        if self.abandoned:
            return
        call = server.handle_chat_completions if self._chat else server.handle_completions
        text, self._strip = self._prepare(self._body)
        try:
            # Text in, text out: the library would turn it into JSON once more.
            call(text, self._take)
        except Exception as error:
            self.raised(error)
            return
        if self._finished:
            self.end(END)
        elif not self.abandoned:
            self.fail(self._fault_of("the answer ended without its end", "", self._pieces))

    def _take(self, said: str) -> bool:
        """Take a piece from the library; return whether it is to stop."""
        if self.abandoned:
            return True
        try:
            event = json.loads(said)
            if self.refused(event):
                return True
            chunk = read_chunk(event, self._chat)
        except (ValueError, WrongShape) as error:
            self.fail(self._fault_of(f"a piece of the answer is none: {error}", "", self._pieces))
            return True
        if chunk is None:
            return False
        text = chunk.text
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        self._pieces += 1
        self._finished = self._finished or chunk.finish_reason is not None
        return not self.pipe.put(Chunk(text, chunk.finish_reason, chunk.usage))


class Embedding(Call):
    """Embeds some texts: one list of replies, or an `LLMError`.

    Args:
        texts: The texts.
        part: How many are given to the library at once; between two parts it can be left.
        pipe: Where the answer goes.
        fault_of: Makes errors.
    """

    def __init__(self, texts: Sequence[str], part: int, pipe: Pipe, fault_of: FaultOf) -> None:
        super().__init__(pipe, fault_of)
        self._texts = texts
        self._part = part

    def run(self, server: Any) -> None:
        """See `Job`."""
        vectors: list[list[float]] = []
        for start in range(0, len(self._texts), self._part):
            if self.abandoned:
                return
            some = list(self._texts[start : start + self._part])
            try:
                reply = server.handle_embeddings({"input": some})
                if self.refused(reply):
                    return
                vectors += read_vectors(reply, len(some))
            except Exception as error:
                self.raised(error)
                return
        self.end(vectors)


class LocalStream:
    """The pieces of one answer. Made by `Local.stream` and `Local.stream_completion`; the writing begins with the first piece.

    Leaving it ends the writing at its next token: ``break`` out of ``async for chunk in model.stream(...)``, the end of an ``async with``
    block, `aclose`, or the cancellation of whoever reads.

    Raises:
        LLMError: as `Local.chat`.
    """

    __slots__ = ("__weakref__", "_engine", "_job", "_make", "_over", "_pipe", "_reading")

    def __init__(self, engine: Engine, make: Callable[[Pipe], Writing]) -> None:
        self._engine = engine
        self._make = make
        self._job: Writing | None = None
        self._pipe: Pipe | None = None
        self._over = self._reading = False

    def __aiter__(self) -> LocalStream:
        return self

    async def __anext__(self) -> Chunk:
        if self._over:
            raise StopAsyncIteration
        if self._reading:
            raise InvalidClient(
                "this stream is being read by another task; give each reader a branch of tn.streams.tee(stream, n)"
            )
        self._reading = True
        try:
            piece = await self._next()
        except BaseException:
            self._leave()
            raise
        finally:
            self._reading = False
        if self._over or piece is END:
            self._leave()
            raise StopAsyncIteration
        if isinstance(piece, LLMError):
            self._leave()
            raise piece
        chunk: Chunk = piece
        return chunk

    async def _next(self) -> Any:
        if self._pipe is None:
            self._pipe = Pipe(asyncio.get_running_loop())
            self._job = self._make(self._pipe)
            self._engine.submit(self._job)
        return await self._pipe.get()

    async def aclose(self) -> None:
        """End the writing at its next token. A task that waits for a piece then sees the end. Closing twice does nothing."""
        self._leave()
        if self._pipe is not None and self._reading:
            self._pipe.put(END)

    async def __aenter__(self) -> LocalStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        self._over = True
        job, self._job = self._job, None
        if job is not None:
            job.abandoned = True
            self._engine.forget(job)
