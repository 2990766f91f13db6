from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from tournant.ingest.sources import from_store, to_store


@given(st.binary())
def test_every_file_name_comes_back(name: bytes) -> None:
    source = os.fsdecode(name)
    stored = to_store(source)
    stored.encode("utf-8")
    assert from_store(stored) == source


@given(st.text(st.characters(exclude_categories=())))
def test_every_string_comes_back(source: str) -> None:
    stored = to_store(source)
    stored.encode("utf-8")
    assert from_store(stored) == source


@given(
    st.text("\ufffd\udce9\ud800uE9 D80", max_size=12),
    st.text("\ufffd\udce9\ud800uE9 D80", max_size=12),
)
def test_different_names_stay_different(one: str, other: str) -> None:
    assert (to_store(one) == to_store(other)) == (one == other)


def test_valid_names_are_stored_as_they_are() -> None:
    assert to_store("/tmp/näme\nwith 100%/日本.txt") == "/tmp/näme\nwith 100%/日本.txt"
    assert to_store(os.fsdecode(b"/tmp/caf\xe9")) == "/tmp/caf\ufffdE9"
