"""What can go wrong while documents are read, embedded and stored: one tree under `IngestError`.

Every class keeps its arguments in ``args``, so an error crosses a process boundary unchanged. The
message says what happened, where, and how to mend it.
"""

from __future__ import annotations

from tournant.errors import TournantError


class IngestError(TournantError):
    """The root of everything that goes wrong in an ingest or a search."""


class InvalidOption(IngestError, ValueError):
    """An option of a reader, chunker, embedder or index is refused when it is given."""


class MissingExtra(IngestError, ImportError):
    """A package that this kind of input needs is not installed.

    Args:
        purpose: what was asked for, as the subject of a sentence ("reading .docx files").
        package: the package that is missing.
        extra: the extra of Tournant that brings it.
    """

    def __init__(self, purpose: str, package: str, extra: str) -> None:
        super().__init__(purpose, package, extra)
        self.purpose, self.package, self.extra = purpose, package, extra

    def __str__(self) -> str:
        return (
            f"{self.purpose} needs the package {self.package!r}, which is not installed; "
            f"pip install 'tournant[{self.extra}]'"
        )


class UnreadableFile(IngestError):
    """A file or folder can't be read. The rest of the ingest goes on.

    Args:
        path: the file or folder.
        reason: why, and what would mend it where something would.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        # ascii() would hide every accent; repr() keeps them and still shows newlines and stray bytes.
        return f"can't read {self.path!r}: {self.reason}"


class EmbedderUnavailable(IngestError):
    """An embedder can't be made from its spec: a file is missing, damaged or of another kind.

    Args:
        spec: the spec as it was given ("static", "onnx:FOLDER").
        reason: why, and how to mend it.
    """

    def __init__(self, spec: str, reason: str) -> None:
        super().__init__(spec, reason)
        self.spec, self.reason = spec, reason

    def __str__(self) -> str:
        return f"the embedder {self.spec!r} can't be used: {self.reason}"


class IndexTrouble(IngestError):
    """The root of what goes wrong with an index.

    Args:
        directory: the folder of the index.
        reason: what happened and how to mend it.
    """

    def __init__(self, directory: str, reason: str) -> None:
        super().__init__(directory, reason)
        self.directory, self.reason = directory, reason

    def __str__(self) -> str:
        return f"index {self.directory!r}: {self.reason}"


class IndexMissing(IndexTrouble):
    """There is no index in this folder."""


class IndexDamaged(IndexTrouble):
    """The folder holds something of an index that can't be understood."""


class IndexMismatch(IndexTrouble):
    """The index was built with other settings (embedder, dimensions, chunking) than those asked for."""


class IndexBusy(IndexTrouble):
    """Another process is writing to this index. One may write at a time; any number may search."""


class IndexWriteFailed(IndexTrouble):
    """A write was refused (disk full, permission). The index is as it was before that write."""


class SearchFailed(IndexTrouble):
    """A search could not be answered."""
