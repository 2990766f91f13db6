"""The worker's side of the conversation, spoken with directly."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import core_samples as samples
from tournant.pool import wire
from tournant.pool.steps import Failed


class Parent:
    def __init__(self):
        requests, self.requests = os.pipe()
        self.results, results = os.pipe()
        environ = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tournant.pool.worker", str(requests), str(results)],
            pass_fds=(requests, results),
            env=environ,
        )
        os.close(requests)
        os.close(results)
        self.reader = wire.Reader(self.results)

    def say(self, *message):
        wire.write(self.requests, wire.dump(message))

    def hear(self):
        return self.reader.read()

    def define(self, number, steps):
        self.say("define", number, b"".join(wire.dump_in_band(steps)), None)

    def close(self):
        for fd in (self.requests, self.results):
            try:
                os.close(fd)
            except OSError:
                pass
        return self.process.wait(20)


@pytest.fixture
def parent():
    parent = Parent()
    yield parent
    parent.close()


def test_a_worker_runs_chunks_of_what_was_defined(parent):
    parent.define(1, [("map", samples.inc, None)])
    parent.say("run", 1, [1, 2], 0, False, False)
    what, part = parent.hear()
    assert (what, part.values, part.last) == ("part", [2, 3], True)
    parent.say("run", 1, [], 0, False, True)
    assert parent.hear() == ("began", None)
    assert parent.hear()[1].values == []


def test_values_that_cant_be_loaded_fail_the_chunk_and_not_the_worker(parent):
    parent.define(1, [("map", samples.same, None)])
    parent.say("run", 1, [samples.Stubborn()], 0, False, False)
    what, error = parent.hear()
    assert (what, str(error)) == ("failed", "this one does not unpickle")
    parent.say("run", 1, ["fine"], 0, False, False)
    assert parent.hear()[1].values == ["fine"]


def test_a_definition_that_cant_be_loaded_is_told_with_the_chunk(parent):
    parent.say("define", 1, b"no pickle", None)
    parent.say("run", 1, [1], 0, False, False)
    what, error = parent.hear()
    assert what == "failed"
    assert any("imported the stage's callable" in note for note in error.__notes__)


def test_forgetting_is_answered_when_asked_for(parent):
    parent.define(1, [("map", samples.inc, None)])
    parent.say("forget", 1, True)
    assert parent.hear() == ("forgot", None)


def test_an_error_carries_its_traceback_and_no_result_hides_it(parent):
    parent.define(1, [("map", samples.fail_on_odd, None)])
    parent.say("run", 1, [0, 1, 2], 0, False, False)
    _, part = parent.hear()
    assert [type(v) for v in part.values] == [int, Failed, int]
    assert any("fail_on_odd" in note for note in part.values[1].error.__notes__)


def test_a_worker_ends_when_nobody_has_work_for_it_any_more(parent):
    parent.define(1, [("map", samples.inc, None)])
    assert parent.close() == 0


def test_importing_the_worker_imports_nothing_heavy():
    """It stands between the start of a process and its first item."""
    program = (
        "import sys; import tournant.pool.worker; "
        "heavy = {'asyncio', 'logging', 'subprocess', 'cloudpickle', 'numpy', 'sqlite3', 'inspect', 'concurrent.futures'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert out.stdout.strip() == "[]"
