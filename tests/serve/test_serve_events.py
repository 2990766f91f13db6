"""Looking at events without parsing them gives the same as parsing would, wherever the bytes are cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tournant.llm.sse import EventParser
from tournant.serve.events import EventCutter, EventTooLarge, has_data, is_error_event, usage_in

TEXTS = st.text(max_size=30)
PIECES = st.lists(st.integers(1, 40), max_size=40)


def events_of(texts: list[str], end: bytes) -> bytes:
    lines = [b"data: " + json.dumps({"content": text}).encode() for text in texts]
    return b"".join(
        line + end for line in [*lines, b": comment", b"event: x\ndata: 1", b"data: [DONE]"]
    )


@given(st.lists(TEXTS, max_size=8), PIECES, st.sampled_from([b"\n\n", b"\r\n\r\n"]))
def test_wherever_it_is_cut_whole_events_come_out(texts, sizes, end):
    data = events_of(texts, end)
    cutter = EventCutter(10_000)
    out = []
    rest = data
    for size in [*sizes, len(data)]:
        piece, rest = rest[:size], rest[size:]
        if piece:
            given = cutter.feed(piece)
            assert not given or given.endswith(end)
            out.append(given)
    assert b"".join(out) == data, "nothing is lost, nothing is changed"
    assert cutter.done
    assert cutter.empty
    assert cutter.events == len(texts) + 3
    parsed = EventParser().feed(b"".join(out))
    assert parsed[-1].data == b"[DONE]"


def test_done_inside_of_a_text_is_no_end():
    cutter = EventCutter(10_000)
    cutter.feed(b'data: {"content": "data: [DONE]"}\n\n')
    cutter.feed(b'data: {"content": "[DONE]"}\n\n')
    assert not cutter.done
    cutter.feed(b"data:[DONE]\n\n")
    assert cutter.done


def test_a_last_event_without_an_end_counts_only_if_it_is_done():
    cutter = EventCutter(10_000)
    assert cutter.feed(b"data: x\n\ndata: [DONE]\n") == b"data: x\n\n"
    assert cutter.rest() == b"data: [DONE]\n\n"
    assert cutter.done
    other = EventCutter(10_000)
    other.feed(b"data: x\n\ndata: hal")
    assert other.rest() == b""
    assert not other.done


@pytest.mark.parametrize("piece", [1, 7, 1_000])
def test_an_event_that_never_ends_is_refused(piece):
    cutter = EventCutter(5_000)
    with pytest.raises(EventTooLarge, match="5,000 bytes"):
        for _ in range(0, 10_000, piece):
            cutter.feed(b"x" * piece)


def test_what_it_cost_is_found():
    usage = {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46}
    cutter = EventCutter(10_000)
    cutter.feed(b'data: {"usage": null}\n\n')
    assert cutter.usage() is None
    cutter.feed(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
    cutter.feed(b"data: [DONE]\n\n")
    assert cutter.usage() == (12, 34)
    assert usage_in(json.dumps({"usage": {"prompt_tokens": 5, "total_tokens": 5}}).encode()) == (
        5,
        0,
    )
    assert usage_in(b'{"prompt_tokens": 99999999999999999999}') is None


def test_errors_and_comments_are_told_apart():
    assert is_error_event(b'data: {"error": {"message": "x"}}\n\n')
    assert is_error_event(b"event: error\ndata: x\n\n")
    assert not is_error_event(b'data: {"error": null, "choices": []}\n\n')
    assert not is_error_event(b'data: {"content": "data: {\\"error\\": {}"}\n\n')
    assert not has_data(b": keep alive\n\n")
    assert has_data(b": keep alive\n\ndata: x\n\n")
