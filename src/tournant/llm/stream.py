"""A streamed answer over HTTP: an async iterator that closes its connection the moment its reader leaves.

It is a class and no generator: a generator would yield inside its timeouts (PEP 789), and could not be closed while
somebody waits in it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tournant.llm.accounts import Account
from tournant.llm.errors import InvalidClient, LLMError, StreamTruncated
from tournant.llm.estimate import estimate_prompt
from tournant.llm.model import Chunk
from tournant.llm.packages import aiohttp
from tournant.llm.parsing import NoJSON, parsed
from tournant.llm.replies import WrongShape, read_chunk
from tournant.llm.sse import Event, EventParser, EventTooLarge
from tournant.llm.transport import fault_of, read_body, read_some, send, timeout_of

if TYPE_CHECKING:
    from tournant.llm.client import Client, Endpoint

_LARGEST_ERROR = 2**20
#: Seconds for the end of a reply to arrive after its ``[DONE]``, so that the connection can be used again.
_LINGER = 0.05


class Stream:
    """The pieces of one answer. Made by `Client.stream` and `Client.stream_completion`; the call begins with the first piece.

    ``async for chunk in client.stream(...)`` closes the connection when the loop is left, however it is left.
    If the stream has a name, ``async with client.stream(...) as chunks:`` does, whereas ``break`` then leaves it open, to be read on
    or closed by `aclose`.

    Raises:
        StreamTruncated: when it ends without ``[DONE]``.
        StreamFailed: when the provider reports an error in its midst.
        LLMTimeout: when the first piece, or the next one, does not come in time.
        LLMError: for everything else that can go wrong with a call.
    """

    __slots__ = (
        "_account",
        "_body",
        "_busy_since",
        "_chat",
        "_client",
        "_done",
        "_endpoint",
        "_entered",
        "_failure",
        "_loop",
        "_over",
        "_parser",
        "_pieces",
        "_reading",
        "_ready",
        "_response",
        "_scope",
        "_settled",
    )

    def __init__(
        self, client: Client, endpoint: Endpoint, body: Mapping[str, Any], *, chat: bool
    ) -> None:
        self._response: aiohttp.ClientResponse | None = None
        self._entered = self._reading = self._done = self._over = self._settled = False
        self._client = client
        self._endpoint = endpoint
        self._chat = chat
        self._account = Account(client.limit, client.concurrency, body)
        if self._account.counted and "stream_options" not in body:
            # Without it most providers do not say what a streamed answer cost.
            body = {**body, "stream_options": {"include_usage": True}}
        self._body = body
        self._parser = EventParser()
        self._ready: deque[Chunk] = deque()
        self._pieces = 0
        self._busy_since = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scope: asyncio.Timeout | None = None
        self._failure: LLMError | None = None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Chunk:
        if self._ready:
            return self._ready.popleft()
        if self._over:
            raise StopAsyncIteration
        if self._reading:
            raise InvalidClient(
                f"{self._endpoint.call}: this stream is being read by another task; give each reader a branch of "
                "tn.streams.tee(stream, n)"
            )
        self._reading = True
        try:
            if self._failure is None:
                await self._more()
        except BaseException as error:
            await self._leave(error)
            raise
        finally:
            self._reading = False
        if self._ready and not self._over:
            return self._ready.popleft()
        failure = self._failure
        await self._leave(failure)
        if failure is not None:
            raise failure
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the connection. A task that waits for the next piece then sees the end. Closing twice does nothing."""
        self._over = True
        self._ready.clear()
        if self._scope is not None:
            self._scope.reschedule(0.0)
        await self._leave(None)

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._response is None and not self._entered:
            return
        self._over = True
        self._settle()
        self._account.abandon()
        response, loop = self._response, self._loop
        if response is None or loop is None or loop.is_closed():
            return
        try:
            here = asyncio.get_running_loop() is loop
        except RuntimeError:
            here = False
        if here:
            response.close()
        else:
            loop.call_soon_threadsafe(response.close)

    def __repr__(self) -> str:
        state = "over" if self._over else "open" if self._response is not None else "not begun"
        return f"<Stream of {self._endpoint.call}, {state}, {self._pieces} pieces>"

    # Reading

    async def _more(self) -> None:
        """Wait until there is something to hand out, the answer has ended, or it has failed."""
        if not self._entered:
            try:
                async with asyncio.timeout(None) as self._scope:
                    await self._account.__aenter__()
                    self._entered = True
            except TimeoutError:
                return  # closed while it waited for its turn
            finally:
                self._scope = None
        self._excuse()
        if self._done:
            await self._linger()
            return
        timeouts = self._client.timeouts
        which = "between_tokens" if self._pieces else "first_token"
        seconds = timeouts.between_tokens if self._pieces else timeouts.first_token
        failure: LLMError | None = None
        try:
            async with asyncio.timeout(seconds) as self._scope:
                if self._response is None:
                    failure = await self._open()
                while failure is None and not (self._ready or self._done or self._over):
                    failure = await self._read()
        except (aiohttp.ClientError, OSError) as error:
            failure = self._broken(error, which, seconds)
        finally:
            self._scope = None
            self._busy_since = perf_counter()
        if failure is not None and not self._over:
            self._failure = failure

    async def _open(self) -> LLMError | None:
        """Send the request and look at the reply's head."""
        client, call = self._client, self._endpoint.call
        self._loop = asyncio.get_running_loop()
        data = client.encode(self._body)
        session = client.connections.session() or await client.connections.open()
        response = self._response = await send(session, self._endpoint.url, data)
        kind = response.content_type
        if response.status == 200 and kind not in ("application/json", "text/html"):
            self._account.answered(response.headers, None)
            return None
        text = await read_body(response, _LARGEST_ERROR) or b""
        faults = client.faults
        body = _body(text)
        if response.status != 200 or (isinstance(body, Mapping) and body.get("error")):
            failure = faults.refused(call, response.status, response.headers, body, text)
        else:
            failure = faults.no_answer(call, 200, f"{kind} in place of a stream", text)
        self._account.failed(failure, response.headers)
        return failure

    async def _read(self) -> LLMError | None:
        assert self._response is not None
        data = await read_some(self._response)
        if not data:
            last = self._parser.rest()
            if last is not None and last.data.strip() == b"[DONE]":
                self._done = True
                return None
            return self._truncated("it ended without [DONE]")
        try:
            events = self._parser.feed(data)
        except EventTooLarge as error:
            return self._client.faults.no_answer(self._endpoint.call, 200, str(error))
        for event in events:
            failure = self._take(event)
            if failure is not None:
                return failure
            if self._done:
                break
        return None

    def _take(self, event: Event) -> LLMError | None:
        name, data = event
        if data.startswith(b"[DONE]"):
            self._done = True
            return None
        if not data and not name:
            return None
        call, faults = self._endpoint.call, self._client.faults
        try:
            body = parsed(data)
        except NoJSON:
            if name == b"error":
                words = data.decode(errors="replace")
                return faults.failed_midway(call, words, self._pieces)
            return faults.no_answer(call, 200, "an event that is no JSON", data)
        if isinstance(body, Mapping) and (name == b"error" or body.get("error")):
            return faults.failed_midway(call, body, self._pieces)
        try:
            chunk = read_chunk(body, self._chat)
        except WrongShape as error:
            return faults.no_answer(call, 200, str(error), data)
        if chunk is not None:
            self._pieces += 1
            self._ready.append(chunk)
            if chunk.usage is not None:
                self._settled = True
                self._account.used(chunk.usage)
        return None

    async def _linger(self) -> None:
        """Give the reply's end, which follows ``[DONE]``, a moment: only then can the connection be used again."""
        response = self._response
        try:
            async with asyncio.timeout(_LINGER) as self._scope:
                while response is not None and await read_some(response):
                    pass
        except (aiohttp.ClientError, OSError):
            pass  # the answer is complete; `_leave` closes the connection
        finally:
            self._scope = None

    # Ending

    def _broken(self, error: Exception, which: str, seconds: float | None) -> LLMError:
        call, faults = self._endpoint.call, self._client.faults
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
            failure: LLMError = timeout_of(call, which, seconds or 0.0)
        elif self._response is not None:
            return self._truncated("the connection broke")
        else:
            failure = fault_of(error, call, faults, self._client.timeouts.connect)
        self._account.failed(failure)
        return failure

    def _truncated(self, what: str) -> StreamTruncated:
        return StreamTruncated(
            f"{self._endpoint.call}: the streamed answer is cut off after {self._pieces} pieces: {what}; "
            "what came so far is a part, so ask again"
        )

    async def _leave(self, error: BaseException | None) -> None:
        """Let go of everything, once each."""
        self._over = True
        response = self._response
        if response is not None:
            response.close()
        self._settle()
        self._excuse()
        if self._entered:
            await self._account.__aexit__(type(error) if error else None, error, None)

    def _excuse(self) -> None:
        """Leave the time that the reader took since the last piece came out of the call's latency."""
        if self._pieces and self._account.waits:
            now = perf_counter()
            self._account.excuse(now - self._busy_since)
            self._busy_since = now

    def _settle(self) -> None:
        """Charge a piece for a token where nobody said what it cost, or it was left before."""
        if not self._settled and self._pieces and self._account.counted:
            self._settled = True
            self._account.charge(estimate_prompt(self._body) + self._pieces)


def _body(data: bytes) -> Any:
    try:
        return parsed(data)
    except NoJSON:
        return None
