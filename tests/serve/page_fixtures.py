"""The fixtures of the tests of the page, as a plugin that these tests name: `browser`, `upstream`, `both`, `gateway`, `open_tab`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from data_samples import make_index
from page_browser import BAD, Tab, chromium, serving
from page_upstream import Upstream


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index in which one document is hostile."""
    texts = {
        "dogs.md": "# Dogs\n\nA small dog runs in the park and barks at the postman.\n",
        "bread.md": "# Bread\n\nKnead the dough, let it rise for two hours, then bake it.\n",
        "hostile.md": f"A trap for readers: {BAD} and <script>window.hit='yes'</script> follow.\n",
    }
    return make_index(tmp_path_factory.mktemp("page"), texts)


@pytest.fixture(scope="module")
def both(browser: Any, upstream: Upstream, index: Path) -> Iterator[str]:
    """A server with an index and a model."""
    with serving(index=str(index), llm=upstream.url, model="house-model") as url:
        yield url


@pytest.fixture(scope="module")
def gateway(browser: Any, upstream: Upstream) -> Iterator[str]:
    """A server with a model only."""
    with serving(llm=upstream.url) as url:
        yield url


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Open a page; afterwards the browser must have had nothing to complain about but what the test expected."""
    tabs: list[tuple[Tab, str | None]] = []

    def open_one(url: str, *, expected: str | None = None, **options: Any) -> Tab:
        tab = Tab(browser, url, **options)
        tabs.append((tab, expected))
        return tab

    yield open_one
    for tab, _ in tabs:
        tab.context.close()
    for tab, expected in tabs:
        unexpected = [text for text in tab.complaints if expected is None or expected not in text]
        assert unexpected == []
