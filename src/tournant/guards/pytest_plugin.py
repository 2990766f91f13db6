"""The guards in pytest: ``pytest --tournant-guards`` watches each test, and fails the one that makes a mistake.

Next to nothing is imported unless the option is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

    import pytest

_OPTION = "tournant_guards"
_PROPERTY = "tournant-guards"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    group = parser.getgroup("tournant")
    what = "for blocked event loops, lost tasks and exceptions, coroutines never awaited and threads behind the interpreter lock"
    group.addoption(
        "--tournant-guards",
        dest=_OPTION,
        action="store_const",
        const="fail",
        help=f"watch each test {what}, and fail the one that caused them",
    )
    group.addoption(
        "--tournant-guards-report",
        dest=_OPTION,
        action="store_const",
        const="report",
        help="the same, but only list them at the end",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Watch the tests if the option is given."""
    mode = config.getoption(_OPTION)
    if mode is not None:
        config.pluginmanager.register(_guards(mode), "tournant-guards-on")


def _guards(mode: str) -> object:
    """Return the plugin that watches each test."""
    import pytest

    from tournant.guards import places
    from tournant.guards.watch import watch

    class Guards:
        """Watches each test's call; what its fixtures do is not its fault."""

        def __init__(self) -> None:
            self.reported: list[str] = []

        @pytest.hookimpl(wrapper=True)
        def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
            """Watch one test."""
            places.declare(str(pyfuncitem.path))
            with watch(report=None) as guards:
                result = yield
            findings = guards.findings
            if findings and mode == "fail":
                pytest.fail("\n".join(finding.text for finding in findings), pytrace=False)
            # With the test's own report: under pytest-xdist it is another process that lists them.
            pyfuncitem.user_properties += [(_PROPERTY, finding.text) for finding in findings]
            return result

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            """Take what was found in one test."""
            if report.when == "call":
                found = [text for name, text in report.user_properties if name == _PROPERTY]
                self.reported += [f"{report.nodeid}: {text}" for text in found]

        def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
            """List what was found."""
            if self.reported:
                terminalreporter.section("tournant guards")
                for line in self.reported:
                    terminalreporter.line(line)

    return Guards()
