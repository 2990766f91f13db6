"""Programs without a main guard: scripts, ``python -c`` and standard input."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PROGRAM = textwrap.dedent(
    """
    import dataclasses, os
    import tournant as tn

    print("imported once")
    OFFSET = 10

    @dataclasses.dataclass
    class Point:
        x: int

        def moved(self):
            return Point(self.x + OFFSET)

    class Trouble(Exception):
        pass

    def work(point):
        assert isinstance(point, Point)
        if point.x == 3:
            raise Trouble("three")
        print("in a worker", flush=True)
        return point.moved()

    report = tn.Pipeline(map(Point, range(5)), on_error="skip").map(work, on="processes")
    points = report.collect()
    assert sorted(p.x for p in points) == [10, 11, 12, 14], points
    assert all(type(p) is Point for p in points)

    report = tn.Pipeline([Point(3)], on_error="skip").map(work, on="processes").run()
    assert type(report.failures[0].error) is Trouble, report.failures
    assert tn.run(lambda a, b: (a + b, os.getpid()), 1, 2, on="processes")[1] != os.getpid()
    print("the end")
    """
)


def run(arguments, **options):
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


@pytest.mark.parametrize("how", ["script", "command", "standard input", "guarded"])
def test_functions_and_classes_of_main_travel_by_value(how, tmp_path):
    if how == "script":
        path = tmp_path / "program.py"
        path.write_text(PROGRAM)
        out = run([str(path)])
    elif how == "guarded":
        path = tmp_path / "program.py"
        path.write_text("if __name__ == '__main__':\n" + textwrap.indent(PROGRAM, "    "))
        out = run([str(path)])
    elif how == "command":
        out = run(["-c", PROGRAM])
    else:
        out = run(["-"], input=PROGRAM)
    assert out.returncode == 0, out.stderr
    assert out.stderr == ""
    lines = out.stdout.splitlines()
    assert lines.count("imported once") == 1
    assert out.stdout.count("in a worker") == 4
    assert lines[-1] == "the end"


def test_prints_of_a_worker_that_is_killed_are_not_lost():
    out = run(
        [
            "-c",
            "import os, signal, tournant as tn\n"
            "def work(n):\n"
            "    print('said before the end')\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "tn.Pipeline([1], on_error='skip').map(work, on='processes').run()\n",
        ]
    )
    assert out.stdout.count("said before the end") == 2
    assert out.returncode == 0, out.stderr


def test_a_program_ends_at_once_though_workers_are_warm_and_threads_hang():
    out = run(
        [
            "-c",
            "import threading, tournant as tn\n"
            "tn.Pipeline(range(4), on_error='skip').map(lambda n: threading.Event().wait(), timeout=0.06).run()\n"
            "tn.run(abs, -1, on='processes')\n"
            "print('end')",
        ]
    )
    assert (out.stdout, out.returncode) == ("end\n", 0), out.stderr


def test_a_fork_has_a_pool_of_its_own():
    program = textwrap.dedent(
        """
        import os, warnings, tournant as tn
        warnings.simplefilter("ignore", DeprecationWarning)
        assert tn.run(abs, -1, on="processes") == 1
        child = os.fork()
        if child == 0:
            code = 0 if tn.run(abs, -2, on="processes") == 2 and tn.run(abs, -3) == 3 else 1
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert tn.run(abs, -4, on="processes") == 4
        """
    )
    out = run(["-c", program])
    assert out.returncode == 0, out.stderr
