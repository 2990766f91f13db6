"""Uploading documents: stored, ingested, and told about."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from data_samples import Answer, Client, make_index, multipart
from hypothesis import given, settings
from hypothesis import strategies as st

from tournant.ingest.indexes.files import WriterLock
from tournant.ingest.job import search, status
from tournant.serve.documents import Documents
from tournant.serve.settings import ServeSettings

HEADERS = [(b"content-type", b"multipart/form-data; boundary=XX")]
DOG = b"# Dogs\n\nA small dog runs in the park.\n"
BREAD = b"# Bread\n\nKnead the dough and bake it.\n"


def serve(folder: Path, **changes: Any) -> Documents:
    return Documents(ServeSettings(index=str(folder / "index"), **changes))


async def upload(documents: Documents, files: Any, **options: Any) -> Answer:
    return await Client(documents, [multipart(files)], HEADERS, **options).send()


def told(answer: Answer) -> list[str]:
    """Event and name of everything but counts."""
    return [
        f"{event} {what['name']}" if "name" in what else event
        for event, what in answer.events()
        if event != "progress"
    ]


def test_uploaded_files_are_found_and_each_step_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        documents = serve(tmp_path)
        try:
            answer = await upload(documents, {"dogs.md": DOG, "a/bread.md": BREAD, "x.exe": b"x"})
        finally:
            await documents.aclose()
        assert answer.status == 200
        assert answer.complete
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = told(answer)
        assert events[:5] == [
            "received dogs.md",
            "received a/bread.md",
            "failed x.exe",
            "queued",
            "reading",
        ]
        assert sorted(events[5:-1]) == ["done a/bread.md", "done dogs.md"]
        name, summary = answer.events()[-1]
        assert name == "summary"
        assert (summary["files"], summary["done"], summary["failed"]) == (3, 2, 1)
        assert summary["index"] == {"documents": 2, "chunks": 2}
        counts = [what for event, what in answer.events() if event == "progress"]
        assert counts[-1]["read"] == 2
        (hit, *_) = search(str(tmp_path / "index"), "dog in the park")
        assert hit.source == str(tmp_path / "index-uploads" / "dogs.md")
        assert not (tmp_path / "index-uploads" / ".pending").exists()
        assert list((tmp_path / "index-uploads" / ".incoming").iterdir()) == []

    asyncio.run(scenario())


def test_uploads_join_what_an_index_has_whatever_it_was_cut_by(tmp_path: Path) -> None:
    from tournant.ingest.job import IngestOptions, run_ingest

    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.md").write_text("The kernel schedules threads.")
    run_ingest(IngestOptions((str(tmp_path / "own"),), str(tmp_path / "index"), chunk_size=300))

    async def scenario() -> None:
        documents = serve(tmp_path)
        first = await upload(documents, {"dogs.md": DOG})
        second = await upload(documents, {"dogs.md": DOG + b"It barks."})
        await documents.aclose()
        assert first.events()[-1][1]["index"]["documents"] == 2
        assert told(second)[-2:] == ["done dogs.md", "summary"]
        assert second.events()[-1][1]["index"]["documents"] == 2

    asyncio.run(scenario())
    assert len(search(str(tmp_path / "index"), "barks", mode="text")) == 1
    assert search(str(tmp_path / "index"), "kernel", mode="text")


def test_what_can_not_be_read_fails_by_itself(tmp_path: Path) -> None:
    async def scenario() -> None:
        documents = serve(tmp_path)
        answer = await upload(documents, {"broken.pdf": b"%PDF-1.4\nnothing", "dogs.md": DOG})
        await documents.aclose()
        events = dict(
            zip(told(answer), (what for e, what in answer.events() if e != "progress"), strict=True)
        )
        assert "truncated" in events["failed broken.pdf"]["reason"]
        assert "done dogs.md" in events
        assert events["summary"]["failed"] == 1

    asyncio.run(scenario())


def test_an_upload_of_nothing_useful_ends_without_an_ingest(tmp_path: Path) -> None:
    async def scenario() -> None:
        documents = serve(tmp_path)
        answer = await upload(documents, {"empty.md": b"", "x.zip": b"PK\x03\x04"})
        await documents.aclose()
        assert told(answer) == ["failed empty.md", "failed x.zip", "summary"]
        assert answer.complete

    asyncio.run(scenario())
    assert not (tmp_path / "index").exists()
    assert not (tmp_path / "index-uploads" / ".pending").exists()


def test_refusals_come_as_a_status_and_store_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        documents = serve(tmp_path, max_upload_bytes=1_000, max_upload_files=2)
        large = await upload(documents, {"a.md": b"x" * 2_000})
        announced = await Client(documents, [], [*HEADERS, (b"content-length", b"5000")]).send()
        many = await upload(documents, {f"{n}.md": b"x" for n in range(3)})
        json = await Client(documents, [b"{}"], [(b"content-type", b"application/json")]).send()
        await documents.aclose()
        assert [a.status for a in (large, announced, many, json)] == [413, 413, 413, 415]
        assert large.json()["error"]["code"] == "upload_too_large"

    asyncio.run(scenario())
    kept = [path for path in (tmp_path / "index-uploads").rglob("*") if path.is_file()]
    assert kept == []


def test_a_body_that_never_comes_is_given_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        documents = serve(tmp_path, body_seconds=0.05)
        waiting = asyncio.Event()

        class Stuck(Client):
            async def _receive(self) -> dict[str, Any]:
                if self._chunks:
                    return await super()._receive()
                await waiting.wait()
                raise AssertionError

        stuck = Stuck(documents, [multipart({"a.md": DOG})[:60], b""], HEADERS)
        stuck._chunks = stuck._chunks[:1]
        stuck._stays = False  # so that the first piece says that more comes
        answer = await stuck.send()
        await documents.aclose()
        assert answer.status == 408

    asyncio.run(scenario())


def test_a_client_that_leaves_midway_loses_only_the_file_it_was_in(
    tmp_path: Path, until: Any
) -> None:
    async def scenario() -> None:
        documents = serve(tmp_path)
        body = multipart({"dogs.md": DOG, "bread.md": BREAD})
        cut = body.index(BREAD) + 10
        answer = await Client(documents, [body[:50], body[50:cut]], HEADERS, stays=False).send()
        assert answer.status == 0
        await finished(documents)
        await documents.aclose()

    asyncio.run(scenario())
    assert [path.name for path in (tmp_path / "index-uploads").glob("*.md")] == ["dogs.md"]
    assert list((tmp_path / "index-uploads" / ".incoming").iterdir()) == []
    assert status(str(tmp_path / "index")).documents == 1


def test_a_client_that_leaves_while_it_is_told_stops_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        documents = serve(tmp_path)
        client = Client(documents, [multipart({"dogs.md": DOG})], HEADERS)
        task = asyncio.ensure_future(client.send())
        await client.answer.began.wait()
        client.leave()
        answer = await task
        assert not answer.complete
        await finished(documents)
        await documents.aclose()

    asyncio.run(scenario())
    assert search(str(tmp_path / "index"), "dog")


async def finished(documents: Documents) -> None:
    """Wait for the ingests to end."""
    task = documents._ingests._task
    if task is not None:
        await asyncio.wait({task})


def test_uploads_that_come_meanwhile_go_together_and_each_hears_of_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        documents = serve(tmp_path)
        answers = await asyncio.gather(
            *(upload(documents, {f"{n}.md": DOG + str(n).encode()}) for n in range(4))
        )
        for n, answer in enumerate(answers):
            files = [event for event in told(answer) if ".md" in event]
            assert files == [f"received {n}.md", f"done {n}.md"]
            assert answer.events()[-1][1]["done"] == 1
        assert documents.depth()["ingests"] <= 3
        await documents.aclose()

    asyncio.run(scenario())
    assert status(str(tmp_path / "index")).documents == 4


def test_an_ingest_killed_in_the_middle_is_started_again(tmp_path: Path, until: Any) -> None:
    async def scenario() -> None:
        documents = serve(tmp_path)
        client = Client(documents, [multipart({"dogs.md": DOG})], HEADERS)
        task = asyncio.ensure_future(client.send())
        while documents.process is None:
            await asyncio.sleep(0.001)
        os.kill(documents.process, signal.SIGKILL)
        answer = await task
        await documents.aclose()
        assert told(answer)[-2:] == ["done dogs.md", "summary"]
        assert (
            "died" in next(what for event, what in answer.events() if event == "waiting")["reason"]
        )

    asyncio.run(scenario())


def test_an_index_that_is_being_written_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make_index(tmp_path)
    monkeypatch.setattr("tournant.serve.ingests._BUSY_WAIT", 0.05)

    async def scenario() -> None:
        documents = serve(tmp_path)
        lock = WriterLock(str(index))
        client = Client(documents, [multipart({"cats.md": b"A cat sleeps."})], HEADERS)
        task = asyncio.ensure_future(client.send())
        while b"waiting" not in client.answer.body:
            await asyncio.sleep(0.01)
        lock.release()
        answer = await task
        await documents.aclose()
        assert "being written" in next(w for e, w in answer.events() if e == "waiting")["reason"]
        assert told(answer)[-2:] == ["done cats.md", "summary"]

    asyncio.run(scenario())


def test_what_could_not_be_ingested_is_taken_up_by_the_next_start(tmp_path: Path) -> None:
    async def first() -> None:
        documents = serve(tmp_path, embedder="onnx:/nowhere")
        answer = await upload(documents, {"dogs.md": DOG})
        await documents.aclose()
        assert told(answer)[-2:] == ["failed dogs.md", "summary"]
        assert "/nowhere" in answer.events()[-1][1]["error"]

    async def second() -> None:
        documents = serve(tmp_path)
        await documents.start()
        await finished(documents)
        await documents.aclose()

    asyncio.run(first())
    assert (tmp_path / "index-uploads" / "dogs.md").exists()
    (tmp_path / "index-uploads" / "fifo.md").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "index-uploads" / "fifo.md")
    asyncio.run(second())
    assert search(str(tmp_path / "index"), "dog")
    assert not (tmp_path / "index-uploads" / ".pending").exists()


def test_a_server_that_stops_ends_its_ingest_and_the_next_one_goes_on(tmp_path: Path) -> None:
    async def first() -> None:
        documents = serve(tmp_path, grace_seconds=20.0)
        client = Client(documents, [multipart({"dogs.md": DOG})], HEADERS)
        task = asyncio.ensure_future(client.send())
        while documents.process is None:
            await asyncio.sleep(0.001)
        pid = documents.process
        await documents.aclose()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        answer = await task
        assert answer.events()[-1][0] == "summary"

    async def second() -> None:
        documents = serve(tmp_path)
        await documents.start()
        await finished(documents)
        await documents.aclose()

    asyncio.run(first())
    asyncio.run(second())
    assert search(str(tmp_path / "index"), "dog")


def test_too_many_uploads_are_told_to_come_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tournant.serve.documents._RECEIVING", 0)

    async def scenario() -> None:
        documents = serve(tmp_path)
        answer = await upload(documents, {"dogs.md": DOG})
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        await documents.aclose()

    asyncio.run(scenario())


@settings(max_examples=25, deadline=None)
@given(pieces=st.lists(st.integers(1, 200), max_size=6), leaves=st.integers(0, 400))
def test_leaving_anywhere_in_the_body_leaves_no_half_file(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[int], leaves: int
) -> None:
    folder = tmp_path_factory.mktemp("uploads")
    body = multipart({"dogs.md": DOG, "bread.md": BREAD})[:leaves]
    chunks = []
    for size in pieces:
        chunks.append(body[:size])
        body = body[size:]
    chunks.append(body)

    async def scenario() -> None:
        documents = serve(folder)
        documents._ingests.add = lambda listener: 0  # type: ignore[method-assign]
        await Client(documents, chunks, HEADERS, stays=False).send()
        await documents.aclose()

    asyncio.run(scenario())
    uploads = folder / "index-uploads"
    kept = {path.name: path.read_bytes() for path in uploads.glob("*.md")}
    assert kept in ({}, {"dogs.md": DOG}, {"dogs.md": DOG, "bread.md": BREAD})
    assert not (uploads / ".incoming").exists() or list((uploads / ".incoming").iterdir()) == []
