"""Names of uploaded files: whatever a client sends becomes a harmless path below the folder of uploads, or nothing."""

from __future__ import annotations

import os
import unicodedata

_NAME_BYTES = 200  # file systems take 255; a temporary name beside it needs some
_PATH_BYTES = 1_000
_DEPTH = 16
_FORBIDDEN = frozenset('<>:"|?*')
#: Devices on Windows, whatever their suffix; a folder of uploads may be synchronised to one.
_RESERVED = frozenset(
    ("con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10)))
)


def safe_name(raw: bytes | str) -> str | None:
    """Return the path, below the folder of uploads, of a file that a client calls `raw`.

    Folders in the name are kept, so that an uploaded folder keeps its order; ``..``, drives, roots and empty parts are
    left out. Control and formatting characters (which can make a name look like another) are left out, what file systems
    forbid becomes ``_``, leading dots are left out, Unicode is normalised (NFC), and what is too long is shortened before
    its suffix. Equal names give equal paths, so uploading a file again replaces it.

    Returns:
        The path with ``/``, or ``None`` when nothing of the name is left or it is nested too deep.
    """
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    parts = [_safe_part(part) for part in text.replace("\\", "/").split("/")]
    kept = [part for part in parts if part]
    if not kept or not parts[-1] or len(kept) > _DEPTH:
        return None
    path = "/".join(kept)
    return path if len(path.encode()) <= _PATH_BYTES else None


def below(folder: str, name: str) -> str:
    """Return the absolute path of a safe name, with the folders on the way made.

    Raises:
        OSError: a folder can't be made, or a link on the way leads out of the folder.
    """
    path = os.path.join(folder, *name.split("/"))
    parent = os.path.dirname(path)
    os.makedirs(parent, exist_ok=True)
    root = os.path.realpath(folder)
    if os.path.commonpath([root, os.path.realpath(parent)]) != root:
        raise PermissionError(
            f"{name!r} would lie outside of the folder of uploads: a link leads out of it"
        )
    return path


def _safe_part(part: str) -> str:
    """Return one part of a path, harmless; empty when nothing is left."""
    part = unicodedata.normalize("NFC", part)
    part = "".join(
        "_" if char in _FORBIDDEN else char if char.isprintable() else " "
        for char in part
        # Control, formatting, surrogate, private and unassigned characters; other spaces and line ends become plain spaces.
        if unicodedata.category(char)[0] != "C"
    )
    # Once more: what stood apart may have come together.
    part = unicodedata.normalize("NFC", part).strip(". ")
    if not part:
        return ""
    if part.split(".")[0].strip().lower() in _RESERVED:
        part = f"_{part}"
    return _shortened(part)


def _shortened(part: str) -> str:
    data = part.encode()
    if len(data) <= _NAME_BYTES:
        return part
    stem, dot, suffix = part.rpartition(".")
    tail = f"{dot}{suffix}".encode() if dot and len(suffix.encode()) <= 20 else b""
    head = (stem if tail else part).encode()[: _NAME_BYTES - len(tail)]
    return head.decode("utf-8", "ignore").rstrip(". ") + tail.decode()
