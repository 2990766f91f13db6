"""The example runs on the local cluster of two nodes that it starts itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cluster.py"


def test_the_example_gives_the_same_results_here_and_on_two_nodes(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "same results, same order: True" in done.stdout
    assert "actors that worked: " in done.stdout
    assert "6,000 of 6,000 inputs done, 0 failed" in done.stdout
