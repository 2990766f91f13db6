"""One admitted call, from its admission to its last byte: it waits as long as was drawn, and ends as was drawn.

Timers of the event loop and no task: thousands of calls may wait at once, and each costs an object. Only a
model behind the provider needs tasks (`backed`).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tournant.llm.mock import wording
from tournant.llm.mock.answers import answer_to, pieces_of, vector_base64, vector_of
from tournant.llm.mock.asks import EMBEDDING, Ask
from tournant.llm.mock.fate import Fate, Lot
from tournant.llm.mock.http import HTML_TYPE, Exchange

if TYPE_CHECKING:
    from tournant.llm.mock.provider import Provider

#: Pieces written in one turn of the loop, so that one endless stream never holds up the others.
_MOST_AT_ONCE = 256
_FAILED = wording.error_body(
    "The server had an error while processing your request. Sorry about that!", "server_error"
)
_OVERLOADED = wording.error_body(
    "The engine is currently overloaded, please try again later.", "overloaded_error", "overloaded"
)
_STREAM_FAILED = wording.error_body(
    "The server had an error in the middle of the answer.", "server_error"
)


class Call:
    """A call that was admitted.

    Args:
        provider: Who counts it.
        exchange: Where the answer goes.
        ask: What was asked.
        digest: What stands for its body.
        lot: What was drawn for it.
        estimate: The tokens that were taken from the limit for it.
        headers: The header lines about the limits.
        number: Its number, for ids.
    """

    __slots__ = (
        "_pieces", "_sent", "_stop_at", "_timer", "ask", "begun", "counted", "digest", "estimate", "events",
        "exchange", "factor", "headers", "lot", "number", "provider", "task", "texts",
    )  # fmt: skip

    def __init__(
        self,
        provider: Provider,
        exchange: Exchange,
        ask: Ask,
        digest: bytes,
        lot: Lot,
        estimate: int,
        headers: bytes,
        number: int,
    ) -> None:
        self.provider, self.exchange, self.ask, self.digest = provider, exchange, ask, digest
        self.lot, self.estimate, self.headers, self.number = lot, estimate, headers, number
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self.task: asyncio.Task[None] | None = None
        self.events: wording.Events | None = None
        self.factor = 1.0
        self.counted = False
        self.begun = 0.0
        self.texts: list[tuple[str, str]] = []
        self._pieces: list[tuple[int, str]] = []
        self._sent = self._stop_at = 0

    def start(self) -> None:
        """Begin to wait for the answer, or answer at once."""
        provider, lot = self.provider, self.lot
        if lot.fate is Fate.OVERLOAD:
            provider.stats.by_status[503] += 1
            self.exchange.reply(503, _OVERLOADED, self.headers)
            return
        self.exchange.on_left = self._left
        provider.opened(self)
        if lot.fate is Fate.HANG:
            provider.stats.hung += 1
            return
        self.factor = provider.begin_work(self)
        seconds = lot.latency
        if lot.interval and not self.ask.streamed:
            tokens = self.ask.longest(provider.settings) * len(self.ask.texts)
            seconds += lot.interval * max(0, tokens - 1)
        if seconds:
            self._timer = provider.loop.call_later(seconds * self.factor, self._due)
        else:
            self._due()

    def close(self) -> None:
        """Give up on it: the provider stops."""
        if self._timer is not None:
            self._timer.cancel()
        task, self.task = (
            self.task,
            None,
        )  # cancelled twice, it would leave the model in the middle of its closing
        if task is not None:
            task.cancel()

    def _left(self) -> None:
        self.close()
        stats = self.provider.stats
        stats.left += 1
        stats.left_streams += self.events is not None
        self.end()

    def end(self) -> None:
        """Count it as no longer open."""
        self.provider.closed(self)

    def _due(self) -> None:
        self._timer = None
        stats, exchange, fate = self.provider.stats, self.exchange, self.lot.fate
        if fate is Fate.ERROR:
            stats.by_status[500] += 1
            self.end()
            exchange.reply(500, _FAILED, self.headers)
        elif fate is Fate.GARBAGE:
            stats.garbage += 1
            stats.by_status[200] += 1
            self.end()
            exchange.reply(200, wording.HTML, self.headers, HTML_TYPE)
        elif fate is Fate.RESET:
            stats.resets += 1
            self.end()
            exchange.reset()
        elif self.provider.model is not None:
            self.provider.ask_model(self)
        elif self.ask.streamed:
            self._stream()
        else:
            self._answer()

    # The answer as a whole.

    def make_texts(self) -> int:
        """Make the answers up; return how many tokens they are."""
        ask = self.ask
        most = ask.longest(self.provider.settings)
        total = 0
        for prompt in ask.texts:
            text = answer_to(prompt, most, ask.stop)
            total += -(-len(text) // 4)
            ended = len(text) < most * 4 or (
                ask.most is None and most == self.provider.settings.answer_tokens
            )
            self.texts.append((text, "stop" if ended else "length"))
        return total

    def _answer(self) -> None:
        ask, created = self.ask, int(time.time())
        if ask.kind == EMBEDDING:
            dimensions = ask.dimensions or self.provider.settings.dimensions
            make = vector_base64 if ask.base64 else vector_of
            self.complete(wording.embeddings_body(ask, [make(t, dimensions) for t in ask.texts]), 0)
            return
        tokens = self.make_texts()
        self.complete(
            wording.answer_body(ask, self.number, created, self.texts, ask.tokens_in, tokens),
            tokens,
        )

    def complete(self, body: bytes, tokens_out: int) -> None:
        """Send an answer that is not streamed, or half of it."""
        stats = self.provider.stats
        stats.by_status[200] += 1
        if self.lot.fate is Fate.HALF:
            stats.half += 1
            body = body[: len(body) // 2]
        else:
            self.count_answer(tokens_out)
        self.end()
        self.exchange.reply(200, body, self.headers)

    def count_answer(self, tokens_out: int) -> None:
        """Count a complete answer."""
        stats = self.provider.stats
        stats.ok += 1
        stats.tokens_out += tokens_out
        stats.bodies.answered(self.digest)

    # The answer as a stream.

    def begin_stream(self) -> wording.Events:
        """Send the head of a stream, and return what makes its events."""
        self.provider.stats.by_status[200] += 1
        self.events = wording.Events(self.ask, self.number, int(time.time()))
        self.exchange.start(self.headers, self.events.begin())
        return self.events

    def _stream(self) -> None:
        self.make_texts()
        for index, (text, _) in enumerate(self.texts):
            self._pieces += [(index, piece) for piece in pieces_of(text)]
        self._stop_at = len(self._pieces)
        if self.lot.fate in (Fate.CUT, Fate.CUT_HARD, Fate.STREAM_ERROR):
            self._stop_at = int(self.lot.where * len(self._pieces))
        events = self.begin_stream()
        if self.lot.fate is Fate.HALF:
            self.end_badly(events.piece(self._pieces[0][1] if self._pieces else "")[:-20])
            return
        self.begun = self.provider.loop.time()
        self.exchange.on_ready = self._tick
        self._tick()

    def _tick(self) -> None:
        """Send what is due by now, and come back when more is."""
        exchange, events, loop = self.exchange, self.events, self.provider.loop
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if exchange.over or events is None or not exchange.ready:
            return  # once the client has caught up, it is called again
        step = self.lot.interval * self.factor
        due = self._stop_at
        if step:
            # By the clock, not by the number of ticks: a loop that is late catches up.
            due = min(due, int((loop.time() - self.begun) / step + 1e-6) + 1)
        upto = min(due, self._sent + _MOST_AT_ONCE)
        ready = self._pieces[self._sent : upto]
        self.provider.stats.tokens_out += len(ready)
        self._sent = upto
        data = b"".join([events.piece(piece, index) for index, piece in ready])
        if self._sent >= self._stop_at:
            self._end_stream(data)
            return
        exchange.send(data)
        if upto < due:
            self._timer = loop.call_soon(self._tick)
        else:
            self._timer = loop.call_at(self.begun + self._sent * step, self._tick)

    def _end_stream(self, data: bytes) -> None:
        if self.lot.fate is not Fate.ANSWERED:
            self.end_badly(data)
            return
        assert self.events is not None
        tail = [self.events.last(reason, index) for index, (_, reason) in enumerate(self.texts)]
        self.finish_stream(data + b"".join(tail), len(self._pieces), counted=True)

    def finish_stream(self, data: bytes, tokens_out: int, *, counted: bool = False) -> None:
        """Send the end of a stream: what is left of it, what it cost, and that it is complete.

        Args:
            data: Events that were not sent yet.
            tokens_out: Tokens of the answer.
            counted: Whether they are in the counters already.
        """
        assert self.events is not None
        if self.ask.with_usage:
            data += self.events.usage(self.ask.tokens_in, tokens_out)
        self.count_answer(0 if counted else tokens_out)
        self.end()
        self.exchange.finish(data + wording.DONE)

    def end_badly(self, data: bytes) -> None:
        """End a stream too early, as was drawn."""
        assert self.events is not None
        stats, fate = self.provider.stats, self.lot.fate
        self.end()
        if fate is Fate.CUT_HARD:
            stats.cut += 1
            self.exchange.send(data)
            self.exchange.cut()
        elif fate is Fate.STREAM_ERROR:
            stats.stream_errors += 1
            self.exchange.finish(data + self.events.failed(_STREAM_FAILED))
        else:
            if fate is Fate.HALF:
                stats.half += 1
            else:
                stats.cut += 1
            self.exchange.finish(data)
