"""Server-sent events: the same events however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tournant.llm.sse import Event, EventParser, EventTooLarge


def parsed(*pieces: bytes) -> list[tuple[bytes, bytes]]:
    parser = EventParser()
    return [tuple(event) for piece in pieces for event in parser.feed(piece)]


def test_each_event_gives_its_data():
    assert parsed(b'data: {"a": 1}\n\ndata: [DONE]\n\n') == [(b"", b'{"a": 1}'), (b"", b"[DONE]")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_may_end_in_any_of_three_ways(end):
    text = b"event: error\ndata: one\ndata: two\n\ndata:three\n\n".replace(b"\n", end)
    assert parsed(text) == [(b"error", b"one\ntwo"), (b"", b"three")]


def test_a_cr_and_its_lf_in_two_pieces_are_one_line_end():
    assert parsed(b"data: a\r", b"\n", b"\r", b"\ndata: b\r", b"\r") == [(b"", b"a"), (b"", b"b")]


def test_a_lf_that_ends_a_line_of_its_own_is_no_part_of_a_cr_before_that_line():
    assert parsed(b"data: a\rdata: b", b"\ndata: c", b"\n\n") == [(b"", b"a\nb\nc")]


def test_comments_and_unknown_fields_are_passed_over():
    text = b": OPENROUTER PROCESSING\n\nid: 7\nretry: 10\nnonsense\n: here too\ndata: x\n\n"
    assert parsed(text) == [(b"", b"x")]


def test_only_the_first_space_of_a_value_is_taken_away():
    assert parsed(b"data:  x:y \n\n") == [(b"", b" x:y ")]


def test_an_event_without_data_is_none_and_leaves_no_name_behind():
    assert parsed(b"event: ping\n\ndata: x\n\n") == [(b"", b"x")]


def test_a_byte_order_mark_at_the_start_is_passed_over_even_when_cut():
    assert parsed(b"\xef", b"\xbb\xbfdata: x\n\n") == [(b"", b"x")]


def test_empty_pieces_do_nothing():
    assert parsed(b"", b"data: x\r", b"", b"\n\n", b"") == [(b"", b"x")]


def test_what_has_not_ended_is_the_rest():
    parser = EventParser()
    assert parser.feed(b"data: [DO") == []
    assert parser.feed(b"NE]") == []
    assert parser.rest() == Event(b"", b"[DONE]")
    assert parser.rest() is None


def test_nothing_is_left_after_a_proper_end():
    parser = EventParser()
    parser.feed(b"data: x\n\n: bye")
    assert parser.rest() is None


def test_an_event_larger_than_allowed_is_refused_whether_it_is_one_line_or_many():
    with pytest.raises(EventTooLarge, match="more than 1,000 bytes"):
        parser = EventParser(largest=1_000)
        for _ in range(20):
            parser.feed(b"x" * 60)
    with pytest.raises(EventTooLarge):
        EventParser(largest=1_000).feed(b"data: 12345678\n" * 200)


def test_the_bound_is_for_one_event_and_not_for_the_stream():
    parser = EventParser(largest=100)
    for _ in range(100):
        assert parser.feed(b"data: 1234567890") == []
        assert parser.feed(b"\n\n") == [Event(b"", b"1234567890")]


def test_ten_megabytes_in_one_line():
    parser = EventParser()
    pieces = [b"data: "] + [b"x" * 65_536] * 160 + [b"\n", b"\n"]
    events = [event for piece in pieces for event in parser.feed(piece)]
    assert [len(event.data) for event in events] == [160 * 65_536]


WORDS = st.text(alphabet="ab :é世\t", max_size=8).map(str.encode)
LINES = st.one_of(
    WORDS.map(lambda word: b"data: " + word),
    WORDS.map(lambda word: b"data:" + word),
    WORDS.map(lambda word: b": " + word),
    st.sampled_from([b"", b"", b"", b"event: error", b"event:x", b"data", b"id: 3"]),
)


@settings(deadline=None)
@given(
    lines=st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=25),
    cuts=st.lists(st.integers(0, 400), max_size=12),
    ended=st.booleans(),
)
def test_any_cut_of_the_bytes_gives_the_same_events(lines, cuts, ended):
    text = b"".join(line + end for line, end in lines) + (b"\n\n" if ended else b"data: rest")
    whole = EventParser()
    expected, rest = whole.feed(text), whole.rest()
    places = sorted({min(cut, len(text)) for cut in cuts})
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    parser = EventParser()
    assert [event for piece in pieces for event in parser.feed(piece)] == expected
    assert parser.rest() == rest


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([b"", b"error"]), st.lists(WORDS, min_size=1, max_size=3)),
        max_size=8,
    )
)
def test_what_is_written_is_what_is_read(events):
    text = b""
    for name, values in events:
        text += b"event: " + name + b"\n" if name else b""
        text += b"".join(b"data: " + value + b"\n" for value in values) + b"\n"
    assert parsed(text) == [(name, b"\n".join(values)) for name, values in events]
