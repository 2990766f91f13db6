from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tournant.ingest.embedders import static
from tournant.ingest.embedders.static import StaticEmbedder
from tournant.ingest.embedders.words import PIECES, WordSums, divisible
from tournant.ingest.errors import EmbedderUnavailable, MissingExtra

SPECIALS = ["<s>", "</s>", "<unk>", " <s> in between </s>x", "a<s>"]
ODD = [
    "a",
    "  a",
    " ",
    "   ",
    "\n",
    "\n\n\n",
    "a\n b",
    "x\n\n   y  \n",
    "\u2581\u2581 a \u2581b",
    "日本 語",
    "\t\ta b\r\n c",
    "a\u00a0b",
    "-" * 500 + " " * 300 + "z",
    "don't  stop",
    "0x1234567 12,345.67",
    "».” ²). «(„",
    "e\u0301 ﬁ \u200d",
    "<0x0A> <0x",
    "=" * 3000,
    "\0\1",
    "कार्य का",
    "\U0001f600\U0001f1e9\U0001f1ea",
    "CamelCaseName_with_parts2",
]


@pytest.fixture(scope="module")
def reference() -> Any:
    """The library's own way from texts to vectors."""
    import wordllama

    folder = os.path.dirname(wordllama.__file__)
    return wordllama.WordLlama.load(cache_dir=folder, disable_download=True)


@pytest.fixture(scope="module")
def embedder() -> StaticEmbedder:
    return StaticEmbedder()


def assert_same(embedder: StaticEmbedder, reference: Any, texts: list[str]) -> None:
    expected = np.concatenate([reference.embed([text], norm=True) for text in texts])
    # Both sum float32 in orders of their own.
    np.testing.assert_allclose(embedder.embed(texts), expected, atol=1e-5)


def test_vectors_are_those_of_the_library(embedder: StaticEmbedder, reference: Any) -> None:
    assert_same(embedder, reference, ODD)
    assert_same(embedder, reference, SPECIALS)


def test_vectors_are_those_of_the_library_for_source_and_prose(
    embedder: StaticEmbedder, reference: Any
) -> None:
    text = Path(json.__file__).read_text() + Path(subprocess.__file__).read_text()
    assert_same(embedder, reference, [text[n : n + 700] for n in range(0, len(text), 700)])


@given(st.text(st.sampled_from("aZé9 \n\t.<s>/_-—日\u2581»²\u0301\xa0😀"), min_size=1, max_size=40))
def test_vectors_are_those_of_the_library_for_any_text(
    embedder: StaticEmbedder, reference: Any, text: str
) -> None:
    assert_same(embedder, reference, [text])


@given(st.text(max_size=80))
def test_pieces_are_the_whole_text(text: str) -> None:
    assert "".join(PIECES.findall(text)) == text


def test_a_full_memory_changes_no_vector(embedder: StaticEmbedder) -> None:
    model = embedder._model
    assert model is not None
    words = [
        f"{a}{b}"
        for a in ("alpha", "beta", "gamma", "delta")
        for b in ("tic", "on", "ville", "able")
    ]
    texts = [" ".join(words[n % 16 :] + words[: n % 7]) + "\n" * (n % 3) for n in range(200)]
    small = WordSums(model._words._tokenizer, model._matrix, rows=20)
    sums = np.zeros((len(texts), 256), dtype=np.float32)
    small.add(list(enumerate(texts)), sums)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(sums / lengths, embedder.embed(texts), atol=2e-6)
    assert len(small._rows) <= 20


def test_very_long_words_are_forgotten(
    embedder: StaticEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tournant.ingest.embedders.words._CHARS", 5_000)
    texts = [chr(97 + n) * 3_000 + " end" for n in range(6)]
    np.testing.assert_allclose(embedder.embed(texts), StaticEmbedder().embed(texts), atol=2e-6)


def test_a_vocabulary_that_crosses_a_cut_is_noticed() -> None:
    assert divisible(["\u2581word", "wo", "12"[:1], "();", "<0x0A>", "\u2581\u2581"], "\u2581")
    for token in ("a\u2581b", "word.", "12", "a1", "\n", "a\nb"):
        assert not divisible(["ok", token], "\u2581")


def test_whole_texts_are_tokenized_where_pieces_would_differ(
    reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tournant.ingest.embedders.words.divisible", lambda *_: False)
    embedder = StaticEmbedder()
    assert_same(embedder, reference, [*ODD, "word " * 9_000])
    assert not embedder._model._words._rows  # type: ignore[union-attr]


def test_nothing_heavy_is_imported_to_know_the_name() -> None:
    code = (
        "import sys; from tournant.ingest.embedders import embedder; e = embedder(); print(e.name, e.dimensions); "
        "assert not {'numpy', 'tokenizers', 'wordllama'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [StaticEmbedder().name, "256"]


class TestFiles:
    @pytest.fixture
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        class Spec:
            submodule_search_locations = (str(tmp_path),)

        monkeypatch.setattr(static, "find_spec", lambda _: Spec)
        (tmp_path / "weights").mkdir()
        return tmp_path / "weights" / "l2_supercat_256.safetensors"

    def header(self, **changes: object) -> bytes:
        tensor = {"dtype": "F16", "shape": [2, 4], "data_offsets": [0, 16]} | changes
        body = json.dumps({"embedding.weight": tensor}).encode()
        return struct.pack("<Q", len(body)) + body

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (None, "No such file"),
            (b"", "not a safetensors file"),
            (b"\0" * 64, "not a safetensors file"),
            (struct.pack("<Q", 2) + b"{}", "not a safetensors file"),
        ],
    )
    def test_missing_or_other_weights_are_named(
        self, package: Path, content: bytes | None, reason: str
    ) -> None:
        if content is not None:
            package.write_bytes(content)
        with pytest.raises(EmbedderUnavailable, match=reason) as caught:
            StaticEmbedder()
        assert "l2_supercat_256.safetensors" in str(caught.value)
        assert "force-reinstall" in str(caught.value)

    @pytest.mark.parametrize("changes", [{"dtype": "F32"}, {"data_offsets": [0, 8]}])
    def test_weights_of_another_shape_are_refused(
        self, package: Path, changes: dict[str, Any]
    ) -> None:
        package.write_bytes(self.header(**changes) + b"\0" * 64)
        with pytest.raises(EmbedderUnavailable, match="not a complete float16 matrix"):
            StaticEmbedder()

    def test_truncated_weights_are_refused(self, package: Path) -> None:
        package.write_bytes(self.header() + b"\0" * 15)
        with pytest.raises(EmbedderUnavailable, match="not a complete float16 matrix"):
            StaticEmbedder()

    def test_a_damaged_tokenizer_is_named(self, package: Path) -> None:
        package.write_bytes(self.header() + b"\0" * 16)
        tokenizer = package.parent.parent / "tokenizers" / "l2_supercat_tokenizer_config.json"
        tokenizer.parent.mkdir()
        tokenizer.write_text("{}")
        with pytest.raises(EmbedderUnavailable, match=r"l2_supercat_tokenizer_config\.json"):
            StaticEmbedder().embed(["x"])

    def test_a_missing_package_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(static, "find_spec", lambda _: None)
        with pytest.raises(MissingExtra, match=r"tournant\[ingest\]"):
            StaticEmbedder()
