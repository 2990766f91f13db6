"""Counting the tokens of texts before they queue, on threads: batches are made of texts of similar length, and usage is told in tokens."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_THREADS = 2
_CHARS_PER_TOKEN = 16  # a text with more characters than its tokens can explain is cut
_MARGIN = 256  # characters behind the last token that is read: more than a word


class Measure:
    """Counts tokens with a model's own tokenizer. For one event loop.

    Args:
        tokenizer_file: The model's ``tokenizer.json``.
        window: The tokens that the model reads of a text; ``None`` for all.
        special_tokens: Whether the model's marks of start and end count.
    """

    def __init__(self, tokenizer_file: str, window: int | None, *, special_tokens: bool) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = (
            "false"  # read at every call: the cores are the workers'
        )
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_file(tokenizer_file)
        self._tokenizer.no_padding()
        if window is None:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(window)
        self._window = window
        self._special = special_tokens
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tournant-tokenize")

    async def measure(self, texts: Sequence[str]) -> list[tuple[str, int]]:
        """Return each text, as far as the model reads it, with its number of tokens.

        A caller that is cancelled before a thread has begun costs nothing.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self.measured, texts)

    def measured(self, texts: Sequence[str]) -> list[tuple[str, int]]:
        """Do the same at once, on whatever thread."""
        texts = [
            text if text.isascii() else text.encode("utf-8", "replace").decode() for text in texts
        ]
        encode = self._tokenizer.encode_batch_fast
        found = [len(one.ids) for one in encode(texts, add_special_tokens=self._special)]
        if self._window is None:
            return list(zip(texts, found, strict=True))
        long = self._window * _CHARS_PER_TOKEN
        return [
            (self._cut(text) if len(text) > long else text, tokens)
            for text, tokens in zip(texts, found, strict=True)
        ]

    def _cut(self, text: str) -> str:
        """Leave out what is behind the model's window: it would be sent and tokenized again for nothing."""
        read = self._tokenizer.encode(text, add_special_tokens=False)
        end = read.offsets[-1][1] if read.offsets else 0
        return text[: end + _MARGIN]

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
