"""The memory of a static embedder: the summed token vectors of each word it has seen.

Natural text repeats its words, so a text's sum of token vectors is mostly a lookup per word and one
gather. The memory is bounded by rows and by characters; when it is full, the half of the words that
fewer texts have used is forgotten.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

_LETTERS = "A-Za-z\xc0-\u1fff\u2070-\U0010ffff"  # and all other writing, marks and symbols
_SIGNS = "!-/:-@\\[-`{-~\x00-\x09\x0b-\x1f\x7f-\xbf\u2000-\u206f"
PIECES = re.compile(f" *[{_LETTERS}]+|[0-9]{{1,3}}| *[{_SIGNS}]+|\n+| +")
"""What a text is cut into; every character is in exactly one piece. See `divisible`."""

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_TWO_DIGITS = re.compile("[0-9]{2}")

ROWS = 49_152  # of 1 KiB each at 256 dimensions, and touched only as they are filled
_CHARS = 8_000_000  # against a memory full of very long "words"
_TEXTS_AT_ONCE = 64  # the new words of so many texts are tokenized in one call
_FRESH_AT_ONCE = 512  # bounds the gather of token vectors
_SHORT_WORD = 12  # tokens
_WORDS_AT_ONCE = 8_192  # a text of more words is summed in parts; must be well below ROWS


_NONE = np.empty(0, dtype=np.intp)


class _Rows(dict[str, int]):
    """Word -> row. A word that is looked up for the first time gets the next row and is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.fresh: list[str] = []

    def __missing__(self, word: str) -> int:
        row = self[word] = len(self)
        self.fresh.append(word)
        return row


