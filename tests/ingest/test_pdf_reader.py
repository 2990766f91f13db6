from __future__ import annotations

import pickle
import sys

import pytest
from ingest_samples import pdf

from tournant.ingest.errors import MissingExtra, UnreadableFile
from tournant.ingest.readers.registry import parse


def test_pages_become_paragraphs_in_order() -> None:
    document = parse("a.pdf", pdf("First (page)", "Second page", title="The title"))
    assert document.text == "First (page)\n\nSecond page"
    assert document.title == "The title"
    assert document.media_type == "application/pdf"


def test_an_encrypted_pdf_says_so() -> None:
    with pytest.raises(UnreadableFile, match="encrypted and needs a password") as caught:
        parse("a.pdf", pdf("secret", encrypted=True))
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_pdf_says_so(share: float) -> None:
    data = pdf("one", "two", "three")
    with pytest.raises(UnreadableFile, match="truncated"):
        parse("a.pdf", data[: int(len(data) * share)])


def test_a_damaged_pdf_says_so() -> None:
    with pytest.raises(UnreadableFile, match="damaged"):
        parse("a.pdf", b"%PDF-1.4\nnothing of a PDF\n%%EOF")


def test_a_scan_is_not_taken_for_an_empty_document() -> None:
    with pytest.raises(UnreadableFile, match="none of its 2 pages has text"):
        parse("a.pdf", pdf("", ""))


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(MissingExtra, match=r"tournant\[ingest\]"):
        parse("a.pdf", pdf("x"))
