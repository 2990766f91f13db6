from __future__ import annotations

import pytest

from tournant.llm.batch.errors import InvalidBatch
from tournant.llm.batch.templates import MissingField, Template


def test_fields_are_filled_in_by_name() -> None:
    template = Template("{title} ({year}): {text}, {title}")
    assert template.fields == ("title", "year", "text")
    assert template.fill({"title": "Sole", "year": 2024, "text": "{x}", "more": 1}) == (
        "Sole (2024): {x}, Sole"
    )


def test_what_is_no_text_is_written_as_json() -> None:
    filled = Template("{a} {b} {c} {d}").fill(
        {"a": True, "b": [1, "é"], "c": 1.5, "d": {"x": None}}
    )
    assert filled == 'true [1,"é"] 1.5 {"x":null}'


def test_names_may_have_blanks_and_dots() -> None:
    assert (
        Template("{first name}, {a.b}, {c[0]}").fill(
            {"first name": "Ann", "a.b": "dot", "c[0]": "index"}
        )
        == "Ann, dot, index"
    )


def test_double_braces_stand_for_braces() -> None:
    assert Template('{{"text": "{text}"}}').fill({"text": "x"}) == '{"text": "x"}'


def test_a_missing_field_is_named_with_those_that_are_there() -> None:
    with pytest.raises(MissingField, match=r"no field 'text' \(its fields: 'title', 'body'\)"):
        Template("{text}").fill({"title": "a", "body": "b"})
    with pytest.raises(MissingField, match="'text' is null"):
        Template("{text}").fill({"text": None})
    with pytest.raises(MissingField, match=r"'g7', \.\.\.\)"):
        Template("{text}").fill({f"g{number}": 1 for number in range(9)})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Summarise", "names no field"),
        ("Summarise {}", "no field"),
        ("Summarise { }", "no field"),
        ("Summarise {text", "expected '}'"),
        ("Summarise text}", "Single '}'"),
        ('Return {"a": 1} for {text}', "no field"),
        ("{text!r}", "no field"),
        ("{text:>10}", "no field"),
    ],
)
def test_what_can_not_be_filled_is_refused_with_the_mend(text: str, why: str) -> None:
    with pytest.raises(InvalidBatch, match=why) as caught:
        Template(text)
    assert "braces that are none double: {{ and }}" in str(caught.value) or why == "names no field"
