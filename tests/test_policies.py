from __future__ import annotations

import pytest

import tournant as tn
from tournant.engine.failures import backoff
from tournant.errors import InvalidPipeline
from tournant.limits import RateLimit
from tournant.policies import asked_to_wait


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"attempts": 1.5},
        {"attempts": True},
        {"delay": -1},
        {"delay": "1"},
        {"delay": float("nan")},
        {"max_delay": -0.1},
        {"factor": 0.5},
        {"on": 5},
        {"on": int},
        {"on": (ValueError, 5)},
        {"on": "ValueError"},
    ],
)
def test_a_retry_that_cant_work_is_refused(options):
    with pytest.raises(InvalidPipeline) as caught:
        tn.Retry(**options)
    assert str(caught.value).startswith(f"Retry({next(iter(options))}=")
    assert "give" in str(caught.value)


def test_the_wait_grows_exponentially_up_to_its_bound_with_full_jitter():
    retry = tn.Retry(9, delay=0.5, factor=3, max_delay=10)
    assert [retry.wait(n, lambda: 1.0) for n in (1, 2, 3, 4)] == [0.5, 1.5, 4.5, 10]
    assert retry.wait(3, lambda: 0.25) == 1.125
    assert retry.wait(3, lambda: 0.0) == 0
    assert tn.Retry(delay=1, factor=10).wait(10_000, lambda: 1.0) == 30
    assert tn.Retry(delay=0).wait(5, lambda: 1.0) == 0
    assert 0 <= retry.wait(1) <= 0.5


def test_attempts_count_the_first():
    retry = tn.Retry(3)
    assert [retry.wants(ValueError(), n) for n in (1, 2, 3)] == [True, True, False]
    assert not tn.Retry(1).wants(ValueError(), 1)


def test_only_what_matches_is_tried_again():
    assert tn.Retry(on=OSError).wants(ConnectionError(), 1)
    assert not tn.Retry(on=OSError).wants(ValueError(), 1)
    assert tn.Retry(on=(OSError, ValueError)).wants(ValueError(), 1)
    assert tn.Retry(on=lambda e: "429" in str(e)).wants(RuntimeError("429"), 1)
    assert not tn.Retry(on=lambda e: "429" in str(e)).wants(RuntimeError("500"), 1)
    assert not tn.Retry().wants(KeyboardInterrupt(), 1)


class Transient(Exception):
    transient = True


class Hopeless(Exception):
    transient = False


class HopelessInPart(OSError):
    def __init__(self, transient):
        super().__init__(transient)
        self.transient = transient


@pytest.mark.parametrize(
    ("on", "error", "again"),
    [
        (Exception, Transient(), True),
        (Exception, Hopeless(), False),
        (Exception, HopelessInPart(False), False),
        (Exception, HopelessInPart(True), True),
        ((OSError, ValueError), HopelessInPart(False), False),
        (Hopeless, Hopeless(), True),
        ((ValueError, Hopeless), Hopeless(), True),
        ((ValueError, Hopeless), HopelessInPart(False), False),
        (lambda error: True, Hopeless(), True),
        (lambda error: False, Transient(), False),
    ],
)
def test_an_error_that_says_that_it_is_not_transient_ends_the_attempts(on, error, again):
    assert tn.Retry(on=on).wants(error, 1) is again


class Response:
    headers = {"Retry-After": "7"}


def with_attributes(**attributes):
    error = OSError("busy")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (OSError("busy"), 0),
        (with_attributes(retry_after=2.5), 2.5),
        (with_attributes(retry_after=0), 0),
        (with_attributes(retry_after=None), 0),
        (with_attributes(retry_after=-1), 0),
        (with_attributes(retry_after=float("nan")), 0),
        (with_attributes(retry_after=float("inf")), 0),
        (with_attributes(retry_after="soon"), 0),
        (with_attributes(response=Response()), 7),
    ],
)
def test_an_error_may_say_when_to_come_back(error, seconds):
    assert asked_to_wait(error) == seconds


def test_without_a_limit_the_backoff_comes_on_top_and_with_one_it_passes_meanwhile():
    error = with_attributes(retry_after=40)
    retry = tn.Retry(delay=1, factor=1)
    limit = RateLimit(requests="1/s")

    async def ask(item):
        return item

    (free,) = tn.Pipeline([]).map(ask, retry=retry).stages
    (limited,) = tn.Pipeline([]).map(ask, retry=retry, limit=limit).stages
    waits = [backoff(free, error, 1) for _ in range(100)]
    assert 40 <= min(waits) < max(waits) <= 41
    assert backoff(limited, error, 1) == 40
    assert 0 <= backoff(limited, OSError(), 1) <= 1


def test_state_that_cant_be_built_or_closed_is_refused():
    for wrong in (5, None, "model"):
        with pytest.raises(InvalidPipeline, match="callable that builds the state"):
            tn.PerWorker(wrong)
    with pytest.raises(InvalidPipeline, match="close=5"):
        tn.PerWorker(dict, close=5)


def test_policies_are_frozen():
    with pytest.raises(AttributeError):
        tn.Retry().attempts = 5
    with pytest.raises(AttributeError):
        tn.PerWorker(dict).factory = list
