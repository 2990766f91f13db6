"""What the tests of the timeline share: a real browser, and a window on a saved file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tournant.observe.recording import InputSpan, Lane, Recording, Slice, Stage

BAD = "</script><img src=x onerror=\"window.hit='yes'\">"


class Sheet:
    """One open timeline.

    Attributes:
        page: Playwright's page.
        complaints: what the console and the policy complained about.
        requests: addresses that the page asked for, but for its own.
    """

    def __init__(self, context: Any, path: Path) -> None:
        self.context = context
        self.page = context.new_page()
        self.page.set_default_timeout(15_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text)
                if message.type in ("error", "warning")
                else None
            ),
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("#main:not([aria-busy])")
        self.settle()

    def settle(self) -> None:
        """Until what has changed is drawn."""
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def into(self, section: int = 0) -> None:
        self.page.locator(".field").nth(section).focus()

    def view(self, section: int = 0) -> tuple[float, float]:
        """The part of the run in view, in seconds."""
        text = self.page.locator(".minimap").nth(section).get_attribute("aria-valuetext")
        found = re.match(r"([\d.]+) s to ([\d.]+) s", text)
        assert found, text
        return float(found[1]), float(found[2])

    def said(self) -> str:
        return str(self.page.text_content("#announcer"))

    def tip(self) -> str:
        return str(self.page.inner_text("#tip")) if self.page.is_visible("#tip") else ""

    def place(self, name: str, share: float, section: int = 0) -> tuple[float, float]:
        """A place in the window: in the first row of the band with this name, at a share of the width."""
        band = (
            self.page.locator(".run")
            .nth(section)
            .locator(".name", has=self.page.get_by_text(name, exact=True))
            .first
        )
        if not band.evaluate(
            "(one) => { const { top, bottom } = one.getBoundingClientRect(); return top > 180 && bottom < innerHeight; }"
        ):
            band.evaluate("(one) => one.scrollIntoView({ block: 'center' })")
        field = self.page.locator(".field").nth(section).bounding_box()
        # Names that lie above their bands leave the band's own height beneath.
        above = 19 if self.page.evaluate("() => matchMedia('(max-width: 45rem)').matches") else 0
        return field["x"] + field["width"] * share, band.bounding_box()["y"] + above + 7

    def hover(self, name: str, share: float) -> str:
        self.page.mouse.move(*self.place(name, share))
        self.settle()
        return self.tip()

    def ink(self, section: int = 0) -> int:
        """How many pixels of the picture have a saturated colour: those of slices that have not stepped back."""
        return self.page.evaluate(
            """(section) => {
              const canvas = document.querySelectorAll(".frame canvas")[section];
              const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
              copy.drawImage(canvas, 0, 0);
              const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
              let number = 0;
              for (let at = 0; at < data.length; at += 4) {
                const [low, high] = [Math.min(data[at], data[at + 1], data[at + 2]), Math.max(data[at], data[at + 1], data[at + 2])];
                if (data[at + 3] === 255 && high - low > 70) number += 1;
              }
              return number;
            }""",
            section,
        )


def row(*ends: float, keys: Sequence[str] = ()) -> Recording:
    """A thread that works for one input after the other, without a pause."""
    begins = (0.0, *ends)
    return Recording(
        title="row",
        duration=ends[-1],
        stages=(Stage("read", "threads"),),
        lanes=(Lane("thread", "thread 1"),),
        slices=tuple(Slice(0, 0, begins[n], end, (n,)) for n, end in enumerate(ends)),
        inputs={
            n: InputSpan(keys[n] if keys else f"key {n}", begins[n], end)
            for n, end in enumerate(ends)
        },
    )


def pinch(sheet: Sheet, x: float, y: float, before: float, after: float) -> None:
    """Two fingers around a place go from one distance to another."""
    client = sheet.context.new_cdp_session(sheet.page)

    def touch(kind: str, apart: float | None) -> None:
        points = (
            []
            if apart is None
            else [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        )
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", before)
    for step in range(1, 6):
        touch("touchMove", before + (after - before) * step / 5)
    touch("touchEnd", None)
    sheet.settle()


PHONE = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}
