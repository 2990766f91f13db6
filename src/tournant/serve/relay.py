"""Relaying answers from the upstream: raw bytes, no parsing for a token, and the upstream's call is cut when the client leaves.

Before the first event has come nothing is sent, so whatever fails until then is a status. After it, an upstream that breaks,
hangs or ends without ``[DONE]`` becomes an error event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import msgspec

from tournant.limits.headers import seconds_of
from tournant.serve.bodies import off_the_loop
from tournant.serve.errors import HTTPError, busy
from tournant.serve.events import EventCutter, EventTooLarge, has_data, is_error_event, usage_in
from tournant.serve.settings import ServeSettings
from tournant.serve.sse import EventResponse, Pump
from tournant.serve.ticker import Ticker
from tournant.serve.upstream import Channel, Upstream

_LINGER = 1.0
_LONGEST_WAIT = 3_600.0
_MOST_ERROR = 64 * 1024
_PASSED_ON = frozenset({400, 404, 409, 413, 422})
_FIRST_SCANNED = 4_096


class Answer(NamedTuple):
    """A whole reply of the upstream."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes

    def usage(self) -> tuple[int, int] | None:
        """Return the tokens read and written, where the reply tells them."""
        return usage_in(self.body)

    def when_again(self) -> tuple[tuple[bytes, bytes], ...]:
        """Return the header that says when to come again, for the client."""
        when = self.headers.get(b"retry-after")
        return () if when is None else ((b"retry-after", when),)


class Fetch:
    """Collects one reply that is not streamed. The listener of its channel.

    Args:
        loop: The running loop.
        most: How large it may be.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self._loop = loop
        self._most = most
        self._pieces: list[bytes] = []
        self._size = 0
        self.status = 0
        self.headers: Mapping[bytes, bytes] = {}
        self.channel: Channel | None = None
        self.untouched = False
        self.ready: asyncio.Future[None] = loop.create_future()

    def head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """Take the head."""
        self.status, self.headers = status, headers

    def body(self, data: bytes) -> None:
        """Take a part of the body."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > self._most:
            self._pieces.clear()
            if self.channel is not None:
                self.channel.cut()
            self._wake(HTTPError(502, f"the upstream's answer is larger than {self._most:,} bytes"))

    def complete(self) -> None:
        """End."""
        self.channel = None
        self._wake()

    def broken(self, why: str, untouched: bool) -> None:
        """Fail."""
        self.channel = None
        self.untouched = untouched
        self._wake(
            HTTPError(502, f"the upstream failed before its answer was complete: {why}; try again")
        )

    def answer(self) -> Answer:
        """Return what was collected."""
        return Answer(self.status, self.headers, b"".join(self._pieces))

    def cut(self) -> None:
        """Drop the request, wherever it is."""
        if self.channel is not None:
            self.channel.cut()
            self.channel = None

    def _wake(self, error: HTTPError | None = None) -> None:
        if not self.ready.done():
            if error is not None:
                self.ready.set_exception(error)
                self.ready.exception()  # whoever waits for it may be gone already
            else:
                self.ready.set_result(None)


async def ask(upstream: Upstream, listener: Fetch, request: bytes) -> None:
    """Send a request and wait until the listener is ready. A kept connection that was closed meanwhile is replaced, once.

    Raises:
        HTTPError: the upstream can't be reached, or failed.
    """
    listener.channel = channel = await upstream.channel()
    channel.send(request, listener)
    try:
        await listener.ready
    except HTTPError:
        if not listener.untouched:
            raise
        listener.untouched = False
        listener.ready = upstream.loop.create_future()
        listener.channel = channel = await upstream.channel(fresh=True)
        channel.send(request, listener)
        await listener.ready


async def fetch(upstream: Upstream, request: bytes, seconds: float, most: int) -> Answer:
    """Send a request and return the whole reply. Cancelled, it cuts the upstream's call at once.

    Args:
        upstream: Who is asked.
        request: The request, from `Upstream.request`.
        seconds: How long the reply may take.
        most: How large it may be.

    Raises:
        HTTPError: 502 or 504, or 503 where the upstream has no room; a status that is about the request itself is an
            ordinary answer.
    """
    listener = Fetch(upstream.loop, most)
    try:
        async with asyncio.timeout(seconds):
            await ask(upstream, listener, request)
    except TimeoutError:
        raise HTTPError(
            504,
            f"the upstream gave no whole answer within {seconds:g} s: try again, or ask for less",
        ) from None
    finally:
        listener.cut()
    answer = listener.answer()
    _refuse(answer)
    return answer


