"""The steps of an ingest as anybody writes them from the libraries' own documentation.

Shared by the two hand-written contestants (`benchmarks.sequential` and `benchmarks.expert`), which
differ in how they arrange the steps, not in what the steps are. Tournant's own readers and embedders
are not used here.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 30
WRITE_ROWS = 2000


def arguments() -> argparse.Namespace:
    """Parse the command line that both hand-written contestants have."""
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--onnx", type=Path, help="a folder with model.onnx and tokenizer.json")
    parser.add_argument(
        "--tuned",
        action="store_true",
        help="embed a document a call, not a lot: batches that fit the cache",
    )
    return parser.parse_args()


def documents(corpus: Path) -> list[Path]:
    """Return the files of a folder, in the order of their names."""
    return sorted(path for path in corpus.rglob("*") if path.is_file())


class Cutter:
    """Reads documents and cuts them: with Tournant's reader and chunker.

    What is taken out of a page (its navigation, say) decides how much there is to embed. So that all contestants
    embed the same texts, they read and cut with the same functions; what differs is the arrangement, and
    the call that embeds.
    """

    def __init__(self) -> None:
        from tournant.ingest.chunkers import SemanticChunker

        self.chunker = SemanticChunker()

    def pieces(self, path: Path) -> list[str]:
        """Return the texts of a document's chunks; raise what makes it unreadable."""
        from tournant.ingest.readers.registry import read

        return self.chunker.chunk(read(str(path), MOST_BYTES)).texts


def static_embedder() -> Any:
    """Load the static model that its package carries."""
    import wordllama

    folder = Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(cache_dir=folder, disable_download=True)


class OnnxEmbedder:
    """A sentence transformer in ONNX form: mean pooling, unit vectors.

    Args:
        folder: Holds `model.onnx` and `tokenizer.json`.
        threads: Threads of the session; 0 lets the runtime take all cores.
        sort: Whether texts of similar length share a batch.
        batch: Texts in one call of the session.
    """

    def __init__(
        self, folder: Path, *, threads: int = 0, sort: bool = False, batch: int = 32
    ) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        self.inputs = {each.name for each in self.session.get_inputs()}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(256)
        self.tokenizer.enable_padding()
        self.sort = sort
        self.batch = batch

    def embed(self, texts: list[str], norm: bool = True) -> Any:
        """Return one vector a text, as a float32 array."""
        import numpy

        order = (
            sorted(range(len(texts)), key=lambda i: len(texts[i]))
            if self.sort
            else range(len(texts))
        )
        vectors: list[Any] = [None] * len(texts)
        for start in range(0, len(texts), self.batch):
            batch = [order[i] for i in range(start, min(start + self.batch, len(texts)))]
            encoded = self.tokenizer.encode_batch([texts[i] for i in batch])
            mask = numpy.array([each.attention_mask for each in encoded], dtype=numpy.int64)
            feeds = {
                "input_ids": numpy.array([each.ids for each in encoded], dtype=numpy.int64),
                "attention_mask": mask,
                "token_type_ids": numpy.zeros_like(mask),
            }
            feeds = {name: value for name, value in feeds.items() if name in self.inputs}
            states = self.session.run(None, feeds)[0]
            weights = mask[..., None].astype(numpy.float32)
            pooled = (states * weights).sum(axis=1) / weights.sum(axis=1)
            if norm:
                pooled /= numpy.linalg.norm(pooled, axis=1, keepdims=True)
            for i, vector in zip(batch, pooled, strict=True):
                vectors[i] = vector
        return numpy.array(vectors, dtype=numpy.float32)


class Table:
    """A LanceDB table that chunks are appended to."""

    def __init__(self, index: Path) -> None:
        import lancedb

        self.database = lancedb.connect(index)
        self.table: Any = None

    def add(self, keys: Sequence[tuple[str, int]], texts: Sequence[str], vectors: Any) -> None:
        """Append chunks: (path, position), text and vector of each."""
        import pyarrow

        width = vectors.shape[1]
        flat = pyarrow.array(vectors.reshape(-1))
        rows = pyarrow.table(
            {
                "id": [f"{path}#{position}" for path, position in keys],
                "path": [path for path, _ in keys],
                "position": [position for _, position in keys],
                "text": list(texts),
                "vector": pyarrow.FixedSizeListArray.from_arrays(flat, width),
            }
        )
        if self.table is None:
            self.table = self.database.create_table("chunks", rows, mode="overwrite")
        else:
            self.table.add(rows)

    def finish(self) -> float:
        """Build the full-text index, and return the seconds that it took."""
        start = time.perf_counter()
        if self.table is not None:
            self.table.create_fts_index("text", replace=True)
        return time.perf_counter() - start


def report(started: float, **facts: Any) -> None:
    """Print what a run did, as one JSON line."""
    print(json.dumps({"seconds": round(time.perf_counter() - started, 3), **facts}))


def say(message: str) -> None:
    """Tell the person at the terminal."""
    print(message, file=sys.stderr, flush=True)
