from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tournant.llm.batch.errors import ResultsRefused
from tournant.llm.batch.results import ResultsFile
from tournant.llm.batch.writer import ResultsWriter


@pytest.fixture
def file(tmp_path: Path) -> Iterator[ResultsFile]:
    found = ResultsFile(str(tmp_path / "out"))
    yield found
    found.close()


async def append(writer: ResultsWriter, line: bytes) -> None:
    await writer.wait(writer.put(line))


def test_a_line_is_in_the_file_when_its_write_returns(file: ResultsFile, tmp_path: Path) -> None:
    async def main() -> None:
        for number in range(20):
            line = b"line %d\n" % number
            await append(writer, line)
            assert (tmp_path / "out").read_bytes().endswith(line)

    writer = ResultsWriter(file)
    asyncio.run(main())
    writer.end()
    assert writer.error is None


def test_what_comes_together_is_written_together_in_order(
    file: ResultsFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: sizes.append(len(data)) or write(fd, data))

    async def main() -> None:
        await asyncio.gather(*(append(writer, b"%05d\n" % number) for number in range(2_000)))

    writer = ResultsWriter(file)
    asyncio.run(main())
    writer.end()
    expected = b"".join(b"%05d\n" % number for number in range(2_000))
    assert (tmp_path / "out").read_bytes() == expected
    assert len(sizes) < 1_000


def test_a_line_that_nobody_waits_for_is_written_all_the_same(
    file: ResultsFile, tmp_path: Path
) -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(append(writer, b"%d\n" % number)) for number in range(50)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    writer = ResultsWriter(file)
    asyncio.run(main())
    writer.end()
    lines = (tmp_path / "out").read_text().split()
    assert lines == [str(number) for number in range(50)]


def test_everything_is_made_to_last_at_the_end(
    file: ResultsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    writer = ResultsWriter(file)
    asyncio.run(append(writer, b"a line\n"))
    writer.end()
    assert synced[-1] == 7
    assert len(synced) <= 2
    idle = ResultsWriter(file)
    idle.end()
    assert len(synced) <= 2


#: Writes lines until the kernel refuses; says what came of each.
FILLING = """
import asyncio, json, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
from tournant.llm.batch.errors import ResultsRefused
from tournant.llm.batch.results import ResultsFile
from tournant.llm.batch.writer import ResultsWriter

async def main():
    one = [await refused(b"x" * 99 + b"\\n")]
    together = await asyncio.gather(*(refused(b"y" * 89 + b"\\n") for _ in range(20)))
    return one + together + [await refused(b"z\\n")]

async def refused(line):
    try:
        await writer.wait(writer.put(line))
    except ResultsRefused as error:
        return str(error)

file = ResultsFile(sys.argv[1])
writer = ResultsWriter(file)
said = asyncio.run(main())
writer.end()
print(json.dumps([said, str(writer.error)]))
"""


def test_a_full_disk_fails_the_writes_and_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FILLING, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said, error = json.loads(done.stdout)
    assert said[0] is None
    assert said[-1] == said[-2] == error
    assert "may write (ulimit -f)" in error
    assert str(path) in error
    text = path.read_text()
    assert text.endswith("\n")
    assert {len(line) for line in text.splitlines()} == {99, 89}
    assert said.count(None) <= len(text.splitlines())


def test_a_file_that_can_not_be_made_to_last_is_an_error(
    file: ResultsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    writer = ResultsWriter(file)
    asyncio.run(append(writer, b"a line\n"))
    writer.end()
    assert isinstance(writer.error, ResultsRefused)
    assert "Input/output error" in str(writer.error)
