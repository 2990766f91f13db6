"""The page in a real browser, served by the real server, with a provider that writes when the test says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from page_browser import BAD, Tab, serving
from page_upstream import Upstream

pytest_plugins = ["page_fixtures"]
pytestmark = [pytest.mark.slow]


def test_a_second_question_carries_the_first_and_a_new_conversation_does_not(
    gateway: str, upstream: Upstream, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(gateway)
    for question, carried in (("One?", 0), ("Two?", 2)):
        tab.ask(question)
        answer = upstream.next()
        assert len(answer.body["messages"]) == carried + 1
        assert "retrieve" not in answer.body
        answer.say(f"Answer to {question}")
        answer.finish()
        tab.until_state("done")
    assert answer.body["messages"][:2] == [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Answer to One?"},
    ]
    tab.page.click("#new")
    assert tab.page.locator(".turn").count() == 0
    tab.ask("Three?")
    answer = upstream.next()
    assert [message["content"] for message in answer.body["messages"]] == ["Three?"]
    answer.finish()
    tab.until_state("done")
    assert "without a word" in tab.page.text_content(".turn .notes")


@pytest.mark.parametrize("how", ["button", "escape", "new conversation", "leaves the page"])
def test_whoever_stops_or_leaves_cuts_the_upstream(
    how: str, gateway: str, upstream: Upstream, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(gateway)
    tab.ask("Count to a million")
    answer = upstream.next()
    answer.say("one two")
    tab.until_answer("one two")
    assert not answer.cut.is_set()
    if how == "button":
        tab.page.click("#stop")
    elif how == "escape":
        tab.page.keyboard.press("Escape")
    elif how == "new conversation":
        tab.page.click("#new")
    else:
        tab.page.goto("about:blank")
    assert answer.cut.wait(15)
    if how in ("button", "escape"):
        tab.until_state("stopped")
        assert tab.answer() == "one two"
        assert tab.page.is_visible("#send")
        assert not tab.page.is_visible("#stop")


def test_an_error_in_the_middle_of_an_answer_is_shown_and_can_be_tried_again(
    gateway: str, upstream: Upstream, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(gateway)
    tab.ask("Why?")
    answer = upstream.next()
    answer.say("Because ")
    tab.until_answer("Because ")
    answer.write({"error": {"message": f"the oven is on fire {BAD}", "code": "oven"}})
    answer.end()
    tab.until_state("failed")
    error = tab.page.locator(".error")
    assert "The answer broke off" in error.inner_text()
    assert f"The oven is on fire {BAD}." in error.inner_text()
    assert error.get_attribute("role") == "alert"
    assert tab.answer() == "Because"
    tab.page.click("text=Try again")
    again = upstream.next()
    assert [message["content"] for message in again.body["messages"]] == ["Why?"]
    again.say("So.")
    again.finish()
    tab.until_state("done")
    assert tab.page.locator(".turn").count() == 1
    assert tab.page.locator(".error").count() == 0


def test_an_answer_that_ends_before_its_end_is_no_success(
    gateway: str, upstream: Upstream, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(gateway)
    tab.ask("Why?")
    answer = upstream.next()
    answer.say("Because")
    tab.until_answer("Because")
    answer.end()  # neither a reason nor [DONE]
    tab.until_state("failed")
    assert "The answer broke off" in tab.page.inner_text(".error")
    tab.ask("And now?")
    answer = upstream.next()
    assert [message["content"] for message in answer.body["messages"]] == ["And now?"]
    answer.finish()
    tab.until_state("done")


def test_a_connection_that_just_closes_is_no_success(
    gateway: str, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(gateway)
    # Our server never ends a stream like this; what stands between it and the browser may.
    tab.page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            content_type="text/event-stream",
            body='data: {"choices": [{"delta": {"content": "Because"}}]}\n\n',
        ),
    )
    tab.ask("Why?")
    tab.until_state("failed")
    assert tab.answer() == "Because"
    assert "closed before the answer was complete" in tab.page.inner_text(".error")


def test_a_refusal_says_why_and_when_to_come_again(
    gateway: str, upstream: Upstream, open_tab: Callable[..., Tab]
) -> None:
    upstream.refusals.append((429, {"Retry-After": "7"}, "too many questions"))
    tab = open_tab(gateway, expected="503")
    tab.ask("Why?")
    tab.until_state("failed")
    error = tab.page.inner_text(".error")
    assert "The server is busy" in error  # the upstream's limits are not the caller's
    assert "wait 7 seconds" in error


def test_a_server_that_is_gone_is_reported(
    browser: Any, upstream: Upstream, open_tab: Callable[..., Tab]
) -> None:
    with serving(llm=upstream.url) as url:
        tab = open_tab(url, expected="net::ERR")
    tab.ask("Anybody there?")
    tab.until_state("failed")
    assert "No connection" in tab.page.inner_text(".error")
    assert "Is it still running?" in tab.page.inner_text(".error")
    tab.page.wait_for_selector("#live[data-state=lost]")
    assert "asking again" in tab.page.inner_text("#live-state")


def test_the_policy_keeps_foreign_code_out(gateway: str, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(gateway, expected="Content Security Policy")
    blocked = tab.page.evaluate(
        """async () => {
          const found = [];
          document.addEventListener("securitypolicyviolation", (event) => found.push(event.effectiveDirective));
          const script = document.createElement("script");
          script.textContent = "window.hit = 'yes'";
          document.body.append(script);
          const image = document.createElement("img");
          image.setAttribute("onerror", "window.hit = 'yes'");
          image.src = "data:,";
          document.body.append(image);
          await fetch("http://localhost:9/").catch(() => {});
          await new Promise((resolve) => image.addEventListener("error", () => setTimeout(resolve)));
          return found;
        }"""
    )
    assert {"script-src-elem", "script-src-attr", "connect-src"} <= set(blocked)
    assert tab.page.evaluate("window.hit") is None


def test_an_answer_looks_the_same_however_it_was_cut(
    gateway: str, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(gateway)
    differences = tab.page.evaluate(
        r"""async () => {
          const { AnswerText } = await import("/answer.js");
          const { EventParser } = await import("/sse.js");
          const text = "# Title\n\nOne **bold** word, `code` and [1] or [2, 3] but not a[7, 8].\nSecond line\n\n1. first\n2. second\n   more\n\n" +
            "> quoted\n> twice\n\n```py\nfor x in y:\n\n    pass [1]\n```\nafter\n~~~\nopen to the end\n\n- a\n* b\r\n\r\n**not closed [9]";
          const draw = (pieces) => {
            const box = document.createElement("div");
            const blocks = [];
            const answer = new AnswerText(box, (block) => blocks.push(block));
            answer.setSources(new Map([[1, "a"], [2, "b"]]));
            for (const piece of pieces) { answer.append(piece); answer.draw?.(); }
            answer.finish();
            return JSON.stringify([[...box.children].map((one) => one.outerHTML), blocks, answer.text]);
          };
          const stream = "\uFEFFdata: a\r\n\r\n: comment\r\nevent: x\rdata:b\r\rdata: c\r\ndata: d\r\n\r\nid: 1\n\ndata: left over";
          const read = (pieces) => {
            const parser = new EventParser();
            return JSON.stringify(pieces.flatMap((piece) => parser.feed(piece)));
          };
          let seed = 7;
          const random = (below) => (seed = (seed * 48271) % 2147483647) % below;
          const cut = (whole) => {
            const pieces = [];
            for (let at = 0; at < whole.length; ) {
              const length = 1 + random(9);
              pieces.push(whole.slice(at, at + length));
              at += length;
            }
            return pieces;
          };
          const wanted = [draw([text]), read([stream])];
          const found = [];
          for (let round = 0; round < 200; round += 1) {
            if (draw(cut(text)) !== wanted[0]) found.push(draw(cut(text)));
            if (read(cut(stream)) !== wanted[1]) found.push(read(cut(stream)));
          }
          if (!JSON.parse(wanted[0])[0].join().includes("a[7, 8]")) found.push(wanted[0]);
          return { found, elements: JSON.parse(wanted[0])[0], events: JSON.parse(wanted[1]) };
        }"""
    )
    assert differences["found"] == []
    assert [element.split(">")[0].split()[0] for element in differences["elements"]] == [
        "<h3", "<p", "<ol", "<blockquote", "<pre", "<p", "<pre",
    ]  # fmt: skip
    assert differences["events"] == [
        {"event": "message", "data": "a"},
        {"event": "x", "data": "b"},
        {"event": "message", "data": "c\nd"},
    ]


def test_a_screen_reader_hears_blocks_not_tokens(
    gateway: str, upstream: Upstream, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(gateway)
    assert tab.page.get_attribute("#announcer", "aria-live") == "polite"
    assert tab.page.locator("[aria-live] .answer, .answer[aria-live]").count() == 0
    tab.ask("Tell me")
    answer = upstream.next()
    for word in ("One", "two", "three.\n\nFour", "five"):
        answer.say(f"{word} ")
    tab.until_answer("One two three.Four five")
    said = "() => [...document.querySelector('#announcer').children].map((one) => one.textContent)"
    assert tab.page.evaluate(said) == ["Waiting for the answer.", "One two three."]
    answer.finish()
    tab.until_state("done")
    assert tab.page.evaluate(said)[2:] == ["Four five", "End of the answer."]


def test_whoever_wants_no_motion_gets_none(
    gateway: str, upstream: Upstream, open_tab: Callable[..., Tab]
) -> None:
    running = "() => document.getAnimations().length"
    for motion, moves in (("no-preference", True), ("reduce", False)):
        tab = open_tab(gateway, reduced_motion=motion)
        tab.ask("Hello?")
        answer = upstream.next()
        answer.say("Hi")
        tab.until_answer("Hi")
        assert (tab.page.evaluate(running) > 0) is moves
        answer.finish()
        tab.until_state("done")


def test_without_an_index_documents_are_hidden_and_the_reason_is_told(
    gateway: str, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(gateway)
    assert "--index" in tab.page.inner_text("#no-index")
    for part in ("#drop", "#retrieve-choice", "#passages-choice", "#no-llm"):
        assert not tab.page.is_visible(part)
    assert tab.page.inner_text("#send") == "Ask"


def test_a_key_is_asked_for_sent_and_kept_for_the_tab(
    browser: Any, upstream: Upstream, tmp_path: Path, open_tab: Callable[..., Tab]
) -> None:
    key = "sk-page-0123456789abcdef0123456789abcdef"
    (tmp_path / "keys").write_text(f"visitor {key}\n")
    (tmp_path / "keys").chmod(0o600)
    with serving(llm=upstream.url, api_keys=str(tmp_path / "keys")) as url:
        tab = open_tab(url, expected="401")
        assert tab.page.is_visible("#key-form")
        assert not tab.page.is_visible("#no-index"), "nobody without a key is told what there is"
        tab.page.fill("#key", "wrong-key-wrong-key-wrong-key-000")
        tab.page.press("#key", "Enter")
        tab.until_text("#key-note", "does not accept")
        tab.page.fill("#key", key)
        tab.page.press("#key", "Enter")
        tab.until_text("#serving", "house-model")
        tab.page.wait_for_selector("#live[data-state=live]")
        assert not tab.page.is_visible("#key-form")
        tab.ask("Hello?")
        answer = upstream.next()
        answer.say("Hi")
        answer.finish()
        tab.until_state("done")
        assert key not in json.dumps(answer.body)
        storage = (
            "() => [Object.values(sessionStorage), Object.values(localStorage), document.cookie]"
        )
        assert tab.page.evaluate(storage) == [[key], [], ""]
        tab.page.click("#key-open")
        tab.page.click("#key-forget")
        assert tab.page.evaluate(storage) == [[], [], ""]
        tab.context.close()
