"""``POST /v1/embeddings``: texts of many clients embedded together.

A text whose vector is known is answered at once. The others are tokenized on a thread, join the queue of `batcher`, and are
embedded by the processes of `workers`; nothing of it runs on the loop. The same text asked for by several clients at once is
embedded once.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from tournant.cache import MISSING, Cache, keyed_by
from tournant.errors import WorkerDied
from tournant.ingest.embedders import embedder as make_embedder
from tournant.ingest.errors import EmbedderUnavailable, IngestError
from tournant.pool.slots import cores
from tournant.serve.batcher import Batcher, BatchPolicy
from tournant.serve.bodies import (
    TOKENS,
    Receive,
    Scope,
    Send,
    an_object,
    field,
    off_the_loop,
    one_of,
    read_json,
    whole,
)
from tournant.serve.errors import HTTPError, bad_request, busy
from tournant.serve.indexes import embedder_of
from tournant.serve.measuring import Measure
from tournant.serve.presence import Presence
from tournant.serve.respond import respond
from tournant.serve.settings import ServeSettings
from tournant.serve.workers import Workers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger("tournant.serve")
_CACHE = 64 * 2**20
_ON_THE_LOOP = (
    32 * 1024
)  # characters to hash, or numbers to write, that may be dealt with on the loop
# Static vectors have no padding and cost microseconds: many in a call, whatever their length.
_STATIC = BatchPolicy(tokens=20_000, texts=256, padding=20_000)
# Their model was trained so that the first numbers of a vector are a vector as well.
_STATIC_SIZES = (64, 128, 256)


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingResult:
    """What embedding gave.

    Attributes:
        vectors: float32, shape ``(texts, dimensions)``, rows of length 1.
        tokens: The tokens of all texts, as far as the model reads them.
    """

    vectors: NDArray[np.float32]
    tokens: int


@dataclass(frozen=True, slots=True)
class _Text:
    """A text that is not known yet."""

    key: bytes
    text: str
    tokens: int


class Embeddings:
    """The embedder of a server, and its route. For one event loop; start it before use.

    Args:
        settings: The server's settings; see `tournant.serve.indexes.embedder_of` for which embedder it is.
        workers: Processes that embed. Default: as many as there are cores.

    Attributes:
        model: The name that clients know it by: ``static``, or the name of the ONNX folder.
        name: The identity of its vectors, as an index keeps it.
        dimensions: The length of a vector.
        sizes: The lengths that may be asked for.
    """

    def __init__(self, settings: ServeSettings, *, workers: int | None = None) -> None:
        self._settings = settings
        self._count = workers or cores()
        self.model = self.name = ""
        self.dimensions = 0
        self.sizes: tuple[int, ...] = ()
        self._workers: Workers | None = None
        self._measure: Measure | None = None
        self._batcher: Batcher | None = None
        self._key = keyed_by()
        self._cache: Cache[_Text, tuple[Any, int]] = Cache(
            self._compute, key=attrgetter("key"), batch=True, memory=_CACHE
        )
        self._hits = 0

    async def start(self) -> None:
        """Start the workers and load the model in each.

        Raises:
            IngestError: there is no such embedder, its files are missing or damaged, or a package is not installed.
            WorkerDied: a worker can't be started.
        """
        spec = await asyncio.to_thread(embedder_of, self._settings)
        self.model, self.name, measure = await asyncio.to_thread(_open, spec)
        self._key = keyed_by(self.name)
        workers = Workers(spec, self._count)
        try:
            self.dimensions = await workers.start()
        except BaseException:
            measure.close()
            raise
        static = spec == "static"
        self.sizes = tuple(n for n in _STATIC_SIZES if n <= self.dimensions) if static else ()
        self._workers, self._measure = workers, measure
        self._batcher = Batcher(workers, _STATIC if static else None)

    async def aclose(self) -> None:
        """End the workers; who still waits is told 503."""
        batcher, workers, measure = self._batcher, self._workers, self._measure
        self._batcher = self._workers = self._measure = None
        if batcher is not None:
            batcher.close(HTTPError(503, "the server is stopping; send the request again later"))
        if measure is not None:
            measure.close()
        if workers is not None:
            await workers.aclose()

    async def embed(
        self, texts: Sequence[str], *, gone: asyncio.Event | None = None
    ) -> EmbeddingResult:
        """Embed texts. Cancelling the caller, or setting `gone`, drops those of them that no worker has begun with.

        Args:
            texts: The texts; what is beyond the model's window is cut off.
            gone: Set when nobody waits for the result any more.

        Raises:
            HTTPError: 503 when there is no room in the queue or the embedder can't be used, 500 when it fails on a text.
            asyncio.CancelledError: `gone` was set.
        """
        if gone is None:
            return await self._embed(texts)
        task = asyncio.ensure_future(self._embed(texts))
        leaving = asyncio.ensure_future(gone.wait())
        try:
            await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
            return await task
        finally:
            task.cancel()
            leaving.cancel()

    def depth(self) -> dict[str, float]:
        """Return the figures of the queue: what waits, what the workers do, and what has been done so far."""
        batcher, workers = self._batcher, self._workers
        if batcher is None or workers is None:
            return {}
        stats = self._cache.stats()
        return {
            "texts": batcher.texts,
            "tokens": batcher.tokens,
            "oldest_seconds": batcher.oldest(),
            "workers": workers.count,
            "workers_free": workers.free,
            "workers_died": workers.died,
            "batches": batcher.batches,
            "padded_tokens": batcher.padded,
            "embedded_texts": batcher.embedded,
            "dropped_texts": batcher.dropped,
            "cache_hits": self._hits,
            "cache_bytes": stats.bytes,
        }

    def processes(self) -> list[int]:
        """Return the process ids of the workers that live."""
        return [] if self._workers is None else self._workers.processes()

    # The route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``POST /v1/embeddings``.

        Raises:
            HTTPError: the request is refused.
            ClientLeft: the client left; what it had in the queue is gone.
        """
        body = an_object(await read_json(scope, receive, self._settings))
        texts = self.inputs(body)
        format_ = one_of(body, "encoding_format", ("float", "base64"), "float")
        size = self._size(body)
        async with Presence(receive):
            result = await self.embed(texts)
            scope[TOKENS] = result.tokens
            arguments = (result, self.model, format_, size)
            if result.vectors.size <= _ON_THE_LOOP:
                data = _response(*arguments)
            else:
                data = await off_the_loop(_response, *arguments)
        await respond(send, 200, data)

    def inputs(self, body: dict[str, Any]) -> list[str]:
        """Return the texts of a request's body.

        Raises:
            HTTPError: 400 for anything but texts, 404 for another model than ours.
        """
        model = field(body, "model", str)
        if model is not None and model != self.model:
            raise HTTPError(
                404,
                f"there is no embedding model {model[:100]!r} here; use {self.model!r}",
                "model_not_found",
                param="model",
            )
        given = body.get("input")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts:
            raise bad_request("input must be a string or a list of strings, at least one", "input")
        if len(texts) > self._settings.max_texts:
            raise bad_request(
                f"input has {len(texts):,} texts; at most {self._settings.max_texts:,} are taken: send several requests",
                "input",
            )
        for number, text in enumerate(texts):
            if isinstance(text, (int, list)) and not isinstance(text, bool):
                raise bad_request(
                    "input must be strings: token ids mean something to one tokenizer only, and this model has its own "
                    "(in LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
                    "input",
                )
            if not isinstance(text, str) or not text:
                what = "is empty" if text == "" else "is no string"
                raise bad_request(
                    f"input[{number}] {what}; every text needs a character or more", "input"
                )
        return texts

    def _size(self, body: dict[str, Any]) -> int | None:
        size = whole(body, "dimensions", None, 1, 65_536)
        if size is None or size == self.dimensions:
            return None
        if size not in self.sizes:
            sizes = ", ".join(map(str, self.sizes or (self.dimensions,)))
            raise bad_request(
                f"dimensions={size} is none that {self.model!r} has; it has {sizes}", "dimensions"
            )
        return size

    # Embedding

    async def _embed(self, texts: Sequence[str]) -> EmbeddingResult:
        if self._batcher is None or self._measure is None:
            raise HTTPError(503, "the embedder is not running; send the request again later")
        if sum(map(len, texts)) <= _ON_THE_LOOP:
            keys = [self._key(text) for text in texts]
        else:
            keys = await off_the_loop(_keys, self._key, texts)
        peek = self._cache.peek
        values: list[Any] = [peek(key) for key in keys]
        missing = [number for number, value in enumerate(values) if value is MISSING]
        self._hits += len(texts) - len(missing)
        if missing:
            measured = await self._measure.measure([texts[number] for number in missing])
            self._refuse_beyond_room(sum(tokens for _, tokens in measured))
            wanted = [_Text(keys[n], *one) for n, one in zip(missing, measured, strict=True)]
            try:
                found = await self._cache.get_many(wanted)
            except HTTPError:
                raise
            except Exception as error:
                raise _refusal(error) from error
            for number, value in zip(missing, found, strict=True):
                values[number] = value
        import numpy as np

        result = np.empty((len(texts), self.dimensions), np.float32)
        for row, (vector, _) in zip(result, values, strict=True):
            row[:] = vector
        return EmbeddingResult(result, sum(tokens for _, tokens in values))

    async def _compute(self, texts: list[_Text]) -> list[tuple[NDArray[np.float32], int]]:
        """Embed what the cache does not know; cancelled when nobody waits for any of it."""
        if self._batcher is None:
            raise HTTPError(503, "the server is stopping; send the request again later")
        lengths = [text.tokens for text in texts]
        vectors = await self._batcher.submit([text.text for text in texts], lengths)
        return list(zip(vectors, lengths, strict=True))

    def _refuse_beyond_room(self, tokens: int) -> None:
        batcher = self._batcher
        if batcher is None or not batcher.tokens:
            return  # a request larger than the queue passes alone
        if batcher.tokens + tokens > self._settings.max_queued_tokens:
            raise busy(
                503,
                f"{batcher.tokens:,} tokens wait to be embedded, and there is no room for {tokens:,} more: try again later",
                batcher.expected_wait(),
            )


