"""Draws the README's pictures of the server's page, from a server that runs.

    python docs/make_screenshots.py http://127.0.0.1:8000 --question "How does a run resume?"

It asks the question in a headless Chromium, waits for the whole answer, and writes ``page-light.png`` and ``page-dark.png`` (and
``page-phone.png``), each below 150 kB. It needs the package playwright, and a Chromium on the PATH or under ``--chromium``.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import shutil
import struct
import sys
import threading
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_BYTES = 150_000
WIDE = {"width": 1240, "height": 920}
PHONE = {"width": 390, "height": 844}
PICTURES = (
    ("page-light", "light", WIDE),
    ("page-dark", "dark", WIDE),
    ("page-phone", "light", PHONE),
)
#: Device pixels for one of the page's, the sharpest first; a picture that is too large is drawn again with the next.
SCALES = (2.0, 1.75, 1.5, 1.25, 1.0)

#: Counts a picture's colours, coarsely, and gives each pixel the number of the nearest of the 256 that are used most.
PALETTE = """
async (picture) => {
  const bytes = Uint8Array.from(atob(picture), (one) => one.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes]));
  const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
  canvas.drawImage(image, 0, 0);
  const data = canvas.getImageData(0, 0, image.width, image.height).data;
  const pixels = new Uint32Array(data.buffer);
  const cell = (pixel) => ((pixel >> 3) & 31) | (((pixel >> 11) & 31) << 5) | (((pixel >> 19) & 31) << 10);
  const counts = new Map();
  for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) || 0) + 1);
  const best = new Map(); // of each cell of similar colours the one that is used most
  for (const [pixel, used] of counts) {
    const now = best.get(cell(pixel));
    if (!now || used > now[1]) best.set(cell(pixel), [pixel, used]);
  }
  const often = [...counts].sort((one, other) => other[1] - one[1]).slice(0, 32).map(([pixel]) => pixel);
  const spread = [...best.values()].sort((one, other) => other[1] - one[1]).map(([pixel]) => pixel);
  const palette = [...new Set([...often, ...spread])].slice(0, 256);
  const parts = palette.map((pixel) => [pixel & 255, (pixel >> 8) & 255, (pixel >> 16) & 255]);
  const nearest = new Map();
  for (const pixel of counts.keys()) {
    const [red, green, blue] = [pixel & 255, (pixel >> 8) & 255, (pixel >> 16) & 255];
    let found = 0;
    let least = Infinity;
    parts.forEach((part, number) => {
      const distance = (part[0] - red) ** 2 + (part[1] - green) ** 2 + (part[2] - blue) ** 2;
      if (distance < least) [least, found] = [distance, number];
    });
    nearest.set(pixel, found);
  }
  const numbers = Uint8Array.from(pixels, (pixel) => nearest.get(pixel));
  let text = "";
  for (let at = 0; at < numbers.length; at += 32768) text += String.fromCharCode(...numbers.subarray(at, at + 32768));
  return [image.width, image.height, parts.flat(), btoa(text)];
}
"""


def main() -> int:
    """Draw the pictures; return the exit code."""
    parser = argparse.ArgumentParser(description="Draw the README's pictures of the server's page.")
    parser.add_argument("url", help="the server, such as http://127.0.0.1:8000")
    parser.add_argument("--question", default="How does a run resume after it was killed?")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "images",
        help="the folder for the pictures",
    )
    parser.add_argument("--key", default="", help="an API key, where the server wants one")
    parser.add_argument(
        "--chromium", default=shutil.which("chromium") or shutil.which("google-chrome")
    )
    parser.add_argument(
        "--files",
        type=Path,
        nargs="*",
        default=[],
        help="files to upload first, so that the list shows them",
    )
    parser.add_argument(
        "--streams",
        type=int,
        default=0,
        help="ask this many more questions at once, so that the curves move (default: 0)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=120.0,
        help="the longest time for the answer (default: 120)",
    )
    options = parser.parse_args()
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        print(
            "make_screenshots: the package playwright is missing: pip install playwright",
            file=sys.stderr,
        )
        return 1
    if not options.chromium:
        print(
            "make_screenshots: there is no Chromium on the PATH: name one with --chromium",
            file=sys.stderr,
        )
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=options.chromium, args=["--no-sandbox", "--disable-lcd-text"]
            )
            for name, scheme, size in PICTURES:
                path = options.out / f"{name}.png"
                for scale in SCALES:
                    picture = draw(browser, options, scheme, size, scale)
                    if len(picture) < MOST_BYTES:
                        break
                path.write_bytes(picture)
                print(
                    f"{path}: {len(picture) / 1000:.0f} kB, {scale:g} device pixels for one of the page's"
                )
            browser.close()
    except Error as error:
        print(f"make_screenshots: {error.message.splitlines()[0]}", file=sys.stderr)
        return 1
    return 0


def draw(
    browser: Any, options: argparse.Namespace, scheme: str, size: dict[str, int], scale: float
) -> bytes:
    """Ask the question in a window of this size, and return the picture of the answer."""
    context = browser.new_context(
        viewport=size, color_scheme=scheme, device_scale_factor=scale, reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(options.seconds * 1000)
    if options.key:
        page.goto(options.url)
        page.evaluate("key => sessionStorage.setItem('tournant.key', key)", options.key)
    page.goto(options.url)
    page.wait_for_selector("#live[data-state=live]")
    if options.files:
        page.set_input_files("#files", options.files)
        page.wait_for_function("() => !document.querySelector('#clear-files').hidden")
    with others(options):
        page.wait_for_timeout(8_000)  # a few points for the curves
        page.fill("#question", options.question)
        page.press("#question", "Enter")
        page.wait_for_selector(".turn:is([data-state=done], [data-state=failed])")
        page.wait_for_timeout(4_000)
    page.evaluate(
        "() => { document.documentElement.scrollTo(0, 0); document.activeElement.blur(); }"
    )
    picture = page.screenshot()
    page.goto("about:blank")
    width, height, palette, numbers = page.evaluate(PALETTE, base64.b64encode(picture).decode())
    context.close()
    return png(width, height, bytes(palette), base64.b64decode(numbers))


def png(width: int, height: int, palette: bytes, numbers: bytes) -> bytes:
    """Return a PNG file with a palette: a third of the size of one with full colours, for a page of text."""

    def part(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + numbers[at : at + width] for at in range(0, len(numbers), width))
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + part(b"PLTE", palette)
        + part(b"IDAT", zlib.compress(rows, 9))
        + part(b"IEND", b"")
    )


@contextlib.contextmanager
def others(options: argparse.Namespace) -> Iterator[None]:
    """Keep `options.streams` more answers running."""
    over = threading.Event()
    body = json.dumps({"messages": [{"role": "user", "content": options.question}], "stream": True})
    headers = {"Content-Type": "application/json"}
    if options.key:
        headers["Authorization"] = f"Bearer {options.key}"
    request = urllib.request.Request(
        f"{options.url.rstrip('/')}/v1/chat/completions", body.encode(), headers
    )

    def ask(pause: float) -> None:
        over.wait(pause)
        while not over.is_set():
            try:
                with urllib.request.urlopen(request, timeout=options.seconds) as reply:
                    while not over.is_set() and reply.readline():
                        pass
            except OSError:
                over.wait(1.0)

    for number in range(options.streams):
        threading.Thread(target=ask, args=(number * 8 / options.streams,), daemon=True).start()
    yield
    over.set()


if __name__ == "__main__":
    sys.exit(main())
