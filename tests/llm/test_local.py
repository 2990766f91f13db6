from __future__ import annotations

import asyncio
import math
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from local_samples import gemma, gguf

import tournant as tn
from tournant.llm import Chunk, Model, Reply
from tournant.llm._local_file import read_file
from tournant.llm.errors import BadRequest, ContextTooLong, InvalidClient, LLMError
from tournant.llm.gguf import Local, LocalMissing, ModelFailed, ModelUnusable, local

Until = Callable[..., bool]


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A file that looks like a model from outside."""
    return gguf(tmp_path / "some.gguf", general__architecture="llama", llama__context_length=512)


@pytest.fixture(scope="module")
def model() -> Iterator[Local]:
    """One loaded model for many tests, and so for many event loops.

    On one thread: two of them wait for each other at every step, which takes very long while others work on this machine.
    """
    model = local(gemma(), context=512, parallel=2, threads=1)
    asyncio.run(model.load())
    yield model
    asyncio.run(model.aclose())


def writers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("tournant-local-")]


def python(program: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, **options
    )


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


async def pieces(stream: Any) -> list[Chunk]:
    return [chunk async for chunk in stream]


# Files that are no model


def test_a_file_that_is_no_model_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "short.gguf").write_bytes(b"GGUF\3")
    (tmp_path / "old.gguf").write_bytes(b"GGUF\1\0\0\0")
    os.mkfifo(tmp_path / "pipe.gguf")
    for name, words in {
        "nowhere.gguf": "is not there: check the path",
        ".": "is a folder: give the path of a .gguf file in it",
        "pipe.gguf": "is no ordinary file",
        "text.gguf": "is no GGUF file .it begins with b'hell'.: convert the model",
        "empty.gguf": "is empty: download it again",
        "short.gguf": "is cut off",
        "old.gguf": "is GGUF of version 1",
    }.items():
        with pytest.raises(ModelUnusable, match=words) as caught:
            local(tmp_path / name)
        assert os.path.abspath(tmp_path / name) in str(caught.value)
        assert (caught.value.kind, caught.value.transient) == ("model_unusable", False)


def test_half_a_file_is_refused_when_it_loads(head: Path) -> None:
    whole = head.read_bytes()
    asyncio.run(expect(ModelUnusable, "can't be loaded", local(head)))
    for size in range(8, len(whole) - 31):
        head.write_bytes(whole[:size])
        asyncio.run(
            expect(ModelUnusable, "is cut off, as after a download that broke off", local(head))
        )


async def expect(kind: type[LLMError], words: str, model: Local) -> None:
    async with asyncio.timeout(60):
        with pytest.raises(kind, match=words):
            await model.load()
        with pytest.raises(kind, match=words):
            await model.chat("Hello")
        await model.aclose()


def test_a_damaged_head_is_told_from_a_short_one(head: Path) -> None:
    data = bytearray(head.read_bytes())
    place = data.index(b"general.architecture") + len("general.architecture")
    data[place : place + 4] = b"\xff\0\0\0"  # the type of its value
    head.write_bytes(data)
    asyncio.run(expect(ModelUnusable, "has a damaged head", local(head)))


def test_a_head_is_read_past_its_arrays(tmp_path: Path) -> None:
    file = read_file(
        str(
            gguf(
                tmp_path / "a.gguf",
                general__architecture="llama",
                llama__context_length=77,
                general__name="A",
                tokenizer__chat_template="{{ x }}",
            )
        )
    )
    assert (file.name, file.context, file.chat_template, file.can_write) == ("A", 77, True, True)
    assert not read_file(str(gguf(tmp_path / "b.gguf"))).chat_template


def test_a_model_that_only_reads_can_not_write(tmp_path: Path) -> None:
    path = gguf(tmp_path / "bert.gguf", general__architecture="nomic-bert")

    async def main() -> None:
        async with asyncio.timeout(60):
            with pytest.raises(
                ModelUnusable, match=r"model for embeddings \(nomic-bert\).*call embed"
            ):
                await local(path).chat("Hello")

    asyncio.run(main())


# What it is given


@pytest.mark.parametrize(
    "options",
    [
        {"context": 0}, {"context": 255}, {"context": "4k"}, {"context": True}, {"threads": 0}, {"threads": 1.5},
        {"parallel": 0}, {"parallel": 65}, {"parallel": None}, {"embeddings": 0},
    ],
)  # fmt: skip
def test_arguments_that_can_not_be_are_refused(head: Path, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(
        InvalidClient, match=rf"local\(\.\.\., {name}=.*: give a whole number of \d+ or more"
    ):
        local(head, **options)
    with pytest.raises(InvalidClient, match="give the path of a"):
        local("")


def test_the_missing_package_is_named_with_its_mend(
    head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(LocalMissing, match=r"pip install 'tournant\[local\]'") as caught:
        local(head)
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, LLMError)


def test_nothing_native_is_loaded_before_a_model_is(head: Path) -> None:
    done = python(
        "import sys; from tournant import llm; model = llm.local(sys.argv[1]); assert isinstance(model, llm.Model); "
        "assert not {'xllamacpp', 'numpy', 'aiohttp'} & set(sys.modules), sys.modules.keys()".replace(
            "sys.argv[1]", repr(str(head))
        )
    )
    assert done.returncode == 0, done.stderr


def test_it_refuses_to_travel(head: Path) -> None:
    with pytest.raises(TypeError, match=r"lives in this process.*PerWorker"):
        pickle.dumps(local(head))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_tokens": 0}, "max_tokens=0: give a whole number"),
        ({"max_tokens": -5}, "max_tokens=-5"),
        ({"max_tokens": "many"}, "max_tokens='many'"),
        ({"max_completion_tokens": 2.5}, "max_completion_tokens=2.5"),
        ({"stop": 5}, "stop=5: give a text or a list"),
        ({"stop": ["a", ""]}, "none of them empty"),
        ({"n": 2}, "n=2: a call has one answer"),
        ({"tools": [{}]}, "calls no tools"),
        ({"temperature": math.nan}, "nothing that JSON has"),
        ({"seed": object()}, "object is not JSON serializable"),
        ({"user": "\ud83d"}, r"half a character in it, '\\ud83d'"),
    ],
)
def test_options_that_can_not_be_are_refused_before_anything_loads(
    head: Path, options: dict[str, Any], words: str
) -> None:
    model = local(head)
    for call in (model.stream, model.stream_completion):
        with pytest.raises(BadRequest, match=words):
            call("Hello", **options)
    with pytest.raises(BadRequest, match=words):
        asyncio.run(model.chat("Hello", **options))


def test_calls_that_can_not_be_are_refused(head: Path) -> None:
    model = local(head)
    for messages in ([], {"role": "user"}, 5, ["Hello"], [{"content": "Hello"}]):
        with pytest.raises(InvalidClient):
            model.stream(messages)  # type: ignore[arg-type]
    for option in ("stream", "stream_options", "messages"):
        with pytest.raises(InvalidClient, match=f"{option}= is not taken"):
            model.stream_completion("Hello", **{option: True})
    with pytest.raises(InvalidClient, match="give a text"):
        model.stream_completion(["Hello"])  # type: ignore[arg-type]
    for texts, words in (("Hello", "list of texts"), ([5], "text 0 is 5"), (None, "list of texts")):
        with pytest.raises(InvalidClient, match=words):
            asyncio.run(model.embed(texts))  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="half a character"):
        asyncio.run(model.embed(["fine", "\ud800"]))
    with pytest.raises(InvalidClient, match="dimensions=64"):
        asyncio.run(model.embed(["fine"], dimensions=64))
    assert asyncio.run(model.embed([])) == []


# A real model


@pytest.mark.slow
def test_it_answers_whole_and_in_pieces_and_counts_what_it_did(model: Local) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
        conversation = [
            {"role": "system", "content": "You are terse."},
            {"role": "user", "content": [{"type": "text", "text": "The capital of France?"}]},
        ]
        for whole, streamed in (
            (model.chat(conversation, **options), model.stream(conversation, **options)),
            (model.complete("One, two, three,", **options), model.stream_completion("One, two, three,", **options)),
        ):  # fmt: skip
            reply, chunks = await whole, await pieces(streamed)
            assert isinstance(reply, Reply)
            assert reply.text
            assert "".join(chunk.text for chunk in chunks) == reply.text
            assert len([chunk for chunk in chunks if chunk.text]) > 2
            (usage,) = [chunk.usage for chunk in chunks if chunk.usage]
            (finish,) = [chunk.finish_reason for chunk in chunks if chunk.finish_reason]
            assert reply.usage == usage
            assert usage.prompt_tokens > 4
            assert 0 < usage.completion_tokens <= 8
            assert (reply.finish_reason, reply.model) == (finish, "gemma")
            assert (finish == "length") == (usage.completion_tokens == 8)

    assert isinstance(model, Model)
    asyncio.run(main())


@pytest.mark.slow
def test_a_base_model_ends_its_turn_and_stops_where_it_is_told(model: Local) -> None:
    async def main() -> None:
        reply = await model.chat("The capital of France?", temperature=0, max_tokens=60)
        assert reply.text == reply.text.strip()
        assert reply.finish_reason == "stop"
        assert "User:" not in reply.text
        counted = await model.complete(
            "1, 2, 3, 4,", temperature=0, max_tokens=10**9, stop=["7", "nowhere"]
        )
        assert (counted.text, counted.finish_reason) == (" 5, 6, ", "stop")

    asyncio.run(main())


@pytest.mark.slow
def test_what_the_library_refuses_is_an_error_of_the_tree(model: Local) -> None:
    async def main() -> None:
        for options in (
            {"temperature": "x"},
            {"top_p": []},
            {"grammar": "root ::= nowhere"},
            {"response_format": {"type": "nonsense"}},
        ):
            with pytest.raises(BadRequest, match=r"^gemma: "):
                await model.chat("Hello", max_tokens=1, **options)
        for message in (
            {"role": "user"},
            {"role": "user", "content": 5},
            {"role": 5, "content": "x"},
        ):
            with pytest.raises(BadRequest, match=r"^gemma: .*change that option or message"):
                await model.chat([message])
        for call in (model.chat, model.complete):
            with pytest.raises(
                ContextTooLong, match=r"has 60\d tokens, and the context 512: shorten"
            ):
                await call("word " * 600)
        with pytest.raises(ContextTooLong, match=r"has 602 tokens, and 512 are taken: cut it"):
            await model.embed(["short", "word " * 600])
        # An answer that fills the context ends there.
        full = await model.complete("word " * 500, max_tokens=100, ignore_eos=True)
        assert full.finish_reason == "length"
        assert full.usage is not None
        assert full.usage.total_tokens <= 512

    asyncio.run(main())


@pytest.mark.slow
def test_a_character_in_several_tokens_is_never_broken(model: Local) -> None:
    prompt = "\U00013000\U00013001\U00013002 " * 4 + "\U00013000\U00013001"

    async def main() -> None:
        seen = set()
        for most in range(1, 8):
            chunks = await pieces(model.stream_completion(prompt, max_tokens=most, temperature=0))
            assert not any("\ufffd" in chunk.text for chunk in chunks)
            assert all(chunk.text.encode() is not None for chunk in chunks)
            reply = await model.complete(prompt, max_tokens=most, temperature=0)
            assert "".join(chunk.text for chunk in chunks) == reply.text
            seen.add(reply.text)
        # Some of these ended inside of a character, some behind it.
        assert "" in seen
        assert any(text.startswith("\U00013002") for text in seen)

    asyncio.run(main())


@pytest.mark.slow
def test_vectors_have_the_length_one_and_the_order_of_their_texts() -> None:
    texts = [
        "A cat sat on the mat.",
        "A dog sat on the mat.",
        "Tax law of 1913",
        "",
        "law " * 30,
        "cat " * 90,
    ] * 2

    async def main() -> None:
        model = local(gemma(), embeddings=128, threads=1)
        vectors = await model.embed(texts)
        assert len(vectors) == len(texts)
        assert {len(vector) for vector in vectors} == {640}
        for vector in vectors:
            assert math.isclose(math.hypot(*vector), 1, abs_tol=1e-4)
        cat, dog, law = vectors[:3]
        assert dot(cat, dog) > dot(cat, law) + 0.05
        # A text's neighbours, however long, have no part in its vector.
        for text, vector in zip(texts[:6], vectors, strict=False):
            (alone,) = await model.embed([text], encoding_format="float", model="any")
            assert dot(alone, vector) > 0.999
        await model.aclose()

    asyncio.run(main())


# Never in the way of the loop, and of each other


@pytest.mark.slow
def test_the_loop_goes_on_while_the_model_reads_and_writes(model: Local) -> None:
    async def main() -> None:
        turns = 0
        done = False

        async def count() -> None:
            nonlocal turns
            while not done:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        at_pieces = []
        async for _ in model.stream_completion("word " * 300, max_tokens=6, ignore_eos=True):
            at_pieces.append(turns)
        before = turns
        await model.embed(["word " * 100])
        assert turns > before + 100
        done = True
        await counting
        # Reading the prompt took a while, and so did the writing.
        assert at_pieces[0] > 100
        assert at_pieces[-1] > at_pieces[0] + 10

    asyncio.run(main())


@pytest.mark.slow
def test_streams_are_written_side_by_side_and_further_ones_wait_their_turn(model: Local) -> None:
    begun: list[int] = []
    most = 0

    async def read(number: int) -> int:
        nonlocal most
        pieces = 0
        async for _ in model.stream_completion(f"{number}:", max_tokens=30, ignore_eos=True):
            if not pieces:
                begun.append(number)
            most = max(most, len(model._writer._running))
            pieces += 1
        return pieces

    async def main() -> None:
        assert min(await asyncio.gather(*(read(number) for number in range(5)))) > 6

    asyncio.run(main())
    assert most == 2  # slots
    assert sorted(begun[:2]) == [0, 1]
    assert sorted(begun[2:]) == [2, 3, 4]


@pytest.mark.slow
def test_a_reader_that_stalls_keeps_nobody_waiting_and_loses_nothing(model: Local) -> None:
    async def main() -> None:
        stalled = [model.stream_completion("1, 2,", max_tokens=20, temperature=0) for _ in range(2)]
        first = [await anext(stream) for stream in stalled]  # both slots
        reply = await model.complete("1, 2,", max_tokens=20, temperature=0)
        for piece, stream in zip(first, stalled, strict=True):
            rest = await pieces(stream)
            assert piece.text + "".join(chunk.text for chunk in rest) == reply.text

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["break", "aclose", "block", "cancel", "timeout", "chat"])
def test_leaving_ends_the_writing(model: Local, until: Until, how: str) -> None:
    """Left alone it would write until its context is full: for many seconds, as both slots and the threads show."""

    async def main() -> None:
        endless: dict[str, Any] = {"ignore_eos": True, "max_tokens": 100_000}
        if how == "break":
            async for _ in model.stream_completion("One", **endless):
                break
        elif how == "aclose":
            stream = model.stream_completion("One", **endless)
            await anext(stream)
            await stream.aclose()
            await stream.aclose()
            assert await pieces(stream) == []
        elif how == "block":
            async with model.stream_completion("One", **endless) as chunks:
                async for _ in chunks:
                    break
        elif how == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await pieces(model.stream_completion("One", **endless))
        else:
            if how == "cancel":
                task = asyncio.create_task(pieces(model.stream_completion("One", **endless)))
            else:
                task = asyncio.create_task(model.chat("One", **endless))
            while not model._writer._running:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert until(lambda: not writers(), 2.5)


@pytest.mark.slow
def test_a_long_prompt_can_be_left_while_it_is_read() -> None:
    async def main() -> None:
        model = local(gemma(), parallel=1, threads=1)
        await model.load()
        task = asyncio.create_task(model.complete("word " * 2500, max_tokens=1))
        while not model._writer._running:
            await asyncio.sleep(0.001)
        began = time.process_time()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await model.complete("1, 2,", max_tokens=1)
        # Work, not time: what the others on this machine do does not count.
        left = time.process_time() - began
        began = time.process_time()
        await model.complete("word " * 800, max_tokens=1)
        assert left < time.process_time() - began
        await model.aclose()

    asyncio.run(main())


@pytest.mark.slow
def test_who_waits_for_a_slot_can_leave(model: Local) -> None:
    async def main() -> None:
        busy = [model.stream_completion("One", ignore_eos=True) for _ in range(2)]
        for stream in busy:
            await anext(stream)
        waiting = asyncio.create_task(model.complete("Two", max_tokens=1))
        other = asyncio.create_task(model.complete("Three", max_tokens=1))
        while len(model._writer._waiting) < 2:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(model._writer._waiting) == 1
        await busy[0].aclose()
        assert (await other).finish_reason == "length"
        await busy[1].aclose()

    asyncio.run(main())


@pytest.mark.slow
def test_a_stream_has_one_reader(model: Local) -> None:
    async def main() -> None:
        stream = model.stream_completion("One", max_tokens=5, ignore_eos=True)
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(InvalidClient, match=r"read by another task.*tee"):
            await anext(stream)
        assert (await first).text
        waiting = asyncio.create_task(pieces(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        assert await waiting == []  # told of the end, not left hanging

    asyncio.run(main())


@pytest.mark.slow
def test_several_loops_and_threads_share_a_model(model: Local) -> None:
    replies: list[Reply] = []

    def one() -> None:
        replies.append(asyncio.run(model.complete("1, 2, 3,", max_tokens=4, temperature=0)))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [reply.text for reply in replies] == [replies[0].text] * 4


@pytest.mark.slow
def test_a_batch_of_prompts_goes_through_a_pipeline(model: Local) -> None:
    texts: dict[int, str] = {}

    async def answer(number: int) -> tuple[int, str]:
        reply = await model.chat(f"What is {number} and {number}?", max_tokens=3)
        return number, reply.text

    report = (
        tn.Pipeline(range(20))
        .map(answer, concurrency=4)
        .for_each(lambda pair: texts.update([pair]), on="threads")
        .run()
    )
    assert (report.done, sorted(texts)) == (20, list(range(20)))


# Its end


@pytest.mark.slow
def test_closing_ends_what_runs_and_gives_the_memory_back(
    nothing_left: None, until: Until, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = psutil.Process()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    caught = [
        line for line in Path("/proc/self/status").read_text().splitlines() if "SigCgt" in line
    ]
    doors = len(process.net_connections("inet"))

    async def main() -> None:
        model = local(gemma(), context=512, parallel=1, threads=1)
        await model.load()
        await model.load()
        # It has taken no signal, and nobody can knock at it.
        signals = Path("/proc/self/status").read_text()
        assert int(caught[0].split()[1], 16) & 0xFFFF == int(
            next(line for line in signals.splitlines() if "SigCgt" in line).split()[1], 16
        ) & 0xFFFF  # fmt: skip
        assert len(process.net_connections("inet")) == doors
        assert list(tmp_path.iterdir()) == []
        await model.embed(["Hello"])
        loaded = process.memory_info().rss
        stream = model.stream_completion("One", ignore_eos=True)
        await anext(stream)
        waiting = asyncio.create_task(model.chat("Two"))
        while not model._writer._waiting:
            await asyncio.sleep(0)
        await asyncio.gather(model.aclose(), model.aclose())
        for call in (
            pieces(stream),
            waiting,
            model.chat("Three"),
            model.embed(["x"]),
            model.load(),
        ):
            with pytest.raises(InvalidClient, match="is closed; open it again"):
                await call
        await model.aclose()
        assert until(lambda: not writers())
        assert process.memory_info().rss < loaded - 150 * 2**20

    asyncio.run(main())


@pytest.mark.slow
def test_who_waits_while_it_loads_shares_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = 0
    started = threading.Event()
    go = threading.Event()

    def start_server(*args: Any, **options: Any) -> Any:
        nonlocal loads
        loads += 1
        started.set()
        assert go.wait(60)
        raise RuntimeError("no")

    monkeypatch.setattr(sys.modules[local.__module__], "start_server", start_server)

    async def main() -> None:
        model = local(gemma())
        calls = [asyncio.create_task(model.chat("Hello")) for _ in range(4)]
        await asyncio.to_thread(started.wait)
        while model._writer._waiting:
            await asyncio.sleep(0)
        closing = asyncio.create_task(model.aclose())
        await asyncio.sleep(0)
        go.set()
        for call in calls:
            with pytest.raises((ModelUnusable, InvalidClient)):
                await call
        await closing

    asyncio.run(main())
    assert loads == 1


@pytest.mark.slow
def test_a_context_beyond_the_model_is_refused() -> None:
    async def main() -> None:
        for options, words in (
            ({"context": 32_769}, "context=32769, and the model was trained on 32,768"),
            ({"embeddings": 32_769}, "embeddings=32769, and the model was trained on 32,768"),
        ):
            model = local(gemma(), **options)
            with pytest.raises(InvalidClient, match=words):
                await (model.load() if "context" in options else model.embed(["x"]))
            await model.aclose()

    asyncio.run(main())


PROGRAM = """
import asyncio, sys
from tournant import llm

