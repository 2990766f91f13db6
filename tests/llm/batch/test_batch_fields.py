from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tournant.llm.batch import fields
from tournant.llm.batch.errors import InputRefused
from tournant.llm.batch.fields import CsvRows, JsonLines, PromptMaker
from tournant.llm.batch.requests import BadLine, Request
from tournant.llm.batch.templates import Template

MAKE = PromptMaker(Template("Summarise: {text}"), "kitchen-1")


def made(found: list[Request | BadLine]) -> list[tuple[str, str]]:
    return [
        (entry.custom_id, json.loads(entry.body)["messages"][-1]["content"])
        for entry in found
        if isinstance(entry, Request)
    ]


def bad(found: list[Request | BadLine]) -> list[tuple[int, str]]:
    return [(entry.line, entry.reason) for entry in found if isinstance(entry, BadLine)]


def rows(data: bytes, separator: str | None = None) -> list[Request | BadLine]:
    return list(CsvRows(MAKE, separator).read(io.BytesIO(data)))


def lines(*values: Any) -> list[Request | BadLine]:
    data = "".join(
        f"{value if isinstance(value, str) else json.dumps(value)}\n" for value in values
    )
    return list(JsonLines(MAKE).read(io.BytesIO(data.encode())))


def test_a_request_is_made_of_a_prompt_a_system_message_and_a_longest_answer() -> None:
    make = PromptMaker(Template("Summarise: {text}"), "kitchen-1", "Be brief.", 64)
    request = make.request({"text": "A sole."}, 3)
    assert (request.url, request.line, request.custom_id) == ("/v1/chat/completions", 3, "3")
    assert json.loads(request.body) == {
        "model": "kitchen-1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Summarise: A sole."},
        ],
        "max_tokens": 64,
    }
    assert 64 < request.tokens < 100
    assert "max_tokens" not in json.loads(MAKE.request({"text": ""}, 1).body)


def test_a_line_is_named_by_its_id_or_its_number() -> None:
    found = lines(
        {"text": "a", "custom_id": "x", "id": "y"}, {"text": "b", "id": 7}, {"text": "c"}, "",
        {"text": "d", "id": None}, {"text": "e", "id": ""},
    )  # fmt: skip
    assert [name for name, _ in made(found)] == ["x", "7", "3", "5", "6"]


def test_lines_that_make_no_request_are_reported_with_their_number() -> None:
    deep = '{"text": ' + "[" * 200_000 + "]" * 200_000 + "}"
    found = lines(
        {"text": "a"}, {"body": "b"}, "[1]", "{", {"text": "c", "id": [1]}, deep, {"text": "d"}
    )
    assert [text for _, text in made(found)] == ["Summarise: a", "Summarise: d"]
    reasons = bad(found)
    assert [number for number, _ in reasons] == [2, 3, 4, 5, 6]
    for (_, reason), expected in zip(
        reasons,
        ("no field 'text'", "no JSON object", "not JSON", "its id is [1]", "nested too deeply"),
        strict=True,
    ):
        assert expected in reason


def test_a_table_is_read_by_its_columns_wherever_its_rows_break() -> None:
    data = b'\xef\xbb\xbfid,text\r\n1,"a, ""b""\r\nc"\r\n\r\n2,d\r\n'
    assert made(rows(data)) == [("1", 'Summarise: a, "b"\r\nc'), ("2", "Summarise: d")]


@pytest.mark.parametrize("separator", [",", ";", "|", "\t"])
def test_the_separator_is_that_of_the_first_row(separator: str) -> None:
    data = separator.join(("id", "text")) + "\n" + separator.join(("1", "a")) + "\n"
    assert made(rows(data.encode())) == [("1", "Summarise: a")]


def test_a_table_of_one_column_has_no_separator() -> None:
    assert made(rows(b"text\nhello\nyou\n")) == [("2", "Summarise: hello"), ("3", "Summarise: you")]


def test_rows_that_are_none_are_reported_with_the_line_they_begin_in() -> None:
    data = b'id,text\n1,a\n2\n3,b,c\n4,"x\ny"\n5,\xff\n6,z\n'
    found = rows(data)
    assert made(found) == [("1", "Summarise: a"), ("4", "Summarise: x\ny"), ("6", "Summarise: z")]
    assert bad(found) == [
        (3, "it has 1 cells, where the first row names 2"),
        (4, "it has 3 cells, where the first row names 2"),
        (7, "it is not UTF-8"),
    ]


def test_a_quote_that_nobody_closes_spoils_no_more_than_its_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import csv

    before = csv.field_size_limit(500)
    try:
        monkeypatch.setattr(fields, "LONGEST_LINE", 500)
        found = rows(b'id,text\n1,"a\n' + b"x" * 200 + b"\n" + b"y" * 400 + b"\n2,b\n3,c\n")
    finally:
        csv.field_size_limit(before)
    ((number, reason), *_) = bad(found)
    assert number == 2
    assert "damaged" in reason
    assert ("3", "Summarise: c") in made(found)


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize(
    ("table", "opened"),
    [
        (b'1,"a\n2,b\n3,c', 2),
        (b'1,a\n2,"b\n', 3),
        (b'1,a\n2,"', 3),
        (b'1,"a\r\nb",\n"2\n",3\n"x\ny","z\n\nq,r', 7),
    ],
)
def test_a_quote_that_is_never_closed_is_refused_with_its_line(
    table: bytes, opened: int, ending: bytes
) -> None:
    with pytest.raises(InputRefused, match=f"a quote in line {opened} and never ends"):
        rows(b"id,text\n" + table + ending)


def test_a_quote_out_of_its_place_is_reported_with_all_that_it_spoiled() -> None:
    found = rows(b'id,text\n1,"a\n2,"b"\n3,c\n4,"d" \n5,6" pipe\n')
    assert made(found) == [("3", "Summarise: c"), ("5", 'Summarise: 6" pipe')]
    (first, reason), (second, other) = bad(found)
    assert (first, second) == (2, 5)
    assert "from here to line 3" in reason
    assert "damaged here" in other


@pytest.mark.parametrize("before", [b"\n\r\n  \n", b"sep=;\r\n\n\n", b"\n\nSEP=;;;\n", b"\xef\xbb\xbf\n\n\n"])  # fmt: skip
def test_what_spreadsheets_put_before_the_first_row_is_passed_over(before: bytes) -> None:
    found = rows(before + b"id;text, all\n1;a\n2\n3;b\n".replace(b", all", b""))
    assert made(found) == [("1", "Summarise: a"), ("3", "Summarise: b")]
    assert [line for line, _ in bad(found)] == [6]


def test_a_separator_that_is_declared_is_taken() -> None:
    assert made(rows(b"sep=;\ntext;a,b,c\nx;1\n")) == [("3", "Summarise: x")]


@pytest.mark.parametrize("header", [b"id,id\n", b",\n"])
def test_a_table_without_usable_names_is_refused(header: bytes) -> None:
    with pytest.raises(InputRefused, match="first row"):
        rows(header + b"1,2\n")


def test_an_empty_table_has_no_requests() -> None:
    assert rows(b"") == []
    assert rows(b"id,text\n") == []


def test_a_table_leaves_its_file_open(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\nhello\n")
    with path.open("rb") as file:
        assert made(list(CsvRows(MAKE).read(file))) == [("2", "Summarise: hello")]
        file.seek(0)
        assert made(list(CsvRows(MAKE).read(file))) == [("2", "Summarise: hello")]
