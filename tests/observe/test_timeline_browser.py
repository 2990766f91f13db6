"""The timeline in a real browser, opened from a file as its readers do: how it moves and what it shows."""

from __future__ import annotations

import re

import pytest
import timeline_samples as samples
from timeline_browser import BAD, PHONE, Sheet, pinch, row

from tournant.observe.recording import Counter, InputSpan, Lane, Mark, Recording, Slice, Stage
from tournant.observe.timeline import save_timeline

pytest_plugins = ["timeline_fixtures"]
pytestmark = [pytest.mark.slow]


def test_the_wheel_zooms_where_the_pointer_is_and_drags_move(show):
    sheet = show(samples.ingest())
    start, end = sheet.view()
    x, y = sheet.place("process 1", 0.25)
    sheet.page.mouse.move(x, y)
    sheet.settle()
    before = sheet.page.text_content(".now")
    for _ in range(3):
        sheet.page.mouse.wheel(0, -300)
    sheet.page.wait_for_function(
        "() => !document.querySelector('.minimap').classList.contains('whole')"
    )
    sheet.settle()
    left, right = sheet.view()
    assert right - left < (end - start) / 2
    after = sheet.page.text_content(".now")
    assert float(after.split()[0]) == pytest.approx(float(before.split()[0]), abs=0.06)
    sheet.page.mouse.down()
    sheet.page.mouse.move(x + 100, y, steps=4)
    sheet.page.mouse.up()
    sheet.settle()
    moved = sheet.view()
    assert moved[0] < left
    assert moved[1] - moved[0] == pytest.approx(right - left, abs=0.02)
    assert not sheet.page.is_visible("#panel"), "a drag is no click"
    text = sheet.page.get_attribute(".minimap", "aria-valuetext")
    sheet.page.keyboard.down("Shift")
    sheet.page.mouse.wheel(0, 200)
    sheet.page.keyboard.up("Shift")
    sheet.page.wait_for_function(
        "(was) => document.querySelector('.minimap').getAttribute('aria-valuetext') !== was",
        arg=text,
    )
    sheet.settle()
    assert sheet.view()[0] > moved[0]


def test_a_stretch_is_chosen_with_shift_and_the_minimap_moves_the_window(show):
    sheet = show(samples.ingest())
    x, y = sheet.place("process 1", 0.5)
    sheet.page.keyboard.down("Shift")
    sheet.page.mouse.move(x, y)
    sheet.page.mouse.down()
    sheet.page.mouse.move(x + 120, y, steps=3)
    sheet.page.mouse.up()
    sheet.page.keyboard.up("Shift")
    sheet.settle()
    left, right = sheet.view()
    assert 7 < left < right < 12
    box = sheet.page.locator(".minimap").bounding_box()
    sheet.page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + 10)
    sheet.settle()
    assert sheet.view()[0] > right
    assert sheet.view()[1] - sheet.view()[0] == pytest.approx(right - left, abs=0.02)


def test_keys_zoom_pan_and_show_the_whole_run_again(show):
    sheet = show(samples.ingest())
    whole = sheet.view()
    sheet.into()
    sheet.press("+", "+", "+")
    left, right = sheet.view()
    assert right - left == pytest.approx((whole[1] - whole[0]) * 0.6**3, rel=0.05)
    sheet.press("ArrowRight")
    assert sheet.view()[0] > left
    sheet.press("ArrowLeft", "ArrowLeft")
    assert sheet.view()[0] < left
    sheet.press("End")
    assert sheet.view()[1] == pytest.approx(whole[1], abs=0.01)
    sheet.press("-")
    assert sheet.view()[1] - sheet.view()[0] > right - left
    sheet.press("0")
    assert sheet.view() == whole
    sheet.press("+", "Home")
    assert sheet.view() == whole


def test_hovering_tells_stage_input_and_times(show):
    sheet = show(row(1.0, 3.0, 4.0))
    tip = sheet.hover("thread 1", 0.5)
    for words in ("read", "thread 1", "1.00 s to 3.00 s", "took\n2 s", "key 1"):
        assert words in tip
    assert "key 0" in sheet.hover("thread 1", 0.1)
    sheet.page.mouse.move(5, 5)
    sheet.settle()
    assert sheet.tip() == ""


