"""Answers can be foretold, and belong to their prompts."""

from __future__ import annotations

import base64
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tournant.llm.mock import answer_to, count_tokens, vector_of
from tournant.llm.mock.answers import pieces_of, vector_base64
from tournant.llm.mock.asks import CHAT, COMPLETION, EMBEDDING, BadBody, options_of, read_ask


def test_four_characters_are_a_token():
    assert [count_tokens("x" * n) for n in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]


@given(st.text(max_size=200), st.integers(0, 100))
def test_an_answer_has_as_many_tokens_as_were_asked_for(prompt, tokens):
    text = answer_to(prompt, tokens)
    assert count_tokens(text) == tokens
    assert len(pieces_of(text)) == tokens
    assert "".join(pieces_of(text)) == text


def test_an_answer_repeats_the_words_of_its_prompt():
    assert answer_to("  one\ntwo ", 5) == "one two one two one "
    assert answer_to("one two three", 2) == "one two "
    assert answer_to("", 4) == answer_to(" \n", 4) == "nothing was said"


def test_an_answer_ends_before_a_stop():
    assert answer_to("alpha beta gamma", 20, ("gam",)) == "alpha beta "
    assert answer_to("alpha beta gamma", 20, ("zeta", "beta")) == "alpha "


@given(st.text(max_size=50), st.integers(1, 300))
def test_vectors_have_length_one_and_are_the_same_both_ways(text, dimensions):
    vector = vector_of(text, dimensions)
    assert len(vector) == dimensions
    assert math.sqrt(sum(x * x for x in vector)) == pytest.approx(1, abs=1e-5) or not any(vector)
    raw = base64.b64decode(vector_base64(text, dimensions))
    assert list(struct.unpack(f"<{dimensions}f", raw)) == vector
    assert vector_of(text, dimensions) == vector


def test_unlike_texts_have_unlike_vectors():
    one, other = vector_of("one", 1_024), vector_of("other", 1_024)
    assert abs(sum(a * b for a, b in zip(one, other, strict=True))) < 0.15


def test_a_conversation_is_answered_by_its_last_message_of_the_user():
    body = (
        b'{"model":"m","messages":[{"role":"system","content":"You are terse."},{"role":"user","content":"first"},'
        b'{"role":"assistant","content":null,"tool_calls":[]},{"role":"user","content":[{"type":"text","text":"second"},'
        b'{"type":"image_url","image_url":{"url":"x"}}]},{"role":"tool","tool_call_id":"1","content":"42"}],'
        b'"max_completion_tokens":9,"max_tokens":5,"temperature":0.5,"tools":[],"stream":true,'
        b'"stream_options":{"include_usage":true},"stop":["a",""]}'
    )
    ask = read_ask(CHAT, body)
    assert ask.texts == ["second"]
    assert ask.tokens_in == count_tokens("You are terse." + "first" + "second" + "42")
    assert (ask.most, ask.streamed, ask.with_usage, ask.stop) == (9, True, True, ("a",))


@pytest.mark.parametrize(
    ("prompt", "texts", "tokens"),
    [
        ('"one text"', ["one text"], 2),
        ('["one", "another"]', ["one", "another"], 1 + 2),
        ("[17, 4, 99]", ["17 4 99"], 3),
        ("[[17, 4], [99]]", ["17 4", "99"], 3),
    ],
)
def test_prompts_come_as_text_or_as_token_numbers(prompt, texts, tokens):
    for kind, name in ((COMPLETION, "prompt"), (EMBEDDING, "input")):
        ask = read_ask(kind, f'{{"model":"m","{name}":{prompt}}}'.encode())
        assert (ask.texts, ask.tokens_in) == (texts, tokens)


@pytest.mark.parametrize(
    ("kind", "body", "param", "said"),
    [
        (CHAT, b"", None, "could not parse the JSON"),
        (CHAT, b'{"model":"m"', None, "could not parse the JSON"),
        (CHAT, b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}', None, "parse"),
        (CHAT, b"[]", None, "Expected `object`"),
        (CHAT, b'{"messages":[]}', None, "model"),
        (CHAT, b'{"model":"m"}', None, "messages"),
        (CHAT, b'{"model":"m","messages":[]}', "messages", "empty array"),
        (CHAT, b'{"model":"m","messages":"hi"}', "messages", "Expected `array`"),
        (CHAT, b'{"model":"m","messages":[{"role":"user","content":1}]}', "messages[0].content", "str"),
        (CHAT, b'{"model":"m","messages":[{"role":"user"}],"max_tokens":"9"}', "max_tokens", "int"),
        (CHAT, b'{"model":"m","messages":[{"role":"user"}],"max_tokens":0}', "max_tokens", "from 1"),
        (CHAT, b'{"model":"m","messages":[{"role":"user"}],"max_tokens":9999999}', "max_tokens", "131072"),
        (CHAT, b'{"model":"m","messages":[{"role":"user"}],"n":2}', "n", "Ask again"),
        (COMPLETION, b'{"model":"m","prompt":[]}', "prompt", "from 1 to 2048"),
        (COMPLETION, b'{"model":"m","prompt":["a",1]}', "prompt", "not both"),
        (EMBEDDING, b'{"model":"m","input":{}}', "input", "Expected"),
        (EMBEDDING, b'{"model":"m","input":"a","encoding_format":"hex"}', "encoding_format", "base64"),
        (EMBEDDING, b'{"model":"m","input":"a","dimensions":0}', "dimensions", "from 1"),
        (CHAT, b'{"tools":' + b"[" * 100_000, None, "parse"),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_is_refused(kind, body, param, said):
    with pytest.raises(BadBody) as caught:
        read_ask(kind, body)
    assert said in caught.value.message
    assert caught.value.param == param


def test_a_model_gets_the_options_and_not_what_lies_between():
    assert options_of(
        {
            "model": "m",
            "messages": [],
            "stream": True,
            "temperature": 0.1,
            "seed": None,
            "stop": "x",
        }
    ) == {"temperature": 0.1, "stop": "x"}
