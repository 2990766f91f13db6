"""`Client`: a model behind an OpenAI-compatible HTTP API.

One class, no retries of its own: trying again is the pipeline's (``retry=``), which holds no place while it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from tournant._version import __version__
from tournant.errors import short
from tournant.limits import Adaptive, RateLimit
from tournant.llm.accounts import Account
from tournant.llm.addresses import base_of, join, shown
from tournant.llm.arguments import (
    checked_headers,
    checked_limit,
    concurrency_from,
    conversation,
    key_from,
    no_number,
    options_for,
)
from tournant.llm.errors import InvalidClient, LLMError, RateLimited
from tournant.llm.faults import Faults, secrets_of
from tournant.llm.model import Messages, Reply, Usage
from tournant.llm.packages import URL, aiohttp, msgspec
from tournant.llm.parsing import NoJSON, parsed
from tournant.llm.replies import WrongShape, read_reply, read_usage, read_vectors
from tournant.llm.stream import Stream
from tournant.llm.timeouts import Timeouts
from tournant.llm.transport import (
    Connections,
    fault_of,
    proxy_for,
    read_body,
    send,
    timeout_of,
)

_CHAT, _COMPLETIONS, _EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
_LARGEST_REPLY = 2**28
_MOST_ENDPOINTS = 64
_DEFAULTS = Timeouts()
_encode = msgspec.json.Encoder().encode
T = TypeVar("T")


class Endpoint(NamedTuple):
    """Where a call goes, and how messages name it."""

    url: URL
    call: str


@dataclass(frozen=True, slots=True)
class RawReply:
    """What a provider answered to `Client.post`, parsed but not interpreted.

    Attributes:
        status: The HTTP status, 200 to 299.
        headers: The reply's headers; names are found in upper and lower case.
        body: The body, parsed from JSON.
        data: The body as it came.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: Any = field(repr=False)
    data: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """The body as it came, decoded."""
        return self.data.decode(errors="replace")

    @property
    def usage(self) -> Usage | None:
        """What the call cost, or ``None`` where the provider does not say."""
        return read_usage(self.body)


