"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tournant as tn

SOURCE = Path(tn.__file__).parent
MODULES = {
    ".".join(["tournant", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): path
    for path in SOURCE.rglob("*.py")
}
#: What may use the core and is never used by it.
ABOVE = ("cli", "serve", "ingest", "llm", "kitchen", "cluster", "testing", "__main__")
#: Inside the core, from the bottom to the top: a module imports from its own layer or from below.
LAYERS = [
    {"_version"},
    {"errors", "sizes"},
    {"policies", "report"},
    {"stages"},
    {"guards", "pool"},
    {"sync"},
    {"engine"},
    {"handle", "background"},
    {"pipeline"},
    {"shortcuts"},
]
THIRD_PARTY_ALLOWED = {"cloudpickle", "uvloop"}


def room(module: str) -> str:
    """The part of the house that a module lies in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path, *, lazily: bool):
    """Modules that a file imports: when it is itself imported, or also later; never those for type checkers only."""
    module = next(name for name, where in MODULES.items() if where == path)
    found: set[str] = set()

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for other in child.orelse:
                    visit(other, inside)
                continue
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                if lazily:
                    visit(child, True)
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"{module}: a relative import"
                assert child.module is not None
                found.add(child.module)
                found.update(
                    f"{child.module}.{alias.name}"
                    for alias in child.names
                    if f"{child.module}.{alias.name}" in MODULES
                )
            else:
                visit(child, inside)

    visit(ast.parse(path.read_text()), False)
    return found


CORE = sorted(name for name in MODULES if room(name) not in ABOVE and name != "tournant")


@pytest.mark.parametrize("module", CORE)
def test_the_core_never_imports_what_is_built_on_it(module):
    for used in imports(MODULES[module], lazily=True):
        if used.startswith("tournant."):
            assert room(used) not in ABOVE, f"{module} imports {used}"


@pytest.mark.parametrize("module", [m for m in CORE if any(room(m) in layer for layer in LAYERS)])
def test_imports_point_downwards(module):
    level = {name: n for n, layer in enumerate(LAYERS) for name in layer}
    for used in imports(MODULES[module], lazily=False):
        if used.startswith("tournant.") and room(used) in level:
            assert level[room(used)] <= level[room(module)], f"{module} imports {used}"


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_nothing_third_party_at_its_top(module):
    if room(module) in ("observe", "testing") or module == "tournant.guards.pytest_plugin":
        pytest.skip("displays have their own libraries, imported where they are used")
    for used in imports(MODULES[module], lazily=False):
        top = used.split(".")[0]
        assert top == "tournant" or top in sys.stdlib_module_names, f"{module} imports {used}"
    if room(module) in {name for layer in LAYERS for name in layer}:
        for used in imports(MODULES[module], lazily=True):
            top = used.split(".")[0]
            assert (
                top == "tournant" or top in sys.stdlib_module_names or top in THIRD_PARTY_ALLOWED
            ), f"{module} imports {used}"


def loaded_after(statement: str) -> set[str]:
    program = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return set(out.stdout.split())


def test_importing_tournant_loads_next_to_nothing():
    assert loaded_after("import tournant") <= {
        "tournant",
        "tournant._version",
        "__future__",
        "typing",
        "_typing",
        "collections.abc",
        *_parts_of("typing"),
    }


def _parts_of(module: str) -> set[str]:
    return loaded_after(f"import {module}")


def test_describing_a_pipeline_loads_no_engine_and_nothing_heavy():
    loaded = loaded_after("import tournant as tn; tn.Pipeline([1]).map(str)")
    heavy = {"numpy", "cloudpickle", "sqlite3", "tournant.engine.run", "tournant.pool.processes"}
    assert not heavy & loaded


def test_files_fit_one_sitting():
    for module in CORE:
        if any(room(module) in layer for layer in LAYERS):
            assert len(MODULES[module].read_text().splitlines()) <= 500, module


EXPORTED = {
    "BackgroundRun", "BatchMismatch", "Cache", "Failure", "Finding", "ForgottenAwait", "Group", "InvalidPipeline", "Ledger", "LedgerError", "LostItems",
    "LostWork", "NotPicklable", "PerWorker", "Pipeline", "PipelineFailed", "PoolClosed", "Report", "Retry", "RunClosed", "RunHandle",
    "RunSnapshot", "SourceFailed", "StageExit", "StageReport", "StageSnapshot", "StageTimeout", "Throttled", "TooManyFailures",
    "TournantError", "Watched", "WorkerDied", "WouldDeadlock", "__version__", "arun", "cluster", "detach", "for_each", "limits", "llm", "map", "run",
    "shutdown", "streams", "watch",
}  # fmt: skip


def test_the_exported_names_are_held():
    """Whoever adds or removes a public name says so here."""
    assert set(tn.__all__) == EXPORTED
    for name in tn.__all__:
        assert getattr(tn, name) is not None
        assert name in dir(tn)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tn.nonsense


def test_there_is_one_tree_of_errors():
    import inspect

    from tournant import errors

    for name, value in vars(errors).items():
        if (
            inspect.isclass(value)
            and issubclass(value, BaseException)
            and value.__module__ == errors.__name__
        ):
            assert issubclass(value, tn.TournantError), name
