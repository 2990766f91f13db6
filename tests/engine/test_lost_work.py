"""What a stage's call leaves behind belongs to its item: tasks, their exceptions, and coroutines that nobody awaited."""

# ruff: noqa: RUF006 - the mistake that this is about
from __future__ import annotations

import asyncio
import gc
import inspect
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

import core_samples as samples
import tournant as tn
from tournant.engine import strays

PLACES = ["loop", "threads", "processes", "inline"]


def options(place):
    return samples.PLACES[place]


def run(pipeline, place="loop"):
    """Run to the end; return the report and the values that came out."""
    values = []

    async def main():
        async with pipeline.open(inline=place == "inline") as handle:
            async for value in handle:
                values.append(value)
            return handle.report

    return asyncio.run(main()), values


def line_of(fn, text):
    """File and line of `text` in the source of `fn`, as messages give them."""
    lines, first = inspect.getsourcelines(fn)
    return f"{inspect.getsourcefile(fn)}:{first + next(n for n, line in enumerate(lines) if text in line)}"


async def helper(value):
    return value


async def breaks(value):
    await asyncio.sleep(0)
    raise ValueError(f"lost {value}")


# Tasks.


async def leaves_a_task_that_fails(value):
    if value == 3:
        asyncio.create_task(breaks(value))
    return value


@pytest.mark.parametrize("place", ["loop", "inline"])
def test_the_exception_of_a_task_left_behind_fails_the_item_that_made_it(place):
    report, values = run(
        tn.Pipeline(range(6), on_error="skip").map(leaves_a_task_that_fails), place
    )
    assert sorted(values) == [0, 1, 2, 4, 5]
    (failure,) = report.failures
    assert failure.key == 3
    assert repr(failure.error) == "ValueError('lost 3')"
    note = "\n".join(failure.error.__notes__)
    assert line_of(leaves_a_task_that_fails, "create_task") in note
    assert "the task breaks()" in note


@pytest.mark.parametrize("place", ["loop", "inline"])
def test_a_task_left_behind_is_joined_before_the_item_goes_on(place):
    ended = []

    async def slow(value):
        for _ in range(3):
            await asyncio.sleep(0)
        ended.append(value)

    async def stage(value):
        asyncio.create_task(slow(value))
        return value

    seen = []

    async def sink(value):
        seen.append((value, value in ended))

    report, _ = run(tn.Pipeline(range(20)).map(stage).for_each(sink), place)
    assert report.done == 20
    assert sorted(ended) == list(range(20))
    assert all(was_there for _, was_there in seen)


def test_tasks_that_tasks_make_are_joined_too():
    ended = []

    async def inner(value):
        await asyncio.sleep(0)
        ended.append(value)

    async def outer(value):
        await asyncio.sleep(0)
        asyncio.create_task(inner(value))

    async def stage(value):
        asyncio.create_task(outer(value))
        return value

    report, _ = run(tn.Pipeline(range(5)).map(stage))
    assert report.done == 5
    assert sorted(ended) == list(range(5))


def test_a_call_that_fails_has_its_tasks_cancelled():
    cancelled = []

    async def waits(value):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(value)
            raise

    async def stage(value):
        asyncio.create_task(waits(value))
        await asyncio.sleep(0)
        if value == 1:
            raise OSError("the call itself")
        for task in asyncio.all_tasks():
            if task.get_coro().__qualname__.endswith("waits"):
                task.cancel()
        return value

    report, values = run(tn.Pipeline([1, 2], on_error="skip").map(stage, concurrency=1))
    assert [repr(f.error) for f in report.failures] == ["OSError('the call itself')"]
    assert values == [2]
    assert cancelled == [1, 2]


def test_the_exception_of_a_task_is_told_beside_that_of_its_call():
    async def stage(value):
        asyncio.create_task(breaks(value))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        raise OSError("the call itself")

    report, _ = run(tn.Pipeline([1], on_error="skip").map(stage))
    (failure,) = report.failures
    assert isinstance(failure.error, OSError)
    assert "ValueError('lost 1')" in "\n".join(failure.error.__notes__)