def test_many_slices_on_one_pixel_are_counted(show):
    sheet = show(row(*(0.001 * n for n in range(1, 5_001))))
    assert re.search(r"\d+ calls here; zoom in to tell them apart", sheet.hover("thread 1", 0.5))


def test_dark_follows_the_system_and_the_switch_overrules_it(show):
    sheet = show(samples.ingest(40, 400), color_scheme="dark")
    page = sheet.page
    background = "() => getComputedStyle(document.documentElement).backgroundColor"
    assert page.get_attribute("html", "data-theme") == "dark"
    assert page.evaluate(background) == "rgb(23, 22, 20)"
    pixel = "() => document.querySelector('.frame canvas').toDataURL()"
    dark = page.evaluate(pixel)
    page.click("#theme")
    sheet.settle()
    assert page.evaluate(background) == "rgb(251, 250, 247)"
    assert page.evaluate(pixel) != dark, "the picture is painted anew"
    page.reload()
    page.wait_for_selector("#main:not([aria-busy])")
    assert page.get_attribute("html", "data-theme") == "light", "the choice is kept"
    page.click("#theme")
    page.emulate_media(color_scheme="light")
    sheet.settle()
    assert page.get_attribute("html", "data-theme") == "dark"


def test_marks_are_read_and_put_away(show):
    run = samples.ingest(40, 400)
    mark = Mark("blocked", run.duration / 2, "The loop stood still for 212 ms.", 0, 0.05)
    sheet = show(Recording(**{**vars(run), "marks": (mark,)}))
    page = sheet.page
    assert "212 ms" in sheet.hover("Marks", 0.5)
    sheet.into()
    sheet.press("m")
    assert "The loop stood still" in sheet.said()
    page.get_by_role("button", name="1 blocked loop").click()
    sheet.settle()
    assert sheet.hover("Marks", 0.5) == ""


def test_a_crowded_lane_shows_how_many_and_unfolds(show):
    sheet = show(samples.chat())
    page = sheet.page
    assert "60 at once" in page.inner_text(".name.lane >> nth=0")
    height = page.locator(".frame").bounding_box()["height"]
    button = page.get_by_role("button", name="More rows of ask")
    button.click()
    sheet.settle()
    assert page.locator(".frame").bounding_box()["height"] > height
    button = page.get_by_role("button", name="More rows of ask")
    assert button.get_attribute("aria-expanded") == "true"
    button.click()
    sheet.settle()
    assert page.locator(".frame").bounding_box()["height"] == height


def test_several_recordings_share_a_scale_until_they_are_parted(show):
    sheet = show(*samples.kitchen())
    page = sheet.page
    assert page.locator(".run").count() == 3
    assert sheet.view(0) == sheet.view(1) == sheet.view(2)
    sheet.into(1)
    sheet.press("+")
    assert sheet.view(0) == sheet.view(1)
    page.uncheck("#link")
    sheet.settle()
    assert sheet.view(2)[1] < sheet.view(0)[1] / 2
    sheet.into(1)
    sheet.press("+")
    assert sheet.view(0)[0] == 0
    assert sheet.view(1)[0] > 0
    page.fill("#find", "dish 4")
    assert page.locator("#found [role=option]").count() == 3
    sheet.press("ArrowDown", "ArrowDown", "Enter")
    assert page.locator(".steps tbody tr").count() == 3
    assert "cook 4" in page.inner_text(".steps tbody")

    def coloured() -> int:
        # What is scrolled out is not drawn before it is seen.
        page.locator("#run-2 .field").scroll_into_view_if_needed()
        sheet.settle()
        sheet.settle()
        return sheet.ink(2)

    dimmed = coloured()
    page.fill("#find", "dish 4")
    sheet.press("Enter")
    assert coloured() > dimmed * 2, "one input is followed at a time"


