"""The page of a server with an index: answers with sources, uploads, what the server does; all of it by keyboard and on a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from page_browser import BAD, Tab, serving
from page_upstream import Upstream

pytest_plugins = ["page_fixtures"]
pytestmark = [pytest.mark.slow]

LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 2
FOCUSED = "document.activeElement.id || document.activeElement.className || document.activeElement.localName"


def test_an_answer_is_shown_token_by_token_with_its_sources(
    both: str, upstream: Upstream, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(both)
    tab.ask("What does the dog do?")
    answer = upstream.next()
    assert "barks at the postman" in answer.question
    shown = []
    for token in ("The ", "dog ", "barks ", "[1]", " and ", "runs", " [1, 2]."):
        answer.say(token)
        shown.append(token)
        expected = "".join(shown).replace("[1, 2]", "12").replace("[1]", "1")
        tab.until_answer(expected)  # the next token is written only after this one could be read
        assert tab.page.get_attribute(".turn", "data-state") == "streaming"
    names = tab.page.locator(".turn .sources .name")
    assert names.all_text_contents()[0] == "dogs.md"
    assert tab.page.locator(".mark").all_text_contents() == ["1", "1", "2"]
    answer.finish(tokens=7)
    tab.until_state("done")
    assert "7 tokens" in tab.page.text_content(".turn .state")
    first = tab.page.locator(".sources details").first
    assert first.get_attribute("open") is None
    tab.page.click(".mark >> nth=0")
    assert first.get_attribute("open") is not None
    assert "barks at the postman" in first.locator("blockquote").inner_text()
    assert tab.page.evaluate("document.activeElement.textContent").startswith("1dogs.md")


def test_markup_in_answers_and_sources_stays_text(
    both: str, upstream: Upstream, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(both)
    tab.ask(f"What is the trap for readers? {BAD}")
    answer = upstream.next()
    text = f"Look: {BAD} **{BAD}** `{BAD}` [a](javascript:hit()) <a href=//evil>x</a>\n\n# {BAD}\n\n- {BAD}\n\n```\n{BAD}\n```\n"
    answer.say(text)
    answer.finish()
    tab.until_state("done")
    assert tab.answer().count(BAD) == 6
    assert tab.page.inner_text(".asked").endswith(BAD)
    tab.page.evaluate(
        "() => document.querySelectorAll('.sources details').forEach(one => one.open = true)"
    )
    assert BAD in tab.page.inner_text(".sources")
    assert tab.page.locator("#main img, #main script, .answer a:not(.mark)").count() == 0
    assert tab.page.evaluate("window.hit") is None


def test_files_are_uploaded_with_progress_and_can_be_asked_about(
    both: str, upstream: Upstream, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(both)
    tab.page.evaluate(
        """() => {
          window.seen = {};
          new MutationObserver(() => {
            for (const row of document.querySelectorAll("#file-list > li")) {
              const name = row.querySelector(".file-name").textContent;
              const states = (window.seen[name] ??= []);
              if (states.at(-1) !== row.dataset.state) states.push(row.dataset.state);
            }
          }).observe(document.querySelector("#file-list"), { subtree: true, childList: true, attributes: true });
        }"""
    )
    hostile = "<img src=x onerror=hit()>.txt"
    files = [
        {
            "name": "tea.md",
            "mimeType": "text/markdown",
            "buffer": b"# Tea\n\nGreen tea is steeped at seventy degrees.\n",
        },
        {"name": "empty.md", "mimeType": "text/markdown", "buffer": b""},
        {"name": hostile, "mimeType": "text/plain", "buffer": b"A file with a hostile name.\n"},
    ]
    tab.page.set_input_files("#files", files)
    tab.page.wait_for_selector("#clear-files:not([hidden])")
    assert tab.page.inner_text("#upload-state") == "2 added, 1 failed"
    seen = tab.page.evaluate("window.seen")
    for name in ("tea.md", hostile):
        assert seen[name][0] in ("waiting", "sending")
        assert seen[name][-2:] == ["reading", "done"]
    assert seen["empty.md"][-1] == "failed"
    assert "it is empty" in tab.page.inner_text("#file-list > li:nth-child(2)")
    assert tab.page.locator("#documents img").count() == 0
    tab.ask("At how many degrees is green tea steeped?")
    answer = upstream.next()
    answer.say("Seventy [1].")
    answer.finish()
    tab.until_state("done")
    assert tab.page.locator(".sources .name").first.inner_text() == "tea.md"
    tab.page.click("#clear-files")
    assert tab.page.locator("#file-list > li").count() == 0


def test_files_can_be_dropped_anywhere(both: str, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(both)
    drag = """(type) => {
      const data = new DataTransfer();
      data.items.add(new File([], "nothing.txt", { type: "text/plain" }));
      const event = new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true });
      document.querySelector("h1").dispatchEvent(event);
      // Whether the page shows that it takes files, and whether the browser would open the file instead.
      return [!document.querySelector("#veil").hidden, !event.defaultPrevented];
    }"""
    assert tab.page.evaluate(drag, "dragenter") == [True, False]
    assert tab.page.evaluate(drag, "dragleave")[0] is False
    assert tab.page.evaluate(drag, "dragover") == [False, False]
    assert tab.page.evaluate(drag, "drop") == [False, False]
    tab.page.wait_for_selector("#file-list > li[data-state=failed]")
    assert "nothing.txt" in tab.page.inner_text("#file-list")
    assert "it is empty" in tab.page.inner_text("#file-list")


def test_the_figures_follow_the_server(
    both: str, upstream: Upstream, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(both)
    tab.until_text("#figure-streams .value", "0")
    tab.ask("How long?")
    answer = upstream.next()
    answer.say("Long")
    tab.until_text("#figure-streams .value", "1")
    for figure in ("queue", "cores", "lag"):
        assert float(tab.page.inner_text(f"#figure-{figure} .value")) >= 0
    points = "() => document.querySelector('#figure-streams .line').getAttribute('points').split(' ').length"
    before = tab.page.evaluate(points)
    tab.page.wait_for_function(f"(before) => ({points})() > before", arg=before)
    tab.page.keyboard.press("Escape")
    tab.until_text("#figure-streams .value", "0")
    assert answer.cut.wait(15)


def test_everything_can_be_done_from_the_keyboard(
    both: str, upstream: Upstream, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(both)
    page, keys = tab.page, tab.page.keyboard
    assert page.evaluate(FOCUSED) == "question"  # where a person begins
    keys.press("Shift+Tab")
    assert page.evaluate(FOCUSED) == "skip"
    assert page.locator(".skip").bounding_box()["y"] >= 0
    keys.press("Enter")
    keys.type("What does")
    keys.press("Shift+Enter")
    keys.type("the dog do?")
    assert page.input_value("#question") == "What does\nthe dog do?"
    order = []
    for _ in range(4):
        keys.press("Tab")
        order.append(page.evaluate(FOCUSED))
        ring = page.evaluate(
            "(({outlineStyle, outlineWidth}) => [outlineStyle, outlineWidth])(getComputedStyle(document.activeElement))"
        )
        assert ring == ["solid", "2px"], order[-1]
    assert order == ["retrieve", "passages", "send", "choose"]
    keys.press("Shift+Tab")
    keys.press("Enter")
    answer = upstream.next()
    answer.say("It barks [1].")
    tab.until_answer("It barks 1.")
    assert page.evaluate(FOCUSED) == "stop"
    keys.press("Escape")
    tab.until_state("stopped")
    assert answer.cut.wait(15)
    assert page.evaluate(FOCUSED) == "question"
    page.focus(".mark")
    keys.press("Enter")
    assert page.evaluate("document.activeElement.closest('details').open")
    assert page.evaluate("document.activeElement.localName") == "summary"
    keys.press("Space")
    assert not page.evaluate("document.activeElement.closest('details').open")
    page.focus("#question")
    keys.press("Enter")  # nothing to send
    assert page.locator(".turn").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(
    scheme: str, both: str, upstream: Upstream, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(both, viewport={"width": 320, "height": 640}, color_scheme=scheme)
    widest = "() => document.documentElement.scrollWidth"
    assert tab.page.evaluate(widest) == 320
    background = tab.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == {"light": "rgb(251, 250, 247)", "dark": "rgb(23, 22, 20)"}[scheme]
    for element in ("#question", "#send", "#live", "#documents"):
        assert tab.page.locator(element).is_visible()
    tab.page.set_input_files(
        "#files", [{"name": f"{LONG[:120]}.txt", "mimeType": "text/plain", "buffer": b""}]
    )
    tab.page.wait_for_selector("#file-list > li[data-state=failed]")
    tab.ask(LONG)
    answer = upstream.next()
    answer.say(f"{LONG}\n\n```\n{LONG}\n```\n\n`{LONG}` [1]\n\n1. {LONG}\n\n# {LONG}\n")
    answer.write({"error": {"message": LONG}})
    answer.end()
    tab.until_state("failed")
    tab.page.evaluate(
        "() => document.querySelectorAll('details').forEach((one) => (one.open = true))"
    )
    assert tab.page.evaluate(widest) == 320
    button = tab.page.locator("#send").bounding_box()
    assert button["height"] >= 40
    assert button["x"] + button["width"] <= 320


def test_without_a_model_the_page_searches(
    browser: Any, index: Path, open_tab: Callable[..., Tab]
) -> None:
    with serving(index=str(index)) as url:
        tab = open_tab(url)
        assert "--llm" in tab.page.inner_text("#no-llm")
        assert tab.page.inner_text("#send") == "Search"
        tab.ask("knead the dough")
        tab.until_state("done")
        assert tab.page.locator(".sources .name").first.inner_text() == "bread.md"
        assert "bake it" in tab.page.text_content(".sources li >> nth=0")
        tab.context.close()
