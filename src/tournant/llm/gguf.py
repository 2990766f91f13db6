"""A language model in this process: a GGUF file, run by llama.cpp through xllamacpp.

The same interface as `Client`, without a server: calls run in threads of their own, the event loop only sees pieces of text arrive.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from types import TracebackType
from typing import Any, TypeVar

from tournant.errors import short
from tournant.llm._local_engine import Engine, start_server
from tournant.llm._local_file import ModelFile, Unreadable, check_file, read_file
from tournant.llm._local_requests import (
    LocalMissing,
    ModelFailed,
    ModelUnusable,
    check_json,
    check_text,
    checked_options,
    embed_fault,
    fault,
)
from tournant.llm._local_stream import (
    END,
    Call,
    Embedding,
    Loading,
    LocalStream,
    Pipe,
    Writing,
)
from tournant.llm.arguments import conversation
from tournant.llm.errors import InvalidClient, LLMError
from tournant.llm.model import Messages, Reply, Usage
from tournant.pool.slots import cores

__all__ = ["Local", "LocalMissing", "ModelFailed", "ModelUnusable", "local"]

C = TypeVar("C", bound=Call)

_CONTEXT = 4096
_LEAST_CONTEXT = 256  # the library rounds up to multiples of it
_MOST_PARALLEL = 64
_MOST_THREADS = 512  # the library's own limit
#: How a model that knows no conversation is shown one, and what says that its turn is over.
_PLAIN_CHAT = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n"
    "{% endfor %}Assistant:"
)
_PLAIN_STOPS = tuple(
    f"{lines}{role}:" for role in ("User", "System", "Assistant") for lines in ("\n\n", "\n")
)


class Local:
    """A GGUF model in this process: chat, completions and embeddings, whole or streamed.

    ::

        async with tn.llm.local("gemma-3-270m-it-q4_k_m.gguf") as model:
            reply = await model.chat("What is a tournant?", max_tokens=100)
            async for chunk in model.stream("And in a brigade of two?", max_tokens=100):
                print(chunk.text, end="")

    The constructor looks at the file's first bytes. The model loads at the first call, with `load`, or at the start of an
    ``async with`` block, in a thread; yet the binding holds the interpreter while it loads (a third of a second for 270
    million parameters), so load it before there is anything to hold up. The
    binding also holds it while it takes in a prompt: a quarter of a second for 3,000 words. It may be used from any number of event loops and threads.

    A conversation is laid out by the chat template in the file. A base model has none: it is shown ``User: ...`` and ``Assistant:``, and its turn
    ends where it begins to write the user's.

    `embed` needs the model once more in another mode, which loads at its first call or with ``load(embeddings=True)``: the weights are mapped and shared, the rest is not. Vectors
    are the mean of the token states (or what the file itself asks for), of length 1. While a model that writes embeds a text it also takes some
    8 bytes for each token and each word of its vocabulary: a gigabyte for 512 tokens and 262,144 words.

    Args:
        path: The ``.gguf`` file; the first one of a model in several files.
        context: The most tokens of one prompt and its answer together, rounded up to a multiple of 256. Default: 4,096, or what
            the model was trained on if that is less.
        threads: Threads that calculate. Default: the cores that this process may use.
        parallel: Answers that are written at once; further calls wait their turn. Each takes memory for a context of its own. Default 4.
        embeddings: The most tokens of a text for `embed`. Default 512.
        verbose: Let the native library write to standard error. Default: it is silent.

    Attributes:
        name: The file's name without its suffix.

    Raises:
        InvalidClient: when an argument can't be.
        ModelUnusable: when the file is not there or no GGUF.
        LocalMissing: when xllamacpp is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        context: int | None = None,
        threads: int | None = None,
        parallel: int = 4,
        embeddings: int = 512,
        verbose: bool = False,
    ) -> None:
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise InvalidClient(f"local({short(path)}): give the path of a .gguf file")
        if context is not None:
            _whole("context", context, _LEAST_CONTEXT)
        if threads is not None:
            _whole("threads", threads, 1, _MOST_THREADS)
        _whole("parallel", parallel, 1, _MOST_PARALLEL)
        _whole("embeddings", embeddings, 1)
        if find_spec("xllamacpp") is None:
            raise LocalMissing(
                "a model in this process needs the package 'xllamacpp', which is not installed; pip install 'tournant[local]'"
            )
        self._path = os.path.abspath(os.path.expanduser(os.fsdecode(path)))
        self.name = os.path.splitext(os.path.basename(self._path))[0]
        try:
            check_file(self._path)
        except Unreadable as error:
            raise self._unusable(str(error)) from None
        self._context = context
        self._threads = cores() if threads is None else threads
        self._parallel = parallel
        self._embeddings = embeddings
        self._verbose = verbose
        self._file: ModelFile | None = None
        self._writer = Engine("writer", parallel, self._load_writer, self._closed)
        # One call of many texts fills the machine; a second one at once would only take turns with it.
        self._embedder = Engine("embedder", 1, self._load_embedder, self._closed)

    async def load(self, *, embeddings: bool = False) -> None:
        """Load the model now rather than at the first call. Does nothing if it is loaded.

        Args:
            embeddings: Load it for `embed` too. Default: for that only if it is a model that can do nothing else.

        Raises:
            ModelUnusable: when it can't be.
        """
        file = await asyncio.to_thread(self._head)
        if file.can_write:
            await _outcome(self._writer, Loading, self._fault)
        if embeddings or not file.can_write:
            await _outcome(self._embedder, Loading, self._embed_fault)

    async def chat(self, messages: Messages, **options: Any) -> Reply:
        """Answer a conversation. Cancelling it ends the writing at its next token.

        Args:
            messages: A text, which is one message of the user, or a list of messages.
            **options: Fields of the OpenAI API's body: ``max_tokens``, ``temperature``, ``seed``, ``stop``, ... and those of
                llama.cpp (``top_k``, ``grammar``, ``json_schema``, ...). One that is ``None`` is left out.

        Returns:
            The answer. Without ``max_tokens`` it ends where the model ends it, or at the end of the context.

        Raises:
            ContextTooLong: when the prompt is longer than the context.
            BadRequest: when an option can't be as it was given.
            ModelUnusable: when the model can't be loaded.
            ModelFailed: when the model broke off.
        """
        return await self._whole_answer(self.stream(messages, **options))

    def stream(self, messages: Messages, **options: Any) -> LocalStream:
        """Answer a conversation piece by piece; as `chat` otherwise."""
        body = checked_options(self.name, options)
        body["messages"] = [dict(message) for message in conversation(messages)]
        body["stream_options"] = {"include_usage": True}
        return self._stream(body, self._prepare_chat, chat=True)

    async def complete(self, prompt: str, **options: Any) -> Reply:
        """Continue a text; as `chat` otherwise."""
        return await self._whole_answer(self.stream_completion(prompt, **options))

    def stream_completion(self, prompt: str, **options: Any) -> LocalStream:
        """Continue a text piece by piece; as `chat` otherwise."""
        if not isinstance(prompt, str):
            raise InvalidClient(f"complete({short(prompt)}): give a text")
        return self._stream(
            {**checked_options(self.name, options), "prompt": prompt}, _prepared, chat=False
        )

    async def embed(self, texts: Sequence[str], **options: Any) -> list[list[float]]:
        """Return one vector for each text, in their order; each has the length 1.

        Args:
            texts: Any number of texts.
            **options: None but ``model``, ``user`` and ``encoding_format="float"``, which change nothing.

        Raises:
            ContextTooLong: when a text has more tokens than `embeddings`.
            InvalidClient: when that are no texts, or for another option.
            ModelUnusable: when the model can't be loaded.
        """
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise InvalidClient(f"embed({short(texts)}): give a list of texts")
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise InvalidClient(f"embed(...): text {place} is {short(text)}; give strings")
            check_text(text, f"embed(...): text {place}")
        for option, value in options.items():
            if option not in ("model", "user") and value not in (None, "float"):
                raise InvalidClient(
                    f"embed({option}={short(value)}): a model in this process has no such choice; leave it out"
                )
        if not texts:
            return []
        make = partial(Embedding, list(texts), 4 * self._parallel)
        vectors: list[list[float]] = await _outcome(self._embedder, make, self._embed_fault)
        return vectors

    async def aclose(self) -> None:
        """End what is being written, and give the model's memory back. Closing twice does nothing.

        Calls under way end with an `InvalidClient` at their next token, or at the next part of their prompt. A model that is being loaded is
        loaded to the end first.
        """
        for ending in (self._writer.close(), self._embedder.close()):
            await asyncio.shield(asyncio.wrap_future(ending))

    async def __aenter__(self) -> Local:
        await self.load()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Local {self._path!r}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            f"the model {self.name!r} lives in this process and can't be sent to another: let each load its own, "
            "with state=tn.PerWorker(...)"
        )

    # Calls

    def _stream(
        self,
        body: dict[str, Any],
        prepare: Callable[[Mapping[str, Any]], tuple[str, bool]],
        *,
        chat: bool,
    ) -> LocalStream:
        body.update(
            stream=True, return_progress=True
        )  # progress: so that a long prompt can be left
        check_json(self.name, body)

        def make(pipe: Pipe) -> Writing:
            return Writing(body, prepare, pipe, self._fault, chat=chat)

        return LocalStream(self._writer, make)

    async def _whole_answer(self, stream: LocalStream) -> Reply:
        texts: list[str] = []
        finish: str | None = None
        usage: Usage | None = None
        async with stream as chunks:
            async for chunk in chunks:
                texts.append(chunk.text)
                finish = chunk.finish_reason or finish
                usage = chunk.usage or usage
        return Reply("".join(texts), finish, usage, self.name)

    def _prepare_chat(self, body: Mapping[str, Any]) -> tuple[str, bool]:
        if self._head().chat_template:
            return _prepared(body)
        return json.dumps({**body, "stop": [*body.get("stop", ()), *_PLAIN_STOPS]}), True

    # Loading; in threads of the engines

    def _head(self) -> ModelFile:
        if self._file is None:
            try:
                self._file = read_file(self._path)
            except Unreadable as error:
                raise self._unusable(str(error)) from None
            except OSError as error:
                raise self._unusable(f"can't be read: {error.strerror or error}") from None
        return self._file

    def _load_writer(self) -> Any:
        file = self._head()
        if not file.can_write:
            raise self._unusable(
                f"is a model for embeddings ({file.architecture}), which can't write: call embed()"
            )
        context = self._context or min(_CONTEXT, file.context or _CONTEXT)
        if file.context and context > max(file.context, _LEAST_CONTEXT):
            raise InvalidClient(
                f"{self.name}: context={context}, and the model was trained on {file.context:,} tokens at once; give that or less"
            )
        self._context = context
        return self._start(
            f"a context of {context:,} tokens, {self._parallel} times",
            context=context,
            template="" if file.chat_template else _PLAIN_CHAT,
        )

    def _load_embedder(self) -> Any:
        file = self._head()
        if file.context and self._embeddings > file.context:
            raise InvalidClient(
                f"{self.name}: embeddings={self._embeddings}, and the model was trained on {file.context:,} tokens at once; "
                "give that or less"
            )
        return self._start(
            f"texts of {self._embeddings:,} tokens, {self._parallel} at once",
            context=self._embeddings,
            embeddings=True,
            own_pooling=file.pooling,
        )

    def _start(self, needs: str, **arguments: Any) -> Any:
        try:
            return start_server(
                self._path,
                parallel=self._parallel,
                threads=self._threads,
                verbose=self._verbose,
                **arguments,
            )
        except ImportError as error:
            raise LocalMissing(
                f"the package 'xllamacpp' can't be loaded ({error}); pip install --force-reinstall 'tournant[local]'"
            ) from error
        except OSError as error:
            raise self._unusable(f"can't be loaded: {error}") from error
        except (RuntimeError, MemoryError) as error:
            architecture = self._head().architecture
            raise self._unusable(
                f"can't be loaded: it is damaged, or there is no memory for {needs}, or its kind ({architecture!r}) is newer than "
                "xllamacpp; try a smaller context=, and verbose=True to see what the library says"
            ) from error

    def _fault(self, words: str, kind: str, pieces: int) -> LLMError:
        return fault(self.name, self._context, words, kind, pieces)

    def _embed_fault(self, words: str, kind: str, pieces: int) -> LLMError:
        return embed_fault(self.name, self._embeddings, words, kind)

    def _unusable(self, reason: str) -> ModelUnusable:
        return ModelUnusable(f"the model {self._path!r} {reason}")

    def _closed(self) -> InvalidClient:
        return InvalidClient(f"the model {self.name!r} is closed; open it again with local(...)")


def local(path: str | os.PathLike[str], **options: Any) -> Local:
    """Open a GGUF model in this process; see `Local` for the options.

    ::

        model = tn.llm.local("gemma-3-270m-it-q4_k_m.gguf", context=2048)
    """
    return Local(path, **options)


async def _outcome(engine: Engine, make: Callable[..., Call], fault_of: Any) -> Any:
    """Run a call and return its one outcome; leave it when this is cancelled."""
    pipe = Pipe(asyncio.get_running_loop())
    call = make(pipe, fault_of)
    engine.submit(call)
    try:
        outcome = await pipe.get()
    finally:
        call.abandoned = True
        engine.forget(call)
    if isinstance(outcome, LLMError):
        raise outcome
    return None if outcome is END else outcome


def _prepared(body: Mapping[str, Any]) -> tuple[str, bool]:
    return json.dumps(body), False


def _whole(name: str, value: Any, least: int, most: int = 2**31 - 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidClient(
            f"local(..., {name}={short(value)}): give a whole number of {least} or more"
            + (f", {most} at most" if most < 2**31 - 1 else "")
        )