def test_fingers_zoom_move_and_choose(show):
    sheet = show(samples.ingest(), **PHONE)
    start, end = sheet.view()
    x, y = sheet.place("process 1", 0.5)
    pinch(sheet, x, y, 20, 100)
    left, right = sheet.view()
    assert right - left == pytest.approx((end - start) / 5, rel=0.1)
    pinch(sheet, x, y, 100, 20)
    assert sheet.view() == pytest.approx((start, end), abs=0.2)
    pinch(sheet, x, y, 20, 150)
    pinch(sheet, x, y, 20, 150)
    pinch(sheet, x, y, 20, 150)
    sheet.page.touchscreen.tap(x, y)
    sheet.settle()
    assert sheet.page.is_visible("#panel")
    left, _ = sheet.view()
    # The panel has come up from below, and the picture has made way for it.
    y = sheet.page.locator(".ring").bounding_box()["y"] + 6
    client = sheet.context.new_cdp_session(sheet.page)
    for kind, at in (
        ("touchStart", x),
        ("touchMove", x - 40),
        ("touchMove", x - 90),
        ("touchEnd", None),
    ):
        client.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [] if at is None else [{"x": at, "y": y}]},
        )
    sheet.settle()
    assert sheet.view()[0] > left


def test_a_phone_shows_everything_without_scrolling_sideways(show):
    sheet = show(samples.ingest(), **PHONE)
    page = sheet.page
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
    assert page.locator(".field").bounding_box()["width"] > 360
    assert page.is_visible(".name >> text=process 2")
    sheet.page.get_by_role("button", name="Zoom in").tap()
    sheet.settle()
    assert sheet.view()[0] > 0
    page.fill("#find", "report-00120")
    sheet.press("Enter")
    panel = page.locator("#panel").bounding_box()
    assert (panel["x"], panel["width"]) == (0, 390)
    ring = page.locator(".ring").bounding_box()
    assert ring["y"] + ring["height"] < panel["y"], "what is in focus is not covered"


@pytest.mark.parametrize(
    "script", ["", "delete window.DecompressionStream; delete Uint8Array.fromBase64;"]
)
def test_old_browsers_unpack_by_themselves(show, script):
    sheet = show(samples.ingest(100, 1_000), script=script)
    sheet.page.fill("#find", "report-00099")
    sheet.press("Enter")
    assert sheet.page.text_content("#panel-title") == "corpus/d/report-00099.pdf"
    assert sheet.page.locator(".steps tbody tr").count() == 11


def test_names_stay_names_wherever_they_are_shown(show):
    run = row(1.0, 3.0, 4.0, keys=[BAD] * 3)
    hostile = {
        **vars(run), "title": BAD, "summary": f"{BAD}\n\n\n\n", "stages": (Stage(BAD, "threads"),), "lanes": (Lane("thread", BAD),),
        "marks": (Mark("note", 2.0, BAD),),
    }  # fmt: skip
    sheet = show(Recording(**hostile))
    page = sheet.page
    assert BAD in sheet.hover(BAD, 0.5)
    assert BAD in sheet.hover("Marks", 2 / (4 * 1.004))
    page.fill("#find", "img")
    sheet.press("Enter")
    assert page.text_content("#panel-title") == BAD
    assert page.text_content(".steps tbody button") == BAD
    assert page.text_content("h2 >> nth=0") == BAD
    assert page.locator("img").count() == 0
    assert page.evaluate("() => window.hit") is None


