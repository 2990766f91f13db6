"""What every reader does, what each kind of file becomes, and which reader is chosen."""

from __future__ import annotations

import pickle
import sys
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingest_samples import archive, pdf

from tournant.ingest.documents import Document
from tournant.ingest.errors import MissingExtra, UnreadableFile
from tournant.ingest.readers.base import Reader
from tournant.ingest.readers.registry import OFFICE, READERS, SUFFIXES, choose, parse, suffix_of

SAMPLES = {
    "text": ("a.txt", "caf\u00e9 au lait".encode()),
    "html": ("a.html", "<title>T</title><p>caf\u00e9 au lait".encode()),
    "pdf": ("a.pdf", pdf("au lait", title="T")),
    "csv": ("a.csv", b"drink,with\ncoffee,au lait\n"),
    "json": ("a.json", b'{"coffee": "au lait"}'),
    "jsonl": ("a.jsonl", b'{"coffee": "au lait"}\n'),
}


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
class TestEveryReader:
    def test_has_a_name_and_suffixes_of_its_own(self, reader: Reader) -> None:
        assert reader.name
        assert reader.suffixes
        for suffix, media_type in reader.suffixes.items():
            assert suffix == suffix.lower()
            assert suffix[0] == "."
            assert "/" in media_type
            assert SUFFIXES[suffix] is reader

    def test_gives_an_empty_document_for_an_empty_file(self, reader: Reader) -> None:
        suffix = next(iter(reader.suffixes))
        document = parse(f"/x/empty{suffix}", b"")
        assert document == Document(f"/x/empty{suffix}", "", reader.suffixes[suffix])

    def test_travels_to_other_processes(self, reader: Reader) -> None:
        assert pickle.loads(pickle.dumps(reader)) == reader

    def test_keeps_source_and_text(self, reader: Reader) -> None:
        if reader is OFFICE:
            pytest.skip("needs an optional package; see below")
        name, data = SAMPLES[reader.name]
        source = f"/odd\n\udce9/{name}"
        document = parse(source, data)
        assert document.source == source
        assert "au lait" in document.text
        assert document.media_type == reader.suffixes[suffix_of(name)]

    @given(data=st.binary(max_size=300))
    def test_reads_any_bytes_or_says_why_not(self, reader: Reader, data: bytes) -> None:
        if reader is OFFICE and data:
            return
        for suffix in list(reader.suffixes)[:2]:
            try:
                document = parse(f"x{suffix}", data)
            except UnreadableFile:
                continue
            document.text.encode("utf-8")


@pytest.mark.parametrize(
    ("name", "data", "reader"),
    [
        ("a.txt", pdf("x"), "pdf"),
        ("a.pdf", b"<!DOCTYPE html><p>moved", "html"),
        ("a.txt", b"\n <!-- x -->\n<HTML><body>", "html"),
        ("noname", b"<?xml version='1.0'?>\n<!doctype html>", "html"),
        ("a.txt", "\ufeff<html><p>x".encode("utf-16"), "html"),
        ("a.md", b"<html>in Markdown</html>", "text"),
        ("a.py", b"<html>", "text"),
        ("a.pdf", b"plain words", "text"),
        ("a.docx", b"plain words", "text"),
        ("a.docx", archive(), "office"),
        ("a.unknown", b"words", "text"),
        ("a.JSON", b"{}", "json"),
        ("a.json", b"<html><h1>404</h1>", "html"),
    ],
)
def test_content_decides_where_the_suffix_lies(name: str, data: bytes, reader: str) -> None:
    assert choose(name, data).name == reader


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG image"),
        ("a.txt", b"words\0\1\2words", "binary"),
        ("a.pdf", bytes(range(256)), "binary"),
        ("a.txt", archive(), "ZIP archive"),
        ("a.zip", archive(), "ZIP archive"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(50), "old Office document"),
        ("a.py", b"\x7fELF\2\1\1\0\0", "program"),
    ],
)
def test_binary_content_is_refused_whatever_its_name(name: str, data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableFile, match=reason) as caught:
        parse(name, data)
    assert caught.value.path == name


def test_line_ends_become_newlines() -> None:
    assert parse("a.txt", b"one\r\ntwo\rthree\n").text == "one\ntwo\nthree\n"


def test_rows_of_a_table_carry_their_column_names() -> None:
    data = b"\xef\xbb\xbfname;role\nAda;engineer\n;\nGrace;admiral;extra\n"
    assert (
        parse("a.csv", data).text == "name: Ada; role: engineer\nname: Grace; role: admiral; extra"
    )
    assert parse("a.tsv", b"name\tage\nAda\t36\n").text == "name: Ada; age: 36"
    assert parse("a.csv", b"1,2\n3,4\n").text == "1, 2\n3, 4"
    assert (
        parse("a.csv", b'a,b\n"x, y","line one\nline two"\n').text
        == "a: x, y; b: line one\nline two"
    )
    assert parse("a.csv", b"only,header\n").text == "only, header"


def test_json_becomes_paths_and_values() -> None:
    data = b'{"a": {"b": ["x", 1, null, true, ""]}, "c": "y", "d": {}}'
    assert parse("a.json", data).text == "a.b: x\na.b: 1\na.b: true\nc: y"
    assert parse("a.json", b'"bare"').text == "bare"


def test_json_lines_become_paragraphs() -> None:
    assert parse("a.jsonl", b'{"a": 1}\n\n{"a": "x"}').text == "a: 1\n\na: x"


@pytest.mark.parametrize(
    ("name", "data", "where"),
    [
        ("a.json", b'{"a": 1,}', "line 1, column 9"),
        ("a.json", b'{"a":\n oops}', "line 2, column 2"),
        ("a.jsonl", b'{"a": 1}\n{"a": }\n', "line 2, column 7"),
        ("a.json", b"[" * 200_000, "nested too deeply"),
        ("a.json", b"9" * 10_000, "can't be read"),
    ],
)
def test_broken_json_says_where(name: str, data: bytes, where: str) -> None:
    with pytest.raises(UnreadableFile, match=where):
        parse(name, data)


def test_half_a_surrogate_pair_is_repaired() -> None:
    assert parse("a.json", rb'["\ud83d", "\ud83d\ude00"]').text == "\ufffd\n\U0001f600"


def test_office_documents_without_the_package_name_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "markitdown", None)
    with pytest.raises(MissingExtra, match=r"reading \.docx files .*'tournant\[office\]'"):
        parse("a.docx", archive())


def test_office_documents_are_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    class MarkItDown:
        def __init__(self, enable_plugins: bool) -> None:
            assert not enable_plugins

        def convert_stream(self, stream: object, stream_info: SimpleNamespace) -> SimpleNamespace:
            if stream_info.extension == ".pptx":
                raise RuntimeError("File conversion failed:\n - it is encrypted")
            text = "# Title\n![x](data:image/png;base64,AAAA) words\n"
            return SimpleNamespace(text_content=text, title=None)

    module = ModuleType("markitdown")
    module.MarkItDown = MarkItDown  # type: ignore[attr-defined]
    module.StreamInfo = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "markitdown", module)
    assert parse("a.docx", archive()).text == "# Title\n words"
    with pytest.raises(UnreadableFile, match=r"damaged or encrypted \(it is encrypted"):
        parse("a.pptx", archive())
