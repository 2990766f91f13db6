"""The timeline in a real browser: slices in focus, and one input followed through its lanes."""

from __future__ import annotations

import re

import pytest
import timeline_samples as samples
from timeline_browser import row

from tournant.observe.recording import InputSpan, Lane, Recording, Slice, Stage

pytest_plugins = ["timeline_fixtures"]
pytestmark = [pytest.mark.slow]


def test_enter_steps_into_a_lane_and_arrows_go_from_slice_to_slice(show):
    sheet = show(samples.ingest(40, 400))
    page = sheet.page
    page.get_by_role("button", name="process 1").focus()
    sheet.press("Enter")
    assert page.evaluate("() => document.activeElement.className") == "field"
    assert page.is_visible(".ring")
    assert sheet.said().startswith("read on process 1: at ")
    assert "Call 1 of " in sheet.said()
    sheet.press("ArrowRight")
    assert sheet.said().startswith("chunk on process 1: at ")
    assert "input corpus/a/report-00000.pdf" in sheet.said()
    assert "Call 2 of " in sheet.said()
    sheet.press("ArrowLeft", "ArrowLeft")
    assert sheet.said() == "The first call of this lane."
    sheet.press("ArrowDown")
    assert " on process 2: " in sheet.said()
    sheet.press("ArrowUp", "ArrowUp")
    assert sheet.said().startswith("files on files: ")
    sheet.press("Escape")
    assert not page.is_visible(".ring")


def test_the_slice_in_focus_stays_in_view(show):
    sheet = show(row(*(0.5 * n for n in range(1, 101))))
    sheet.into()
    sheet.press(*["+"] * 6, "Enter")
    for _ in range(12):
        sheet.press("ArrowRight")
        left, right = sheet.view()
        begin, end = map(float, re.search(r"at ([\d.]+) s to ([\d.]+) s", sheet.said()).groups())
        assert left <= begin < end <= right
        ring = sheet.page.locator(".ring").bounding_box()
        field = sheet.page.locator(".field").bounding_box()
        assert (
            field["x"] - 6
            <= ring["x"]
            < ring["x"] + ring["width"]
            <= field["x"] + field["width"] + 6
        )


def test_enter_on_a_slice_follows_its_input_and_escape_leaves_it(show):
    sheet = show(samples.ingest(40, 400))
    page = sheet.page
    page.get_by_role("button", name="process 1").focus()
    sheet.press("Enter")
    coloured = sheet.ink()
    sheet.press("Enter")
    assert page.text_content("#panel-title") == "corpus/a/report-00000.pdf"
    assert sheet.said().startswith(
        "Following corpus/a/report-00000.pdf: 11 steps, files, read, chunk, embed,"
    )
    names = page.locator(".steps tbody button").all_inner_texts()
    assert names[:4] == ["files", "read", "chunk", "embed"]
    assert names[-1] == "write"
    cells = page.locator(".steps tbody tr").first.locator("td").all_inner_texts()
    assert re.search(r"[\d.]+ ms", cells[2])
    assert sheet.ink() < coloured / 3, "what is not followed is dimmed"
    page.locator(".steps tbody button").last.click()
    sheet.settle()
    assert sheet.said().startswith("write on thread 1")
    sheet.press("Escape")
    assert not page.is_visible("#panel")
    assert page.is_visible(".ring")
    sheet.press("0", "Escape")
    assert not page.is_visible(".ring")
    assert sheet.ink() > coloured * 0.8


def test_a_click_follows_and_a_click_beside_leaves(show):
    sheet = show(row(1.0, 3.0, 4.0))
    sheet.page.mouse.click(*sheet.place("thread 1", 0.5))
    sheet.settle()
    assert sheet.page.text_content("#panel-title") == "key 1"
    assert "2 s at work" in sheet.page.text_content("#panel .subtitle")
    sheet.page.mouse.click(*sheet.place("thread 1", 0.9985))
    sheet.settle()
    assert not sheet.page.is_visible("#panel")


def test_a_slice_of_many_inputs_lets_one_choose(show):
    sheet = show(samples.ingest(40, 400))
    page = sheet.page
    page.get_by_role("button", name="thread 1").focus()
    sheet.press("Enter", "Enter")
    assert page.text_content("#panel h3") == "Follow one of its 24 inputs"
    assert page.evaluate("() => document.activeElement.closest('.inputs') !== null")
    sheet.press("Tab", "Enter")
    assert page.text_content("#panel-title").startswith("corpus/b/")
    assert page.locator(".steps tbody button").all_inner_texts()[-1] == "write"


def test_a_retry_comes_from_the_attempt_before_it(show):
    run = Recording(
        duration=1.0,
        stages=(Stage("ask", "loop"),),
        lanes=(Lane("loop", "ask"),),
        slices=(Slice(0, 0, 0.0, 0.2, (0,), outcome="retried"), Slice(0, 0, 0.5, 0.9, (0,))),
        inputs={0: InputSpan("key", 0.0, 1.0)},
    )
    sheet = show(run)
    sheet.page.fill("#find", "key")
    sheet.press("Enter")
    first, second = sheet.page.locator(".steps tbody tr").all()
    assert first.locator("td").all_inner_texts()[1] == "–"
    assert "retried" in first.inner_text()
    assert second.locator("td").all_inner_texts()[1] == "300 ms"


