"""How long a user waits before anything happens: `--help`, the import, an empty interpreter."""

import subprocess
import sys
import time

from benchmarks.harness import Result

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import tournant": [sys.executable, "-c", "import tournant"],
    "import tournant; Pipeline": [sys.executable, "-c", "from tournant import Pipeline"],
    "tournant --help": [sys.executable, "-m", "tournant", "--help"],
    "import asyncio, concurrent.futures": [
        sys.executable,
        "-c",
        "import asyncio, concurrent.futures",
    ],
}


def main(runs: int = 7) -> int:
    """Time every command, interleaved, and print the table."""
    result = Result(
        "startup", "s", targets={"import tournant": "below 0.1", "tournant --help": "below 0.2"}
    )
    for _ in range(runs):
        for name, command in COMMANDS.items():
            if name in result.skipped:
                continue
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            elapsed = time.perf_counter() - start
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["?"])[-1]
                result.skipped[name] = f"failed: {last[:160]}"
                continue
            result.values.setdefault(name, []).append(elapsed)
    result.print()
    return 0
