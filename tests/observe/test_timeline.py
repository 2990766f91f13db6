"""The timeline's file: what is in it, how large it is, and what no key or label can do to it."""

from __future__ import annotations

import json
import math
import re
import zlib
from array import array
from base64 import b64decode
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import timeline_samples as samples

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
from tournant.observe.timeline import save_timeline
from tournant.observe.timeline.document import SCRIPTS, document, joined, part

#: What nobody may take for markup, or for the end of what it stands in.
BAD = "</script><img src=x onerror=\"window.hit='yes'\"><!--<script>{{SCRIPT}}\u2028&lt;"


def unpacked(html: str) -> tuple[list[dict[str, Any]], bytes]:
    """The header's recordings and the columns, read as the page reads them but by other means."""
    block = re.search(r'id="data">([^<]*)</script>', html)
    assert block
    data = zlib.decompress(b64decode(block[1], validate=True), -15)
    size = int.from_bytes(data[:4], "little")
    assert (4 + size) % 8 == 0, "the columns must be aligned for the browser's typed arrays"
    header = json.loads(data[4 : 4 + size])
    assert header["version"] == 1
    return header["recordings"], data[4 + size :]


def column(where: list[Any], data: bytes) -> list[float]:
    kind, offset, length = where
    values = array(kind[0])
    assert values.itemsize == int(kind[1])
    assert offset % 8 == 0
    values.frombytes(data[offset : offset + length * values.itemsize])
    return list(values)


def summed(values: list[float]) -> list[float]:
    total, found = 0.0, []
    for value in values:
        total += value
        found.append(total)
    return found


def small(**changes: Any) -> Recording:
    given: dict[str, Any] = {
        "title": "small",
        "duration": 2.0,
        "stages": (Stage("read", "threads"), Stage("ask", "loop")),
        "lanes": (Lane("thread", "thread 1"), Lane("loop", "ask")),
        "slices": (
            Slice(0, 0, 0.1, 0.35, (7,), waited=0.05),
            Slice(1, 1, 0.4, 1.9, (7, 9), 3, FAILED, label="ask again"),
        ),
        "inputs": {7: InputSpan("seven", 0.0, 1.95, "failed")},
        "counters": (Counter("queue: ask", "items", ((0.0, 0.0), (0.35, 1.0), (0.4, 0.0))),),
        "marks": (Mark("blocked", 1.0, "The loop stood still.", 1, 0.25),),
        **changes,
    }
    return Recording(**given)


def test_everything_that_a_recording_holds_is_in_the_file():
    [run], data = unpacked(document([small()]))
    tick = run["tick"]
    slices = run["slices"]
    began = [ticks * tick for ticks in summed(column(slices["began"], data))]
    took = [ticks * tick for ticks in column(slices["took"], data)]
    assert began == pytest.approx([0.1, 0.4])
    assert took == pytest.approx([0.25, 1.5])
    assert column(slices["lane"], data) == [0, 1]
    assert column(slices["stage"], data) == [0, 1]
    assert column(slices["items"], data) == [1, 3]
    assert column(slices["outcome"], data) == [0, 1]
    assert [ticks * tick for ticks in column(slices["waited"], data)] == pytest.approx([0.05, 0])
    assert [slices["labels"][label] for label in column(slices["label"], data)] == ["", "ask again"]
    assert column(slices["count"], data) == [1, 2]
    # The second input's beginning was overwritten: it is followed by its number.
    assert run["inputs"]["keys"] == ["seven", None]
    assert column(run["inputs"]["number"], data) == [7, 9]
    assert summed(column(slices["inputs"], data)) == [0, 0, 1]
    assert column(run["inputs"]["outcome"], data) == [1, 0]
    assert run["stages"] == [["read", "threads"], ["ask", "loop"]]
    assert run["lanes"] == [["thread", "thread 1", 0, ""], ["loop", "ask", 0, ""]]
    [counter] = run["counters"]
    assert [ticks * tick for ticks in summed(column(counter["at"], data))] == pytest.approx(
        [0, 0.35, 0.4]
    )
    assert column(counter["value"], data) == [0, 1, 0]
    assert run["marks"] == [["blocked", 1.0, "The loop stood still.", 1, 0.25]]
    assert run["span"] == 2.0


def test_slices_that_touch_still_touch_and_never_overlap():
    ends = [0.1 * math.sqrt(number) for number in range(1, 2_000)]
    slices = tuple(Slice(0, 0, begin, end) for begin, end in zip([0.0, *ends], ends, strict=False))
    [run], data = unpacked(document([small(slices=slices, duration=ends[-1])]))
    began = summed(column(run["slices"]["began"], data))
    took = column(run["slices"]["took"], data)
    assert all(
        one + length == after for one, length, after in zip(began, took, began[1:], strict=False)
    )


