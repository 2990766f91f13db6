"""Any transformer in ONNX form, from a folder with ``model.onnx`` and ``tokenizer.json``.

One session on one thread per instance: as many instances as cores, each with small batches of similar
length, do twice the work of one session that spreads every batch over all cores. Inference releases the GIL.
"""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from tournant.ingest.errors import EmbedderUnavailable, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

_MODEL, _TOKENIZER = "model.onnx", "tokenizer.json"
_WINDOW = 512  # tokens, where no file of the folder says otherwise
_LARGEST_WINDOW = 8_192  # what is above is a placeholder for "no limit"
_BATCH_TOKENS = 512  # padded; more costs cache misses and memory, and gains nothing on one core
_BATCH_TEXTS = 64
_SAMPLE = 1 << 20
_INPUTS = frozenset(("input_ids", "attention_mask", "token_type_ids"))


class OnnxEmbedder:
    """A transformer's token states, averaged over each text and normalised.

    The folder may also hold ``sentence_bert_config.json``, ``tokenizer_config.json`` or ``config.json``, which say how
    many tokens the model takes; without them it is what ``tokenizer.json`` truncates at, or 512. A model that
    gives one vector per text itself is taken at its word. The constructor looks at the files; the model loads at the
    first `embed`, or with `load`.

    Args:
        folder: the folder.

    Raises:
        EmbedderUnavailable: a file is missing, damaged, or of a model that isn't an encoder of texts.
        MissingExtra: onnxruntime or tokenizers is not installed (when it loads).
    """

    def __init__(self, folder: str) -> None:
        self._folder = os.path.abspath(os.path.expanduser(folder))
        self._spec = f"onnx:{folder}"
        if not os.path.isdir(self._folder):
            raise EmbedderUnavailable(self._spec, f"there is no folder {self._folder!r}")
        for name, what in ((_MODEL, "the model"), (_TOKENIZER, "its tokenizer")):
            if not os.path.isfile(self._path(name)):
                raise EmbedderUnavailable(
                    self._spec,
                    f"{name!r} ({what}) is missing in {self._folder!r}; export the model to ONNX "
                    f"with both files in one folder",
                )
        self._window = self._find_window()
        self._name = ""
        self._tokenizer: Any = None
        self._session: Any = None
        self._dimensions = 0
        self._inputs: frozenset[str] = frozenset()
        self._output = ""

    @property
    def name(self) -> str:
        """The folder's name, a digest of both files, and the window."""
        if not self._name:
            digest = blake2b(digest_size=8)
            for name in (_MODEL, _TOKENIZER):
                # Size, head and tail tell models apart; reading gigabytes of weights to say so would not pay.
                with open(self._path(name), "rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    digest.update(size.to_bytes(8, "little") + file.read(_SAMPLE))
                    file.seek(max(_SAMPLE, size - _SAMPLE))
                    digest.update(file.read(_SAMPLE))
            title = os.path.basename(self._folder)
            self._name = f"onnx:{title}:{digest.hexdigest()}:{self._window}"
        return self._name

    @property
    def dimensions(self) -> int:
        """The length of a vector. Loads the model."""
        self.load()
        return self._dimensions

    @property
    def tokenizer_file(self) -> str:
        """The tokenizer's definition, for a chunker that counts in this model's tokens."""
        return self._path(_TOKENIZER)

    def load(self) -> None:
        """Load the model now rather than at the first `embed`."""
        if self._session is not None:
            return
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read at every call: a slot is one core
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtra(
                f"the embedder {self._spec!r}", error.name or "onnxruntime", "ingest"
            ) from error
        try:
            tokenizer = Tokenizer.from_file(self._path(_TOKENIZER))
        except Exception as error:
            raise self._unusable(_TOKENIZER, error) from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(self._window)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(
                self._path(_MODEL), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise self._unusable(_MODEL, error) from error
        self._inputs = frozenset(each.name for each in session.get_inputs())
        if "input_ids" not in self._inputs or not self._inputs <= _INPUTS:
            raise EmbedderUnavailable(
                self._spec,
                f"the model takes {sorted(self._inputs)}, not token ids and their mask: it is no encoder of texts",
            )
        output = session.get_outputs()[0]
        self._output, width = output.name, output.shape[-1]
        self._tokenizer, self._session = tokenizer, session
        if not isinstance(width, int):
            width = self._run([[1, 1]]).shape[1]
        self._dimensions = width

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; see `Embedder.embed`."""
        import numpy as np

        self.load()
        result = np.zeros((len(texts), self._dimensions), dtype=np.float32)
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(_encodable(texts))]
        for numbers in _batches([len(each) for each in ids]):
            result[numbers] = self._run([ids[number] for number in numbers])
        for number, text in enumerate(texts):
            if not text:
                result[number] = 0  # the model would embed its own start and end marks
        lengths = np.sqrt(np.add.reduce(result * result, axis=1, keepdims=True))
        np.divide(result, lengths, out=result, where=lengths > 0)
        return result

    def _run(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Give the mean state of each list of token ids, not normalised."""
        import numpy as np

        shape = (len(ids), max(map(len, ids)))
        tokens = np.zeros(shape, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, each in enumerate(ids):
            tokens[row, : len(each)] = each
            mask[row, : len(each)] = 1
        given = {
            "input_ids": tokens,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(tokens),
        }
        (states,) = self._session.run([self._output], {name: given[name] for name in self._inputs})
        states = states.astype(np.float32, copy=False)
        if states.ndim == 2:
            return np.asarray(states)
        weights = mask.astype(np.float32)[:, :, None]
        return np.asarray((states * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1))

    def _find_window(self) -> int:
        """How many tokens the model takes, by what the folder says."""
        for name, keys in (
            ("sentence_bert_config.json", ("max_seq_length",)),
            (_TOKENIZER, ("truncation", "max_length")),
            ("tokenizer_config.json", ("model_max_length",)),
            ("config.json", ("max_position_embeddings",)),
        ):
            value: Any = self._read(name)
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, int) and 0 < value <= _LARGEST_WINDOW:
                return value
        return _WINDOW

    def _read(self, name: str) -> Any:
        try:
            with open(self._path(name), encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._unusable(name, error) from error

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _unusable(self, name: str, error: Exception) -> EmbedderUnavailable:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        return EmbedderUnavailable(self._spec, f"{self._path(name)!r} can't be used: {reason}")


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group texts of similar length, the longest first, so that little of a batch is padding."""
    batch: list[int] = []
    longest = 0
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        longest = longest or max(1, lengths[number])
        batch.append(number)
        if len(batch) == _BATCH_TEXTS or (len(batch) + 1) * longest > _BATCH_TOKENS:
            yield batch
            batch, longest = [], 0
    if batch:
        yield batch


def _encodable(texts: Sequence[str]) -> list[str]:
    return [text if text.isascii() else text.encode("utf-8", "replace").decode() for text in texts]
