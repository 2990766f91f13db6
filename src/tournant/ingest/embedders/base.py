"""What an embedder is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


class Embedder(Protocol):
    """Turns texts into vectors. One instance serves one thread at a time.

    An embedder uses the one core its caller runs on and starts no threads of its own, so that the pool's
    slots are what they say. It is built from its spec in the process that uses it and is never pickled.
    """

    @property
    def name(self) -> str:
        """The identity of the vectors: model, weights and parameters. An index keeps and compares it."""
        ...

    @property
    def dimensions(self) -> int:
        """The length of a vector."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: any number of texts of any length; what is beyond a model's window is cut off.

        Returns:
            A C-contiguous float32 array of shape ``(len(texts), dimensions)``. Rows have the length 1, but for
            texts without a token, whose row is zero. A text's row doesn't depend on its neighbours beyond
            rounding.
        """
        ...
