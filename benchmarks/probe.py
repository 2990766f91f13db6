"""Looking into an index from outside: `python -m benchmarks.probe first|count INDEX`.

`first` says that it is ready, polls until a query returns a row, and prints the monotonic clock's reading.
`count` prints the number of rows.
"""

import os
import sys
import time
from pathlib import Path

POLL = 0.02


def tables(index: Path) -> list[Path]:
    """Return the tables in a folder; files inside of a table may bear the suffix too."""
    return [path for path in index.rglob("*.lance") if (path / "_versions").is_dir()]


def rows(table: Path, limit: int | None = None) -> int:
    """Return how many rows a table of vectors has (at most `limit`); 0 for any other table."""
    import lancedb

    opened = lancedb.connect(table.parent).open_table(table.stem)
    if "vector" not in opened.schema.names:
        return 0
    return len(opened.search().limit(limit).to_list()) if limit else int(opened.count_rows())


def await_first_row(index: Path) -> float:
    """Poll the index until a table with vectors returns a row, and return the time."""
    seen: dict[Path, int] = {}
    while True:
        for table in tables(index):
            try:
                versions = len(os.listdir(table / "_versions"))
                if versions != seen.get(table) and rows(table, limit=1):
                    return time.perf_counter()
            except Exception:  # the table is just being made
                continue
            seen[table] = versions
        time.sleep(POLL)


def main() -> None:
    """Do as the command line says."""
    import lancedb  # noqa: F401

    what, index = sys.argv[1], Path(sys.argv[2])
    if what == "count":
        print(sum(rows(table) for table in tables(index)))
        return
    print("ready", flush=True)
    print(await_first_row(index), flush=True)


if __name__ == "__main__":
    main()
