"""Bytes to text, whatever the encoding. Nothing here raises for bytes that fit none."""

from __future__ import annotations

import codecs
import re

from tournant.ingest.readers.sniffing import wide_encoding

# Encodings of old mainframes and Macintoshes: as guesses they are wrong far more often than right.
_RARE = [
    *(
        "cp037",
        "cp273",
        "cp424",
        "cp500",
        "cp875",
        "cp1026",
        "cp1140",
        "hz",
        "ptcp154",
        "kz1048",
        "hp_roman8",
    ),
    *(
        "mac_cyrillic",
        "mac_greek",
        "mac_iceland",
        "mac_latin2",
        "mac_roman",
        "mac_turkish",
        "cp1006",
    ),
    *(
        "cp437",
        "cp720",
        "cp737",
        "cp775",
        "cp850",
        "cp852",
        "cp855",
        "cp857",
        "cp858",
        "cp860",
        "cp861",
    ),
    *("cp862", "cp863", "cp864", "cp865", "cp869", "cp1125"),
]
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_GUESS_BYTES = 64 << 10
_DAMAGED_SHARE = 0.2  # of what isn't ASCII: with fewer bad characters it is UTF-8 with damage


def decode(data: bytes, declared: str | None = None) -> str:
    """Decode text: byte-order mark, then strict UTF-8, then what was declared, then a guess.

    Args:
        data: the bytes.
        declared: the encoding that the document itself names, if it does.

    Returns:
        The text without its byte-order mark. Bytes that don't fit become U+FFFD.
    """
    if data.startswith(codecs.BOM_UTF8):
        return data[3:].decode("utf-8", "replace")
    try:
        if b"\0" not in data[:4096]:
            return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    wide = wide_encoding(data)
    if wide:
        return data.decode(wide, "replace")
    damaged = data.decode("utf-8", "replace")
    bad = damaged.count("\ufffd")
    foreign = len(damaged) - len(damaged.encode("ascii", "ignore"))
    if bad <= _DAMAGED_SHARE * foreign:
        return damaged
    if declared:
        try:
            return data.decode(declared, "replace")
        except LookupError:
            pass
    return data.decode(_guess(data), "replace")


def _guess(data: bytes) -> str:
    from charset_normalizer import from_bytes

    # The bytes that matter are the odd ones: guess from around the first of them.
    odd = _NOT_ASCII.search(data)
    start = max(0, odd.start() - _GUESS_BYTES // 2) if odd else 0
    sample = data[start : start + _GUESS_BYTES]
    best = from_bytes(sample, cp_exclusion=_RARE).best()
    return best.encoding if best is not None else "cp1252"
