"""From the bytes that a provider sent to values: JSON, and what look-alikes of it are in use.

Pure reading. A reply that was paid for is not thrown away for half a surrogate pair in its text, or for a number that no double
can hold: what the fast parser refuses, Python's own is asked for.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tournant.llm.packages import msgspec

_decode = msgspec.json.Decoder().decode
_SURROGATE = re.compile("[\ud800-\udfff]")


class NoJSON(ValueError):
    """The bytes are no JSON, or nested too deeply to be an answer."""


def parsed(data: bytes) -> Any:
    """Return the value that `data` is the JSON of.

    Half a surrogate pair becomes U+FFFD, so that the text can be written anywhere; a number beyond all doubles, infinity.

    Raises:
        NoJSON: when it is none.
    """
    try:
        return _decode(data)
    except RecursionError:
        raise NoJSON("it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return _without_surrogates(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise NoJSON("it is no JSON") from error


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        if not _SURROGATE.search(value):
            return value
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {
            _without_surrogates(name): _without_surrogates(part) for name, part in value.items()
        }
    if isinstance(value, list):
        return [_without_surrogates(part) for part in value]
    return value
