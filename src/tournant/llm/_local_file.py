"""What a GGUF file says of itself: read before a model is loaded, and again to find out why it could not be.

Internal to `tournant.llm.gguf`. Plain Python: nothing here needs the native library, which says of a file that it can't load
only that it can't.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import struct
from dataclasses import dataclass
from typing import Any

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
#: Type number -> format of one value (little-endian).
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
#: An encoder reads and can't write: it has no order in which tokens follow.
_ENCODERS = ("bert", "t5encoder")
_ALIGNMENT = 32


class Unreadable(Exception):
    """The file is no complete GGUF; the text says why, as the end of a sentence."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """The head of a GGUF file.

    Attributes:
        name: The model's own name, or ``""``.
        architecture: Such as ``"llama"`` or ``"gemma3"``.
        context: Tokens that it was trained on at once; 0 where the file does not say.
        chat_template: Whether the file brings one.
        pooling: Whether the file says how its states become one vector.
        last_tensor: Where in the file the last tensor begins; -1 where it has none.
    """

    name: str
    architecture: str
    context: int
    chat_template: bool
    pooling: bool
    last_tensor: int

    @property
    def can_write(self) -> bool:
        """Whether it is a model that writes text, and not only one that reads it."""
        return not any(word in self.architecture for word in _ENCODERS)


def check_file(path: str) -> None:
    """Look at a file's first bytes.

    Raises:
        Unreadable: it is not there, can't be opened, or is no GGUF.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise Unreadable("is a folder: give the path of a .gguf file in it")
        if not stat.S_ISREG(mode):  # a pipe would be waited for
            raise Unreadable("is no ordinary file: give the path of a .gguf file")
        with open(path, "rb") as file:
            head = file.read(8)
    except FileNotFoundError:
        raise Unreadable("is not there: check the path") from None
    except OSError as error:
        raise Unreadable(f"can't be opened: {error.strerror or error}") from None
    if not head:
        raise Unreadable("is empty: download it again")
    if head[:4] != _MAGIC:
        raise Unreadable(
            f"is no GGUF file (it begins with {head[:4]!r}): convert the model with llama.cpp's "
            "convert_hf_to_gguf.py, or download a .gguf"
        )
    if len(head) < 8:
        raise Unreadable(_CUT_OFF)
    (version,) = _U32.unpack(head[4:])
    if version not in _VERSIONS:
        raise Unreadable(
            f"is GGUF of version {version}, and versions 2 and 3 are read: convert the model again"
        )


def read_file(path: str) -> ModelFile:
    """Read a file's head: all that stands before the tensors.

    Raises:
        Unreadable: it is no GGUF, or a part of it is missing.
    """
    check_file(path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        size = len(data)
        try:
            found = _Reader(data).read()
        except (struct.error, IndexError, OverflowError):
            raise Unreadable(_CUT_OFF) from None
        except (ValueError, TypeError, KeyError, UnicodeDecodeError) as error:
            raise Unreadable(
                f"has a damaged head ({error}; {size:,} bytes): download it again"
            ) from None
    if size <= found.last_tensor:
        raise Unreadable(_CUT_OFF)
    return found


_CUT_OFF = "is cut off, as after a download that broke off: download it again"


class _Reader:
    """Walks through the head of a file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 4 + 4

    def read(self) -> ModelFile:
        tensors, pairs = self._number(_U64), self._number(_U64)
        if pairs > len(self._data) or tensors > len(self._data):
            raise ValueError(f"{tensors} tensors and {pairs} fields")
        fields: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._text()
            fields[key] = self._value(self._number(_U32))
        last = -1
        for _ in range(tensors):
            self._skip(self._number(_U64))
            self._skip(8 * self._number(_U32))
            self._skip(4)
            last = max(last, self._number(_U64))
        alignment = int(fields.get("general.alignment") or _ALIGNMENT)
        begin = math.ceil(self._at / alignment) * alignment
        architecture = str(fields.get("general.architecture") or "")
        context = fields.get(f"{architecture}.context_length")
        return ModelFile(
            str(fields.get("general.name") or ""),
            architecture,
            context if isinstance(context, int) else 0,
            bool(fields.get("tokenizer.chat_template")),
            f"{architecture}.pooling_type" in fields,
            begin + last if last >= 0 else -1,
        )

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            form = _SCALARS[kind]
            (value,) = struct.unpack_from(form, self._data, self._at)
            self._skip(struct.calcsize(form))
            return value
        # Vocabularies: hundreds of thousands of strings, which nobody here needs.
        inner, count = self._number(_U32), self._number(_U64)
        if inner in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[inner]))
        elif inner == _STRING:
            at, data, unpack, end = self._at, self._data, _U64.unpack_from, len(self._data)
            for _ in range(count):
                at += 8 + unpack(data, at)[0]
                if at > end:
                    raise IndexError
            self._at = at
        else:
            for _ in range(count):
                self._value(inner)
        return None

    def _text(self) -> str:
        length = self._number(_U64)
        begin = self._at
        self._skip(length)
        return self._data[begin : self._at].decode("utf-8", "replace")

    def _number(self, form: struct.Struct) -> int:
        (value,) = form.unpack_from(self._data, self._at)
        self._skip(form.size)
        return int(value)

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise IndexError
