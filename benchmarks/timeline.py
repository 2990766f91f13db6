"""The timeline of a large ingest: how large its file is, how soon it shows, and how smoothly it moves.

    python -m benchmarks timeline [--documents 10000] [--slices 100000] [--seconds 4]
    python -m benchmarks timeline --trace run.json.gz

The recording is made up (`tests/observe/timeline_samples.py`), or what ``tournant ingest --trace FILE`` wrote; nothing but the timeline is measured. The browser is the machine's Chromium
without a window and without a graphics card: every pixel is painted by the CPU. Frames are counted in the page, by `requestAnimationFrame`,
while wheel events pan the picture; a frame counts when it comes, so one that is painted too late counts as late.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Result

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "observe"))

# Pans to and fro for so many milliseconds, one wheel event before each frame; gives the milliseconds between frames.
PAN = """
(length) => new Promise((done) => {
  const field = document.querySelector(".field");
  const box = field.getBoundingClientRect();
  const gaps = [];
  let last = performance.now();
  const start = last;
  let way = 1;
  const step = () => {
    const now = performance.now();
    gaps.push(now - last);
    last = now;
    if (now - start > length) { done(gaps.slice(1)); return; }
    if (gaps.length % 40 === 0) way = -way;
    field.dispatchEvent(new WheelEvent("wheel", {
      deltaX: 24 * way, clientX: box.left + box.width / 2, clientY: box.top + 40, bubbles: true, cancelable: true,
    }));
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})
"""
# A zoom with the wheel at the middle, so that `times` notches remain in view.
ZOOM = """
(times) => {
  const field = document.querySelector(".field");
  const box = field.getBoundingClientRect();
  for (let index = 0; index < times; index += 1) {
    field.dispatchEvent(new WheelEvent("wheel", {
      deltaY: -240, clientX: box.left + box.width / 2, clientY: box.top + 40, bubbles: true, cancelable: true,
    }));
  }
}
"""
#: What is in view while it pans: notches of the wheel from the whole run.
DEPTHS = {"half of the run": 2, "a twentieth": 6, "a few hundred slices": 11}


def measure(recording: Any, seconds: float = 4.0, runs: int = 3) -> None:
    """Write the file of a recording, open it in Chromium `runs` times, pan at three depths; print the figures."""
    from tournant.observe.timeline import save_timeline

    sizes = Result("timeline_size", "MB", targets={"file": "below 10"})
    opened = Result("timeline_open", "s", targets={"open": "below 2"})
    frames = Result(
        "timeline_pan", "frames/s", higher_is_better=True, targets=dict.fromkeys(DEPTHS, "30")
    )
    frames.facts.update(slices=len(recording.slices), inputs=len(recording.inputs))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timeline.html"
        for _ in range(runs):
            start = time.perf_counter()
            save_timeline([recording], path)
            opened.values.setdefault("write the file", []).append(time.perf_counter() - start)
        sizes.values["file"] = [path.stat().st_size / 1e6]
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        if chromium is None:
            opened.skipped["open"] = "there is no Chromium on the PATH"
        else:
            _browse(chromium, path, seconds, runs, opened, frames)
    for result in (sizes, opened, frames):
        if result.values:
            result.print()


def _browse(
    chromium: str, path: Path, seconds: float, runs: int, opened: Result, frames: Result
) -> None:
    from playwright.sync_api import sync_playwright

    worst: dict[str, float] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        for _ in range(runs):
            page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
            start = time.perf_counter()
            page.goto(path.as_uri())
            page.wait_for_selector("#main:not([aria-busy])")
            page.evaluate(
                "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
            )
            opened.values.setdefault("open", []).append(time.perf_counter() - start)
            for name, notches in DEPTHS.items():
                page.keyboard.press("Escape")
                page.locator(".field").first.press("0")
                page.wait_for_timeout(300)
                page.evaluate(ZOOM, notches)
                gaps = page.evaluate(PAN, seconds * 1000 / len(DEPTHS))
                frames.values.setdefault(name, []).append(1000 * len(gaps) / sum(gaps))
                worst[name] = max(worst.get(name, 0.0), statistics.quantiles(gaps, n=20)[-1])
            page.context.close()
        browser.close()
    frames.facts["p95 between frames, ms"] = {name: round(gap, 1) for name, gap in worst.items()}


def main() -> int:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks timeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--trace", type=Path, help="a recorded run; by default one is made up")
    parser.add_argument("--documents", type=int, default=10_000, help="of the one made up")
    parser.add_argument("--slices", type=int, default=100_000, help="of the one made up")
    parser.add_argument("--seconds", type=float, default=4.0, help="panning, in all, per opening")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.trace is not None:
        from tournant.observe.trace import load_trace

        recording = load_trace(arguments.trace)
    else:
        from timeline_samples import ingest

        recording = ingest(arguments.documents, arguments.slices)
    measure(recording, arguments.seconds, arguments.runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
