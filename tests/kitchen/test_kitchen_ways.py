"""One run of every work in every way, with small waits and small pictures, looked at from all sides."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tournant.errors import TournantError
from tournant.kitchen import WAYS, WORKS, Cooked, Kitchen, KitchenError, ServersFailed, WrongDish
from tournant.kitchen import ways as kitchen_ways
from tournant.kitchen.pictures import convolve, photograph, png
from tournant.kitchen.servers import stocked
from tournant.pool.slots import cores

ORDERS, SIDE = 4, 40
TASKS = {
    "waiting": ["query", "upload"],
    "thinking": ["blur"],
    "native": ["compress"],
    "meal": ["query", "blur", "compress", "upload"],
}
Menu = dict[tuple[str, str], Cooked]


@pytest.fixture(scope="module")
def kitchen() -> Iterator[Kitchen]:
    with Kitchen(ORDERS, waits=0.5, side=SIDE) as kitchen:
        yield kitchen


@pytest.fixture(scope="module")
def menu(kitchen: Kitchen) -> Menu:
    return {(work, cooked.way): cooked for work in WORKS for cooked in kitchen.compare(work)}


def test_every_work_is_cooked_in_every_way(menu: Menu) -> None:
    assert list(menu) == [(work, way) for work in TASKS for way in WAYS]


def test_every_order_gets_every_task_once_and_in_order(menu: Menu) -> None:
    for (work, _), cooked in menu.items():
        assert [plate.order for plate in cooked.plates] == [1, 2, 3, 4]
        for plate in cooked.plates:
            assert [step.name for step in plate.steps] == TASKS[work]
            assert all(step.order == plate.order for step in plate.steps)
            ends = [time for step in plate.steps for time in (step.began, step.ended)]
            assert ends == sorted(ends)


def test_all_ways_come_to_the_same_dishes(menu: Menu) -> None:
    for work in TASKS:
        results = {tuple(plate.result for plate in menu[work, way].plates) for way in WAYS}
        assert len(results) == 1, work


def test_the_dishes_are_real(menu: Menu) -> None:
    database = stocked()
    for plate in menu["meal", "hybrid"].plates:
        assert (
            list(plate.rows)
            == database.execute(
                "SELECT name, number, price FROM wanted JOIN menu ON id = dish WHERE guest = ? ORDER BY 1",
                [plate.order],
            ).fetchall()
        )
        assert len(plate.rows) >= 2
        assert plate.png == png(plate.image, SIDE)
        assert plate.digest == hashlib.sha256(plate.png).hexdigest()
    photographs = {plate.image for plate in menu["meal", "hybrid"].plates}
    assert len(photographs) == ORDERS, "every order has a picture of its own"


def test_one_cook_does_one_thing_at_a_time(menu: Menu) -> None:
    for work in TASKS:
        cooked = menu[work, "synchronous"]
        assert (cooked.at_once, cooked.processes, len(cooked.threads)) == (1, (os.getpid(),), 1)
        assert cooked.tasks == ()


def test_tasks_wait_at_once_on_one_thread(menu: Menu) -> None:
    cooked = menu["waiting", "concurrent"]
    assert cooked.at_once == ORDERS
    assert cooked.tasks == ("order 1", "order 2", "order 3", "order 4")
    assert (cooked.processes, len(cooked.threads)) == ((os.getpid(),), 1)


@pytest.mark.parametrize("work", ["thinking", "native"])
def test_tasks_never_think_at_once(menu: Menu, work: str) -> None:
    cooked = menu[work, "concurrent"]
    assert cooked.at_once == 1
    assert len(cooked.tasks) == ORDERS


def test_threads_are_many_in_one_process(menu: Menu) -> None:
    cooked = menu["waiting", "threads"]
    # As many as there are orders, but for a machine that stands still between two starts.
    assert 1 < cooked.at_once <= len(cooked.threads) <= ORDERS
    assert cooked.processes == (os.getpid(),)
    assert cooked.tasks == ()


def test_processes_are_no_more_than_the_cores_and_do_one_thing_each(menu: Menu) -> None:
    for work in TASKS:
        cooked = menu[work, "processes"]
        assert os.getpid() not in cooked.processes
        assert 1 <= len(cooked.processes) == len(cooked.threads) <= cores()
        assert cooked.at_once <= cores()


def test_the_pipeline_runs_each_task_where_it_belongs(menu: Menu) -> None:
    mine = os.getpid()
    for plate in menu["meal", "hybrid"].plates:
        query, blur, compress, upload = plate.steps
        assert query.pid == upload.pid == compress.pid == mine != blur.pid
        assert query.task
        assert upload.task
        assert not blur.task
        assert not compress.task
        assert query.thread_id == upload.thread_id != compress.thread_id


def test_only_the_way_that_needs_processes_first_waits_for_them(menu: Menu) -> None:
    assert menu["waiting", "processes"].hiring > 0
    assert menu["meal", "processes"].hiring == 0
    assert menu["waiting", "threads"].hiring == 0


def test_the_stopwatch_holds_all_steps(menu: Menu) -> None:
    for cooked in menu.values():
        steps = cooked.steps
        assert cooked.began <= steps[0].began
        assert max(step.ended for step in steps) <= cooked.began + cooked.seconds
        assert cooked.alone == menu[cooked.work, "synchronous"].seconds
    assert menu["meal", "synchronous"].speedup == 1.0


def test_computing_in_other_processes_is_counted(menu: Menu) -> None:
    cooked = menu["thinking", "processes"]
    assert cooked.cpu >= sum(step.cpu for step in cooked.steps) > 0
    assert menu["waiting", "synchronous"].busy_cores < 0.9


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not say")
def test_the_cores_are_named(menu: Menu) -> None:
    for cooked in menu.values():
        assert cooked.seen_cores
        assert set(cooked.seen_cores) <= set(os.sched_getaffinity(0))


def test_the_recording_shows_every_step_in_its_lane(menu: Menu) -> None:
    for (work, way), cooked in menu.items():
        recording = cooked.recording()
        assert recording.title == f"{work}, {way}"
        assert [stage.name for stage in recording.stages] == TASKS[work]
        assert len(recording.slices) == len(cooked.steps) == ORDERS * len(TASKS[work])
        assert set(recording.inputs) == {1, 2, 3, 4}
        assert [one.began for one in recording.slices] == sorted(
            one.began for one in recording.slices
        )
        for number, lane in enumerate(recording.lanes):
            slices = [one for one in recording.slices if one.lane == number]
            assert slices, lane
            assert all(0 <= one.began <= one.ended <= recording.duration for one in slices)
            if lane.kind != "loop":
                pairs = itertools.pairwise(slices)
                assert all(one.ended <= other.began for one, other in pairs), lane


def test_the_lanes_have_the_names_of_who_works_there(menu: Menu) -> None:
    def lanes(work: str, way: str) -> list[str]:
        return [lane.name for lane in menu[work, way].recording().lanes]

    assert lanes("meal", "synchronous") == ["main thread"]
    assert lanes("meal", "concurrent") == [f"task order {n}" for n in range(1, 5)]
    threads = len(menu["waiting", "threads"].threads)
    assert lanes("waiting", "threads") == [f"thread {n}" for n in range(1, threads + 1)]
    assert set(lanes("waiting", "processes")) <= {f"process {n}" for n in range(1, cores() + 1)}
    found = lanes("meal", "hybrid")
    assert {"loop: query", "loop: upload", "process 1", "thread 1"} <= set(found)
    assert all(lane.split()[0] in ("loop:", "process", "thread") for lane in found)
    assert {"process 1"} <= set(lanes("thinking", "hybrid")) <= {
        "process 1",
        "process 2",
    } or cores() > 2


def test_a_dish_that_differs_is_an_error(
    kitchen: Kitchen, menu: Menu, monkeypatch: pytest.MonkeyPatch
) -> None:
    cook = kitchen_ways.threads

    def spoil(*args: object) -> object:
        plates = cook(*args)  # type: ignore[arg-type]
        object.__setattr__(plates[2], "image", b"burnt")
        return plates

    monkeypatch.setattr(kitchen_ways, "threads", spoil)
    with pytest.raises(WrongDish, match="order 3 has another image when cooked threads"):
        kitchen.cook("thinking", "threads")


def test_a_dish_that_is_missing_is_an_error(
    kitchen: Kitchen, menu: Menu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kitchen_ways, "hybrid", lambda work, plates: list(plates)[:2])
    with pytest.raises(WrongDish, match="2 dishes for 4 orders"):
        kitchen.cook("native", "hybrid")


def test_an_upload_that_arrives_changed_is_an_error(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tournant.kitchen.tasks.sent_digest", lambda plate: "another")
    with pytest.raises(WrongDish, match="upload of order 1 arrived changed"):
        kitchen.cook("waiting", "concurrent")


@pytest.mark.parametrize(("work", "way"), [("washing up", "threads"), ("meal", "magic")])
def test_what_is_not_on_the_menu_is_refused(kitchen: Kitchen, work: str, way: str) -> None:
    with pytest.raises(KitchenError, match="choose from"):
        kitchen.cook(work, way)


@pytest.mark.parametrize(
    ("orders", "options"),
    [(0, {}), (101, {}), (1, {"waits": -1.0}), (1, {"waits": float("nan")}), (1, {"side": 2})],
)
def test_a_kitchen_that_cannot_be_is_refused(orders: int, options: dict[str, float]) -> None:
    with pytest.raises(KitchenError, match="give a number") as caught:
        Kitchen(orders, **options)  # type: ignore[arg-type]
    assert isinstance(caught.value, TournantError)


def test_servers_that_died_are_named() -> None:
    with Kitchen(1, waits=0, side=3) as kitchen:
        os.kill(kitchen._servers.pid, 9)
        kitchen._servers._process.wait()
        with pytest.raises(ServersFailed, match="has ended"):
            kitchen.cook("waiting", "synchronous")
        with pytest.raises(ServersFailed, match="has ended"):
            kitchen.cook("waiting", "hybrid")


def test_nothing_is_left_behind(nothing_left: None) -> None:
    with Kitchen(2, waits=0.1, side=8) as kitchen:
        pid = kitchen._servers.pid
        for work in ("waiting", "thinking"):
            list(kitchen.compare(work))
    assert not Path(f"/proc/{pid}").exists()


def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    """The processes' interpreters must not run the script that started them again."""
    script = tmp_path / "script.py"
    script.write_text(
        "from tournant.kitchen import Kitchen\n"
        "print('once')\n"
        "with Kitchen(2, waits=0.1, side=8) as kitchen:\n"
        "    print(len(kitchen.cook('thinking', 'processes').plates))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("once\n2\n", "")


# The pictures.


def test_the_convolution_is_the_weighted_mean_of_the_neighbours() -> None:
    image = bytes([0, 0, 0, 0, 0, 160, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    assert list(convolve(image, 4)) == [0, 0, 0, 0, 0, 40, 20, 0, 0, 20, 10, 0, 0, 0, 0, 0]
    kernel = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    pixels = bytes(range(9))
    assert convolve(pixels, 3, kernel)[4] == sum(map(int.__mul__, kernel, pixels)) // 45


def test_a_photograph_depends_on_its_seed_alone() -> None:
    assert photograph(1, 20) == photograph(1, 20) != photograph(2, 20)
    assert len(photograph(1, 20)) == 400


def test_the_png_holds_the_picture() -> None:
    image = bytes([10, 20, 30, 40])
    file = png(image, 2)
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    wide, high = (int.from_bytes(file[at : at + 4], "big") for at in (16, 20))
    assert wide == high
    assert wide % 2 == 0
    length = int.from_bytes(file[33:37], "big")
    lines = zlib.decompress(file[41 : 41 + length])
    rows = [lines[at + 1 : at + 1 + wide] for at in range(0, len(lines), wide + 1)]
    half = wide // 2
    assert (
        rows
        == [bytes([10] * half + [20] * half)] * half + [bytes([30] * half + [40] * half)] * half
    )
    assert file.endswith(b"IEND" + zlib.crc32(b"IEND").to_bytes(4, "big"))
