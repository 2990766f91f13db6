from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trace_samples import ingest

from tournant.observe.chart import draw
from tournant.observe.recording import Counter, Lane, Mark, Recording, Slice, Stage

ESCAPE = re.compile("\x1b\\[[0-9;]*m")
STAGES = (Stage("parse", "processes"), Stage("embed", "processes"), Stage("ask", "loop"))


def rows(text: str) -> dict[str, tuple[str, str]]:
    """The cells and what stands to their right, by the row's name."""
    found = {}
    for line in text.splitlines():
        name, bar, rest = line.partition("│")
        if bar:
            cells, _, right = rest.rpartition("│")
            found[name.strip()] = (cells, right.strip())
    return found


def lane(*slices: Slice, kind: str = "process", **more: object) -> Recording:
    return Recording(
        duration=8.0, cores=2, stages=STAGES, lanes=(Lane(kind, "lane"),), slices=slices, **more
    )  # type: ignore[arg-type]


def test_a_lane_is_as_high_as_it_was_busy() -> None:
    cells, right = rows(draw(lane(Slice(0, 0, 2.0, 4.0), Slice(0, 0, 6.0, 7.0))))["lane"]
    n = len(cells)
    assert n == 80 - 5 - 8 - 3
    assert cells == " " * (n // 4) + "█" * (n // 4) + " " * (n // 4) + "█" * (n // 8) + " " * (n // 8)  # fmt: skip
    assert right == "38%"


def test_a_column_that_is_half_full_is_half_high() -> None:
    slices = [Slice(0, 0, n / 32, n / 32 + 1 / 64) for n in range(256)]
    cells, right = rows(draw(lane(*slices)))["lane"]
    assert set(cells) == {"▄"}
    assert right == "50%"
    assert set(rows(draw(lane(Slice(0, 0, 0.0, 0.003))))["lane"][0].strip()) == {"▁"}


def test_the_loop_is_as_high_as_calls_ran_at_once() -> None:
    recording = lane(Slice(0, 2, 0.0, 8.0), Slice(0, 2, 4.0, 8.0), kind="loop")
    cells, right = rows(draw(recording))["lane"]
    assert cells == "▄" * (len(cells) // 2) + "█" * (len(cells) // 2)
    assert right == "max 2"


def test_a_lane_of_several_stages_shows_their_letters() -> None:
    slices = [Slice(0, 0, 0.0, 4.0)] + [Slice(0, 1, 4 + n / 8, 4 + n / 8 + 0.04) for n in range(32)]
    text = draw(lane(*slices))
    cells, _ = rows(text)["lane"]
    assert cells == "P" * (len(cells) // 2) + "e" * (len(cells) // 2)
    longer = [slices[0], *(one._replace(ended=one.ended + 0.04) for one in slices[1:])]
    assert rows(draw(lane(*longer)))["lane"][0][-9:] == "E" * 9
    assert "stages: p parse, e embed, a ask, capital where" in " ".join(text.split())


def test_lanes_of_one_stage_have_letters_as_well_where_another_has_another() -> None:
    recording = dataclasses.replace(
        lane(Slice(0, 0, 0.0, 8.0), Slice(1, 1, 0.0, 8.0)),
        lanes=(Lane("thread", "one"), Lane("thread", "two")),
    )
    found = rows(draw(recording))
    assert (set(found["one"][0]), set(found["two"][0])) == ({"P"}, {"E"})


def test_colour_tells_the_stages_apart() -> None:
    recording = lane(Slice(0, 0, 0.0, 4.0), Slice(0, 1, 4.0, 8.0))
    text = draw(recording, color=True)
    assert re.search("\x1b\\[36m█+\x1b\\[33m█+\x1b\\[0m│", text)
    assert "\x1b[36mp\x1b[0m parse" in text
    assert "\x1b" not in draw(recording)
    assert all(len(ESCAPE.sub("", line)) <= 80 for line in text.splitlines())


def test_the_axis_has_round_times() -> None:
    def axis(seconds: float, width: int = 80) -> list[str]:
        text = draw(dataclasses.replace(lane(Slice(0, 0, 0.0, seconds)), duration=seconds), width)
        line = next(line for line in text.splitlines() if line.strip().startswith("|"))
        assert len(line) <= width
        return re.findall(r"\|(\S+(?: [a-z]+)?)", line)

    assert axis(8.0) == ["0 s", "2", "4", "6"]
    assert axis(0.05)[:3] == ["0 ms", "10", "20"]
    assert axis(3_600.0) == ["0 min", "20", "40"]
    assert axis(8.0, 140)[:3] == ["0 s", "1", "2"]


def test_each_time_stands_at_its_place() -> None:
    lines = draw(lane(Slice(0, 0, 4.0, 8.0))).splitlines()
    bar = lines[0].index("█")
    assert abs(lines[1].index("|4") - bar) <= 1


def test_counters_are_sparklines_below_the_lanes() -> None:
    counters = (
        Counter("queue: parse", "items", ((0.0, 0.0), (4.0, 20.0), (6.0, 10.0))),
        Counter("cores", "cores", ((0.0, 1.0),)),
        Counter("limit: ask", "calls", ((0.0, float("inf")), (4.0, 8.0))),
        Counter("empty", "", ()),
    )
    found = rows(draw(lane(Slice(0, 0, 0.0, 8.0), counters=counters)))
    cells, right = found["queue: parse"]
    quarter = len(cells) // 4
    assert re.fullmatch(f" {{{2 * quarter}}}▄?█{{{quarter - 1},{quarter}}}▇?▄+", cells)
    assert right == "max 20"
    # Of two cores one is half.
    assert set(found["cores"][0]) == {"▄"}
    assert found["limit: ask"][1] == "max 8"
    assert "empty" not in found


def test_marks_stand_where_they_happened_and_the_worst_is_seen() -> None:
    marks = (
        Mark("blocked", 4.0, "blocked", lasted=0.1),
        Mark("gc", 4.0, "collected"),
        Mark("gc", 6.0, "collected"),
        Mark("blocked", 6.0, "blocked", lasted=0.1),
        Mark("strange", 99.0, ""),
    )
    text = draw(lane(Slice(0, 0, 0.0, 8.0), marks=marks))
    cells, _ = rows(text)["marks"]
    assert [n for n, cell in enumerate(cells) if cell == "!"] == [
        len(cells) // 2,
        len(cells) * 3 // 4,
    ]
    assert cells[-1] == "n"
    assert text.splitlines()[-1] == "marks: ! blocked, g gc, n strange"


def test_groups_have_headings() -> None:
    recording = dataclasses.replace(
        lane(Slice(0, 0, 0.0, 8.0)),
        lanes=(Lane("task", "cook", 0, "threads"), Lane("task", "cook", 0, "loop")),
    )
    assert [line[:8] for line in draw(recording).splitlines()[:4:2]] == ["threads:", "loop:"]


@pytest.mark.parametrize("width", [None, 10, 40, 80, 200])
def test_it_fits_the_width(width: int | None) -> None:
    for color in (False, True):
        for line in ESCAPE.sub("", draw(ingest(900), width, color)).splitlines():
            assert len(line) <= max(40, width or 80) or line.strip().startswith("capital")


def test_plain_ascii_where_the_terminal_can_do_no_more() -> None:
    recording = dataclasses.replace(
        ingest(900), lanes=tuple(Lane(kind, "été \x1b[2J 世界") for kind, *_ in ingest().lanes)
    )
    text = draw(recording, ascii=True)
    assert text.isascii()
    assert "\x1b" not in text
    assert "|" in text.splitlines()[0]
    # As it is otherwise, wide characters take two columns, and nothing that a terminal would obey gets through.
    text = draw(recording)
    assert text.splitlines()[0].startswith("été ?[2J 世界 │")


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw(Recording()) == "nothing was recorded"
    assert draw(Recording(duration=3.0)) == "nothing was recorded"


times = st.floats(-1.0, 9.0)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.builds(Slice, st.integers(0, 1), st.integers(-1, 2), times, times), max_size=12),
    st.integers(1, 120),
    st.booleans(),
)
def test_anything_can_be_drawn(slices: list[Slice], width: int, color: bool) -> None:
    lanes = (Lane("loop", "a"), Lane("thread", "b"))
    recording = dataclasses.replace(lane(*slices), lanes=lanes)
    lines = ESCAPE.sub("", draw(recording, width, color)).splitlines()
    assert len(lines[0].rstrip()) <= max(40, width)
    assert len(lines) >= 3