class WordSums:
    """Sums of token vectors by word.

    Args:
        tokenizer: tokenizes one piece as it is tokenized inside a text.
        matrix: the token vectors, shape ``(tokens, dimensions)``.
        rows: how many words to remember.
    """

    def __init__(self, tokenizer: Any, matrix: NDArray[np.float16], rows: int = ROWS) -> None:
        self._tokenizer = tokenizer
        self._matrix = matrix
        self._capacity = rows
        self._part = min(_WORDS_AT_ONCE, rows)
        self._rows = _Rows()
        self._chars = 0
        self._vectors = np.empty((rows, matrix.shape[1]), dtype=np.float32)
        self._uses = np.zeros(rows, dtype=np.int32)
        (newline,) = tokenizer.encode_batch_fast(["\n"], add_special_tokens=False)
        (self._newline,) = newline.ids

    def add(self, texts: Sequence[tuple[int, str]], sums: NDArray[np.float32]) -> None:
        """Add the token vectors of each text to its row of ``sums``.

        Args:
            texts: pairs of the row and the text.
            sums: float32, changed in place.
        """
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            self._add_block(texts[start : start + _TEXTS_AT_ONCE], sums)

    def _add_block(self, texts: Iterable[tuple[int, str]], sums: NDArray[np.float32]) -> None:
        waiting: list[tuple[int, NDArray[np.intp]]] = []
        lookup = self._rows.__getitem__
        for number, text in texts:
            # The tokenizer starts a text with a space. An empty text has no token at all.
            words = PIECES.findall(" " + text) if text else []
            for start in range(0, len(words), self._part):
                part = words[start : start + self._part]
                if len(self._rows) + len(part) > self._capacity or self._chars > _CHARS:
                    self._settle(waiting, sums)
                    self._forget()
                waiting.append((number, np.fromiter(map(lookup, part), np.intp, len(part))))
        self._settle(waiting, sums)

    def _settle(
        self, waiting: list[tuple[int, NDArray[np.intp]]], sums: NDArray[np.float32]
    ) -> None:
        """Compute the rows of new words, then add what waited for them."""
        fresh, self._rows.fresh = self._rows.fresh, []
        if fresh:
            row = len(self._rows) - len(fresh)
            self._chars += sum(map(len, fresh))
            for start in range(0, len(fresh), _FRESH_AT_ONCE):
                some = fresh[start : start + _FRESH_AT_ONCE]
                self._sum_words(some, self._vectors[row + start : row + start + len(some)])
        for number, rows in waiting:
            sums[number] += np.add.reduce(self._vectors.take(rows, axis=0), axis=0)
            self._uses[rows] += 1
        waiting.clear()

    def _forget(self) -> None:
        """Keep the more useful half of the words, and halve what is known of their use."""
        words = list(self._rows)
        uses = self._uses[: len(words)]
        room = min(len(words), self._capacity - self._part) // 2
        kept = np.sort(np.argsort(-uses, kind="stable")[:room]) if self._chars <= _CHARS else _NONE
        self._rows.clear()
        self._rows.update((words[row], new) for new, row in enumerate(kept))
        self._chars = sum(map(len, self._rows))
        self._vectors[: len(kept)] = self._vectors[kept]
        self._uses[: len(kept)] = uses[kept] // 2
        self._uses[len(kept) :] = 0

    def _sum_words(self, words: list[str], out: NDArray[np.float32]) -> None:
        """Tokenize words and write the sum of each one's token vectors to its row of ``out``.

        The words go through the tokenizer as the lines of one text, which costs a quarter of a call per word.
        """
        lines = [word if word[0] != "\n" else "" for word in words]
        (encoding,) = self._tokenizer.encode_batch_fast(
            encodable(["\n".join(lines)]), add_special_tokens=False
        )
        ids = np.array(encoding.ids, dtype=np.intp)
        breaks = np.flatnonzero(ids == self._newline)
        ends = np.append(breaks, len(ids)) - np.arange(len(words))  # as if the breaks weren't there
        starts = np.concatenate(([0], ends[:-1]))
        counts = ends - starts
        ids = np.delete(ids, breaks)
        # One pass per position in the word is far cheaper than one sum per word.
        out[:] = 0
        for position in range(min(int(counts.max()), _SHORT_WORD)):
            having = np.flatnonzero((counts > position) & (counts <= _SHORT_WORD))
            out[having] += self._matrix.take(ids[starts[having] + position], axis=0)
        for row in np.flatnonzero(counts > _SHORT_WORD):
            add_tokens(self._matrix, ids[starts[row] : ends[row]], out[row])
        for row in np.flatnonzero(counts == 0):  # pieces of newlines only
            np.multiply(self._matrix[self._newline], np.float32(len(words[row])), out=out[row])


def divisible(vocabulary: Iterable[str], space: str) -> bool:
    """Say whether a BPE tokenizer gives the same tokens for a text and for the text's `PIECES`.

    It does if no token of its vocabulary reaches across a place where a text is cut: merging builds only
    tokens of the vocabulary, and newlines (which no token contains) never merge at all.

    Args:
        vocabulary: every token, as the tokenizer writes it.
        space: how the tokenizer writes a space.
    """
    return all(
        (
            PIECES.fullmatch(token.replace(space, " "))
            and "\n" not in token
            and not _TWO_DIGITS.search(token)
        )
        or _BYTE_TOKEN.fullmatch(token)
        for token in vocabulary
    )


def add_tokens(
    matrix: NDArray[np.float16],
    ids: Sequence[int] | NDArray[np.intp],
    out: NDArray[np.float32],
    at_once: int = 4_096,
) -> None:
    """Write the sum of some tokens' vectors to ``out``, gathering a bounded number of rows at once."""
    if len(ids) <= at_once:
        np.add.reduce(matrix.take(ids, axis=0), axis=0, dtype=np.float32, out=out)
        return
    out[:] = 0
    for start in range(0, len(ids), at_once):
        out += np.add.reduce(
            matrix.take(ids[start : start + at_once], axis=0), axis=0, dtype=np.float32
        )


def encodable(texts: Sequence[str]) -> list[str]:
    """Replace lone surrogates, which no tokenizer takes."""
    return [t if t.isascii() else t.encode("utf-8", "replace").decode() for t in texts]