@pytest.mark.parametrize("viewport", [{"width": 1200, "height": 900}, PHONE["viewport"]])
def test_names_of_any_length_and_script_keep_to_their_places(show, viewport):
    names = ["x" * 300, "word " * 60, "\u202eright to left", "\u0645\u0631\u062d\u0628\u0627 " * 40, "\u200b\u2060", "\U0001f469\u200d\U0001f373" * 40]  # fmt: skip
    run = Recording(
        title=" > ".join(names),
        duration=1.0,
        stages=tuple(Stage(name, "threads") for name in names),
        lanes=tuple(Lane("thread", name) for name in names),
        slices=tuple(Slice(n, n, 0.1 * n, 0.1 * n + 0.4, (n,)) for n in range(len(names))),
        inputs={n: InputSpan(name, 0.0, 1.0) for n, name in enumerate(names)},
        counters=tuple(Counter(f"queue: {name}", "items", ((0.0, 2.0),)) for name in names),
        marks=tuple(Mark("note", 0.1 * n, name) for n, name in enumerate(names)),
        summary="\n".join(names),
    )
    sheet = show(run, viewport=viewport)
    page = sheet.page
    wide = "() => [document.documentElement.scrollWidth, innerWidth]"
    scrolled, width = page.evaluate(wide)
    assert scrolled == width
    buttons = page.locator("[data-legend=stage]")
    first = buttons.nth(0)
    assert "x" * 300 in first.get_attribute("title"), "the whole name is there to be read"
    assert first.inner_text().startswith("x" * 300), "and to be heard"
    assert first.bounding_box()["width"] < 450
    assert "(no name)" in buttons.nth(4).inner_text()
    assert page.locator("h2").first.get_attribute("title") == run.title
    assert page.locator("h2").first.bounding_box()["height"] < 130
    page.locator(".lane-name").nth(1).click()
    sheet.press("Enter")
    assert page.is_visible("#panel")
    scrolled, width = page.evaluate(wide)
    assert scrolled == width


def test_nothing_that_gets_in_runs_or_calls_out(browser, tmp_path):
    # Even past the escaping, the policy of the file stops a script and every address.
    path = save_timeline([row(1.0)], tmp_path / "run.html")
    path.write_text(
        path.read_text().replace(
            "<main", "<script>window.hit = 'yes'</script><img src='http://127.0.0.1:9/x.png'><main"
        )
    )
    context = browser.new_context()
    sheet = Sheet(context, path)
    assert sheet.page.evaluate("() => window.hit") is None
    assert sum("Content Security Policy" in text for text in sheet.complaints) == 2
    context.close()


def test_an_empty_recording_and_a_single_slice_are_shown(show):
    sheet = show(
        Recording(), row(0.5), Recording(title="idle", duration=3, lanes=(Lane("loop", "ask"),))
    )
    assert sheet.page.get_by_text("No call was recorded.").count() == 2
    assert "event loop, idle" in sheet.page.inner_text("#run-2 .name.lane")
    sheet.into(1)
    sheet.press("Enter")
    assert sheet.said().startswith("read on thread 1: at 0.00 s to 0.50 s; took 500 ms")
    sheet.into(2)
    sheet.press("Enter")
    assert sheet.said() == "There are no calls."


def test_damaged_data_is_said_to_be_damaged(browser, tmp_path):
    path = save_timeline([row(1.0)], tmp_path / "run.html")
    path.write_text(re.sub(r'(id="data">.{40})[^<]*', r"\1", path.read_text()))
    context = browser.new_context()
    sheet = Sheet(context, path)
    assert sheet.page.text_content("#failure").startswith("The timeline can't be shown: ")
    context.close()


def test_print_is_light_and_whole(show):
    sheet = show(samples.cluster(nodes=12), color_scheme="dark")
    page = sheet.page
    page.emulate_media(media="print")
    page.wait_for_selector("html.printed")
    assert page.get_attribute("html", "data-theme") == "light"
    assert page.evaluate(
        "() => document.querySelector('.frame canvas').clientHeight === document.querySelector('.frame').clientHeight"
    )
    page.emulate_media(media="screen")
    page.wait_for_selector("html:not(.printed)")
    assert page.get_attribute("html", "data-theme") == "dark"
    sheet.settle()
    assert page.evaluate(
        "() => document.querySelector('.frame canvas').clientHeight < document.querySelector('.frame').clientHeight"
    )


def test_long_runs_are_told_by_the_clock(show):
    sheet = show(row(100.0, 4000.0, 7300.5))
    assert "1:40 to 1:06:40" in sheet.hover("thread 1", 0.5)
    assert "1 h 5 min" in sheet.tip()
