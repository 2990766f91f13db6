"""The provider itself: which call is refused, which is admitted, and what everybody may ask it about.

A call passes, in this order: the key (401), the body (400), the model's name (404), the context (400), the quota and
the limits (429); then it is admitted, and its fate is drawn (`fate`, `calls`). What is refused here costs nothing.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tournant.llm.mock import wording
from tournant.llm.mock.asks import CHAT, COMPLETION, EMBEDDING, Ask, BadBody, read_ask
from tournant.llm.mock.calls import Call
from tournant.llm.mock.control import Control
from tournant.llm.mock.fate import Lottery, digest_of
from tournant.llm.mock.http import Exchange
from tournant.llm.mock.limits import Limits, Refusal
from tournant.llm.mock.settings import MockSettings
from tournant.llm.mock.stats import Stats

if TYPE_CHECKING:
    from tournant.llm.model import Model

_KINDS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/embeddings": EMBEDDING,
}


class Provider:
    """Answers requests; knows nothing of sockets.

    Args:
        settings: What it does, until it is told otherwise.
        model: Answers in the place of the made-up ones; stays open when the provider ends.
        loop: The event loop it runs in.
        cut_all: Called to reset all connections but one.
        go_down: Called to refuse connections for some seconds.

    Attributes:
        settings: The settings in force.
        limits: What is left of the limits.
        stats: What it has seen.
        working: How many calls are being worked on, without those that hang.
    """

    def __init__(
        self,
        settings: MockSettings,
        model: Model | None,
        loop: asyncio.AbstractEventLoop,
        cut_all: Callable[[], None],
        go_down: Callable[[float], None],
    ) -> None:
        self.first = self.settings = settings
        self.model, self.loop = model, loop
        self.limits = Limits(settings, loop.time())
        self.stats = Stats(loop.time())
        self.working = 0
        self.cut_all, self.go_down = cut_all, go_down
        self._lottery = Lottery(settings)
        self._key = None if settings.api_key is None else f"Bearer {settings.api_key}".encode()
        self._calls: set[Call] = set()
        self._number = 0
        self._spent = 0
        self._control = Control(self)
        self._routes: dict[str, dict[str, Callable[[Exchange], None]]] = {
            **{path: {"POST": self._generate} for path in _KINDS},
            "/v1/models": {"GET": self._list_models},
            "/healthz": {"GET": self._health},
            "/stats": {"GET": self._control.get_stats, "DELETE": self._control.reset_stats},
            "/control": {"GET": self._control.get, "POST": self._control.post},
        }

    def handle(self, exchange: Exchange) -> None:
        """Answer a request, now or later."""
        ways = self._routes.get(exchange.path)
        if ways is None:
            if exchange.path.startswith("/v1/models/"):
                ways = {"GET": self._one_model}
            else:
                self._unknown(exchange)
                return
        way = ways.get(exchange.method)
        if way is None and exchange.method == "HEAD":
            way = ways.get("GET")
        if way is None:
            allowed = ", ".join(ways)
            message = f"{exchange.method} is not allowed at {exchange.path}: use {allowed}."
            exchange.reply(
                405,
                wording.error_body(message, "invalid_request_error"),
                f"allow: {allowed}\r\n".encode(),
            )
            return
        way(exchange)

    def change(self, settings: MockSettings) -> None:
        """Follow other settings from now on. Calls that were admitted keep what was drawn for them."""
        self.settings = settings
        self.limits.change(settings, self.loop.time())
        self._lottery = Lottery(settings)

    def close(self) -> None:
        """Give up on every call that is open."""
        for call in list(self._calls):
            call.close()

    async def aclose(self) -> None:
        """Give up on every call that is open, and wait until a model behind it has stopped."""
        tasks = [call.task for call in self._calls if call.task is not None]
        self.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def models(self) -> tuple[str, ...]:
        """The models it lists."""
        if self.settings.models:
            return self.settings.models
        return ("mock" if self.model is None else self.model.name,)

    def stats_now(self) -> dict[str, Any]:
        """Return what it has counted, and how large its bursts are."""
        now = self.stats.as_dict(self.loop.time())
        return {**now, "working": self.working, "burst": self.limits.burst}

    # What calls tell it.

    def opened(self, call: Call) -> None:
        """A call waits for its answer."""
        self._calls.add(call)
        stats = self.stats
        stats.open += 1
        stats.peak = max(stats.peak, stats.open)

    def begin_work(self, call: Call) -> float:
        """Count a call as being worked on; return how many times longer than drawn everything takes for it."""
        self.working += 1
        call.counted = True
        knee = self.settings.knee
        return 1.0 if knee is None else max(1.0, self.working / knee)

    def closed(self, call: Call) -> None:
        """A call has ended, in whatever way."""
        if call in self._calls:
            self._calls.discard(call)
            self.stats.open -= 1
            if call.counted:
                self.working -= 1

    def ask_model(self, call: Call) -> None:
        """Let the model answer a call."""
        from tournant.llm.mock.backed import answer

        assert self.model is not None
        call.task = self.loop.create_task(answer(self.model, call))

    def settle(self, estimate: int, used: int) -> None:
        """Put right what a call took from the limits, when its true length is known."""
        self.limits.settle(estimate, used, self.loop.time())
        self._spent += used - estimate

    def forget_usage(self) -> None:
        """Fill the limits and the quota again."""
        self.limits.refill()
        self._spent = 0

    # Calls.

    def _authorized(self, exchange: Exchange) -> bool:
        if self._key is None or hmac.compare_digest(exchange.authorization, self._key):
            return True
        # What came is never repeated: a key of somebody else's would end up in logs.
        said = (
            "Incorrect API key provided"
            if exchange.authorization
            else "You didn't provide an API key"
        )
        message = f"{said}. Send the key that this provider was started with as 'Authorization: Bearer KEY'."
        self.refuse(exchange, 401, message, "invalid_request_error", "invalid_api_key")
        return False

    def _generate(self, exchange: Exchange) -> None:
        self.stats.requests += 1
        if not self._authorized(exchange):
            return
        try:
            ask = read_ask(_KINDS[exchange.path], exchange.body)
        except BadBody as error:
            self.refuse(
                exchange, 400, error.message, "invalid_request_error", error.code, error.param
            )
            return
        if self.settings.models and ask.model not in self.settings.models:
            self._no_model(exchange, ask.model)
            return
        if self._too_long(exchange, ask):
            return
        estimate = ask.tokens_in + ask.longest(self.settings) * len(ask.texts)
        quota = self.settings.quota
        if quota is not None and self._spent + estimate > quota:
            message = "You exceeded your current quota, please check your plan and billing details."
            self.refuse(exchange, 429, message, "insufficient_quota", "insufficient_quota")
            return
        refusal = self.limits.admit(estimate, self.loop.time())
        headers = self.limits.headers(refusal)
        if refusal is not None:
            self._limited(exchange, ask, refusal, headers)
            return
        self._admit(exchange, ask, estimate, headers)

    def _admit(self, exchange: Exchange, ask: Ask, estimate: int, headers: bytes) -> None:
        stats = self.stats
        stats.admitted += 1
        stats.tokens_in += ask.tokens_in
        self._spent += estimate
        digest = digest_of(exchange.body)
        lot = self._lottery.draw(digest, stats.bodies.admitted(digest), streamed=ask.streamed)
        self._number += 1
        headers += b"x-request-id: req-%d\r\n" % self._number
        Call(self, exchange, ask, digest, lot, estimate, headers, self._number).start()

    def _too_long(self, exchange: Exchange, ask: Ask) -> bool:
        context = self.settings.context
        if context is None:
            return False
        wanted = 0 if ask.kind == EMBEDDING else ask.most or 1
        # Several prompts have a context each; the longest decides.
        asked = ask.longest_in + wanted
        if asked <= context:
            return False
        message = (
            f"This model's maximum context length is {context} tokens. However, you requested {asked} tokens "
            f"({ask.longest_in} in the messages, {wanted} in the completion). Please reduce the length of either one."
        )
        param = "messages" if ask.kind == CHAT else None
        self.refuse(
            exchange, 400, message, "invalid_request_error", "context_length_exceeded", param
        )
        return True

    def _limited(self, exchange: Exchange, ask: Ask, refusal: Refusal, headers: bytes) -> None:
        short = "RPM" if refusal.kind == "requests" else "TPM"
        which = f"{ask.model} on {refusal.kind} per min ({short}): Limit {refusal.limit:.0f}"
        if refusal.wait == float("inf"):
            message = f"Request too large for {which}, Requested {refusal.asked:.0f}. The input or output tokens must be reduced."
        else:
            message = (
                f"Rate limit reached for {which}, Used {refusal.used:.0f}, Requested {refusal.asked:.0f}. "
                f"Please try again in {refusal.wait:.3f}s."
            )
        self.refuse(exchange, 429, message, refusal.kind, "rate_limit_exceeded", headers=headers)

    def refuse(
        self,
        exchange: Exchange,
        status: int,
        message: str,
        kind: str,
        code: str | None = None,
        param: str | None = None,
        headers: bytes = b"",
    ) -> None:
        """Answer with an error, and count it."""
        self.stats.by_status[status] += 1
        exchange.reply(status, wording.error_body(message, kind, code, param), headers)

    # The rest of the surface.

    def _no_model(self, exchange: Exchange, name: str) -> None:
        message = f"The model {name!r} does not exist. There is: {', '.join(self.models)}."
        self.refuse(exchange, 404, message, "invalid_request_error", "model_not_found", "model")

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": int(time.time()), "owned_by": "tournant"}

    def _list_models(self, exchange: Exchange) -> None:
        self.stats.requests += 1
        if self._authorized(exchange):
            self.stats.by_status[200] += 1
            data = [self._described(name) for name in self.models]
            exchange.reply(200, wording.encode({"object": "list", "data": data}))

    def _one_model(self, exchange: Exchange) -> None:
        from urllib.parse import unquote

        self.stats.requests += 1
        if self._authorized(exchange):
            name = unquote(exchange.path.removeprefix("/v1/models/"))
            if name in self.models:
                self.stats.by_status[200] += 1
                exchange.reply(200, wording.encode(self._described(name)))
            else:
                self._no_model(exchange, name)

    def _health(self, exchange: Exchange) -> None:
        exchange.reply(200, b'{"status":"ok"}')

    def _unknown(self, exchange: Exchange) -> None:
        hint = ""
        if "/v1" + exchange.path in self._routes:
            hint = f" Did you mean /v1{exchange.path}? The base URL ends in /v1."
        elif exchange.path.startswith("/v1/v1/"):
            hint = " The path has /v1 twice: the base URL ends in /v1, and what follows must not begin with it."
        message = f"Invalid URL ({exchange.method} {exchange.path}).{hint} There is: {', '.join(self._routes)}."
        exchange.reply(404, wording.error_body(message, "invalid_request_error", "unknown_url"))
