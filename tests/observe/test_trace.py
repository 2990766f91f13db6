from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import re
import sqlite3
import threading
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from perfetto_tool import Perfetto, skip_without
from trace_samples import ingest
from trace_schema import EVENTS, FILE

from tournant.observe import trace, trace_events
from tournant.observe.recording import (
    FAILED,
    Counter,
    InputSpan,
    Lane,
    Mark,
    Recording,
    Slice,
    Stage,
)
from tournant.observe.trace import TraceError, load_trace, save_trace
from tournant.observe.trace_events import numbers, original, plain, ranges


def saved(recording: Recording, path: Path) -> dict[str, Any]:
    """What the file holds, as the strictest of parsers reads it."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    data = save_trace(recording, path).read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("ascii")
    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def of(events: list[dict[str, Any]], phases: str, cat: str = "") -> list[dict[str, Any]]:
    return [one for one in events if one["ph"] in phases and (not cat or one.get("cat") == cat)]


# There and back

texts = st.text(max_size=8) | st.sampled_from(
    ["caf\udce9.txt", "\ud83d", "\U0010f7ff", "\U0010f801\udc00", "a\nb\0", "input", "\ud800\udc00"]
)
times = (
    st.floats(-1.0, 1e5, allow_nan=False)
    | st.floats(-1e12, 1e12)
    | st.integers(0, 2**40).map(lambda nanoseconds: nanoseconds / 1e9)
)


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    lanes = draw(
        st.lists(
            st.builds(
                Lane,
                st.sampled_from(["loop", "thread", "process", "task"]),
                texts,
                st.integers(0, 2**31),
                texts,
            ),
            min_size=1,
            max_size=4,
        )
    )
    stages = draw(st.lists(st.builds(Stage, texts, texts, st.none() | st.floats(0, 1)), max_size=4))
    lane = st.integers(0, len(lanes) - 1)
    slices = st.builds(
        Slice,
        lane,
        st.integers(-1, len(stages) - 1),
        times,
        times,
        st.lists(st.integers(0, 12), max_size=6).map(tuple),
        st.integers(0, 10**6),
        texts,
        st.floats(0, 1e6),
        texts,
    )
    samples = st.lists(st.tuples(times, st.floats(allow_nan=False)), max_size=4).map(tuple)
    return Recording(
        title=draw(texts),
        began=draw(st.floats(0, 2e9)),
        duration=draw(st.floats(0, 1e9)),
        cores=draw(st.integers(1, 256)),
        stages=tuple(stages),
        lanes=tuple(lanes),
        slices=tuple(draw(st.lists(slices, max_size=6))),
        inputs=draw(
            st.dictionaries(
                st.integers(0, 2**40), st.builds(InputSpan, texts, times, times, texts), max_size=6
            )
        ),
        counters=tuple(
            draw(st.lists(st.builds(Counter, texts, texts, samples, texts), max_size=4))
        ),
        marks=tuple(
            draw(
                st.lists(
                    st.builds(
                        Mark,
                        texts,
                        times,
                        texts,
                        lane | st.just(-1),
                        st.just(0.0) | st.floats(0, 9),
                    ),
                    max_size=4,
                )
            )
        ),
        lost=draw(st.integers(0, 10**9)),
        summary=draw(texts),
    )


@given(recordings(), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, recording: Recording, packed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / ("a.json.gz" if packed else "a.json")
    found = saved(recording, path)
    assert load_trace(path) == recording
    jsonschema.validate(found, FILE)


@given(st.text() | texts)
def test_any_text_survives_as_text_that_every_parser_takes(text: str) -> None:
    assert original(plain(text)) == text
    plain(text).encode("utf-8")


@given(st.lists(st.integers(0, 30)).map(tuple))
def test_numbers_are_written_in_short(found: tuple[int, ...]) -> None:
    assert not found or numbers(ranges(found)) == found


def test_runs_of_numbers_take_no_room() -> None:
    assert ranges((*range(1_000), 5, 4)) == "0-999,5,4"


def test_a_run_as_it_is_comes_back_and_the_name_decides_on_packing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(trace, "_whole")  # line by line is enough
    recording = ingest(900)
    plain_file, packed = tmp_path / "a.json", tmp_path / "a.json.gz"
    assert save_trace(recording, plain_file) == plain_file
    recording.save_trace(str(packed))
    assert gzip.decompress(packed.read_bytes()) == plain_file.read_bytes()
    assert load_trace(plain_file) == load_trace(str(packed)) == recording
    # Packed or not is seen, whatever the name.
    os.rename(packed, plain_file)
    assert load_trace(plain_file) == recording


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_trace_is_read_from_a_pipe(tmp_path: Path, name: str) -> None:
    recording = ingest()
    written = save_trace(recording, tmp_path / name).read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(written), daemon=True)
    writer.start()
    assert load_trace(pipe) == recording
    writer.join(30)


def test_a_file_that_another_tool_laid_out_anew_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    found = saved(ingest(), path)
    for layout in ({"indent": 1}, {"separators": (",", ":")}, {"sort_keys": True}):
        path.write_text(json.dumps(found, **layout))  # type: ignore[arg-type]
        assert load_trace(path) == ingest()


def test_a_recording_of_nothing_is_a_trace_too(tmp_path: Path) -> None:
    save_trace(Recording(), tmp_path / "a.json")
    assert load_trace(tmp_path / "a.json") == Recording()


# What viewers find in it


def test_every_event_has_what_the_formats_specification_asks_for(tmp_path: Path) -> None:
    found = saved(ingest(900), tmp_path / "a.json")
    jsonschema.validate(found, FILE)
    checks = {phase: jsonschema.Draft202012Validator(schema) for phase, schema in EVENTS.items()}
    for event in found["traceEvents"]:
        checks[event["ph"]].validate(event)
    assert {event["ph"] for event in found["traceEvents"]} == set("MXbestfiC")


def test_lanes_are_named_threads_in_their_order(tmp_path: Path) -> None:
    lanes = (Lane("thread", "thread 1", 5, "node a"), Lane("process", "process 1", 9, "node b"))
    events = saved(Recording(lanes=lanes), tmp_path / "a.json")["traceEvents"]
    shown = {(one["pid"], one["tid"], one["name"]): one["args"] for one in events}
    assert shown[1, 0, "process_name"] == {"name": "node a"}
    assert shown[2, 0, "process_name"] == {"name": "node b"}
    assert shown[1, 1, "thread_name"] == {"name": "thread 1 (pid 5)"}
    assert shown[2, 2, "thread_name"] == {"name": "process 1 (pid 9)"}
    assert shown[2, 2, "thread_sort_index"] == {"sort_index": 2}


def test_calls_of_workers_are_slices_and_calls_of_the_loop_are_spans(tmp_path: Path) -> None:
    recording = ingest()
    events = saved(recording, tmp_path / "a.json")["traceEvents"]
    slices, spans = of(events, "X", "work"), of(events, "b", "work")
    assert {one["name"] for one in slices} == {"parse", "embed"}
    assert {one["name"] for one in spans} == {"fetch"}
    assert len(slices) + len(spans) == len(recording.slices)
    first = next(one for one in spans if one["args"]["outcome"] == FAILED)
    assert first["args"] == {
        "stage": "fetch", "items": 1, "outcome": "failed", "waited": 0.001, "inputs": "5", "key": "docs/00005.txt",
    }  # fmt: skip
    ends = {one["id2"]["local"]: one["ts"] for one in of(events, "e", "work")}
    assert all(ends[one["id2"]["local"]] > one["ts"] for one in spans)


def test_a_thread_whose_slices_overlap_loses_none_of_them(tmp_path: Path) -> None:
    lanes = (Lane("thread", "a"), Lane("thread", "b"))
    slices = (Slice(0, 0, 0.0, 2.0), Slice(1, 0, 0.0, 1.0), Slice(0, 0, 1.0, 3.0), Slice(1, 0, 1.0, 2.0))  # fmt: skip
    recording = Recording(stages=(Stage("s", "threads"),), lanes=lanes, slices=slices)
    events = saved(recording, tmp_path / "a.json")["traceEvents"]
    assert [one["tid"] for one in of(events, "b", "work")] == [1, 1]
    assert [one["tid"] for one in of(events, "X", "work")] == [2, 2]


def test_arrows_lead_each_input_from_call_to_call(tmp_path: Path) -> None:
    recording = ingest()
    events = saved(recording, tmp_path / "a.json")["traceEvents"]
    calls = defaultdict(list)
    for one in recording.slices:
        for number in one.inputs:
            calls[number].append(one)
    arrows = defaultdict(list)
    for event in of(events, "stf"):
        arrows[event["id"]].append(event)
    assert set(arrows) == {number for number, found in calls.items() if len(found) > 1}
    starts = {(one["tid"], one["ts"]) for one in of(events, "X")}
    for number, found in arrows.items():
        assert [one["ph"] for one in found] == ["s", *["t"] * (len(found) - 2), "f"]
        assert [one["tid"] - 1 for one in found] == [one.lane for one in calls[number]]
        # A viewer binds an arrow to the slice of a thread that is open at its moment.
        assert all((one["tid"], one["ts"]) in starts for one in found)
        assert found[-1]["bp"] == "e"


def test_an_inputs_life_is_a_span_that_shows_what_it_was_in(tmp_path: Path) -> None:
    recording = ingest()
    events = saved(recording, tmp_path / "a.json")["traceEvents"]
    lives = [one for one in of(events, "b", "input") if "input" in one["args"]]
    assert [one["args"]["key"] for one in lives] == [x.key for x in recording.inputs.values()]
    mine = [one for one in of(events, "be", "input") if one["id2"]["local"] == "i0"]
    shape = [(one["ph"], one["name"]) for one in mine]
    assert shape[0] == ("b", "input")
    assert shape[-1] == ("e", "input")
    assert [name for phase, name in shape[1:-1] if phase == "b"] == ["fetch", "parse", "embed"]
    assert all(a["ts"] <= b["ts"] for a, b in pairwise(mine))


def test_large_recordings_have_arrows_for_some_inputs_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_events, "ARROWS_AT_MOST", 100)
    monkeypatch.setattr(trace_events, "STEPS_AT_MOST", 100)
    recording = ingest(900)
    found = saved(recording, tmp_path / "a.json")
    every = found["otherData"]["arrows_every"]
    arrows = of(found["traceEvents"], "stf")
    assert every > 5
    assert 0 < len(arrows) <= 150
    assert all(one["id"] % every == 0 for one in arrows)
    assert not [one for one in found["traceEvents"] if one.get("args") == {"step": True}]
    assert load_trace(tmp_path / "a.json") == recording


def test_the_file_has_a_sane_size(tmp_path: Path) -> None:
    recording = ingest(30_000)
    path = save_trace(recording, tmp_path / "a.json.gz")
    assert len(gzip.decompress(path.read_bytes())) < 700 * len(recording.slices)
    assert path.stat().st_size < 120 * len(recording.slices)


def test_a_limit_without_end_is_no_event(tmp_path: Path) -> None:
    events = saved(ingest(), tmp_path / "a.json")["traceEvents"]
    assert [one["args"] for one in of(events, "C") if one["name"] == "limit: fetch"] == [
        {"calls": 8.0}
    ]


def test_marks_are_instants_or_spans(tmp_path: Path) -> None:
    events = saved(ingest(), tmp_path / "a.json")["traceEvents"]
    assert [(one["name"], one["s"]) for one in of(events, "i")] == [("note", "g")]
    assert [(one["name"], one["tid"]) for one in of(events, "b", "mark")] == [("blocked", 1), ("gc", 2)]  # fmt: skip


# What the figures come to


def totals(recording: Recording) -> dict[str, tuple[int, int, float]]:
    """Calls, items and busy seconds of each stage."""
    found: dict[str, tuple[int, int, float]] = {}
    for one in recording.slices:
        name = recording.stages[one.stage].name
        calls, items, busy = found.get(name, (0, 0, 0.0))
        found[name] = calls + 1, items + one.items, busy + one.ended - one.began
    return found


def test_sql_over_the_events_gives_the_recordings_totals(tmp_path: Path) -> None:
    recording = ingest(900)
    events = saved(recording, tmp_path / "a.json")["traceEvents"]
    with sqlite3.connect(":memory:") as base:
        base.execute("create table slice (stage, items, dur)")
        base.execute("create table edge (id, phase)")
        base.executemany(
            "insert into slice values (?, ?, ?)",
            [(one["args"]["stage"], one["args"]["items"], one["dur"]) for one in of(events, "Xb", "work")],
        )  # fmt: skip
        base.executemany(
            "insert into edge values (?, ?)", [(one["id"], one["ph"]) for one in of(events, "stf")]
        )
        rows = base.execute(
            "select stage, count(*), sum(items), sum(dur) / 1e6 from slice group by stage"
        )
        found = {stage: (calls, items, pytest.approx(busy)) for stage, calls, items, busy in rows}
        assert found == totals(recording)
        begun, ended = base.execute(
            "select sum(phase = 's'), sum(phase = 'f') from edge"
        ).fetchone()
        assert begun == ended == sum(life.outcome == "done" for life in recording.inputs.values())
    base.close()


@pytest.mark.slow
def test_perfettos_own_processor_reads_it_without_a_complaint(tmp_path: Path) -> None:
    skip_without()
    recording = ingest(3_000)
    with Perfetto(save_trace(recording, tmp_path / "a.json").read_bytes()) as perfetto:
        assert not perfetto.rows(
            "select name, value from stats where value > 0 and severity in ('error', 'data_loss')"
        )
        rows = perfetto.rows(
            "select extract_arg(arg_set_id, 'args.stage') stage, count(*) calls, "
            "sum(extract_arg(arg_set_id, 'args.items')) items, sum(dur) / 1e9 busy "
            "from slice where category = 'work' group by 1"
        )
        found = {one["stage"]: (one["calls"], one["items"], pytest.approx(one["busy"], rel=1e-6)) for one in rows}  # fmt: skip
        assert found == totals(recording)
        arrows = perfetto.rows("select count(*) n from flow")[0]["n"]
        assert arrows == sum(len(one.inputs) for one in recording.slices) - len(recording.inputs)
        lanes = perfetto.rows("select name from thread where name is not null order by tid")
        assert [one["name"] for one in lanes] == [
            "fetch", "process 1 (pid 4711)", "process 2 (pid 4712)", "thread 1",
        ]  # fmt: skip
        depths = perfetto.rows(
            "select depth, count(*) n from slice where category = 'input' group by 1 order by 1"
        )
        assert [one["depth"] for one in depths] == [0, 1]
        assert depths[0]["n"] == len(recording.inputs)
        queue = perfetto.rows(
            "select max(value) most, count(*) n from counter c join track t on t.id = c.track_id where t.name like 'queue: parse%'"
        )
        assert queue == [{"most": 8.0, "n": len(recording.counters[0].samples)}]


# What can't be written or read


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_time_that_is_none_is_refused_and_leaves_what_was_there(
    tmp_path: Path, bad: float
) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    good = ingest()
    for broken in (
        dataclasses.replace(good, slices=(Slice(0, 0, 0.0, bad),)),
        dataclasses.replace(good, slices=(Slice(0, 0, 0.0, 1.0, waited=bad),)),
        dataclasses.replace(good, duration=bad),
        dataclasses.replace(good, slices=(Slice(9, 0, 0.0, 1.0),)),
        dataclasses.replace(good, slices=(Slice(0, 9, 0.0, 1.0),)),
    ):
        with pytest.raises(
            TraceError, match=r"recording 'ingest' can't be written: .*(finite|does not have)"
        ):
            save_trace(broken, path)
        assert path.read_text() == "before"
        assert os.listdir(tmp_path) == ["a.json"]


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    save_trace(ingest(), pipe)
    assert pipe.is_fifo()
    reader.join(30)
    (tmp_path / "a.json").write_bytes(found[0])
    assert load_trace(tmp_path / "a.json") == ingest()


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_trace(ingest(), tmp_path / "no" / "a.json")
    with pytest.raises(FileNotFoundError):
        load_trace(tmp_path / "a.json")
    with pytest.raises(IsADirectoryError):
        load_trace(tmp_path)


FOREIGN = [
    (b"", "is empty"),
    (b"hello", "isn't JSON.*report.save_trace"),
    (b"\xff\xfe\x00", "isn't JSON"),
    (b"[" * 100_000, "isn't JSON"),
    (b"{}", "JSON but no trace"),
    (b"3", "JSON but no trace"),
    (b'[{"ph": "X"}]', "something else wrote.*perfetto"),
    (b"<!doctype html>\n<html>", "is a page, such as a timeline: open it in a browser"),
    (b'{"traceEvents": [], "otherData": 3}', "something else wrote"),
    (b'{"traceEvents": [], "otherData": {"tournant": 99}}', "another version.*--upgrade"),
    (b'{"traceEvents": [], "otherData": {"tournant": 1}}', "damaged at its head"),
]


@pytest.mark.parametrize(("data", "message"), FOREIGN)
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_not_ours_is_refused_with_the_mend(
    tmp_path: Path, data: bytes, message: str, packed: bool
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(TraceError, match=message) as raised:
        load_trace(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("share", [0.002, 0.01, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_file_that_was_cut_is_never_taken_for_whole(
    tmp_path: Path, share: float, name: str
) -> None:
    path = save_trace(ingest(), tmp_path / name)
    data = path.read_bytes()
    path.write_bytes(data[: max(40, int(len(data) * share))])
    with pytest.raises(TraceError, match=r"cut short or damaged|something else|JSON"):
        load_trace(path)


def test_a_line_that_is_missing_is_noticed(tmp_path: Path) -> None:
    path = save_trace(ingest(), tmp_path / "a.json")
    whole = path.read_text().splitlines(keepends=True)
    for start in (',{"ph":"b","cat":"work"', ',{"ph":"X","cat":"work"', ',{"ph":"b","cat":"mark"', ',{"ph":"C"', ',{"ph":"b","cat":"input"'):  # fmt: skip
        at = next(n for n, line in enumerate(whole) if line.startswith(start))
        path.write_text("".join(whole[:at] + whole[at + 1 :]))
        with pytest.raises(TraceError, match="cut short"):
            load_trace(path)
        path.write_text("".join([*whole[:at], whole[at].replace('"ts":', '"t":'), *whole[at + 1 :]]).replace('"exact"', '"was"'))  # fmt: skip
        with pytest.raises(TraceError, match="is damaged at its event"):
            load_trace(path)
    at = next(n for n, line in enumerate(whole) if line.startswith(',{"ph":"C"'))
    path.write_text("".join([*whole[:at], whole[at], *whole[at:]]))
    with pytest.raises(TraceError, match="cut short"):
        load_trace(path)
    path.write_text("".join(whole).replace('"tid":1,', '"tid":77,'))
    with pytest.raises(TraceError, match="no such lane or stage"):
        load_trace(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cores", '"x"'), ("cores", "-5"), ("cores", "2.5"), ("lost", '"many"'),
        ("duration", "-4"), ("duration", "1e999"), ("began", "NaN"), ("items", '"many"'),
    ],
)  # fmt: skip
def test_numbers_that_are_none_are_said_to_be_damage(
    tmp_path: Path, field: str, value: str
) -> None:
    path = save_trace(ingest(), tmp_path / "a.json")
    text, count = re.subn(rf'"{field}":[^,}}\]]+', f'"{field}":{value}', path.read_text())
    assert count
    path.write_text(text)
    with pytest.raises(TraceError, match="damaged at"):
        load_trace(path)
