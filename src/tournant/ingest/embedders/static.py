"""The default embedder: static word vectors, about 30 microseconds a text.

The model is wordllama's: a SentencePiece-style BPE tokenizer and one 256-dimensional vector per token;
a text's vector is the normalised mean of its tokens' vectors. Both files are read from the installed package,
which itself is never imported.

The speed comes from a property of that tokenizer: no token of its vocabulary goes from a letter into a
space, a sign or a digit, or the other way round, and none contains a newline. So a text can be cut at those places
(`words.PIECES`), and each piece tokenizes alone exactly as it does inside the text. Then the sum of a piece's
token vectors is worth remembering, and embedding becomes a dictionary lookup per piece and a gather. (The
mean's divisor cancels in the normalisation.) The property is checked when the model loads. Where it doesn't
hold, and for texts that contain a special token such as ``<s>``, whole texts go through the tokenizer.

Nearly all of it runs with the GIL held: place it on processes.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tournant.ingest.errors import EmbedderUnavailable, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

_WEIGHTS = ("weights", "l2_supercat_256.safetensors")
_TOKENIZER = ("tokenizers", "l2_supercat_tokenizer_config.json")
_TENSOR = "embedding.weight"
_SPACE = "\u2581"  # how the tokenizer writes a space
_HEADER_LIMIT = 1 << 20


class StaticEmbedder:
    """Static word vectors with a memory of whole words. The module says how and why.

    The constructor only looks at the files; the model loads at the first `embed`, or with `load`.
    One instance takes at most 60 MiB and serves one thread at a time.

    Raises:
        MissingExtra: wordllama is not installed.
        EmbedderUnavailable: its files are not where they should be, or hold something else.
    """

    def __init__(self) -> None:
        package = find_spec("wordllama")
        if package is None or not package.submodule_search_locations:
            raise MissingExtra("the embedder 'static'", "wordllama", "ingest")
        folder = package.submodule_search_locations[0]
        self._weights_file = os.path.join(folder, *_WEIGHTS)
        self._tokenizer_file = os.path.join(folder, *_TOKENIZER)
        self._offset, self._shape = _find_tensor(self._weights_file)
        self._name = ""
        self._model: _Model | None = None

    @property
    def name(self) -> str:
        """Model, dimensions and a checksum of the weights."""
        if not self._name:
            with open(self._weights_file, "rb") as file:
                checksum = zlib.crc32(file.read())
            self._name = f"static:l2_supercat:{self.dimensions}:{checksum:08x}"
        return self._name

    @property
    def dimensions(self) -> int:
        """The length of a vector: 256."""
        return self._shape[1]

    @property
    def tokenizer_file(self) -> str:
        """The tokenizer's definition, for a chunker that counts in this model's tokens."""
        return self._tokenizer_file

    def load(self) -> None:
        """Load the model now (about 0.15 s with its imports) rather than at the first `embed`."""
        if self._model is None:
            self._model = _Model(
                self._weights_file, self._tokenizer_file, self._offset, self._shape
            )

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; see `Embedder.embed`."""
        self.load()
        assert self._model is not None
        return self._model.embed(texts)


class _Model:
    """The loaded model."""

    def __init__(self, weights: str, tokenizer: str, offset: int, shape: tuple[int, int]) -> None:
        # Read by the tokenizer at every call: a slot of the pool is one core.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import numpy as np
        from tokenizers import Tokenizer, normalizers

        from tournant.ingest.embedders.words import WordSums, divisible

        # Mapped, so that all workers share the pages.
        matrix = np.memmap(weights, dtype=np.float16, mode="r", offset=offset, shape=shape)
        self._matrix: NDArray[np.float16] = matrix.view(np.ndarray)
        try:
            whole, pieces = (Tokenizer.from_file(tokenizer) for _ in range(2))
        except Exception as error:
            raise _unusable(tokenizer, str(error)) from error
        for each in (whole, pieces):
            each.no_padding()
            each.no_truncation()
        pieces.normalizer = normalizers.Replace(" ", _SPACE)  # as published, but prepends nothing
        self._tokenizer: Any = whole
        self._specials = [token.content for token in whole.get_added_tokens_decoder().values()]
        ordinary = whole.get_vocab().keys() - set(self._specials)
        self._divisible = whole.pre_tokenizer is None and divisible(ordinary, _SPACE)
        self._words = WordSums(pieces, self._matrix)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np

        sums = np.zeros((len(texts), self._matrix.shape[1]), dtype=np.float32)
        plain = []
        for number, text in enumerate(texts):
            if self._divisible and not any(special in text for special in self._specials):
                # To the tokenizer both are a space; to the pieces only one is.
                plain.append((number, text.replace(_SPACE, " ")))
            else:
                self._sum_whole(text, sums[number])
        self._words.add(plain, sums)
        lengths = np.sqrt(np.add.reduce(sums * sums, axis=1, keepdims=True))
        np.divide(sums, lengths, out=sums, where=lengths > 0)
        return sums

    def _sum_whole(self, text: str, out: NDArray[np.float32]) -> None:
        from tournant.ingest.embedders.words import add_tokens, encodable

        (encoding,) = self._tokenizer.encode_batch_fast(encodable([text]), add_special_tokens=False)
        add_tokens(self._matrix, encoding.ids, out)


def _unusable(path: str, reason: str) -> EmbedderUnavailable:
    mend = "pip install --force-reinstall wordllama"
    return EmbedderUnavailable("static", f"{path!r}: {reason}; {mend}")


def _find_tensor(path: str) -> tuple[int, tuple[int, int]]:
    """Read a safetensors header: a length, then JSON with each tensor's type, shape and place."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _HEADER_LIMIT)))
        tensor = header[_TENSOR]
        start, end = tensor["data_offsets"]
        tokens, dimensions = tensor["shape"]
        size = os.path.getsize(path)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise _unusable(path, f"is not a safetensors file with {_TENSOR!r}") from error
    offset = 8 + length + start
    if (
        tensor["dtype"] != "F16"
        or end - start != 2 * tokens * dimensions
        or size < offset + end - start
    ):
        raise _unusable(path, f"{_TENSOR!r} is not a complete float16 matrix")
    return offset, (tokens, dimensions)