class Client:
    """A model behind an OpenAI-compatible API: chat, completions and embeddings, whole or streamed.

    ::

        async with tn.llm.Client("https://api.openai.com/v1", "gpt-4o-mini", api_key_env="OPENAI_API_KEY") as client:
            reply = await client.chat("What is a tournant?", max_tokens=100)
            async for chunk in client.stream("And in a brigade of two?"):
                print(chunk.text, end="")

    Its methods are stages: ``.map(client.chat, limit=..., concurrency=..., retry=tn.Retry(on=llm.TRANSIENT))``, and those that stream are
    for ``flat_map``: ``.flat_map(client.stream)`` passes the pieces of each answer on. There the limits
    are the stage's, and the client settles what its calls used. With `limit` or `concurrency` of its own, every call waits for its turn
    in them, wherever it is made.

    A client can be used from any number of event loops, at once or one after the other, and needs no closing: its connections end with
    their loop. It can be pickled: what travels is the name of the key's variable, or, if it was given as `api_key`, the key itself.

    Args:
        base_url: Where the API is: what stands before ``/chat/completions``. A bare host means its ``/v1``; slashes at the end do not
            matter. A proxy is taken from the environment (``HTTPS_PROXY``, ``NO_PROXY``), except for this machine itself.
        model: The model that is asked, unless a call names another.
        api_key: The key, sent as ``Authorization: Bearer``. Default: none is sent; no variable is looked at unasked.
        api_key_env: The environment variable that holds the key; it is read now.
        limit: The provider's rate; share it by its key. Default: no limit of the client's own.
        concurrency: How many calls may be under way at once, a number or an `Adaptive`. Default: as many as are made.
        timeouts: How long to wait for what.
        headers: Further headers for every request. Values of those that look like credentials are never shown.
        connections: How many connections an event loop may open; calls beyond wait. Default: as many as there are calls.

    Attributes:
        name: The model, or the address if none is named.
        limit: As above.
        concurrency: As above, an `Adaptive`.
        timeouts: As above.

    Raises:
        InvalidClient: when an argument can't be, or the key's variable is not set.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        api_key_env: str | None = None,
        limit: RateLimit | None = None,
        concurrency: int | Adaptive | None = None,
        timeouts: Timeouts = _DEFAULTS,
        headers: Mapping[str, str] | None = None,
        connections: int | None = None,
    ) -> None:
        self._base = base_of(base_url)
        if model is not None and (not isinstance(model, str) or not model):
            raise InvalidClient(
                f"Client(model={short(model)}): give the model's name, or leave it out"
            )
        key, key_place = key_from(api_key, api_key_env)
        extra = checked_headers(headers, key is not None)
        if not isinstance(timeouts, Timeouts):
            raise InvalidClient(
                f"Client(timeouts={short(timeouts)}): give tn.llm.Timeouts(first_token=..., total=...)"
            )
        if connections is not None and (
            not isinstance(connections, int) or isinstance(connections, bool) or connections < 1
        ):
            raise InvalidClient(
                f"Client(connections={short(connections)}): give a whole number >= 1, or leave it out"
            )
        self.model = model
        self.limit = checked_limit(limit)
        self.concurrency = concurrency_from(concurrency)
        self.timeouts = timeouts
        self.name = model or shown(self._base)
        self.faults = Faults(secrets_of(key, extra), key_place)
        self._api_key_env = api_key_env
        self._arguments = (
            base_url, model, api_key, api_key_env, limit, concurrency, timeouts, headers, connections,
        )  # fmt: skip
        sent = {
            "User-Agent": f"tournant/{__version__}",
            **extra,
            "Content-Type": "application/json",
        }
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        self.connections = Connections(
            sent, connections, timeouts.connect, proxy_for(URL(self._base))
        )
        self._endpoints: dict[str, Endpoint] = {}

    # Whole answers

    async def chat(self, messages: Messages, **options: Any) -> Reply:
        """Answer a conversation.

        Args:
            messages: A text, which is one message of the user, or a list of messages.
            **options: Further fields of the body: ``max_tokens``, ``temperature``, ``seed``, ``stop``, ``model``, ... One that is
                ``None`` is left out.

        Returns:
            The first answer; `Reply.raw` has everything.

        Raises:
            LLMError: one of its kinds, see `tournant.llm.errors`.
        """
        body = options_for(self.model, options, stream=False)
        body["messages"] = conversation(messages)
        return _raised(self._reply(_CHAT, await self.post(_CHAT, body), chat=True))

    async def complete(self, prompt: str, **options: Any) -> Reply:
        """Continue a text; as `chat` otherwise."""
        body = options_for(self.model, options, stream=False)
        body["prompt"] = _text(prompt, "complete")
        reply = self._reply(_COMPLETIONS, await self.post(_COMPLETIONS, body), chat=False)
        return _raised(reply)

    async def embed(self, texts: Sequence[str], **options: Any) -> list[list[float]]:
        """Return one vector for each text, in their order; no text, no call.

        Args:
            texts: The texts. How many one call may have is the provider's to say.
            **options: Further fields of the body, such as ``dimensions`` or ``encoding_format="base64"``.

        Raises:
            LLMError: one of its kinds; `BadReply` when there is not one vector for each text.
        """
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
            raise InvalidClient(
                f"embed({short(texts)}): give a list of texts, also for a single one: embed([text])"
            )
        body = options_for(self.model, options, stream=False)
        for text in texts:
            _text(text, "embed")
        if not texts:
            return []
        body["input"] = list(texts)
        return _raised(self._vectors(_EMBEDDINGS, await self.post(_EMBEDDINGS, body), len(texts)))

    async def post(self, path: str, body: Mapping[str, Any] | bytes) -> RawReply:
        """Send one request and return the provider's answer as it is: for endpoints and fields that the other methods don't know.

        It goes through the client's limits, and settles those of the stage it is called in, as every call does.

        Args:
            path: The endpoint as OpenAI spells it: ``"/v1/chat/completions"``.
            body: The body, or its JSON. Nothing is added, not even the model.

        Raises:
            LLMError: one of its kinds: for every status but 2xx, for a body that is no JSON, and for an error in a body with 200.
        """
        endpoint = self.endpoint(path)
        data = body if isinstance(body, bytes) else self.encode(body)
        known = {} if isinstance(body, bytes) else body
        account = Account(self.limit, self.concurrency, known)
        if not account.waits:
            return _raised(await self._exchange(endpoint, data, account))
        async with account:
            return _raised(await self._exchange(endpoint, data, account))

    # Streamed answers

    def stream(self, messages: Messages, **options: Any) -> Stream:
        """Answer a conversation piece by piece.

        The call begins when the first piece is asked for. Under a rate limit ``stream_options={"include_usage": True}`` is sent, so that the
        limit can be settled (give ``stream_options`` yourself where a provider does not take that); otherwise only if you give it.

        Args:
            messages: As for `chat`.
            **options: As for `chat`; ``n`` must be 1.
        """
        body = options_for(self.model, options, stream=True)
        body["messages"] = conversation(messages)
        return Stream(self, self.endpoint(_CHAT), body, chat=True)

    def stream_completion(self, prompt: str, **options: Any) -> Stream:
        """Continue a text piece by piece; as `stream` otherwise."""
        body = options_for(self.model, options, stream=True)
        body["prompt"] = _text(prompt, "stream_completion")
        return Stream(self, self.endpoint(_COMPLETIONS), body, chat=False)

    # Life

    async def aclose(self) -> None:
        """Close all connections; calls under way on them fail. The client can be used again, with new ones."""
        await self.connections.aclose()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        named = f", {self.model!r}" if self.model else ""
        key = f", api_key_env={self._api_key_env!r}" if self._api_key_env else ""
        return f"Client({shown(self._base)!r}{named}{key})"

    def __reduce__(self) -> tuple[Callable[..., Client], tuple[Any, ...]]:
        return _restored, self._arguments

    # Inside, shared with Stream

    def endpoint(self, path: str) -> Endpoint:
        """Return the endpoint at `path`; addresses are parsed once."""
        found = self._endpoints.get(path) if isinstance(path, str) else None
        if found is None:
            url = join(self._base, path)
            found = Endpoint(URL(url), f"POST {shown(url)}")
            if len(self._endpoints) < _MOST_ENDPOINTS:
                self._endpoints[path] = found
        return found

    def encode(self, body: Mapping[str, Any]) -> bytes:
        """Return a body as JSON."""
        try:
            data = _encode(body)
            # It writes what is no number as null.
            place = no_number(body) if b"null" in data else None
            if place is None:
                return data
            what = f"{place} is nan or infinite, which JSON can't say"
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            what = self.faults.clean(str(error))
        raise InvalidClient(f"the request can't be written as JSON ({what}); give plain values")

    async def _exchange(
        self, endpoint: Endpoint, data: bytes, account: Account
    ) -> RawReply | LLMError:
        """Send one request. An error is returned and raised by the caller.

        So neither the exceptions of aiohttp, which hold the request's headers, nor the frames of this method, in which a provider
        may echo them, become a part of the error.
        """
        seconds = self.timeouts.total
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(seconds):
                session = self.connections.session() or await self.connections.open()
                response = await send(session, endpoint.url, data)
                text = await read_body(response, _LARGEST_REPLY)
        except (aiohttp.ClientError, OSError) as error:
            failure: LLMError
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
                failure = timeout_of(endpoint.call, "total", seconds or 0.0)
            else:
                failure = fault_of(error, endpoint.call, self.faults, self.timeouts.connect)
            account.failed(failure)
            return failure
        finally:
            if response is not None:
                response.close()  # does nothing after a reply that was read to its end
        return self._read(endpoint, response, text, account)

    def _read(
        self,
        endpoint: Endpoint,
        response: aiohttp.ClientResponse,
        text: bytes | None,
        account: Account,
    ) -> RawReply | LLMError:
        status, headers, call = response.status, response.headers, endpoint.call
        if text is None:
            return self.faults.no_answer(call, status, f"more than {_LARGEST_REPLY:,} bytes")
        try:
            body = parsed(text)
        except NoJSON:
            body = None
        failure: LLMError
        if not 200 <= status < 300 or (isinstance(body, dict) and body.get("error")):
            failure = self.faults.refused(call, status, headers, body, text)
            account.failed(failure, headers)
            return failure
        if body is None:
            kind = response.content_type
            what = "an empty body" if not text else f"{kind} that is no whole JSON"
            failure = self.faults.no_answer(call, status, what, text)
            account.failed(failure, headers)
            return failure
        if account.counted:
            if account.answered(headers, body):
                return RateLimited(
                    f"{call} answered {status}, and is_throttle of the limit says that means too many requests; try again later",
                    status=status,
                )
            account.used(read_usage(body))
        return RawReply(status, headers, body, text)

    def _reply(self, path: str, raw: RawReply, *, chat: bool) -> Reply | LLMError:
        try:
            return read_reply(raw.body, chat)
        except WrongShape as error:
            return self._no_answer(path, raw, str(error))

    def _vectors(self, path: str, raw: RawReply, texts: int) -> list[list[float]] | LLMError:
        try:
            return read_vectors(raw.body, texts)
        except WrongShape as error:
            return self._no_answer(path, raw, str(error))

    def _no_answer(self, path: str, raw: RawReply, what: str) -> LLMError:
        return self.faults.no_answer(self.endpoint(path).call, raw.status, what, raw.data)


def _raised(outcome: T | LLMError) -> T:
    if isinstance(outcome, LLMError):
        raise outcome
    return outcome


def _text(value: Any, method: str) -> str:
    if not isinstance(value, str):
        raise InvalidClient(f"{method}({short(value)}): give a text, not {type(value).__name__}")
    return value


def _restored(
    base_url: str,
    model: str | None,
    api_key: str | None,
    api_key_env: str | None,
    limit: RateLimit | None,
    concurrency: int | Adaptive | None,
    timeouts: Timeouts,
    headers: Mapping[str, str] | None,
    connections: int | None,
) -> Client:
    return Client(
        base_url,
        model,
        api_key=api_key,
        api_key_env=api_key_env,
        limit=limit,
        concurrency=concurrency,
        timeouts=timeouts,
        headers=headers,
        connections=connections,
    )