def test_search_finds_keys_and_follows_the_chosen_one(show):
    sheet = show(samples.ingest())
    page = sheet.page
    sheet.press("/")
    assert page.evaluate("() => document.activeElement.id") == "find"
    page.keyboard.type("REPORT-0012")
    assert page.locator("#found [role=option]").count() == 10
    assert page.text_content("#find-state") == "10 inputs"
    assert page.get_attribute("#find", "aria-activedescendant") == "found-0"
    sheet.press("ArrowDown", "ArrowDown", "Enter")
    assert page.text_content("#panel-title") == "corpus/c/report-00122.pdf"
    assert not page.is_visible("#found")
    left, right = sheet.view()
    assert right - left < 3, "what it went through fills the width"
    assert page.is_visible(".ring")
    page.fill("#find", "nothing of the kind")
    assert page.text_content("#found") == "No input has this in its key."
    page.fill("#find", "report")
    assert page.text_content("#found .rest") == "and 388 more"


def test_an_input_whose_beginning_was_overwritten_is_followed_by_its_number(show):
    sheet = show(Recording(duration=1, stages=(Stage("read", "threads"),), lanes=(Lane("thread", "thread 1"),), slices=(Slice(0, 0, 0.2, 0.7, (4711,)),), lost=9))  # fmt: skip
    sheet.page.fill("#find", "4711")
    sheet.press("Enter")
    assert sheet.page.text_content("#panel-title") == "input 4711"
    assert "beginning was overwritten" in sheet.page.text_content("#panel .subtitle")
    assert "9 older events were overwritten" in sheet.page.text_content(".lost")


def test_failures_are_gone_through(show):
    run = row(*(0.01 * n for n in range(1, 1_001)))
    slices = [
        one._replace(outcome="failed") if n in (200, 700) else one
        for n, one in enumerate(run.slices)
    ]
    sheet = show(Recording(**{**vars(run), "slices": tuple(slices)}))
    button = sheet.page.get_by_role("button", name="2 failed")
    found = []
    for _ in range(3):
        button.click()
        sheet.settle()
        found.append(re.search(r"input (key \d+)", sheet.said())[1])
    assert found == ["key 200", "key 700", "key 200"]
    assert sheet.page.locator(".ring").bounding_box()["width"] > 8, "close enough to be seen"


def test_one_stage_alone_dims_the_others(show):
    sheet = show(samples.ingest(40, 400))
    before = sheet.ink()
    sheet.page.locator("[data-legend=stage]", has_text="chunk").click()
    sheet.settle()
    assert sheet.ink() < before / 2
    sheet.page.locator("[data-legend=stage]", has_text="chunk").click()
    sheet.settle()
    assert sheet.ink() == before


def test_groups_fold_and_open_for_what_is_followed(show):
    sheet = show(samples.cluster())
    page = sheet.page
    assert page.get_by_role("button", name="process 1").count() == 3
    page.get_by_role("button", name="node-1.example").click()
    sheet.settle()
    assert page.get_by_role("button", name="process 1").count() == 2
    page.fill("#find", "pages/3")
    sheet.press("Enter")
    assert page.locator(".steps tbody tr").count() > 0


def test_a_batch_begins_for_an_input_when_it_came(show):
    run = Recording(
        duration=2.0,
        stages=(Stage("ask", "loop"), Stage("batch", "engine"), Stage("write", "threads")),
        lanes=(Lane("loop", "ask"), Lane("loop", "batch"), Lane("thread", "thread 1")),
        slices=(
            Slice(1, 1, 0.1, 1.5, (0, 1), 2),
            Slice(0, 0, 0.8, 1.0, (1,)),
            Slice(2, 2, 1.6, 1.7, (0, 1), 2),
        ),
        inputs={0: InputSpan("early", 0.0, 1.7), 1: InputSpan("late", 0.7, 1.7)},
    )
    sheet = show(run)
    sheet.page.fill("#find", "late")
    sheet.press("Enter")
    rows = [
        [cell.split("\n")[0] for cell in one.locator("td").all_inner_texts()]
        for one in sheet.page.locator(".steps tbody tr").all()
    ]
    assert rows == [
        ["ask", "100 ms", "200 ms"],
        ["batch", "–", "500 ms"],
        ["write", "100 ms", "100 ms"],
    ]
    assert "300 ms at work, 700 ms waiting" in sheet.page.text_content("#panel .subtitle")


def test_the_key_that_was_typed_comes_before_those_that_begin_with_it(show):
    sheet = show(row(1.0, 2.0, 3.0, keys=["page 11", "page 12", "page 1"]))
    sheet.page.fill("#find", "page 1")
    assert sheet.page.locator("#found [role=option] span").all_inner_texts() == [
        "page 1",
        "page 11",
        "page 12",
    ]