@pytest.mark.parametrize("duration", [1e-5, 1.0, 86_400.0, 3e7])
def test_times_keep_nine_digits_of_the_run(duration):
    slices = (Slice(0, 0, duration / 3, duration),)
    [run], data = unpacked(
        document([small(slices=slices, duration=duration, marks=(), counters=(), inputs={})])
    )
    [began] = column(run["slices"]["began"], data)
    assert began * run["tick"] == pytest.approx(duration / 3, abs=max(1e-7, duration * 2e-9))


def test_a_hundred_thousand_slices_take_less_than_ten_megabytes(tmp_path):
    recording = samples.ingest(10_000, 100_000)
    assert len(recording.slices) >= 100_000
    assert save_timeline([recording], tmp_path / "run.html").stat().st_size < 10_000_000


def test_the_file_asks_for_nothing_and_lets_nothing_else_run():
    html = document([samples.ingest(40, 400)])
    code = "".join([part("page.html"), joined(), part("theme.js"), *(part(f.name) for f in files("tournant.observe.timeline").joinpath("page").iterdir() if f.name.endswith(".css"))])  # fmt: skip
    assert not re.search(
        r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import|fetch\(|XMLHttp|import\(", code
    )
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy[1]


def test_no_name_can_break_out_of_its_place():
    recording = small(
        title=BAD,
        summary=f"{BAD}\n\n\n\n{BAD}",
        stages=(Stage(BAD, "threads"), Stage(BAD, BAD)),
        lanes=(Lane("thread", BAD, 0, BAD), Lane(BAD, BAD)),
        slices=(Slice(0, 0, 0.1, 0.2, (7,), label=BAD),),
        inputs={7: InputSpan(BAD, 0, 1)},
        counters=(Counter(BAD, BAD, ((0, 1),), BAD),),
        marks=(Mark(BAD, 0.5, BAD),),
    )
    html = document([recording], title=BAD)
    plain = document([small(summary="a\n\n\n\nb")], title="plain")
    for opening in ("<script", "</script", "<img", "<!--", "<style", "onerror="):
        # In the texts they are escaped (an attribute's name is harmless there); nothing is opened or closed that was not before.
        escaped = html.count("onerror=&quot;") if opening == "onerror=" else 0
        assert html.count(opening) - escaped == plain.count(opening), opening
    title = re.search(r"<title>(.*?) · Tournant</title>", html, re.DOTALL)
    assert title
    assert unescape(title[1]) == BAD
    [run], _ = unpacked(html)
    assert run["title"] == run["inputs"]["keys"][0] == run["slices"]["labels"][1] == BAD


def test_names_that_are_no_unicode_are_kept_as_far_as_they_go(tmp_path):
    key = b"report-\xff.pdf".decode("utf-8", "surrogateescape")
    path = save_timeline(
        [small(title=key, inputs={7: InputSpan(key, 0, 1)})], tmp_path / "run.html"
    )
    [run], _ = unpacked(path.read_text(encoding="utf-8"))
    assert run["inputs"]["keys"][0] == key


def test_what_can_not_have_been_measured_does_not_spoil_the_rest():
    odd = small(
        duration=math.nan,
        began=math.inf,
        slices=(Slice(0, 0, -1.0, math.nan), Slice(0, 0, 0.5, 0.25), Slice(1, 1, 1.0, 1.5, outcome="new")),
        counters=(Counter("queue", "items", ((0.0, math.inf), (math.nan, 2.0))),),
        marks=(Mark("unheard of", math.nan, "?"),),
    )  # fmt: skip
    [run], data = unpacked(document([odd]))
    assert column(run["slices"]["took"], data) == [0, 0, 5_000_000]
    assert run["span"] == 1.95


def test_what_ends_after_the_run_is_still_in_view():
    [run], _ = unpacked(document([small(duration=1.0)]))
    assert run["span"] == 1.95


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slices": (Slice(2, 0, 0.0, 1.0),)}, "on lane 2"),
        ({"slices": (Slice(-1, 0, 0.0, 1.0),)}, "on lane -1"),
        ({"slices": (Slice(0, 5, 0.0, 1.0),)}, "of stage 5"),
        ({"marks": (Mark("gc", 0.5, "", 9),)}, "on lane 9"),
    ],
)
def test_a_slice_or_mark_of_no_lane_is_refused_by_name(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said) as refused:
        save_timeline([small(**changes)], tmp_path / "run.html")
    assert "'small'" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_recording_and_no_recording_at_all_are_files_too(tmp_path):
    html = save_timeline([Recording()], tmp_path / "empty.html").read_text()
    [run], data = unpacked(html)
    assert run["span"] == 0
    assert column(run["slices"]["began"], data) == []
    assert "0 inputs · 0 calls" in html
    assert (
        "There is no recording in this file."
        in save_timeline([], tmp_path / "none.html").read_text()
    )


def test_several_recordings_stand_one_under_the_other(tmp_path):
    recordings = samples.kitchen()
    html = save_timeline(recordings, tmp_path / "kitchen.html", title="The kitchen").read_text()
    assert re.findall(r'data-recording="(\d)"', html) == ["0", "1", "2"]
    titles = re.findall(r"<h2[^>]*>([^<]*)</h2>", html.split("<aside")[0])
    assert titles == [recording.title for recording in recordings]
    assert "<title>The kitchen · Tournant</title>" in html
    runs, _ = unpacked(html)
    assert [run["title"] for run in runs] == titles


