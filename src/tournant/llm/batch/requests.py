"""The lines of OpenAI's batch format: ``{"custom_id": ..., "method": "POST", "url": ..., "body": {...}}``.

A line is parsed as far as it must be and no further: the body goes to the provider as the bytes that stand in the file, unless
another model is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, Protocol

import msgspec

from tournant.errors import short
from tournant.llm.batch.digests import digest_of
from tournant.llm.estimate import BYTES_PER_TOKEN, UNSAID, estimate_tokens

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
URLS = (CHAT, COMPLETIONS, EMBEDDINGS)
LONGEST_LINE = 64 * 2**20
#: From this size on a body may hold pictures, whose bytes say nothing about tokens.
_LARGE_BODY = 32_768
#: What is said of a line that no parser can follow.
TOO_DEEP = "its lists and objects are nested too deeply; no provider would read that"
_BOM = b"\xef\xbb\xbf"


class Request(msgspec.Struct, gc=False):
    """One request of a batch.

    Attributes:
        custom_id: Names it; no other request of the batch has the same.
        url: The endpoint, as OpenAI spells it.
        body: The body, as JSON.
        line: The number of its line in the file, from 1.
        digest: Stands for `custom_id`.
        tokens: About how many tokens it will use.
        attempts: How often it was sent and failed.
        refusals: How often it was refused for coming too often.
    """

    custom_id: str
    url: str
    body: bytes
    line: int
    digest: bytes
    tokens: int
    attempts: int = 0
    refusals: int = 0


class BadLine(NamedTuple):
    """A line that is no request.

    Attributes:
        line: Its number, from 1.
        reason: What is wrong with it, as the rest of the sentence "line 7: ...".
    """

    line: int
    reason: str


class Form(Protocol):
    """A way in which a file holds requests."""

    def read(self, file: BinaryIO) -> Iterator[Request | BadLine]:
        """Read a file from where it stands to its end, without ever holding more than a line."""
        ...


class _Envelope(msgspec.Struct, gc=False):
    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


class _Body(msgspec.Struct, gc=False):
    stream: Any = None
    n: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None


_envelope = msgspec.json.Decoder(_Envelope).decode
_body = msgspec.json.Decoder(_Body).decode
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


class BatchLines:
    """OpenAI's batch format.

    Args:
        model: The model that every request is sent to, whatever its body says; ``None`` leaves the bodies as they are.
    """

    def __init__(self, model: str | None = None) -> None:
        self._model = model

    def read(self, file: BinaryIO) -> Iterator[Request | BadLine]:
        """See `Form.read`."""
        for number, line in numbered_lines(file):
            if line is None:
                yield too_long(number)
                continue
            try:
                yield self.request(line, number)
            except msgspec.MsgspecError as error:
                yield BadLine(number, _told(error, line))
            except UnicodeDecodeError:
                yield BadLine(number, "it is not UTF-8")
            except RecursionError:
                yield BadLine(number, TOO_DEEP)
            except ValueError as error:
                yield BadLine(number, str(error))

    def request(self, line: bytes, number: int) -> Request:
        """Return the request in a line.

        Raises:
            ValueError: when there is none; the text says why.
        """
        if not line.isascii():
            line.decode()  # what is skipped below is not looked at
        found = _envelope(line)
        if found.url not in URLS:
            raise ValueError(
                f"its url is {short(found.url)}; it has to be one of {', '.join(URLS)}"
            )
        if found.method != "POST":
            raise ValueError(f'its method is {short(found.method)}; it has to be "POST"')
        if not found.custom_id:
            raise ValueError("its custom_id is empty; give each request a name of its own")
        body = bytes(found.body)
        fields = _body(body)
        if fields.stream:
            raise ValueError(
                'its body has "stream": true; a batch has whole answers, so leave it out'
            )
        if self._model is not None:
            whole = _decode(body)
            whole["model"] = self._model
            body = _encode(whole)
        return Request(
            found.custom_id,
            found.url,
            body,
            number,
            digest_of(found.custom_id),
            _tokens(body, fields, found.url),
        )


def _tokens(body: bytes, fields: _Body, url: str) -> int:
    if len(body) >= _LARGE_BODY:
        return estimate_tokens(_decode(body))
    prompt = len(body) // BYTES_PER_TOKEN
    if url == EMBEDDINGS:
        return prompt
    allowed = fields.max_completion_tokens or fields.max_tokens
    if allowed is None and fields.n is None:
        return prompt + UNSAID
    return prompt + estimate_tokens({"prompt": "", "max_tokens": allowed, "n": fields.n})


def numbered_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Return (number, line) of every line that is not blank; ``None`` for one that is longer than `LONGEST_LINE`."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if number == 1 and line.startswith(_BOM):
            line = line[len(_BOM) :]
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield number, None
        elif not line.isspace() and line:
            yield number, line


def too_long(number: int) -> BadLine:
    """Say of a line that it is too long."""
    return BadLine(number, f"it is longer than {LONGEST_LINE // 2**20} MiB")


def _told(error: msgspec.MsgspecError, line: bytes) -> str:
    """Say in words what msgspec found, and what would mend it."""
    if not isinstance(error, msgspec.ValidationError):
        return f"it is not JSON ({error})"
    try:
        given = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        given = None
    if isinstance(given, dict) and not given.keys() & {"url", "body"}:
        return (
            "it is not in the batch format (custom_id, method, url, body); "
            "to make requests of its fields, give a prompt, as in --prompt 'Summarise: {text}'"
        )
    return f"it is not in the batch format: {error}"
