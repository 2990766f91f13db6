"""The documentation is true: its Python runs, its commands parse, its links lead somewhere, nothing public is left out."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tournant as tn
from tournant import errors
from tournant.cli import make_parser
from tournant.ingest import errors as ingest_errors

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Runs the blocks of one page in one namespace, as a script would: what fails is shown with the page's line.
RUNNER = """
import sys
page, namespace = sys.argv[1], {"__name__": "__main__"}
text = open(page, encoding="utf-8").read()
import linecache, re
linecache.cache[page] = (len(text), None, text.splitlines(keepends=True), page)
for block in re.finditer(r"^```python[^\\n]*\\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
    padding = "\\n" * text.count("\\n", 0, block.start(1))
    exec(compile(padding + block[1], page, "exec"), namespace)
"""


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Return (what stands behind the language, code) of each block."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(info.strip(), code) for name, info, code in found if name == language]


def commands(code: str) -> list[list[str]]:
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def parses(arguments: list[str]) -> bool:
    try:
        make_parser().parse_args(arguments)
    except SystemExit as leaving:
        return not leaving.code
    return True


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, folder: Path) -> None:
    if not blocks(page, "python"):
        pytest.skip("no Python on this page")
    done = run(["-c", RUNNER, str(page)], folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for _, code in blocks(page, "bash"):
        for program, *arguments in commands(code):
            if program == "tournant":
                assert parses(arguments), capsys.readouterr().err
            elif program == "make":
                assert set(arguments) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_marked_to_run_succeed(page: Path, folder: Path) -> None:
    for info, code in blocks(page, "bash"):
        if info == "run":
            for program, *arguments in commands(code):
                assert program == "tournant"
                done = run(["-m", "tournant", *arguments], folder)
                assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        goal = page.parent / path if path else page
        assert goal.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", goal.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings}
            assert anchor in anchors, target


def test_every_stage_and_option_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    methods = {
        name: method
        for name, method in inspect.getmembers(tn.Pipeline, inspect.isfunction)
        if name[0] != "_"
    }
    options = {
        option
        for method in [tn.Pipeline, *methods.values()]
        for option in inspect.signature(method).parameters
        if option not in ("self", "fn", "source")
    }
    missing = [
        name for name in [*methods, *sorted(options)] if not re.search(rf"`\.?{name}\b", text)
    ]
    assert not missing


def test_every_error_has_its_section() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    classes = {
        name
        for module in (errors, ingest_errors)
        for name, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, errors.TournantError)
    }
    headings = set(re.findall(r"\w+", " ".join(re.findall(r"^#+ (.*)$", text, re.MULTILINE))))
    assert classes - headings == set()


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("ingest.md", ["ingest", "search", "status"]),
        ("batch.md", ["batch"]),
        ("llm.md", ["mock-llm"]),
        ("serve.md", ["serve"]),
        ("kitchen.md", ["kitchen", "kitchen pitfalls"]),
        ("observing.md", ["trace"]),
        ("guards.md", ["watch"]),
    ],
)
def test_every_command_line_option_is_in_the_reference(
    page: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for command in names:
        with pytest.raises(SystemExit):
            make_parser().parse_args([*command.split(), "--help"])
        options = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out))
        assert {option for option in options if f"`{option}" not in text} <= {"-h", "--help"}
