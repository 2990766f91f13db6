"""A recording as one HTML file that opens offline: lanes, queues and cores over time, and one input's way through them.

`encode` turns recordings into bytes, `document` puts them and the parts in ``page/`` into one file. The page's scripts are ES modules that
are joined when a file is saved; there is no build step, and the file asks for nothing from anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tournant.observe.recording import Recording
from tournant.observe.whole import whole_file

__all__ = ["save_timeline"]


def save_timeline(recordings: Sequence[Recording], path: str | Path, *, title: str = "") -> Path:
    """Write one self-contained HTML file that shows the recordings, one under the other.

    A file that is already there is replaced when the new one is whole. What is no file, such as ``/dev/stdout`` or a FIFO, is written to.

    Args:
        recordings: what to show; several share one time scale until the reader parts them.
        path: the file to write.
        title: what the page is called; by default the only recording's title, or "Timeline".

    Returns:
        The path.

    Raises:
        OSError: the file can't be written.
        ValueError: a slice or a mark names a lane or a stage that its recording does not have.
    """
    from tournant.observe.timeline.document import document

    path = Path(path)
    html = document(recordings, title=title).encode("utf-8", "replace")
    with whole_file(path) as file:
        file.write(html)
    return path