def _open(spec: str) -> tuple[str, str, Measure]:
    """Return an embedder's name for clients, its identity, and its tokenizer. Reads files."""
    embedder = make_embedder(spec)
    name = embedder.name
    try:
        if spec == "static":
            measure = Measure(embedder.tokenizer_file, None, special_tokens=False)  # type: ignore[attr-defined]
            return "static", name, measure
        # The name of the embedder tells folder, digest and window.
        title, window = name.split(":")[1], int(name.rpartition(":")[2])
        measure = Measure(embedder.tokenizer_file, window, special_tokens=True)  # type: ignore[attr-defined]
    except IngestError:
        raise
    except Exception as error:
        raise EmbedderUnavailable(spec, f"its tokenizer can't be used: {error}") from error
    return title, name, measure


def _keys(key: Any, texts: Sequence[str]) -> list[bytes]:
    return [key(text) for text in texts]


def _refusal(error: Exception) -> HTTPError:
    """Say what went wrong with an embedding to the client."""
    if isinstance(error, IngestError):
        return HTTPError(503, f"the embedder can't be used now: {error}", "embedder_unavailable")
    if isinstance(error, WorkerDied):
        return HTTPError(500, str(error), "embedding_failed")
    _log.error("the embedder failed on a text by itself", exc_info=error)
    return HTTPError(
        500,
        f"the embedder failed on a text ({type(error).__name__}); the server's log says more",
        "embedding_failed",
    )


def _response(result: EmbeddingResult, model: str, format_: str, size: int | None) -> bytes:
    """Return the body of the answer."""
    import msgspec
    import numpy as np

    vectors = result.vectors
    if size is not None:
        vectors = np.ascontiguousarray(vectors[:, :size])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = np.divide(vectors, lengths, out=vectors, where=lengths > 0)
    rows: list[Any]
    if format_ == "base64":
        little = vectors.astype("<f4", copy=False)
        rows = [base64.b64encode(row.tobytes()).decode() for row in little]
    else:
        rows = vectors.tolist()
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": row}
                for index, row in enumerate(rows)
            ],
            "model": model,
            "usage": {"prompt_tokens": result.tokens, "total_tokens": result.tokens},
        }
    )