def test_the_page_says_without_javascript_what_the_run_came_to():
    recording = samples.ingest(40, 400)
    html = unescape(document([recording]))
    assert recording.summary in html
    assert "embed is the bottleneck" in html
    assert "40 inputs · " in html
    assert "overwritten" not in html.split("<script type")[0]
    lost = document([samples.cluster()])
    assert "1,204 older events were overwritten" in lost


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "0 s"), (0.00585, "5.85 ms"), (17.23, "17.2 s"), (312.0, "5 min 12 s"), (36_000.0, "10 h 0 min")],
)  # fmt: skip
def test_a_runs_length_is_told_as_people_do(seconds, said):
    assert f" · {said} · " in document([Recording(duration=seconds)])


def test_a_summary_of_a_few_words_goes_before_the_advice():
    html = document([small(summary="One cook, 3.2 s.")])
    assert '<p class="advice">One cook, 3.2 s.</p>' in html
    assert "<details" not in html


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "run.html"
    path.write_text("before")
    with pytest.raises(ValueError, match="lane"):
        save_timeline([small(slices=(Slice(9, 0, 0.0, 1.0),))], path)
    assert path.read_text() == "before"
    assert save_timeline([small()], str(path)) == path
    assert path.read_text().startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        save_timeline([small()], tmp_path / "missing" / "run.html")


def test_scripts_import_only_from_those_before_them_and_share_one_scope():
    known: dict[str, str] = {}
    for number, name in enumerate(SCRIPTS):
        text = part(name)
        for names, source in re.findall(
            r'^import \{([^}]*)\} from "\./([\w.]+)";$', text, re.MULTILINE
        ):
            assert source in SCRIPTS[:number], f"{name} imports {source}, which comes later"
            for wanted in filter(None, (one.strip() for one in names.split(","))):
                assert known.get(wanted) == source, (
                    f"{name} imports {wanted}, which {source} does not export"
                )
        top = re.findall(
            r"^(export )?(?:async )?(?:function|class|const|let) (\w+)", text, re.MULTILINE
        )
        assert len(re.findall(r"^(?:import|export)\b", text, re.MULTILINE)) == text.count(
            "\nimport "
        ) + text.startswith("import ") + sum(bool(out) for out, _ in top)
        for _, defined in top:
            assert defined not in known, f"{name} and {known[defined]} both define {defined}"
            known[defined] = name
    assert not re.search(r"^(?:import|export)\b", joined(), re.MULTILINE)
    assert "</script" not in joined()
    assert "</style" not in "".join(
        part(name) for name in ("style.css", "board.css", "beside.css", "media.css")
    )


def test_every_part_of_the_page_is_of_a_readable_length():
    for one in files("tournant.observe.timeline").joinpath("page").iterdir():
        assert one.read_text(encoding="utf-8").count("\n") < 500, one.name


# How eyes with one kind of cone less see linear RGB (Machado, Oliveira and Fernandes, 2009, severity 1).
_EYES = {
    "three kinds of cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red cones": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "no green cones": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "no blue cones": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}  # fmt: skip


def _linear(colour: str) -> list[float]:
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares
    ]


def _oklab(linear: list[float]) -> list[float]:
    """Where a colour lies in Oklab (Ottosson, 2020), in which distances are about as large as they look."""
    cones = ((0.4122214708, 0.5363325363, 0.0514459929), (0.2119034982, 0.6806995451, 0.1073969566), (0.0883024619, 0.2817188376, 0.6299787005))  # fmt: skip
    axes = ((0.2104542553, 0.7936177850, -0.0040720468), (1.9779984951, -2.4285922050, 0.4505937099), (0.0259040371, 0.7827717662, -0.8086757660))  # fmt: skip
    roots = [
        math.cbrt(sum(a * max(0.0, min(1.0, b)) for a, b in zip(row, linear, strict=True)))
        for row in cones
    ]
    return [sum(a * b for a, b in zip(row, roots, strict=True)) for row in axes]


@pytest.mark.parametrize("eyes", _EYES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_stage_colours_are_told_apart_by_all_eyes(theme, eyes):
    light, dark = part("style.css").split('[data-theme="dark"]')
    found = re.findall(r"--stage-\d: (#\w{6});", light if theme == "light" else dark)
    assert len(found) == 8
    seen = [
        _oklab([sum(a * b for a, b in zip(row, _linear(one), strict=True)) for row in _EYES[eyes]])
        for one in found
    ]
    closest = min(
        math.dist(one, other) for number, one in enumerate(seen) for other in seen[:number]
    )
    # The palette of Okabe and Ito, the usual choice, comes to 0.076 by this measure.
    assert closest > 0.11


def test_a_recording_saves_itself(tmp_path: Path):
    assert small().save_timeline(tmp_path / "run.html").read_text().count('class="timeline"') == 1
