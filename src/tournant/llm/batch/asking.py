"""The stage of a batch that asks: one attempt at one request, and what its failure means for the request and for the batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any, Generic, TypeVar

import msgspec

from tournant.limits import current
from tournant.llm.batch.health import Health
from tournant.llm.batch.lines import answer_line, failure_line
from tournant.llm.batch.outcome import Tally
from tournant.llm.batch.requests import EMBEDDINGS, Request
from tournant.llm.client import Client, RawReply
from tournant.llm.errors import (
    AuthenticationFailed,
    BadReply,
    LLMError,
    NotFound,
    QuotaExhausted,
    RateLimited,
)

#: How often one request may be refused for coming too often: some are too large for any minute.
_MOST_REFUSALS = 20
#: So many requests whose model or address is unknown, before any answer: none will have one.
_MOST_UNKNOWN = 10
#: Without any of these a text is spelled as it is.
_SPELLING = (b"\\", b"&", b"%")
_encode = msgspec.json.Encoder().encode
_skip = msgspec.json.Decoder(msgspec.Raw).decode


T = TypeVar("T")


class Asker(Generic[T]):
    """Asks, and tells answers and failures from what has to be tried again.

    A failure for good is a result like an answer: it has its line. What is raised is tried again by the pipeline.

    Args:
        client: Sends the requests.
        retries: How often a request is sent again after a failure that may pass.
        health: What is known of the provider.
        tally: Counts.
        put: Takes a line for the results; no answer is lost from then on. What it returns is what `ask` does.
        give_up: Called with a failure for which the batch is to be given up.
        idle: Called when nothing more is to be sent and the last call has ended.
    """

    def __init__(
        self,
        client: Client,
        retries: int,
        health: Health,
        tally: Tally,
        put: Callable[[bytes], T],
        give_up: Callable[[LLMError], None],
        idle: Callable[[], None],
    ) -> None:
        self._client = client
        self._retries = retries
        self._health = health
        self._tally = tally
        self._put = put
        self._give_up = give_up
        self._idle = idle
        self._unknown = 0
        self._secrets = [secret.encode() for secret in client.faults.secrets]

    async def ask(self, request: Request) -> T | None:
        """Send a request, and return what `put` made of its line; ``None`` when it was not sent, because the batch is given up.

        Raises:
            LLMError: it is to be tried again.
        """
        health, tally = self._health, self._tally
        probe = False
        if health.down:
            probe = await self._wait()
        if health.stopped:
            return None
        tally.in_flight += 1
        tally.attempts += 1
        failure: LLMError
        health.sent()
        heard = False
        try:
            raw = await self._client.post(request.url, request.body)
        except LLMError as error:
            failure = error
            heard = error.status is not None
        except asyncio.CancelledError:
            health.left(probe)
            raise
        else:
            heard = True
            if _is_answer(request.url, raw.body):
                health.answered = True
                health.alive()
                tally.answer(raw.usage)
                return self._put(self._answer(request, raw))
            failure = BadReply(
                f"POST {request.url} answered {raw.status} with JSON that is no answer; check that base_url is the API's address",
                status=raw.status,
            )
        finally:
            tally.in_flight -= 1
            health.ended(heard)
            if health.stopped and not tally.in_flight:
                self._idle()
        return self._failed(request, failure, probe)

    async def _wait(self) -> bool:
        began = monotonic()
        probe = await self._health.turn()
        call = current()
        if call is not None:
            call.excuse(monotonic() - began)
        return probe

    def _answer(self, request: Request, raw: RawReply) -> bytes:
        faults = self._client.faults
        data, body = raw.data.strip(), raw.body
        again = b"\n" in data or b"\r" in data or not _is_strict(data)
        plain = any(secret in data for secret in self._secrets)
        if plain or (self._secrets and any(mark in data for mark in _SPELLING)):
            # A text can be spelled in many ways ("\\/", "\\u006b", "%6b"), so what it means is looked at.
            scrubbed = faults.scrubbed(body)
            again = again or plain or scrubbed != body
            body = scrubbed
        if again:
            data = _encode(body)
        name = raw.headers.get("x-request-id") or raw.headers.get("request-id")
        return answer_line(request, raw.status, faults.clean(name) if name else "", data)

    def _failed(self, request: Request, error: LLMError, probe: bool) -> T | None:
        """Put down a failure for good, or raise to have another attempt."""
        health = self._health
        again = False
        if not error.transient or isinstance(error, RateLimited):
            health.alive()
        if isinstance(error, RateLimited):
            request.refusals += 1
            again = request.refusals < _MOST_REFUSALS
        elif error.transient:
            if health.failed(error, probe):
                request.attempts += 1
            again = request.attempts <= self._retries
            if health.exhausted():
                self._give_up(error)
        elif self._hopeless(error):
            self._give_up(error)
        if health.stopped:
            # Whatever this one's fault is, it is asked again next time.
            return None
        if again:
            raise error
        call = current()
        if call is not None:
            call.close(error)  # the stage will see a result, and the limits are to see a failure
        if error.request_id:
            error.request_id = self._client.faults.clean(error.request_id)
        self._tally.failure(error.kind, request.custom_id, str(error))
        return self._put(failure_line(request, error))

    def _hopeless(self, error: LLMError) -> bool:
        """Tell whether every other request would fail in the same way."""
        if isinstance(error, QuotaExhausted):
            return True
        if isinstance(error, AuthenticationFailed):
            # 403 is also what some answer to one prompt that they don't like.
            return error.status == 401 or not self._health.answered
        if isinstance(error, NotFound) and not self._health.answered:
            self._unknown += 1
            return self._unknown >= _MOST_UNKNOWN
        return False


def _is_strict(data: bytes) -> bool:
    """Tell whether bytes are JSON for every parser, and so may stand in the results; a client takes more than that."""
    try:
        _skip(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _is_answer(url: str, body: Any) -> bool:
    if not isinstance(body, dict):
        return False
    return isinstance(body.get("data" if url == EMBEDDINGS else "choices"), list)