def test_tasks_that_were_awaited_or_looked_at_are_nobodys_fault():
    async def stage(value):
        first = asyncio.create_task(breaks(value))
        try:
            await first
        except ValueError:
            pass
        await asyncio.gather(breaks(value), return_exceptions=True)
        looked = asyncio.create_task(breaks(value))
        await asyncio.wait([looked])
        assert looked.exception()
        stopped = asyncio.create_task(asyncio.sleep(60))
        stopped.cancel()
        async with asyncio.TaskGroup() as group:
            group.create_task(helper(value))
        return await asyncio.wait_for(helper(value), 5)

    report, values = run(tn.Pipeline(range(4)).map(stage))
    assert sorted(values) == [0, 1, 2, 3]
    assert not report.failures


def test_a_call_with_many_tasks_holds_on_to_few(monkeypatch):
    monkeypatch.setattr(strays, "_PRUNE", 8)
    most = 0

    async def stage(value):
        nonlocal most
        for _ in range(100):
            await asyncio.create_task(helper(value))
            most = max(most, len(strays.present.get()))
        return value

    report, _ = run(tn.Pipeline([1]).map(stage))
    assert report.done == 1
    assert 0 < most <= 20


def test_a_task_that_never_ends_fails_its_item_and_is_cancelled(monkeypatch):
    monkeypatch.setattr(strays, "JOIN_SECONDS", 0.05)
    stopped = []

    async def for_ever():
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(True)

    async def stage(value):
        asyncio.create_task(for_ever())
        return value

    report, _ = run(tn.Pipeline([1], on_error="skip").map(stage))
    (failure,) = report.failures
    assert isinstance(failure.error, tn.LostWork)
    assert "for_ever() made at " + line_of(stage, "create_task") in str(failure.error)
    assert "tn.detach(task)" in str(failure.error)
    assert stopped == [True]


def test_the_timeout_of_a_stage_is_for_its_tasks_too():
    async def stage(value):
        asyncio.create_task(asyncio.Event().wait())
        return value

    report, _ = run(tn.Pipeline([1], on_error="skip").map(stage, timeout=0.05))
    (failure,) = report.failures
    assert isinstance(failure.error, tn.StageTimeout)
    assert line_of(stage, "create_task") in "\n".join(failure.error.__notes__)


def test_a_retry_begins_with_nothing_left_behind():
    attempts = []

    async def stage(value):
        attempts.append(value)
        if len(attempts) < 3:
            asyncio.create_task(breaks(value))
        return value

    report, values = run(tn.Pipeline([7]).map(stage, retry=tn.Retry(3, delay=0.001)))
    assert (values, len(attempts), report.stages[0].retried) == ([7], 3, 2)


@pytest.mark.parametrize("kind", ["flat_map", "map_batches", "filter", "tap", "for_each"])
def test_every_kind_of_stage_answers_for_its_tasks(kind):
    async def one(value):
        asyncio.create_task(breaks(value))
        return True

    async def children(value):
        yield value
        asyncio.create_task(breaks(value))

    async def batch(values):
        asyncio.create_task(breaks(values))
        return values

    fn = {"flat_map": children, "map_batches": batch}.get(kind, one)
    report, _ = run(getattr(tn.Pipeline([1, 2], on_error="skip"), kind)(fn))
    assert report.failed == 2
    assert all("lost" in str(failure.error) for failure in report.failures)


def test_plain_functions_on_the_loop_answer_for_their_tasks():
    def stage(value):
        asyncio.get_running_loop().create_task(breaks(value))
        return value

    report, _ = run(tn.Pipeline([1], on_error="skip").map(stage, on="loop"))
    assert [repr(f.error) for f in report.failures] == ["ValueError('lost 1')"]


def test_a_run_that_is_cancelled_leaves_no_task_of_a_stage():
    ended = []

    async def waits():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def stage(value, begun):
        asyncio.create_task(waits())
        begun.set()
        await asyncio.Event().wait()

    async def main():
        begun = asyncio.Event()
        async with tn.Pipeline([1]).map(lambda v: stage(v, begun), on="loop").open():
            await asyncio.sleep(0)
        async with tn.Pipeline([begun]).map(stage_of_event).open() as handle:
            await begun.wait()
            handle.cancel()
        return asyncio.all_tasks()

    async def stage_of_event(begun):
        await stage(1, begun)

    left = asyncio.run(main())
    assert len(left) == 1
    assert ended == [True]


# Who made it.


@pytest.mark.parametrize("inputs", [2, 200])
@pytest.mark.parametrize("kind", ["map", "map_batches"])
def test_a_stage_that_cancels_its_own_task_ends_the_run_with_the_reason(kind, inputs):
    async def stage(value):
        asyncio.current_task().cancel()
        await asyncio.sleep(0.01)

    pipeline = getattr(tn.Pipeline(range(inputs), on_error="skip"), kind)(stage)
    with pytest.raises(tn.StageExit, match="of this run was cancelled, by the stage that it runs"):
        run(pipeline)


