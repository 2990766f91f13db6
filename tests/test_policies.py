from __future__ import annotations

import pytest

import tournant as tn
from tournant.errors import InvalidPipeline


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
