"""Tables as text files: CSV and TSV."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field

from tournant.ingest.documents import Document
from tournant.ingest.errors import UnreadableFile
from tournant.ingest.readers.encoding import decode

_SAMPLE = 16_384
_LONGEST_FIELD = 1 << 27
_DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True)
class CsvReader:
    """One line of text per row, each value beside the name of its column, so that any row is found alone."""

    name: str = "csv"
    suffixes: dict[str, str] = field(
        default_factory=lambda: {".csv": "text/csv", ".tsv": "text/tab-separated-values"}
    )

    def read(self, source: str, data: bytes, suffix: str) -> Document:
        """Parse the table; see `Reader.read`."""
        text = decode(data)
        media_type = self.suffixes.get(suffix, "text/csv")
        csv.field_size_limit(_LONGEST_FIELD)
        sample = text[:_SAMPLE]
        delimiter = "\t" if suffix == ".tsv" else _delimiter(sample)
        rows = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
        lines = []
        try:
            header = next(rows, [])
            named = _is_header(header)
            if not named:
                lines.append(", ".join(cell.strip() for cell in header if cell.strip()))
            for row in rows:
                cells = [cell.strip() for cell in row]
                if named:
                    names = header + [""] * (len(cells) - len(header))
                    line = "; ".join(
                        f"{name.strip()}: {cell}" if name.strip() else cell
                        for name, cell in zip(names, cells, strict=False)
                        if cell
                    )
                else:
                    line = ", ".join(cell for cell in cells if cell)
                if line:
                    lines.append(line)
        except csv.Error as error:
            raise UnreadableFile(
                source, f"the table is damaged at line {rows.line_num}: {error}"
            ) from error
        if named and not lines:
            lines.append(", ".join(name.strip() for name in header if name.strip()))
        return Document(source, "\n".join(lines).replace("\0", ""), media_type)


def _delimiter(sample: str) -> str:
    """The separator that divides the first lines into the same number of cells, and into most."""
    lines = [line for line in sample.splitlines()[:20] if line.strip()]
    best, best_score = ",", 0.0
    for delimiter in _DELIMITERS:
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter)]
        if not widths or max(widths) < 2:
            continue
        common = max(set(widths), key=widths.count)
        score = widths.count(common) / len(widths) * min(common, 10)
        if common > 1 and score > best_score:
            best, best_score = delimiter, score
    return best


def _is_header(row: list[str]) -> bool:
    """Names of columns are distinct, not empty, short, and no numbers."""
    names = [cell.strip() for cell in row]
    return (
        bool(names)
        and all(names)
        and len(set(names)) == len(names)
        and not any(_is_number(name) or len(name) > 80 for name in names)
    )


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True
