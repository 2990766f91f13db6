from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tournant.ingest.readers.encoding import decode

GERMAN = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 5
RUSSIAN = "Съешь ещё этих мягких французских булок, да выпей же чаю. " * 5


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_unicode_is_recognised(encoding: str) -> None:
    assert decode(GERMAN.encode(encoding)) == GERMAN


@pytest.mark.parametrize(
    ("text", "encoding"), [(GERMAN, "latin-1"), (RUSSIAN, "cp1251"), (RUSSIAN, "koi8-r")]
)
def test_old_encodings_are_guessed(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)) == text


def test_what_is_declared_goes_before_a_guess_but_not_before_utf8() -> None:
    assert decode("naïve €".encode("cp1252"), "cp1252") == "naïve €"
    assert decode("naïve €".encode(), "cp1252") == "naïve €"
    assert decode("naïve".encode("latin-1"), "no-such-encoding")


def test_damaged_utf8_is_still_utf8() -> None:
    damaged = GERMAN.encode()[:-2] + b"\xff\xfe\xc3" + "über".encode()
    assert decode(damaged).startswith(GERMAN[:-2])
    assert decode(damaged).endswith("über")
    assert "\ufffd" in decode(damaged)


@given(st.binary(max_size=400))
def test_no_bytes_are_refused(data: bytes) -> None:
    decode(data).encode("utf-8")
