"""An embedder with a memory on disk: a text that was embedded before, in whatever index, is not embedded again.

The vectors lie in a file of `tournant.cache`, which every worker process opens for itself. Their keys are digests of the embedder's
name, which says model, weights and parameters, and of the text. The model is not even loaded while every text is known.

A cache is never worth a document: whatever goes wrong with the file while documents are embedded costs what could have been
looked up, and is logged.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tournant._cache_file import CacheFile
from tournant._cache_stores import CacheError
from tournant._cache_values import BYTES, Stored, keyed_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from tournant.ingest.embedders.base import Embedder

#: Of how vectors are kept; another one finds none of those that were kept before.
_FORMAT = "tournant.ingest.vector.1"
_NUMBERS = "<f4"

logger = logging.getLogger("tournant.cache")


def default_cache() -> str:
    """Return where vectors are kept unless somebody says otherwise: ``$XDG_CACHE_HOME/tournant/embeddings.sqlite``.

    Where that variable is not set, or no absolute path, ``~/.cache`` stands for it.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):
        home = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(home, "tournant", "embeddings.sqlite")


def open_cache(path: str) -> str:
    """See that there is a cache at a path before any work is done, and make it where there is none; return its full path.

    A cache that is there but can't be used at present (locked, not to be written, damaged inside) is only logged.

    Args:
        path: The file. Its folder must exist, unless it is that of `default_cache`.

    Raises:
        CacheError: there is something else at the path, or nothing can be made there.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if path == default_cache():
        folder = os.path.dirname(path)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise CacheError(
                f"the folder {folder!r} of the cache can't be made: {error.strerror or error}; give the cache another path, or set "
                "XDG_CACHE_HOME"
            ) from error
    file = CacheFile(path)
    try:
        file.read([b""])
    finally:
        file.close()
    return path


@contextmanager
def notes_of_cache() -> Iterator[list[str]]:
    """Collect what caches warn of inside the block, in this process and in its workers, each text once."""
    notes: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text not in notes:
                notes.append(text)

    collector = Collector(logging.WARNING)
    logger.addHandler(collector)
    try:
        yield notes
    finally:
        logger.removeHandler(collector)


class CachedEmbedder:
    """Looks texts up and embeds those that are not there; see `Embedder`.

    Args:
        make: Makes the embedder, loaded; called when the first text is not known.
        name: The embedder's name.
        dimensions: The length of its vectors.
        path: The cache, as `open_cache` returned it.

    Attributes:
        known: Which rows of the last result came from the cache.
    """

    def __init__(self, make: Callable[[], Embedder], name: str, dimensions: int, path: str) -> None:
        self._make = make
        self._name = name
        self._dimensions = dimensions
        self._file = CacheFile(path)
        self._key = keyed_by(_FORMAT, name)
        self._embedder: Embedder | None = None
        self._told = False
        self.known: list[bool] = []

    @property
    def name(self) -> str:
        """The embedder's name: whether a vector was looked up makes no difference."""
        return self._name

    @property
    def dimensions(self) -> int:
        """The length of a vector."""
        return self._dimensions

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts; see `Embedder.embed`. A text that comes several times is embedded once."""
        import numpy as np

        keys = [self._key(text) for text in texts]
        found = self._read(list(dict.fromkeys(keys)))
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        self.known = [key in found for key in keys]
        if missing:
            if self._embedder is None:
                self._embedder = self._make()
            vectors = self._embedder.embed(list(missing.values()))
            fresh = {
                key: vector.astype(_NUMBERS).tobytes()
                for key, vector in zip(missing, vectors, strict=True)
            }
            self._write(fresh)
            found |= fresh
        data = b"".join([found[key] for key in keys])
        result = np.frombuffer(bytearray(data), _NUMBERS).reshape(len(keys), self._dimensions)
        return result.astype(np.float32, copy=False)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        size = 4 * self._dimensions
        try:
            values = self._file.read(keys)
        except CacheError as error:
            self._tell(error)
            return {}
        return {
            key: value
            for key, value in values.items()
            if type(value) is bytes and len(value) == size
        }

    def _write(self, vectors: dict[bytes, bytes]) -> None:
        try:
            self._file.write([(key, Stored(BYTES, "", data)) for key, data in vectors.items()])
        except CacheError as error:
            self._tell(error)

    def _tell(self, error: CacheError) -> None:
        if not self._told:
            self._told = True
            logger.warning("the cache is not used any more: %s", error)
