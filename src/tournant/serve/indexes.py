"""What an index tells of itself before it is opened: its embedder, how its texts were cut, where its uploads lie."""

from __future__ import annotations

import os
from hashlib import blake2b

from tournant.ingest.chunkers import ChunkSettings
from tournant.ingest.errors import IndexMismatch, IndexMissing
from tournant.ingest.indexes.files import read_json
from tournant.ingest.indexes.locations import folder_of, open_index, shown
from tournant.serve.settings import ServeSettings

DEFAULT_EMBEDDER = "static"


def embedder_of(settings: ServeSettings) -> str:
    """Return the spec of the embedder to serve: the one that was asked for, else the index's, else the default. Looks at the index.

    Raises:
        IndexTrouble: it lies elsewhere and can't be reached.
    """
    if settings.embedder is not None:
        return settings.embedder
    if settings.index is None:
        return DEFAULT_EMBEDDER
    folder = folder_of(settings.index)
    if folder is not None:
        kept = read_json(os.path.join(folder, "job.json"))
        spec = kept.get("embedder") if isinstance(kept, dict) else None
        return spec if isinstance(spec, str) else DEFAULT_EMBEDDER
    try:
        with open_index(settings.index) as index:
            return index.recall_embedder() or DEFAULT_EMBEDDER
    except IndexMissing:
        return DEFAULT_EMBEDDER


def chunking_of(directory: str, chunker: str) -> ChunkSettings:
    """Return the settings of the chunker of this name, so that new documents are cut as the others were.

    Raises:
        IndexMismatch: an ingest can't cut so.
    """
    parts = chunker.split(":")
    if len(parts) == 4 and parts[:2] == ["semantic", "characters"]:
        try:
            return ChunkSettings(int(parts[2]), int(parts[3]))
        except ValueError:
            pass
    raise IndexMismatch(
        directory,
        f"was cut by {chunker!r}, which uploads can't be cut by; ingest into a new folder",
    )


def uploads_of(settings: ServeSettings) -> str:
    """Return the folder that keeps uploaded files, absolute.

    By default it lies beside the index: whoever deletes an index, to build it anew, must not lose documents by it. For an
    index that lies elsewhere it is a folder of the user's, ``~/.local/share/tournant/uploads-`` and a digest of the URL.

    Raises:
        ValueError: there is neither a folder nor an index.
    """
    if settings.uploads is not None:
        return os.path.abspath(os.path.expanduser(settings.uploads))
    if settings.index is None:
        raise ValueError("uploads go into an index: give one with --index DIR")
    folder = folder_of(settings.index)
    if folder is not None:
        return folder + "-uploads"
    data = os.environ.get("XDG_DATA_HOME") or os.path.join("~", ".local", "share")
    digest = blake2b(shown(settings.index).encode(), digest_size=8).hexdigest()
    return os.path.join(os.path.abspath(os.path.expanduser(data)), "tournant", f"uploads-{digest}")
