from __future__ import annotations

import threading

import pytest

from tournant.errors import TournantError
from tournant.pool import slots
from tournant.pool.slots import Slots


class Run:
    def __init__(self, name):
        self.name = name
        self.told = 0

    def slot_freed(self):
        self.told += 1


def test_a_run_alone_takes_every_slot():
    pool, run = Slots(3), Run("a")
    assert [pool.acquire(run) for _ in range(4)] == [True, True, True, False]


def test_a_slot_that_comes_free_is_kept_for_who_waits():
    pool, first, second = Slots(1), Run("a"), Run("b")
    assert pool.acquire(first)
    assert not pool.acquire(second)
    pool.release(first)
    assert second.told == 1
    # However quick the first is, it is not its turn.
    assert not pool.acquire(first)
    assert pool.acquire(second)
    pool.release(second)
    assert pool.acquire(first)


def test_who_holds_fewest_comes_first():
    pool = Slots(3)
    rich, poor = Run("rich"), Run("poor")
    assert all(pool.acquire(rich) for _ in range(3))
    assert not pool.acquire(rich)
    assert not pool.acquire(poor)
    pool.release(rich)
    assert (rich.told, poor.told) == (0, 1)


def test_who_gives_up_or_ends_passes_on_what_was_kept():
    for leave in (Slots.give_up, Slots.forget):
        pool = Slots(1)
        a, b, c = Run("a"), Run("b"), Run("c")
        assert pool.acquire(a)
        assert not pool.acquire(b)
        assert not pool.acquire(c)
        pool.release(a)
        assert (b.told, c.told) == (1, 0)
        leave(pool, b)
        assert c.told == 1
        assert pool.acquire(c)


def test_forgetting_a_run_frees_what_it_held():
    pool, a, b = Slots(2), Run("a"), Run("b")
    assert pool.acquire(a)
    assert pool.acquire(a)
    assert not pool.acquire(b)
    pool.forget(a)
    assert pool.acquire(b)
    assert pool.acquire(b)
    assert not pool.acquire(b)


def test_slots_are_conserved_under_threads():
    pool = Slots(2)
    inside, most, lock = [0], [0], threading.Lock()

    class Waiting(Run):
        def __init__(self, name):
            super().__init__(name)
            self.free = threading.Event()

        def slot_freed(self):
            self.free.set()

    def work(run):
        for _ in range(300):
            while not pool.acquire(run):
                assert run.free.wait(20)
                run.free.clear()
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            with lock:
                inside[0] -= 1
            pool.release(run)
        pool.forget(run)

    threads = [threading.Thread(target=work, args=(Waiting(str(n)),)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert most[0] <= 2
    last = Run("last")
    assert [pool.acquire(last) for _ in range(3)] == [True, True, False]


def test_the_number_of_cores_can_be_said(monkeypatch):
    monkeypatch.setenv("TOURNANT_CORES", "7")
    assert slots.cores() == 7
    for wrong in ("0", "-1", "many", ""):
        monkeypatch.setenv("TOURNANT_CORES", wrong)
        with pytest.raises(TournantError, match="TOURNANT_CORES"):
            slots.cores()
    monkeypatch.delenv("TOURNANT_CORES")
    assert slots.cores() >= 1


@pytest.mark.parametrize(
    ("files", "line", "quota"),
    [
        ({"a/cpu.max": "150000 100000"}, "0::/a", 1.5),
        ({"a/cpu.max": "max 100000"}, "0::/a", None),
        ({"cpu.max": "100000 100000", "a/b/cpu.max": "400000 100000"}, "0::/a/b", 1.0),
        (
            {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/a",
            0.5,
        ),
        ({"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, "4:cpu:/a", None),
        ({}, "7:memory:/a", None),
    ],
)
def test_a_cgroups_quota_counts(tmp_path, files, line, quota):
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    own = tmp_path / "cgroup"
    own.write_text(line + "\n")
    assert slots._cgroup_quota(tmp_path / "root", own) == quota
