"""What the tests of the page share: a real server in a thread, and a real browser."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import serving as real

_WAIT = 60.0
#: What nobody may take for markup.
BAD = "<img src=x onerror=\"window.hit='yes'\">"


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[str]:
    """Run the server with these settings on a free port, in a thread of its own; yield its URL."""
    ready = threading.Event()
    found: dict[str, Any] = {}

    async def main() -> None:
        stop = asyncio.Event()
        async with real.serving(**settings) as server:
            found.update(url=server.url, loop=asyncio.get_running_loop(), stop=stop)
            ready.set()
            await stop.wait()

    def body() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            found["failure"] = error
            ready.set()

    thread = threading.Thread(target=body, name="page-server", daemon=True)
    thread.start()
    try:
        assert ready.wait(_WAIT), "the server did not start"
        assert "failure" not in found, found
        yield found["url"]
    finally:
        if "stop" in found and thread.is_alive():
            found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(_WAIT)
    assert not thread.is_alive()
    assert "failure" not in found, found


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Start a headless Chromium; skip where there is none."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="the package playwright is not installed"
    )
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """One window on the page of a server. What the browser complains about is kept.

    Attributes:
        page: Playwright's page.
        complaints: Errors and warnings of the console, exceptions, and violations of the content security policy.
    """

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1100, "height": 800}, **options}
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.complaints: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#main:not([aria-busy])")

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def ask(self, question: str) -> None:
        """Ask as a person does."""
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")

    def answer(self) -> str:
        """The text of the last answer."""
        return str(self.page.text_content(".turn:last-child .answer"))

    def until_answer(self, text: str) -> None:
        """Wait until the last answer is this, but for the space that its next word will follow."""
        self.page.wait_for_function(
            "text => document.querySelector('.turn:last-child .answer')?.textContent === text",
            arg=text.rstrip(),
        )

    def until_state(self, state: str) -> None:
        """Wait until the last question is ``waiting``, ``streaming``, ``done``, ``stopped`` or ``failed``."""
        self.page.wait_for_selector(f".turn:last-child[data-state={state}]")

    def until_text(self, selector: str, text: str) -> None:
        """Wait until an element holds a text."""
        self.page.wait_for_function(
            "([selector, text]) => document.querySelector(selector)?.textContent.includes(text)",
            arg=[selector, text],
        )
