"""Office documents, by the optional package markitdown."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field

from tournant.ingest.documents import Document
from tournant.ingest.errors import MissingExtra, UnreadableFile

_TYPE = "application/vnd.openxmlformats-officedocument."
_INLINE_IMAGE = re.compile(r"!\[[^\]]*\]\(data:[^)]*\)")


@dataclass(frozen=True, slots=True)
class OfficeReader:
    """Word, Excel and PowerPoint files as Markdown. Slow (tens of milliseconds), and it holds the GIL."""

    name: str = "office"
    suffixes: dict[str, str] = field(
        default_factory=lambda: {
            ".docx": f"{_TYPE}wordprocessingml.document",
            ".xlsx": f"{_TYPE}spreadsheetml.sheet",
            ".pptx": f"{_TYPE}presentationml.presentation",
        }
    )

    def read(self, source: str, data: bytes, suffix: str) -> Document:
        """Convert; see `Reader.read`."""
        media_type = self.suffixes.get(suffix, "application/octet-stream")
        if not data:
            return Document(source, "", media_type)
        try:
            from markitdown import MarkItDown, StreamInfo
        except ImportError as error:
            raise MissingExtra(f"reading {suffix} files", "markitdown", "office") from error
        try:
            result = MarkItDown(enable_plugins=False).convert_stream(
                io.BytesIO(data), stream_info=StreamInfo(extension=suffix)
            )
        except Exception as error:  # its converters raise whatever their libraries raise
            if type(error).__name__ == "MissingDependencyException":
                raise MissingExtra(
                    f"reading {suffix} files", f"markitdown[{suffix[1:]}]", "office"
                ) from error
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip(" -")
            raise UnreadableFile(
                source, f"the document is damaged or encrypted ({reason})"
            ) from error
        text = _INLINE_IMAGE.sub("", result.text_content)
        return Document(source, text.strip(), media_type, result.title or "")
