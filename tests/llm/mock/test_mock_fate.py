"""What becomes of a call depends on the seed, its body and how often that body came: on nothing else."""

from __future__ import annotations

from collections import Counter
from statistics import median

import pytest

from tournant.llm.mock import MockSettings
from tournant.llm.mock.fate import Fate, Lottery, digest_of

MIXED = MockSettings(
    latency="lognormal:0.5,0.4",
    token_interval="uniform:0.01,0.03",
    error_rate=0.1,
    overload_rate=0.05,
    hang_rate=0.02,
    garbage_rate=0.03,
    half_rate=0.04,
    reset_rate=0.06,
    cut_rate=0.2,
    stream_error_rate=0.1,
    seed=7,
)
BODIES = [digest_of(b"body %d" % n) for n in range(20_000)]


def test_the_same_seed_draws_the_same_in_any_order():
    forwards = {body: Lottery(MIXED).draw(body, 0, streamed=True) for body in BODIES[:500]}
    again = Lottery(MIXED)
    backwards = {body: again.draw(body, 0, streamed=True) for body in reversed(BODIES[:500])}
    assert forwards == backwards


def test_it_is_the_same_in_every_process():
    lot = Lottery(MIXED).draw(digest_of(b"a body"), 3, streamed=False)
    assert (lot.fate, round(lot.latency, 6), round(lot.interval, 6)) == PINNED


PINNED = (Fate.ANSWERED, 0.270404, 0.028503)


@pytest.mark.parametrize("other", ["seed", "body", "attempt"])
def test_another_seed_body_or_attempt_draws_anew(other):
    lottery = Lottery(MIXED.changed({"seed": 8}) if other == "seed" else MIXED)
    before = [Lottery(MIXED).draw(body, 0, streamed=False) for body in BODIES[:100]]
    bodies = BODIES[100:200] if other == "body" else BODIES[:100]
    after = [lottery.draw(body, int(other == "attempt"), streamed=False) for body in bodies]
    assert not {lot.latency for lot in before} & {lot.latency for lot in after}
    assert [lot.fate for lot in before] != [lot.fate for lot in after]


def test_shares_are_what_was_asked_for():
    lottery = Lottery(MIXED)
    seen = Counter(lottery.draw(body, 0, streamed=False).fate for body in BODIES)
    wanted = {
        Fate.ERROR: 0.1, Fate.OVERLOAD: 0.05, Fate.HANG: 0.02, Fate.GARBAGE: 0.03, Fate.HALF: 0.04, Fate.RESET: 0.06,
        Fate.ANSWERED: 0.7,
    }  # fmt: skip
    assert set(seen) == set(wanted)
    for fate, share in wanted.items():
        assert seen[fate] / len(BODIES) == pytest.approx(share, abs=0.01)


def test_streams_have_further_fates():
    lottery = Lottery(MIXED)
    seen = Counter(lottery.draw(body, 0, streamed=True).fate for body in BODIES)
    for fate, share in {
        Fate.CUT: 0.07,
        Fate.CUT_HARD: 0.07,
        Fate.STREAM_ERROR: 0.07,
        Fate.ANSWERED: 0.49,
    }.items():
        assert seen[fate] / len(BODIES) == pytest.approx(share, abs=0.01)


def test_a_changed_share_moves_the_fate_of_few():
    """What is changed while it runs is the share, and not the latency of everybody."""
    before, after = Lottery(MIXED), Lottery(MIXED.changed({"reset_rate": 0.16}))
    pairs = [
        (before.draw(body, 0, streamed=False), after.draw(body, 0, streamed=False))
        for body in BODIES[:5_000]
    ]
    assert all(one.latency == other.latency for one, other in pairs)
    moved = sum(one.fate is not other.fate for one, other in pairs)
    assert moved / len(pairs) == pytest.approx(0.1, abs=0.02)


def test_latencies_follow_their_distribution():
    drawn = [Lottery(MIXED).draw(body, 0, streamed=False) for body in BODIES[:4_000]]
    assert median(lot.latency for lot in drawn) == pytest.approx(0.5, rel=0.05)
    assert all(0.01 <= lot.interval <= 0.03 for lot in drawn)


def test_certain_things_are_certain():
    always = Lottery(MockSettings(error_rate=1))
    assert {always.draw(body, 0, streamed=False).fate for body in BODIES[:2_000]} == {Fate.ERROR}
    never = Lottery(MockSettings(latency=0.5))
    assert {never.draw(body, 0, streamed=True).fate for body in BODIES[:2_000]} == {Fate.ANSWERED}
    assert never.draw(BODIES[0], 0, streamed=False).latency == 0.5
