"""Requests made of the fields of plain files: JSON lines and CSV, with a prompt that names the fields."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import msgspec

from tournant.errors import short
from tournant.llm.batch.digests import digest_of
from tournant.llm.batch.errors import InputRefused
from tournant.llm.batch.requests import (
    CHAT,
    LONGEST_LINE,
    TOO_DEEP,
    BadLine,
    Request,
    numbered_lines,
    too_long,
)
from tournant.llm.batch.templates import Template
from tournant.llm.estimate import estimate_tokens

_IDS = ("custom_id", "id")
_SEPARATORS = (",", ";", "|", "\t")
#: How spreadsheets say before the table what stands between its cells.
_DECLARED = re.compile(r"sep=(.)[,;|\t]*[\r\n]*", re.I)
_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


class PromptMaker:
    """Makes a request of the fields of a line.

    Args:
        prompt: The user's message, with its fields.
        model: The model that is asked.
        system: The system's message, or ``None``.
        max_tokens: The longest answer, or ``None``.
    """

    def __init__(
        self, prompt: Template, model: str, system: str | None = None, max_tokens: int | None = None
    ) -> None:
        self._prompt = prompt
        self._model = model
        self._before = [] if system is None else [{"role": "system", "content": system}]
        self._options = {} if max_tokens is None else {"max_tokens": max_tokens}

    def request(self, values: Mapping[str, Any], line: int) -> Request:
        """Return the request.

        Raises:
            ValueError: when a field is missing or the id can't be one.
        """
        text = self._prompt.fill(values)
        body = {
            "model": self._model,
            "messages": [*self._before, {"role": "user", "content": text}],
            **self._options,
        }
        custom_id = _id_of(values, line)
        return Request(
            custom_id, CHAT, _encode(body), line, digest_of(custom_id), estimate_tokens(body)
        )


class JsonLines:
    """A file with one JSON object a line.

    Args:
        make: Makes a request of its fields.
    """

    def __init__(self, make: PromptMaker) -> None:
        self._make = make

    def read(self, file: BinaryIO) -> Iterator[Request | BadLine]:
        """See `Form.read`."""
        for number, line in numbered_lines(file):
            if line is None:
                yield too_long(number)
                continue
            try:
                values = _decode(line)
            except msgspec.ValidationError:
                yield BadLine(number, "it is no JSON object")
            except RecursionError:
                yield BadLine(number, TOO_DEEP)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                yield BadLine(number, f"it is not JSON ({error})")
            else:
                yield _made(self._make, values, number)


class CsvRows:
    """A table with the fields' names in its first row.

    Args:
        make: Makes a request of a row.
        separator: What stands between cells; ``None`` takes that of the first row.
    """

    def __init__(self, make: PromptMaker, separator: str | None = None) -> None:
        self._make = make
        self._separator = separator

    def read(self, file: BinaryIO) -> Iterator[Request | BadLine]:
        """See `Form.read`.

        Raises:
            InputRefused: when the first row has no usable names, or a quote is never closed, which makes one cell of all that
                follows.
        """
        # A limit of the whole process, which has no other way to be set; never lowered.
        csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
        # A byte that is no UTF-8 spoils its row alone, not the reading.
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        try:
            yield from self._rows(text)
        finally:
            text.detach()  # whoever opened the file closes it

    def _rows(self, text: io.TextIOWrapper) -> Iterator[Request | BadLine]:
        separator, before, first = self._beginning(text)
        lines = _Lines(text, first)
        # Strict: a quote that is out of place would else change a cell, or join it with the next row, without a word.
        rows = csv.reader(lines, delimiter=separator, strict=True)
        names: list[str] | None = None
        line = before + 1
        while True:
            lines.of_row.clear()
            try:
                row = next(rows, None)
            except csv.Error as error:
                if lines.ended:
                    raise _unclosed(lines.of_row, separator, line) from None
                yield BadLine(line, _damaged(error, line, before + rows.line_num))
                line = before + rows.line_num + 1
                continue
            if row is None:
                return
            if row and names is None:
                names = _header(row, line)
            elif row and names is not None:
                yield self._row(names, row, line)
            line = before + rows.line_num + 1

    def _beginning(self, text: io.TextIOWrapper) -> tuple[str, int, str]:
        """Pass over what stands before the first row; return the separator, the number of lines passed over, and the row's line."""
        separator = self._separator
        before = 0
        while first := text.readline(LONGEST_LINE):
            declared = _DECLARED.fullmatch(first)
            if declared:
                separator = declared[1]
            elif first.strip(" \r\n"):
                break
            before += 1
        return separator or _separator(first), before, first

    def _row(self, names: list[str], row: list[str], line: int) -> Request | BadLine:
        if len(row) != len(names):
            return BadLine(line, f"it has {len(row)} cells, where the first row names {len(names)}")
        if any("\udc80" <= char <= "\udcff" for cell in row if not cell.isascii() for char in cell):
            return BadLine(line, "it is not UTF-8")
        return _made(self._make, dict(zip(names, row, strict=True)), line)


class _Lines:
    """The lines of a table, for a reader of its rows.

    Attributes:
        of_row: Those that were taken since it was last cleared.
        ended: Whether more were asked for than there are.
    """

    def __init__(self, text: io.TextIOWrapper, first: str) -> None:
        self.of_row: list[str] = []
        self.ended = False
        self._text = text
        self._first = first

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line, self._first = self._first or self._text.readline(LONGEST_LINE), ""
        if not line:
            self.ended = True
            raise StopIteration
        self.of_row.append(line)
        return line


def _unclosed(lines: list[str], separator: str, first: int) -> InputRefused:
    """Say where the quote opened that is still open after the last of these lines, the first of which has the number `first`."""
    row = next(csv.reader(lines, delimiter=separator))
    breaks = len(_LINE_BREAK.findall(row[-1]))
    ends = row[-1].endswith(("\r", "\n"))
    opened = first + len(lines) - breaks - (not ends)
    return InputRefused(
        f"the table has a cell that begins with a quote in line {opened} and never ends, so all that follows would be a part of it: "
        "close the quote, and write quotes inside of a cell double"
    )


def _damaged(error: csv.Error, line: int, last: int) -> str:
    here = "here" if last <= line else f"from here to line {last}"
    return (
        f"the table is damaged {here} ({error}); a cell that begins with a quote has to end with one, and quotes inside of it "
        "are written double"
    )


def _made(make: PromptMaker, values: Mapping[str, Any], line: int) -> Request | BadLine:
    try:
        return make.request(values, line)
    except RecursionError:
        return BadLine(line, TOO_DEEP)
    except ValueError as error:
        return BadLine(line, str(error))


def _id_of(values: Mapping[str, Any], line: int) -> str:
    for name in _IDS:
        value = values.get(name)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None and value != "":
            raise ValueError(f"its {name} is {short(value)}; give a text or a whole number")
    return str(line)


def _header(row: list[str], line: int) -> list[str]:
    names = [name.strip() for name in row]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled or not any(names):
        raise InputRefused(
            f"the table's first row (line {line}) has to name its columns, each once, and "
            + (f"has {short(min(doubled))} more than once" if doubled else "is empty")
        )
    return names


def _separator(first: str) -> str:
    return max(_SEPARATORS, key=first.count)
