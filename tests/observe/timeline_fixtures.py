"""Fixtures of the tests of the timeline: one browser for a module, and windows that are closed when a test ends."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from timeline_browser import Sheet

from tournant.observe.recording import Recording
from tournant.observe.timeline import save_timeline


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
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


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Sheet]]:
    """Open recordings in a window that is offline; fail on whatever the browser complains about."""
    opened: list[Sheet] = []

    def open_(*recordings: Recording, script: str = "", **options: Any) -> Sheet:
        path = save_timeline(recordings, tmp_path / f"timeline-{len(opened)}.html")
        context = browser.new_context(
            **{"viewport": {"width": 1200, "height": 900}, "reduced_motion": "reduce", **options}
        )
        context.set_offline(True)
        if script:
            context.add_init_script(script)
        opened.append(Sheet(context, path))
        return opened[-1]

    yield open_
    for sheet in opened:
        sheet.context.close()
    for number, sheet in enumerate(opened):
        assert sheet.complaints == []
        assert all(
            url.startswith(("data:image", (tmp_path / f"timeline-{number}.html").as_uri()))
            for url in sheet.requests
        )