class StreamRelay(Fetch):
    """One streamed answer on its way from the upstream to a client.

    Args:
        response: The client's response.
        settings: The limits.
        ticker: The server's timer.
        first: Called when the first event is sent.
        before: What is sent before the upstream's first event (sources).
        after: What is sent before ``[DONE]``.

    Attributes:
        events: How many events have come.
        complete_answer: Whether it came to its proper end.
    """

    def __init__(
        self,
        response: EventResponse,
        settings: ServeSettings,
        ticker: Ticker,
        first: Callable[[], None],
        before: bytes = b"",
        after: bytes = b"",
    ) -> None:
        super().__init__(ticker.loop, _MOST_ERROR)
        self._settings = settings
        self._ticker = ticker
        self._first = first
        self._before = before
        self._after = after
        self._streaming = False
        self._opening = b""
        self._cutter = EventCutter(settings.max_event_bytes)
        self._seen = 0
        self._quiet_since = ticker.loop.time()
        self._pump = Pump(
            response,
            ticker,
            settings.client_buffer_bytes,
            settings.coalesce_seconds,
            self._pause,
            self._resume,
        )
        self._feed: Callable[[bytes], None] = self._pump.feed
        self._cut_events = self._cutter.feed
        self.failed: HTTPError | None = None

    @property
    def events(self) -> int:
        """How many events have come."""
        return self._cutter.events

    @property
    def sent(self) -> int:
        """How many bytes were sent."""
        return self._pump.sent

    @property
    def writes(self) -> int:
        """How many writes that took."""
        return self._pump.writes

    def usage(self) -> tuple[int, int] | None:
        """Return the tokens read and written, where the stream told them."""
        return self._cutter.usage()

    async def run(self, upstream: Upstream, request: bytes) -> None:
        """Relay the answer. Cancelled at any moment, it cuts the upstream's call at once.

        Raises:
            HTTPError: the upstream refused or failed before its first event.
        """
        self._ticker.watched.add(self)
        try:
            await ask(upstream, self, request)
            if not self._streaming:
                answer = self.answer()
                _refuse(answer)
                if answer.status == 200:
                    raise HTTPError(
                        502, "the upstream was asked for a stream of events and sent something else"
                    )
                raise Passed(answer)
            self._first()
            await self._pump.run()
        finally:
            self._ticker.watched.discard(self)
            self.cut()
            self._pump.let_go()

    def interrupt(self, error: HTTPError) -> None:
        """End the stream with an error event. Only of use once it has started."""
        self._fail(error)

    # From the channel

    def head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """Take the head."""
        super().head(status, headers)
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        self._streaming = status == 200 and kind == b"text/event-stream"
        if self._streaming and headers.get(b"content-encoding", b"identity").lower() != b"identity":
            self._fail(
                HTTPError(502, "the upstream compressed its stream although it was asked not to")
            )

    def body(self, data: bytes) -> None:
        """Take a part of the body: the way of every token."""
        if not self._streaming:
            super().body(data)
            return
        try:
            data = self._cut_events(data)
        except EventTooLarge as error:
            self._fail(HTTPError(502, f"{error}, and the answer ends here"))
            return
        if not data:
            return
        if self._opening is not None:
            self._open(data)
        elif not self._cutter.done:
            self._feed(data)
        else:
            self._finish(_insert(data, self._after) if self._after else data)

    def complete(self) -> None:
        """End."""
        if not self._streaming:
            super().complete()
            return
        self.channel = None
        if self._cutter.done:
            return
        rest = self._cutter.rest()
        if self._cutter.done:
            self._finish(_insert(rest, self._after) if self._after else rest)
        else:
            self._truncated("it ended without [DONE]")

    def broken(self, why: str, untouched: bool) -> None:
        """Fail."""
        if not self._streaming:
            super().broken(why, untouched)
            return
        self.channel = None
        if not self._cutter.done:
            self._truncated(why)

    # From the ticker

    def tick(self, now: float) -> None:
        """Look whether the upstream has said nothing for too long. While the client reads slowly it is not to blame."""
        if self._cutter.done or self.failed is not None:
            return
        if self.events != self._seen or self._pump.blocked:
            self._seen = self.events
            self._quiet_since = now
            return
        began = self._opening is None
        allowed = (
            self._settings.between_tokens_seconds if began else self._settings.first_token_seconds
        )
        if now - self._quiet_since > allowed:
            which = "further" if began else "first"
            self._fail(
                HTTPError(
                    504, f"the upstream sent no {which} event within {allowed:g} s: try again"
                )
            )

    # Inside

    def _open(self, data: bytes) -> None:
        """Hold back what comes until there is an event with data: only then is it sure that there is an answer."""
        opening = self._opening + data
        if not has_data(opening) and not self._cutter.done:
            self._opening = opening[-_FIRST_SCANNED:]
            return
        self._opening = None  # type: ignore[assignment]
        if is_error_event(opening):
            self._fail(
                HTTPError(
                    502, "the upstream answered with an error instead of a first token: try again"
                )
            )
            return
        if not self._cutter.done:
            self._feed(self._before + opening)
            self._wake()
        else:
            opening = _insert(opening, self._after) if self._after else opening
            self._finish(self._before + opening)

    def _finish(self, last: bytes) -> None:
        self._pump.end(None, last)
        self._wake()
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.leave(_LINGER)

    def _truncated(self, why: str) -> None:
        if self._opening is None and self._cutter.said_error():
            self.failed = HTTPError(502, "the upstream reported an error")
            self._pump.end()  # it has told the client itself
            return
        self._fail(
            HTTPError(
                502,
                f"the upstream's answer is cut off: {why}; what came so far is a part, so ask again",
                "upstream_truncated",
            )
        )

    def _fail(self, error: HTTPError) -> None:
        if self.failed is None:
            self.failed = error
            self.cut()
            self._pump.end(error)
            self._wake(error)

    def _pause(self) -> None:
        if self.channel is not None:
            self.channel.pause()

    def _resume(self) -> None:
        if self.channel is not None:
            self.channel.resume()


