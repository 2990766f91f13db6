"""`on="auto"`: a stage moves from threads to processes during the run, if that helps and can be done, and nothing is lost."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import Counter

import auto_samples as samples
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import core_samples
import tournant as tn
from tournant.engine import auto, scout
from tournant.engine.movable import why_not
from tournant.guards.gil import Scaling

BOUND = Scaling("stage", "gil-bound", 2.0, 1.0, 1.0, 1.0, 1.0)


class Sure(scout.Scout):
    """A scout that has made up its mind before it has looked."""

    def _look(self):
        self._prepare()
        while not self._stop.acquire(timeout=0.001):
            if not self._found(BOUND):
                return


@pytest.fixture
def sure(monkeypatch):
    """Every auto stage is found to be bound by the lock, and a move is held to be worth it."""
    monkeypatch.setattr(auto, "Scout", Sure)
    monkeypatch.setattr(auto, "_WORTH_WARM", 0.0)
    monkeypatch.setattr(auto, "_WORTH_COLD", 0.0)
    monkeypatch.setattr(auto, "_HOP", 0.0)
    monkeypatch.setattr(auto, "_GAIN", 0.0)
    monkeypatch.setenv("TOURNANT_CORES", "2")
    tn.shutdown()
    yield
    tn.shutdown()


def until_moved(count=100, most=100_000):
    """A source that goes on until `moved` has been set, and then for `count` more; and the event."""
    moved = threading.Event()

    def source():
        left, n = count, 0
        while left and n < most:
            yield n
            n += 1
            left -= moved.is_set()

    return source, moved


def until_told():
    """A source that goes on until the run has a warning, at most for a minute; and what tells it, for `on_start`."""
    done = threading.Event()
    due = time.monotonic() + 60

    def source():
        n = 0
        while not done.is_set() and time.monotonic() < due:
            yield n
            n += 1

    def watch(watched, warnings=1):
        def look():
            while len(watched._run.warnings) < warnings and time.monotonic() < due:
                time.sleep(0.002)
            done.set()

        threading.Thread(target=look, daemon=True).start()

    return source, watch


def watching(moved):
    """A sink on the loop that sees results of another process."""
    results = []

    async def sink(result):
        results.append(result)
        if result[-1] != os.getpid():
            moved.set()

    return sink, results


def test_a_stage_moves_and_every_result_is_there_once(sure):
    source, moved = until_moved()
    sink, results = watching(moved)
    report = tn.Pipeline(source).map(samples.where, on="auto").for_each(sink).run()
    assert sorted(value for value, _ in results) == list(range(report.sourced))
    pids = {pid for _, pid in results}
    assert os.getpid() in pids
    assert len(pids) > 1
    assert report.stages[0].on == "processes"
    (warning,) = report.warnings
    assert 'stage where (on="auto") moved to processes after' in warning
    assert "2.0 at work used 1.0 cores" in warning
    (finding,) = report.findings
    assert (finding.kind, finding.stage, finding.text) == ("placement", "where", warning)


def test_fused_stages_move_together(sure):
    source, moved = until_moved()
    sink, results = watching(moved)
    report = (
        tn.Pipeline(source)
        .filter(core_samples.even, on="auto")
        .map(samples.where, on="auto")
        .for_each(sink)
        .run()
    )
    assert sorted(value for value, _ in results) == list(range(0, report.sourced, 2))
    assert [stage.on for stage in report.stages] == ["processes", "processes", "loop"]
    assert "even + where" in report.warnings[0]


def test_generators_move(sure):
    source, moved = until_moved()
    sink, results = watching(moved)
    report = tn.Pipeline(source).flat_map(samples.children, on="auto").for_each(sink).run()
    expected = Counter((n, i) for n in range(report.sourced) for i in range(n % 4))
    assert Counter((n, i) for n, i, _ in results) == expected
    assert report.stages[0].on == "processes"


def test_batches_move(sure):
    source, moved = until_moved()
    sink, results = watching(moved)
    report = tn.Pipeline(source).map_batches(samples.batch, size=7, on="auto").for_each(sink).run()
    assert sorted(value for value, _ in results) == list(range(report.sourced))
    assert report.stages[0].on == "processes"


def test_state_is_built_in_threads_and_in_processes_and_closed_in_both(sure, tmp_path):
    source, moved = until_moved()
    names = set()

    async def sink(result):
        names.add(result[1])
        if not result[1].startswith(f"{os.getpid()}-"):
            moved.set()

    state = tn.PerWorker(
        functools.partial(core_samples.Counted, str(tmp_path)), close=core_samples.Counted.close
    )
    report = tn.Pipeline(source).map(samples.with_name, on="auto", state=state).for_each(sink).run()
    assert report.done == report.sourced
    assert len({name.split("-")[0] for name in names}) > 1
    built = {path.name[6:] for path in tmp_path.glob("built-*")}
    closed = {path.name[7:] for path in tmp_path.glob("closed-*")}
    assert built == closed >= names


def test_retries_timeouts_order_and_the_ledger_hold(sure, tmp_path):
    source, moved = until_moved()
    order = []

    async def sink(result):
        order.append(result[0])
        if result[1] != os.getpid():
            moved.set()

    folder = tmp_path / "marks"
    folder.mkdir()
    pipeline = (
        tn.Pipeline(source, ledger=tn.Ledger(tmp_path / "run.db"), key=str)
        .map(
            functools.partial(samples.fails_once, str(folder)),
            on="auto",
            retry=tn.Retry(3, delay=0.001),
            timeout=60,
        )
        .ordered(window=50)
        .for_each(sink, concurrency=1)
    )
    report = pipeline.run()
    assert order == list(range(report.sourced))
    assert report.stages[0].on == "processes"
    assert report.stages[0].retried == len(range(3, report.sourced, 10))
    again = tn.Pipeline(range(report.sourced), ledger=tn.Ledger(tmp_path / "run.db"), key=str)
    assert again.map(samples.where).run().skipped == report.sourced


# Staying, and going back.


def test_what_can_not_move_stays_and_says_why(sure):
    seen = []
    source, watch = until_told()
    report = tn.Pipeline(source).map(seen.append, on="auto", name="note").run(on_start=watch)
    assert sorted(seen) == list(range(report.sourced))
    assert report.stages[0].on == "threads"
    (warning,) = report.warnings
    assert 'stage note (on="auto") stays in threads' in warning
    assert "a list, of which every process would have a copy of its own" in warning


def test_values_that_can_not_be_pickled_keep_it_in_threads(sure):
    source, watch = until_told()
    report = tn.Pipeline(source).map(returns_a_lock, on="auto").run(on_start=watch)
    assert report.done == report.sourced
    assert "its values can't be pickled" in report.warnings[0]


def returns_a_lock(value):
    time.sleep(0.0005)
    return threading.Lock()


@pytest.mark.parametrize("batches", [False, True])
def test_a_value_that_turns_out_not_to_travel_brings_it_back(sure, batches):
    pipeline = tn.Pipeline(range(2000))
    if batches:
        pipeline = pipeline.map_batches(samples.batch_with_lock, size=5, on="auto")
    else:
        pipeline = pipeline.map(samples.lock_for_some, on="auto")
    values = pipeline.collect()
    assert sorted(value for value, _ in values) == list(range(2000))
    report = pipeline.run()
    assert (report.done, report.failed) == (2000, 0)
    # Whether it had moved by the time that the value came is the machine's affair.
    if len(report.warnings) == 2:
        assert "went back to threads" in report.warnings[1]
        assert report.stages[0].on == "threads"


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    ("fn", "inputs", "each"),
    [(samples.children_that_stay, 1200, 6), (samples.many_children_that_stay, 120, 300)],
)
def test_children_that_can_not_travel_are_made_in_a_thread(sure, fn, inputs, each, ordered):
    pipeline = tn.Pipeline(range(inputs)).flat_map(fn, on="auto")
    if ordered:
        pipeline = pipeline.ordered()
    values = pipeline.collect()
    expected = [(n, i) for n in range(inputs) for i in range(each)]
    got = [(n, i) for n, i, *_ in values]
    assert (got if ordered else sorted(got)) == expected
    report = pipeline.run()
    assert (report.done, report.failed, report.outputs) == (inputs, 0, inputs * each)
    stats = report.stages[0]
    assert (stats.items_in, stats.items_out) == (inputs, inputs * each)
    # Whether it had moved by the time that the child came is the machine's affair.
    if len(report.warnings) == 2:
        assert "went back to threads: the result" in report.warnings[1]
        assert report.stages[0].on == "threads"


def test_children_that_can_not_travel_and_are_tried_again_are_there_once(sure):
    samples.Failed.numbers.clear()
    # It fails once in every process that it comes to, this one included.
    retry = tn.Retry(8, delay=0.001, on=samples.Transient)
    pipeline = tn.Pipeline(range(1200)).flat_map(
        samples.children_at_the_second_try, on="auto", retry=retry
    )
    values = [(n, i) for n, i, *_ in pipeline.collect()]
    assert sorted(values) == [(n, i) for n in range(1200) for i in range(6)]


def test_what_a_fan_out_raises_is_the_same_where_it_can_not_travel(sure):
    pipeline = tn.Pipeline(range(1200), on_error="skip").flat_map(
        samples.children_then_error, on="auto"
    )
    seen = []
    report = pipeline.tap(seen.append).run()
    assert sorted(seen) == [(n, i) for n in range(1200) for i in range(2)]
    failed = {failure.error.number for failure in report.failures}
    assert failed == {n for n in range(400, 1200) if n % 7 == 0}
    assert {type(failure.error) for failure in report.failures} == {samples.Odd}


def test_inputs_that_can_not_travel_fan_out_in_a_thread(sure):
    pipeline = (
        tn.Pipeline(range(1200))
        .map(samples.inputs_that_stay, on="threads")
        .flat_map(samples.pair, on="auto")
        .ordered()
    )
    assert pipeline.collect() == [(n, i) for n in range(1200) for i in range(2)]


def test_a_state_that_can_not_be_built_in_a_process_keeps_it_in_threads(sure):
    source, watch = until_told()
    report = (
        tn.Pipeline(source)
        .map(samples.with_state, on="auto", state=tn.PerWorker(samples.broken_elsewhere))
        .run(on_start=watch)
    )
    assert report.done == report.sourced
    assert (
        "it can't be set up in a worker process (RuntimeError: no such device)"
        in report.warnings[0]
    )
    assert report.stages[0].on == "threads"


def test_processes_that_are_there_and_can_not_begin_give_the_items_back(sure, monkeypatch):
    monkeypatch.setattr(auto, "_BOOTED", 0.0)
    tn.Pipeline(range(20)).map(samples.where, on="processes").run()
    source, watch = until_told()
    state = tn.PerWorker(samples.broken_elsewhere)
    report = (
        tn.Pipeline(source)
        .map(samples.with_state, on="auto", state=state)
        .run(on_start=lambda watched: watch(watched, 2))
    )
    assert (report.done, report.failed) == (report.sourced, 0)
    assert "could not begin (RuntimeError: no such device)" in report.warnings[1]
    assert report.stages[0].on == "threads"


def test_a_run_that_ends_while_processes_start_leaves_nothing(sure, nothing_left):
    for n in (1, 5, 40):
        assert tn.Pipeline(range(n)).map(samples.where, on="auto").run().done == n


def test_items_too_cheap_for_a_process_stay(monkeypatch):
    monkeypatch.setattr(auto, "Scout", Sure)
    monkeypatch.setenv("TOURNANT_CORES", "2")
    tn.shutdown()
    report = tn.Pipeline(range(50_000)).map(core_samples.inc, on="auto").run()
    tn.shutdown()
    assert report.stages[0].on == "threads"


@pytest.mark.parametrize("cores", ["1", "2"])
def test_one_core_or_one_worker_has_no_scout(monkeypatch, cores):
    monkeypatch.setattr(auto, "Scout", None)
    monkeypatch.setenv("TOURNANT_CORES", cores)
    tn.shutdown()
    options = {} if cores == "1" else {"max_workers": 1}
    assert tn.Pipeline(range(5)).map(core_samples.inc, on="auto", **options).run().done == 5
    tn.shutdown()


def test_coroutines_run_on_the_loop_and_inline_runs_in_one_thread():
    async def same(value):
        return value

    assert tn.Pipeline([1]).map(same, on="auto").stages[0].on == "loop"
    assert tn.Pipeline([1]).map(core_samples.inc, on="auto").collect(inline=True) == [2]
    assert tn.map(core_samples.inc, [1, 2], on="auto") == [2, 3]
    with pytest.raises(tn.InvalidPipeline, match="blocking=True"):
        tn.Pipeline([1]).map(core_samples.inc, on="auto", blocking=True)
    with pytest.raises(tn.InvalidPipeline, match='or "auto"'):
        tn.Pipeline([1]).map(core_samples.inc, on="cores")


# The scout itself.


@pytest.mark.alone
def test_python_code_moves_by_itself(monkeypatch):
    monkeypatch.setenv("TOURNANT_CORES", "2")
    tn.shutdown()
    source, watch = until_told()
    report = tn.Pipeline(source).map(samples.computes, on="auto").run(on_start=watch)
    tn.shutdown()
    assert report.stages[0].on == "processes", report


@pytest.mark.alone
@pytest.mark.parametrize("fn", [samples.compresses, samples.waits])
def test_what_releases_the_lock_or_waits_stays_without_a_word(monkeypatch, fn):
    monkeypatch.setenv("TOURNANT_CORES", "2")
    tn.shutdown()
    values = [os.urandom(1 << 17) for _ in range(80)] if fn is samples.compresses else range(60)
    report = tn.Pipeline(values).map(fn, on="auto").run()
    tn.shutdown()
    assert report.stages[0].on == "threads"
    assert [f for f in report.findings if f.kind == "placement"] == []


class Threads:
    """Threads whose CPU clocks the test turns."""

    def __init__(self, monkeypatch, count=2):
        self.now = self.process = 0.0
        self.cpu = dict.fromkeys(range(1, count + 1), 0.0)
        monkeypatch.setattr(scout, "cpu_seconds", self.cpu.get)
        monkeypatch.setattr(scout.time, "process_time", lambda: self.process)
        self.evidence = scout.Evidence("stage", lambda: self.cpu)
        for thread in self.cpu:
            self.evidence.join(thread)
        self.evidence.start(0.0)

    def work(self, seconds, each, waited, others=0.0):
        for _ in range(10):
            self.now += seconds / 10
            for thread in self.cpu:
                self.cpu[thread] += each * seconds / 10
            self.process += (each * len(self.cpu) + others) * seconds / 10
            self.evidence.look(self.now, waited)
        return self.evidence.scaling()


@pytest.mark.parametrize(
    ("count", "each", "waited", "others", "bound"),
    [
        (2, 0.5, True, 0.0, True),  # take turns
        (1, 1.0, True, 0.0, True),  # the first one holds the lock
        (2, 1.0, False, 0.0, False),  # side by side
        (2, 0.5, False, 0.0, False),  # one core is all that the machine has to give
        (2, 0.1, True, 0.0, False),  # they hardly compute
        (2, 0.5, True, 1.0, False),  # others of the process use a core of their own
        (2, 0.3, True, 0.6, False),  # others hold the lock
    ],
)
def test_the_evidence_is_judged(monkeypatch, count, each, waited, others, bound):
    scaling = Threads(monkeypatch, count).work(0.02, each, waited, others)
    assert (scaling.verdict == "gil-bound") == bound, scaling
    assert scaling.workers == pytest.approx(count)
    assert scaling.cores == pytest.approx(count * each)


def test_evidence_takes_time_and_is_forgotten(monkeypatch):
    threads = Threads(monkeypatch)
    assert threads.work(0.003, 0.5, True).verdict == "unknown"
    assert threads.work(0.003, 0.5, True).verdict == "gil-bound"
    assert threads.work(3.0, 1.0, False).verdict == "unknown"


# What may move.


def closing_over(value):
    def inner(item):
        return item, value

    return inner


MOVES = [
    samples.computes,
    samples.only_looks_up,
    samples.has_a_constant_default,
    functools.partial(samples.fails_once, "folder"),
    functools.partial(samples.dies_once, samples.Frozen(1)),
    samples.Frozen(2),
    samples.Frozen(2).method,
    samples.Mutable.of_class,
    closing_over((1, "a", None)),
    closing_over(samples.computes),
    lambda value: value + 1,
    str.upper,
    len,
    int,
]
STAYS = [
    (samples.sets_a_global, "it sets the global 'COUNTER'"),
    (samples.appends_to_a_global, "it may change the global 'SEEN'"),
    (samples.calls_what_appends, "appends_to_a_global(), which it calls, may change"),
    (samples.writes_into_a_global, "it may change the global 'TABLE'"),
    (samples.takes_a_lock, "it uses 'LOCK', a lock that threads share"),
    (samples.has_a_mutable_default, "the default []"),
    (functools.partial(samples.dies_once, ["folder"]), "it is given ['folder']"),
    (samples.Mutable().method, "it is a method of"),
    (samples.Mutable(), "it is the object"),
    ([].append, "it is a method of []"),
    (closing_over([1]), "it closes over 'value', a list"),
    (closing_over(samples.takes_a_lock), "uses 'LOCK', a lock"),
]


def stages_of(fn, **options):
    return list(tn.Pipeline([1]).map(fn, on="auto", **options).stages)


@pytest.mark.parametrize("fn", MOVES)
def test_functions_of_their_argument_alone_may_move(fn):
    assert why_not(stages_of(fn)) is None


@pytest.mark.parametrize(("fn", "reason"), STAYS)
def test_what_threads_share_and_processes_copy_may_not_move(fn, reason):
    said = why_not(stages_of(fn))
    assert said is not None
    assert reason in said


def test_the_state_of_a_stage_is_looked_at_too():
    state = tn.PerWorker(samples.Mutable().method)
    assert "it is a method of" in why_not(stages_of(samples.with_name, state=state))


def test_a_function_that_can_not_be_pickled_may_not_move():
    module = os  # a module in a cell travels; a generator does not
    generator = (n for n in ())
    assert why_not(stages_of(closing_over(module))) is None
    assert "closes over 'value', a generator" in why_not(stages_of(closing_over(generator)))


# Whatever is put together, and whoever dies.


@given(
    count=st.integers(0, 300),
    kinds=st.lists(
        st.sampled_from(["map", "filter", "flat_map", "map_batches"]), min_size=1, max_size=3
    ),
    retry=st.booleans(),
    kills=st.booleans(),
    patience=st.integers(0, 40),
)
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
def test_moving_loses_nothing(sure, tmp_path_factory, count, kinds, retry, kills, patience):
    folder = str(tmp_path_factory.mktemp("deaths"))
    with open(os.path.join(folder, "parent"), "w") as file:
        file.write(str(os.getpid()))
    expected = list(range(count))
    pipeline = tn.Pipeline(range(count), on_error="skip")
    options = {"on": "auto", **({"retry": tn.Retry(2, delay=0.001)} if retry else {})}
    for n, kind in enumerate(kinds):
        if kind == "map" and kills:
            pipeline = pipeline.map(
                functools.partial(samples.dies_once, folder), name=f"s{n}", **options
            )
        elif kind == "map":
            pipeline = pipeline.map(samples.computes, name=f"s{n}", **options)
        elif kind == "filter":
            pipeline = pipeline.filter(odd_or_small, name=f"s{n}", **options)
            expected = [value for value in expected if odd_or_small(value)]
        elif kind == "flat_map":
            pipeline = pipeline.flat_map(twice, name=f"s{n}", **options)
            expected = [value for value in expected for _ in range(2)]
        else:
            pipeline = pipeline.map_batches(passes, size=4, name=f"s{n}", **options)
    values = pipeline.collect()
    assert Counter(values) == Counter(expected)


def odd_or_small(value):
    return value % 2 == 1 or value < 10


def twice(value):
    yield value
    yield value


def passes(values):
    return values