def test_a_run_whose_loop_ends_is_cancelled_without_a_word(caplog):
    begun = []

    async def stage(value):
        begun.append(value)
        await asyncio.sleep(60)

    async def main():
        task = asyncio.create_task(tn.Pipeline(range(100), on_error="skip").map(stage).arun())
        while not begun:
            await asyncio.sleep(0.001)
        return task

    assert asyncio.run(main()).cancelled()
    assert not caplog.records


def test_a_task_that_was_handed_over_lives_on():
    async def main():
        go, tasks = asyncio.Event(), []

        async def later():
            await go.wait()
            return "lived"

        async def stage(value):
            tasks.append(tn.detach(asyncio.create_task(later())))
            return value

        report = await tn.Pipeline([1]).map(stage).arun()
        assert report.done == 1
        assert not tasks[0].done()
        go.set()
        return await tasks[0]

    assert asyncio.run(main()) == "lived"


def test_only_a_task_can_be_handed_over():
    with pytest.raises(tn.ForgottenAwait, match=r"tn\.detach\(asyncio\.create_task"):
        tn.detach(helper(1))


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A module that is installed, as a client with a connection that is kept alive."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    folder.joinpath("installed_client.py").write_text(
        textwrap.dedent(
            """
            import asyncio

            class Client:
                keeper = None

                async def ask(self, value):
                    if self.keeper is None:
                        self.keeper = asyncio.create_task(self.keep_alive())
                    await asyncio.sleep(0)
                    return value

                async def keep_alive(self):
                    while True:
                        await asyncio.create_task(asyncio.sleep(0))

            async def leaves(value):
                asyncio.create_task(breaks(value))
                return value

            async def breaks(value):
                raise ValueError(value)
            """
        )
    )
    monkeypatch.syspath_prepend(str(folder))
    import installed_client

    yield installed_client
    del sys.modules["installed_client"]


@pytest.mark.parametrize("bare", [False, True])
def test_the_tasks_of_an_installed_client_live_on(library, bare):
    async def main():
        client = library.Client()

        async def ask(value):
            return await client.ask(value)

        report = await tn.Pipeline(range(50)).map(client.ask if bare else ask).arun()
        assert (report.done, report.failed) == (50, 0)
        assert not client.keeper.done()
        client.keeper.cancel()

    asyncio.run(main())


def test_an_installed_stage_answers_for_its_own_tasks(library):
    report, _ = run(tn.Pipeline([1], on_error="skip").map(library.leaves))
    assert report.failed == 1


def test_a_run_started_in_a_stage_is_that_stages_own_business():
    async def stage(value):
        return (await tn.Pipeline([value]).map(helper).acollect())[0]

    report, values = run(tn.Pipeline(range(5)).map(stage))
    assert sorted(values) == list(range(5))
    assert not report.failures


# The caller's loop.


def test_a_callers_task_factory_goes_on_making_the_tasks_and_is_put_back():
    made = []

    def factory(loop, coroutine, **options):
        made.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        report = await tn.Pipeline([3], on_error="skip").map(leaves_a_task_that_fails).arun()
        assert report.failed == 1
        assert loop.get_task_factory() is factory
        async with tn.Pipeline([1]).map(helper).open(), tn.Pipeline([1]).map(helper).open():
            assert loop.get_task_factory() is not factory
        assert loop.get_task_factory() is factory

        # A factory that was put over ours stays.
        async with tn.Pipeline([1]).map(helper).open() as handle:
            ours = loop.get_task_factory()

            def over(loop, coroutine, **options):
                return ours(loop, coroutine, **options)

            loop.set_task_factory(over)
            await handle.wait()
        assert loop.get_task_factory() is over
        await asyncio.create_task(helper(1))

    asyncio.run(main())
    assert "breaks" in made


# Coroutines that were never awaited.


async def forgets(value):
    if value == 3:
        helper(value)
    return value


async def forgets_a_variable(value):
    if value == 3:
        unused = helper(value)  # noqa: F841
    return value


def forgets_plainly(value):
    if value == 3:
        helper(value)
    return value


def forgets_in_a_helper(value):
    if value == 3:
        does_the_forgetting(value)
    return value


def does_the_forgetting(value):
    kept = helper(value)  # noqa: F841


