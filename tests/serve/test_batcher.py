"""Batches out of the texts of many clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from data_samples import fake_vector
from hypothesis import given, settings
from hypothesis import strategies as st

from tournant.errors import WorkerDied
from tournant.serve.batcher import Batcher, BatchPolicy


class HeldCrew:
    """Workers that finish when the test says so."""

    def __init__(self, count: int = 1) -> None:
        self.count = self.free = count
        self.on_free: Callable[[], None] = lambda: None
        self.batches: list[list[str]] = []
        self._futures: list[asyncio.Future[Any]] = []

    def run(self, texts: list[str]) -> asyncio.Future[Any]:
        assert self.free > 0, "a batch for a worker that isn't free"
        self.free -= 1
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(self._ended)
        self.batches.append(texts)
        self._futures.append(future)
        return future

    def _ended(self, _: object) -> None:
        self.free += 1
        self.on_free()

    def finish(self, error: Exception | None = None) -> None:
        """End the oldest batch that is under way."""
        number = next(n for n, f in enumerate(self._futures) if not f.done())
        if error is None:
            self._futures[number].set_result(
                np.array([fake_vector(t) for t in self.batches[number]])
            )
        else:
            self._futures[number].set_exception(error)

    @property
    def busy(self) -> bool:
        return any(not future.done() for future in self._futures)

    async def finish_all(self) -> None:
        await settle()
        while self.busy:
            self.finish()
            await settle()


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def submit(batcher: Batcher, *lengths: int, name: str = "t") -> asyncio.Task[Any]:
    texts = [f"{name}{n}:{length}" for n, length in enumerate(lengths)]
    return asyncio.ensure_future(batcher.submit(texts, lengths))


def lengths_of(batch: list[str]) -> list[int]:
    return [int(text.partition(":")[2]) for text in batch]


def test_a_text_goes_to_a_free_worker_at_once() -> None:
    async def scenario() -> None:
        crew = HeldCrew()
        batcher = Batcher(crew)
        task = submit(batcher, 10)
        await settle()
        assert crew.batches == [["t0:10"]]
        crew.finish()
        (vector,) = await task
        assert (vector == fake_vector("t0:10")).all()
        assert not vector.flags.writeable
        assert vector.base is None

    asyncio.run(scenario())


def test_what_arrives_while_all_work_goes_together() -> None:
    async def scenario() -> None:
        crew = HeldCrew()
        batcher = Batcher(crew)
        tasks = [submit(batcher, 30, name="first")]
        await settle()
        tasks += [submit(batcher, 20, name=f"client{n}-") for n in range(5)]
        await settle()
        assert len(crew.batches) == 1
        assert (batcher.texts, batcher.tokens) == (5, 100)
        crew.finish()
        await settle()
        assert lengths_of(crew.batches[1]) == [20] * 5
        assert (batcher.texts, batcher.tokens) == (0, 0)
        await crew.finish_all()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_only_texts_of_similar_length_share_a_batch() -> None:
    async def scenario() -> None:
        crew = HeldCrew()
        batcher = Batcher(crew, BatchPolicy(tokens=256, padding=12))
        tasks = [submit(batcher, 1, name="first")]
        await settle()
        tasks += [submit(batcher, n, name=f"c{n}-") for n in (50, 120, 55, 8, 45, 63, 38, 37)]
        await settle()
        crew.finish()
        await settle()
        assert sorted(lengths_of(crew.batches[1])) == [45, 50, 55]
        await crew.finish_all()
        # 37 and 38 are with what is left, 120 and 8 are alone.
        assert [sorted(lengths_of(batch)) for batch in crew.batches[2:]] == [
            [120],
            [8],
            [63],
            [37, 38],
        ]
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_a_batch_stays_within_its_tokens_and_texts_and_a_longer_text_goes_alone() -> None:
    async def scenario() -> None:
        crew = HeldCrew()
        batcher = Batcher(crew, BatchPolicy(tokens=100, texts=4, padding=12))
        tasks = [submit(batcher, 1, name="first")]
        await settle()
        tasks += [submit(batcher, *[30] * 4), submit(batcher, *[5] * 6), submit(batcher, 300)]
        await settle()
        await crew.finish_all()
        assert [lengths_of(b) for b in crew.batches[1:]] == [
            [30] * 3,
            [30],
            [5] * 4,
            [5] * 2,
            [300],
        ]
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_a_long_text_is_next_however_many_short_ones_arrive() -> None:
    async def scenario() -> None:
        crew = HeldCrew()
        batcher = Batcher(crew)
        tasks = [submit(batcher, 5, name="first")]
        await settle()
        tasks += [submit(batcher, 8, name="early"), submit(batcher, 250, name="long")]
        for n in range(500):
            tasks.append(submit(batcher, 8, name=f"late{n}-"))
        await settle()
        crew.finish()
        await settle()
        crew.finish()
        await settle()
        assert lengths_of(crew.batches[2]) == [250]
        await crew.finish_all()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_free_workers_share_what_there_is() -> None:
    async def scenario() -> None:
        crew = HeldCrew(2)
        batcher = Batcher(crew)
        task = submit(batcher, *[16] * 8)
        await settle()
        assert [len(batch) for batch in crew.batches] == [4, 4]
        await crew.finish_all()
        await task

    asyncio.run(scenario())


def test_a_question_waits_for_a_share_of_a_large_request_and_not_for_all_of_it() -> None:
    async def scenario() -> None:
        crew = HeldCrew()
        batcher = Batcher(crew, BatchPolicy(tokens=100), share=200)
        large = submit(batcher, *[50] * 1000, name="large")
        await settle()
        question = submit(batcher, 50, name="question")
        for _ in range(4):
            await settle()
            crew.finish()
        await settle()
        assert question.done()
        assert not large.done()
        assert batcher.texts > 900
        await crew.finish_all()
        assert len(await large) == 1000
        assert all(len(batch) == 2 for batch in crew.batches[3:-1])  # and it kept the worker full

    asyncio.run(scenario())


def test_texts_of_a_client_that_left_never_run() -> None:
    async def scenario() -> None:
        crew = HeldCrew()
        batcher = Batcher(crew, share=100)
        stays = submit(batcher, 10, name="stays")
        await settle()
        leaves = submit(batcher, *[10] * 50, name="leaves")
        after = submit(batcher, 10, name="after")
        await settle()
        leaves.cancel()
        await settle()
        assert (batcher.texts, batcher.tokens, batcher.dropped) == (1, 10, 50)
        await crew.finish_all()
        await asyncio.gather(stays, after)
        assert crew.batches == [["stays0:10"], ["after0:10"]]
        assert not batcher._by_length
        assert not batcher._lengths

    asyncio.run(scenario())


def test_texts_of_a_client_that_leaves_as_a_worker_comes_free_never_run() -> None:
    async def scenario() -> None:
        crew = HeldCrew()
        batcher = Batcher(crew)
        stays = submit(batcher, 10, name="stays")
        await settle()
        leaves = submit(batcher, 10, 200, name="leaves")
        after = submit(batcher, 10, name="after")
        await settle()
        crew.finish()
        await asyncio.sleep(0)
        leaves.cancel()  # the worker's next batch is formed before the task gets to know
        await crew.finish_all()
        await asyncio.gather(stays, after)
        assert crew.batches == [["stays0:10"], ["after0:10"]]

    asyncio.run(scenario())


def test_leaving_in_the_middle_of_a_batch_harms_nobody() -> None:
    async def scenario() -> None:
        crew = HeldCrew()
        batcher = Batcher(crew)
        first = submit(batcher, 10, name="first")
        await settle()
        tasks = [submit(batcher, 10, name=f"c{n}-") for n in range(3)]
        await settle()
        crew.finish()
        await settle()
        tasks[1].cancel()
        await crew.finish_all()
        await first
        assert (await tasks[0])[0][0] == (await tasks[2])[0][0]
        assert len(crew.batches) == 2

    asyncio.run(scenario())


def test_the_texts_of_a_dead_worker_run_again_one_at_a_time() -> None:
    async def scenario() -> None:
        crew = HeldCrew()
        batcher = Batcher(crew)
        tasks = [submit(batcher, 5, name="first")]
        await settle()
        tasks += [submit(batcher, 10, name=f"c{n}-") for n in range(3)]
        await settle()
        crew.finish()
        await settle()
        late = submit(batcher, 10, name="late")
        await settle()
        crew.finish(WorkerDied("killed"))
        await crew.finish_all()
        results = await asyncio.gather(*tasks, late)
        assert [(r[0] == fake_vector(f"c{n}-0:10")).all() for n, r in enumerate(results[1:4])] == [
            True
        ] * 3
        # In their old order, before what came later.
        assert crew.batches[2:] == [["c0-0:10"], ["c1-0:10"], ["c2-0:10"], ["late0:10"]]

    asyncio.run(scenario())


def test_a_text_that_kills_two_workers_fails_alone() -> None:
    async def scenario() -> None:
        crew = HeldCrew()
        batcher = Batcher(crew)
        good, bad = submit(batcher, 10, name="good"), submit(batcher, 10, 10, name="bad")
        await settle()
        assert len(crew.batches[0]) == 3
        crew.finish(WorkerDied("killed"))
        await settle()
        assert crew.batches[1] == ["good0:10"]
        crew.finish()
        await settle()
        crew.finish(WorkerDied("killed"))
        with pytest.raises(WorkerDied, match="2 processes"):
            await bad
        await settle()
        assert not crew.busy, "its other text had nobody left to wait for it"
        assert (await good)[0] is not None

    asyncio.run(scenario())


def test_a_poison_text_fails_its_own_request_only() -> None:
    async def scenario() -> None:
        crew = HeldCrew()
        batcher = Batcher(crew)
        good, bad = submit(batcher, 10, name="good"), submit(batcher, 10, name="bad")
        await settle()
        crew.finish(ValueError("one of them"))
        await settle()
        crew.finish()
        await settle()
        crew.finish(ValueError("this one"))
        with pytest.raises(ValueError, match="this one"):
            await bad
        await good
        assert len(crew.batches) == 3

    asyncio.run(scenario())


def test_a_text_alone_that_raises_is_not_tried_again() -> None:
    async def scenario() -> None:
        crew = HeldCrew()
        batcher = Batcher(crew)
        task = submit(batcher, 10)
        await settle()
        crew.finish(ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            await task
        assert len(crew.batches) == 1

    asyncio.run(scenario())


def test_closing_tells_everyone_who_waits() -> None:
    async def scenario() -> None:
        crew = HeldCrew()
        batcher = Batcher(crew, share=20)
        tasks = [submit(batcher, 10), submit(batcher, *[10] * 9)]
        await settle()
        batcher.close(RuntimeError("closing"))
        for task in tasks:
            with pytest.raises(RuntimeError, match="closing"):
                await task
        assert (batcher.texts, batcher.tokens) == (0, 0)

    asyncio.run(scenario())


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(1, 300), min_size=1, max_size=12),  # lengths
        st.sampled_from(["stay", "stay", "stay", "leave"]),
        st.integers(0, 3),  # batches that finish before the next request
        st.sampled_from(["fine", "fine", "died", "raised"]),  # how the next batch ends
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(requests=REQUESTS, workers=st.integers(1, 3), share=st.sampled_from([50, 400, 10_000]))
def test_everyone_who_stays_gets_the_vectors_of_his_texts(
    requests: list[Any], workers: int, share: int
) -> None:
    async def scenario() -> None:
        crew = HeldCrew(workers)
        policy = BatchPolicy(tokens=256, texts=8, padding=12)
        batcher = Batcher(crew, policy, share)
        staying, leaving = [], []
        for number, (lengths, fate, finished, end) in enumerate(requests):
            texts = [f"{number}.{n}:{length}" for n, length in enumerate(lengths)]
            task = asyncio.ensure_future(batcher.submit(texts, lengths))
            (staying if fate == "stay" else leaving).append((texts, task))
            await settle()
            errors = {"died": WorkerDied("killed"), "raised": ValueError("one of them")}
            if crew.busy and len(crew.batches[-1]) > 1:
                crew.finish(errors.get(end))
            for _ in range(finished):
                await settle()
                if crew.busy:
                    crew.finish()
            if fate == "leave":
                task.cancel()
            await settle()
            assert crew.free == 0 or not batcher.texts, "a worker is idle while texts wait"
        gone = {text for texts, task in leaving for text in texts}
        begun = len(crew.batches)
        await crew.finish_all()
        for batch in crew.batches:
            sizes = lengths_of(batch)
            assert len(batch) == 1 or len(batch) * max(sizes) <= policy.tokens
            assert len(batch) <= policy.texts
        assert not gone & {text for batch in crew.batches[begun:] for text in batch}
        for texts, task in staying:
            try:
                vectors = await task
            except (WorkerDied, ValueError):
                continue  # two faults on one text: the scenario's own doing
            assert all((v == fake_vector(t)).all() for v, t in zip(vectors, texts, strict=True))
        await asyncio.gather(*(task for _, task in leaving), return_exceptions=True)
        assert (batcher.texts, batcher.tokens, batcher._queued) == (0, 0, 0)
        assert not batcher._order
        assert not batcher._lengths
        assert not batcher._requests

    asyncio.run(scenario())
