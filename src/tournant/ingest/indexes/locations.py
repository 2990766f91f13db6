"""Where an index lies: a folder, or a URL. Opens the right kind, and keeps passwords out of what is shown.

=====================================  =====================================================================
``DIR``, ``file:///DIR``               a LanceDB table in a folder (`tournant.ingest.indexes.lance`)
``s3://``, ``gs://``, ``az://``        a LanceDB table in an object store (`tournant.ingest.indexes.remote`)
``postgresql://``, ``postgres://``     a schema of a PostgreSQL database (`tournant.ingest.indexes.pgvector`)
=====================================  =====================================================================
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

from tournant.ingest.errors import InvalidOption
from tournant.ingest.indexes.base import IndexSettings, StoredIndex
from tournant.ingest.indexes.lance import LanceIndex
from tournant.ingest.indexes.pgvector.address import is_postgres, redacted

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
#: The last is LanceDB's name for a folder that is treated as an object store is.
_OBJECT_STORES = frozenset({"s3", "gs", "az", "file-object-store"})


class Location(str):
    """The URL of an index, which shows no password when it is printed as a value of something else."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(redacted(self))


def protected(index: str) -> str:
    """Return the name of an index so that the ``repr`` of what holds it shows no password."""
    return Location(index) if is_url(index) else index


def is_url(index: str) -> bool:
    """Tell whether an index is named by a URL rather than a path."""
    return _URL.match(index) is not None


def shown(index: str) -> str:
    """Return the name of an index for messages and logs."""
    return redacted(index) if is_url(index) else index


def needs_lance(index: str) -> bool:
    """Tell whether an index needs LanceDB, whose import costs a second."""
    return not is_postgres(index)


def folder_of(index: str) -> str | None:
    """Return the folder that an index lies in, absolute; None when it lies elsewhere.

    Raises:
        InvalidOption: it is a ``file`` URL of another machine.
    """
    if not is_url(index):
        return os.path.abspath(os.path.expanduser(index))
    parts = urlsplit(index)
    if parts.scheme.lower() != "file":
        return None
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise InvalidOption(
            f"index {index!r}: this names the machine {parts.netloc!r}; write file:///absolute/path, or a path"
        )
    return os.path.abspath(unquote(parts.path, errors="surrogateescape"))


def open_index(
    index: str | os.PathLike[str], settings: IndexSettings | None = None, *, write: bool = False
) -> StoredIndex:
    """Open an index wherever it lies, or with ``write=True`` and settings make it where there is none.

    Args:
        index: a path, or a URL as the module says.
        settings: what the index must have been built with; None takes what it has.
        write: whether to write.

    Raises:
        InvalidOption: no index can lie there.
        MissingExtra: a package for this kind of index is not installed.
        IndexTrouble: as `LanceIndex.open` and `PgvectorIndex.open`.
    """
    name = os.fspath(index)
    found = _URL.match(name)
    scheme = "" if found is None else found[1].lower()
    if scheme in ("postgresql", "postgres"):
        from tournant.ingest.indexes.pgvector.address import driver

        driver()
        from tournant.ingest.indexes.pgvector.index import PgvectorIndex

        return PgvectorIndex.open(name, settings, write=write)
    if scheme in _OBJECT_STORES:
        from tournant.ingest.indexes.remote import RemoteLanceIndex

        return RemoteLanceIndex.open(name, settings, write=write)
    folder = name if found is None else folder_of(name)
    if folder is None:
        raise InvalidOption(
            f"index {shown(name)!r}: no index can lie there; give a folder, or a URL that begins with postgresql://, s3://, "
            "gs://, az:// or file://"
        )
    return LanceIndex.open(folder, settings, write=write)
