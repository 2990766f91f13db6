from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def _first_loop() -> None:
    """uvloop opens a pipe with its first loop and keeps it, which is no leak of the test that comes first."""
    from tournant.sync import new_loop

    new_loop().close()
