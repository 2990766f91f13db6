from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from tournant.llm.batch.digests import DigestSet, digest_of


@given(st.lists(st.text(st.characters(), max_size=3)))
def test_it_is_a_set(ids: list[str]) -> None:
    found, expected = DigestSet(), set[str]()
    for custom_id in ids:
        assert (digest_of(custom_id) in found) == (custom_id in expected)
        assert found.add(digest_of(custom_id)) == (custom_id not in expected)
        expected.add(custom_id)
        assert len(found) == len(expected)
    assert all(digest_of(custom_id) in found for custom_id in expected)


def test_what_lies_across_two_neighbours_is_not_in_it() -> None:
    # All in one bucket: the two halves of neighbours are a digest of that bucket too.
    bucket = b"\xab\xcd"
    first = bucket + b"1234567" + bucket + b"fghij"
    second = bucket + b"klmnopqrstuvwx"
    found = DigestSet()
    assert found.add(first)
    assert found.add(second)
    across = (first + second)[9:25]
    assert across[:2] == bucket
    assert across not in found
    assert found.add(across)
    assert across in found


def test_a_million_requests_would_take_some_20_megabytes() -> None:
    digests = [digest_of(str(number)) for number in range(200_000)]
    tracemalloc.start()
    found = DigestSet()
    for digest in digests:
        found.add(digest)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken / len(found) < 25
