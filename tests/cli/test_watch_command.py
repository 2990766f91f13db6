"""`tournant watch`: what it runs and how, which is as Python does; what the guards find is in `tests/guards`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

WHO = """
import helper, sys
print(__name__, __file__, repr(__package__), sys.argv[1:], sys.path[0], helper.number)
sys.exit(4)
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tournant", "watch", *arguments]


def watched(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=100, cwd=folder
    )


def plain(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=100, cwd=folder
    )


def test_a_folder_a_zip_file_and_a_script_run_as_with_python(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    for name, text in (("__main__.py", WHO), ("helper.py", "number = 5")):
        (package / name).write_text(text)
        (tmp_path / name.replace("__main__", "script")).write_text(text)
    with zipfile.ZipFile(tmp_path / "app.pyz", "w") as file:
        for one in package.glob("*.py"):
            file.write(one, one.name)
    for program in ("package", "app.pyz", "package/__main__.py", "-m package.helper"):
        arguments = [*program.split(), "one", "--two"]
        here, there = watched(tmp_path, *arguments), plain(tmp_path, *arguments)
        assert (here.stdout, here.returncode) == (there.stdout, there.returncode), program
        assert here.stderr == "tournant watch: 0 findings\n"


def test_a_script_is_not_compiled_with_the_imports_from_the_future_of_another(
    tmp_path: Path,
) -> None:
    (tmp_path / "script.py").write_text(
        "def f(x: int) -> int: ...\nprint(f.__annotations__['x'] is int)"
    )
    assert watched(tmp_path, "script.py").stdout == "True\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name the program to run: tournant watch script.py, or tournant watch -m "),
        (["-m"], "-m needs a module's name"),
        (["missing.py"], "there is no file 'missing.py'; give a Python program, or -m "),
        (["."], "the folder '.' has no __main__.py to run; give a Python program, or -m "),
    ],
)
def test_what_cannot_be_run_is_wrong_usage(
    arguments: list[str], reason: str, tmp_path: Path
) -> None:
    done = watched(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"tournant watch: {reason}")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_wrong_usage(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text("")
    path.chmod(0)
    done = watched(tmp_path, "script.py")
    assert done.returncode == 2
    assert "can't be read: Permission denied" in done.stderr


@pytest.mark.parametrize(
    "text", ["def f(:\n    pass\n", "print('a')\n1 / 0\n", "import nothing_of_the_kind\n", "raise SystemExit('no')\n"]
)  # fmt: skip
def test_an_error_is_shown_as_python_shows_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(text)
    here, there = watched(tmp_path, "script.py"), plain(tmp_path, "script.py")
    assert (here.returncode, here.stdout) == (there.returncode, there.stdout) == (1, here.stdout)
    assert here.stderr == there.stderr + "tournant watch: 0 findings\n"


def test_a_program_may_show_its_errors_itself(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import sys\nsys.excepthook = lambda kind, error, trace: print('seen', trace.tb_lineno)\n1 / 0\n"
    )
    done = watched(tmp_path, "script.py")
    assert (done.returncode, done.stdout) == (1, "seen 3\n")
    assert done.stderr == "tournant watch: 0 findings\n"


@pytest.mark.parametrize(("code", "expected"), [("3", 3), ("None", 0), ("0", 0), ("True", 1)])
def test_the_exit_code_is_the_programs(code: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(f"import sys; sys.exit({code})")
    assert watched(tmp_path, "script.py").returncode == expected


@pytest.mark.parametrize(
    "text",
    [
        "import time\nprint('on', flush=True)\ntime.sleep(600)\n",
        "import asyncio\nasync def main():\n    print('on', flush=True)\n    await asyncio.sleep(600)\nasyncio.run(main())\n",
    ],
)
def test_ctrl_c_ends_it_with_the_findings_and_130(text: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(text)
    process = subprocess.Popen(
        command("script.py"),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("KeyboardInterrupt\ntournant watch: 0 findings\n")
    assert "cli/watch.py" not in said
