"""Image processing without any library: a photograph, a convolution in pure Python, a PNG file.

The convolution is Python code from end to end, so it holds the GIL while it computes. The compression is one call of zlib, C code that
lets go of the GIL. That makes two kinds of thinking out of one picture.
"""

from __future__ import annotations

import random
import struct
import zlib

#: The weights of a soft focus, row by row; they add up to 16.
SOFT = (1, 2, 1, 2, 4, 2, 1, 2, 1)
#: How many times wider and higher the printed picture is.
_ENLARGED = 3


def photograph(seed: int, side: int) -> bytes:
    """Return a grey picture of a plate with some grain, one byte a pixel, row by row.

    Args:
        seed: the same seed gives the same picture.
        side: width and height in pixels.
    """
    grain = random.Random(seed).randbytes(side * side)
    half, rim = side / 2, (side * 0.42) ** 2
    rows = bytearray()
    for y in range(side):
        down = (y - half) ** 2
        start = y * side
        rows += bytes(
            (200 if (x - half) ** 2 + down < rim else 60) + grain[start + x] // 8
            for x in range(side)
        )
    return bytes(rows)


def convolve(image: bytes, side: int, kernel: tuple[int, ...] = SOFT) -> bytes:
    """Return the picture with each pixel replaced by the weighted mean of its 3 x 3 neighbourhood; the border stays.

    Args:
        image: one byte a pixel.
        side: width and height in pixels.
        kernel: nine weights from the upper left to the lower right; none negative, not all zero.
    """
    k0, k1, k2, k3, k4, k5, k6, k7, k8 = kernel
    weight = sum(kernel)
    out = bytearray(image)
    for y in range(1, side - 1):
        above = image[(y - 1) * side : y * side]
        row = image[y * side : (y + 1) * side]
        below = image[(y + 1) * side : (y + 2) * side]
        for x in range(1, side - 1):
            out[y * side + x] = (
                k0 * above[x - 1] + k1 * above[x] + k2 * above[x + 1]
                + k3 * row[x - 1] + k4 * row[x] + k5 * row[x + 1]
                + k6 * below[x - 1] + k7 * below[x] + k8 * below[x + 1]
            ) // weight  # fmt: skip
    return bytes(out)


def png(image: bytes, side: int) -> bytes:
    """Return a PNG file of the picture, enlarged for print and packed as small as zlib can."""
    wide = side * _ENLARGED
    lines = bytearray()
    for y in range(side):
        line = bytearray(wide)
        for shift in range(_ENLARGED):
            line[shift::_ENLARGED] = image[y * side : (y + 1) * side]
        lines += (b"\0" + line) * _ENLARGED
    header = struct.pack(">2I5B", wide, wide, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in parts)


def _chunk(kind: bytes, body: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + check