async def main():
    model = llm.local(sys.argv[1], context=512, parallel=1, threads=1, verbose=sys.argv[2] == "loud")
    async for _ in model.stream_completion("One", ignore_eos=True):
        break
    stream = model.stream_completion("One", ignore_eos=True)
    await anext(stream)
    globals()["kept"] = stream  # and the program ends while it is written

asyncio.run(main())
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("loud", ["", "loud"])
def test_a_program_ends_while_it_writes_and_the_library_says_nothing_unasked(loud: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(gemma()), loud],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert bool(done.stderr) == bool(loud)


def test_the_error_of_a_library_that_gives_no_reason_says_how_to_see_one(head: Path) -> None:
    error = local(head)._fault("", "server_error", 0)
    assert isinstance(error, ModelFailed)
    assert "verbose=True" in str(error)


def test_the_function_is_not_hidden_by_a_module() -> None:
    from tournant import llm

    assert callable(llm.local)
    assert llm.ModelUnusable is ModelUnusable


@pytest.mark.parametrize("embeddings", [False, True])
def test_it_is_loaded_for_embeddings_beforehand_where_that_is_asked(
    head: Path, monkeypatch: pytest.MonkeyPatch, embeddings: bool
) -> None:
    loaded: list[bool] = []

    def start(path: str, *, embeddings: bool = False, **arguments: Any) -> object:
        loaded.append(embeddings)
        return object()

    monkeypatch.setattr("tournant.llm.gguf.start_server", start)

    async def main() -> None:
        model = local(head)
        await model.load(embeddings=embeddings)
        await model.aclose()

    asyncio.run(main())
    assert loaded == ([False, True] if embeddings else [False])