class Passed(Exception):
    """The upstream answered a request for a stream with something else that concerns the client: an error about its request."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def _insert(data: bytes, more: bytes) -> bytes:
    """Put `more` before the ``[DONE]`` at the end of `data`."""
    at = data.rfind(b"data:")
    return data[:at] + more + data[at:]


def _refuse(answer: Answer) -> None:
    """Raise what a reply means that is no answer and not about the request itself."""
    status = answer.status
    if status == 200 or status in _PASSED_ON:
        return
    if status in (429, 503, 529):
        seconds = _when_again(answer.headers.get(b"retry-after", b""))
        raise busy(
            503,
            "the upstream has no room for another answer now: try again later",
            max(1.0, seconds),
            "upstream_overloaded",
        )
    if status in (401, 403):
        raise HTTPError(
            502,
            "the upstream refuses this server's API key: whoever runs the server must mend it",
            "upstream_key",
        )
    if status == 504:
        raise HTTPError(504, "the upstream took too long: try again")
    raise HTTPError(502, f"the upstream answered with status {status}: try again")


def _when_again(said: bytes) -> float:
    """Return the seconds that a Retry-After tells, which is a number or a date; 1 where it is neither."""
    text = said.decode("latin-1")
    found = seconds_of(text)
    if found is None:
        try:
            found = parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return 1.0
    return min(max(found, 0.0), _LONGEST_WAIT)


_read_shape = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


async def with_field(body: bytes, name: str, value: bytes) -> bytes:
    """Return a JSON object with one more field. What can't be read is returned as it is."""

    def add() -> bytes:
        try:
            fields = _read_shape(body)
        except msgspec.DecodeError:
            return body
        fields[name] = msgspec.Raw(value)
        return msgspec.json.encode(fields)

    return add() if len(body) < 64 * 1024 else await off_the_loop(add)