def forgets_while_yielding(value):
    yield value
    if value == 3:
        helper(value)


def forgets_in_a_batch(values):
    if 3 in values:
        [helper(value) for value in values]
    return values


@pytest.mark.parametrize("fn", [forgets, forgets_a_variable])
@pytest.mark.parametrize("place", ["loop", "inline"])
def test_a_forgotten_await_fails_the_item_that_made_it_at_its_line(fn, place):
    report, values = run(tn.Pipeline(range(6), on_error="skip").map(fn), place)
    assert sorted(values) == [0, 1, 2, 4, 5]
    (failure,) = report.failures
    assert failure.key == 3
    assert isinstance(failure.error, tn.ForgottenAwait)
    assert f"made at {line_of(fn, 'helper(value)')}" in str(failure.error)
    assert "await helper(...)" in str(failure.error)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fn", [forgets_plainly, forgets_in_a_helper])
def test_a_plain_function_that_makes_a_coroutine_and_drops_it_fails_its_item(fn, place):
    pipeline = tn.Pipeline(range(6), on_error="skip").map(samples.same, **options(place))
    for fused in (False, True):
        base = pipeline if fused else tn.Pipeline(range(6), on_error="skip")
        report, values = run(base.map(fn, **options(place)), place)
        assert sorted(values) == [0, 1, 2, 4, 5]
        (failure,) = report.failures
        assert failure.key == 3
        where = does_the_forgetting if fn is forgets_in_a_helper else fn
        assert f"made at {line_of(where, 'helper(value)')}" in str(failure.error)


@pytest.mark.parametrize("place", PLACES)
def test_generators_and_batches_answer_for_their_coroutines(place):
    report, _ = run(
        tn.Pipeline(range(6), on_error="skip").flat_map(forgets_while_yielding, **options(place)),
        place,
    )
    assert [f.key for f in report.failures] == [3]
    report, values = run(
        tn.Pipeline(range(6), on_error="skip").map_batches(
            forgets_in_a_batch, size=6, **options(place)
        ),
        place,
    )
    assert sorted(values) == [0, 1, 2, 4, 5]
    assert [f.key for f in report.failures] == [3]
    assert line_of(forgets_in_a_batch, "helper(value)") in str(report.failures[0].error)


def test_a_coroutine_forgotten_in_a_task_of_the_call_counts_as_the_calls():
    async def stage(value):
        await asyncio.create_task(forgets(value))
        return value

    report, _ = run(tn.Pipeline(range(5), on_error="skip").map(stage))
    assert [f.key for f in report.failures] == [3]


def test_what_the_collector_finds_is_blamed_on_nobody():
    async def stage(value):
        if value == 1:
            cycle = [helper(value)]
            cycle.append(cycle)
        else:
            gc.collect()
        return value

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report, values = run(tn.Pipeline([1, 2]).map(stage, concurrency=1))
    assert sorted(values) == [1, 2]
    assert not report.failures
    assert any("never awaited" in str(warning.message) for warning in caught)


def test_outside_of_a_stage_python_warns_as_ever():
    run(tn.Pipeline([1]).map(helper))
    with pytest.warns(RuntimeWarning, match="helper' was never awaited"):
        helper(1)


def test_the_rest_of_a_failed_item_is_not_held_against_the_next():
    async def stage(value):
        if value == 1:
            kept = helper(value)  # noqa: F841
            raise OSError("the call itself")
        return value

    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        report, values = run(
            tn.Pipeline([1, 2, 3], on_error="skip").map(
                stage, concurrency=1, retry=tn.Retry(2, delay=0.001)
            )
        )
        errors = [repr(failure.error) for failure in report.failures]
        del report  # and with it the frame that holds the coroutine
        gc.collect()
    assert sorted(values) == [2, 3]
    assert errors == ["OSError('the call itself')"]


# Awaitables that a function returns.


def returns_coroutine(value):
    return helper(value)


def returns_async_generator(value):
    async def numbers():
        yield value

    return numbers()


class Awaitable:
    def __await__(self):
        yield


def returns_awaitable(_value):
    return Awaitable()


@pytest.mark.parametrize("fn", [returns_coroutine, returns_async_generator, returns_awaitable])
@pytest.mark.parametrize("place", [*PLACES, "blocking"])
@pytest.mark.parametrize("kind", ["map", "filter", "tap", "for_each", "map_batches"])
def test_an_awaitable_from_a_plain_function_is_refused(fn, place, kind):
    pipeline = tn.Pipeline([1], on_error="skip")
    report, _ = run(getattr(pipeline, kind)(fn, **options(place)), place)
    (failure,) = report.failures
    assert isinstance(failure.error, tn.ForgottenAwait), failure
    assert "async" in str(failure.error)


@pytest.mark.parametrize("fn", [returns_coroutine, returns_awaitable])
@pytest.mark.parametrize("place", [*PLACES, "blocking"])
def test_an_awaitable_in_place_of_children_is_refused(fn, place):
    report, _ = run(tn.Pipeline([1], on_error="skip").flat_map(fn, **options(place)), place)
    assert isinstance(report.failures[0].error, tn.ForgottenAwait)


def yields_coroutine(value):
    yield value
    yield helper(value)


def yields_awaitable(_value):
    yield Awaitable()


async def yields_coroutine_asynchronously(value):
    yield value
    yield helper(value)


@pytest.mark.parametrize("fn", [yields_coroutine, yields_awaitable])
@pytest.mark.parametrize("place", [*PLACES, "blocking"])
def test_an_awaitable_among_children_is_refused(fn, place):
    report, _ = run(tn.Pipeline([1], on_error="skip").flat_map(fn, **options(place)), place)
    assert isinstance(report.failures[0].error, tn.ForgottenAwait)
    assert "the callable yielded" in str(report.failures[0].error)


def test_an_awaitable_among_the_children_of_an_async_generator_is_refused():
    report, _ = run(tn.Pipeline([1], on_error="skip").flat_map(yields_coroutine_asynchronously))
    assert isinstance(report.failures[0].error, tn.ForgottenAwait)


def rows_of_coroutines(values):
    return [helper(value) for value in values]


async def rows_of_coroutines_asynchronously(values):
    return rows_of_coroutines(values)


@pytest.mark.parametrize("fn", [rows_of_coroutines, rows_of_coroutines_asynchronously])
@pytest.mark.parametrize("place", [*PLACES, "blocking"])
def test_an_awaitable_among_the_rows_of_a_batch_is_refused(fn, place):
    how = options(place)
    if fn is rows_of_coroutines_asynchronously:
        how = {}
    report, _ = run(tn.Pipeline([1, 2], on_error="skip").map_batches(fn, size=2, **how), place)
    gc.collect()
    assert [type(failure.error) for failure in report.failures] == [tn.ForgottenAwait] * 2


@pytest.mark.parametrize("make", ["future", "task"])
def test_futures_and_tasks_from_a_plain_function_are_refused(make):
    made = []

    def stage(value):
        loop = asyncio.get_running_loop()
        future = loop.create_future() if make == "future" else loop.create_task(helper(value))
        made.append(future)
        return future

    report, _ = run(tn.Pipeline([1], on_error="skip").map(stage, on="loop"))
    assert isinstance(report.failures[0].error, tn.ForgottenAwait)
    assert made[0].cancelled()


def test_an_async_function_that_returns_a_coroutine_is_refused_too():
    async def stage(value):
        return helper(value)

    report, _ = run(tn.Pipeline([1], on_error="skip").map(stage))
    assert isinstance(report.failures[0].error, tn.ForgottenAwait)


def test_values_of_any_other_kind_pass():
    values = [None, 1, "text", b"x", [1], {}, object, samples.Counted, range(3), iter([1])]
    _, out = run(tn.Pipeline(values).map(samples.same, on="loop"))
    assert out == values
    _, out = run(tn.Pipeline(values).map(samples.same).ordered())
    assert out == values


def test_a_script_hears_of_its_forgotten_await(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import tournant as tn

            async def note(value):
                pass

            async def stage(value):
                note(value)
                return value

            print(tn.Pipeline([1], on_error="skip").map(stage).run().failures[0].error)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert f"note() was made at {Path(script)}:8 and never awaited" in done.stdout
    assert done.stderr == ""


def test_outside_of_runs_a_forgotten_await_is_warned_of_as_ever():
    """From the user's line and in Python's own words, though a run has been before."""
    tn.Pipeline([1]).map(abs, on="loop").run()

    async def forgotten():
        pass

    with pytest.warns(RuntimeWarning, match="never awaited") as seen:
        forgotten()
    (warning,) = seen
    assert warning.filename == __file__
    assert str(warning.message) == (
        "coroutine 'test_outside_of_runs_a_forgotten_await_is_warned_of_as_ever.<locals>.forgotten' was never awaited"
    )
