"""Plain text, markup that reads as text, and source code."""

from __future__ import annotations

from dataclasses import dataclass, field

from tournant.ingest.documents import Document
from tournant.ingest.readers.encoding import decode

MARKDOWN = "text/markdown"

_PROSE = {
    ".txt": "text/plain",
    ".text": "text/plain",
    ".log": "text/plain",
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".rst": "text/x-rst",
    ".adoc": "text/asciidoc",
    ".org": "text/x-org",
    ".tex": "text/x-tex",
}
_CODE = (
    "py pyi pyx js mjs cjs jsx ts tsx java kt kts scala groovy c h cc cpp cxx hh hpp hxx cu m mm cs fs vb go rs "
    "rb php pl pm lua r jl sh bash zsh fish ps1 bat sql swift dart ex exs erl hrl hs ml mli clj cljs el lisp scm "
    "zig nim v sv vhd vhdl asm s f f90 f95 pas ada adb ads css scss less vue svelte xml xsd xsl yaml yml toml "
    "ini cfg conf properties proto graphql tf cmake mk gradle"
)


def _suffixes() -> dict[str, str]:
    return _PROSE | {f".{name}": "text/x-source" for name in _CODE.split()}


@dataclass(frozen=True, slots=True)
class TextReader:
    """Text as it is."""

    name: str = "text"
    suffixes: dict[str, str] = field(default_factory=_suffixes)

    def read(self, source: str, data: bytes, suffix: str) -> Document:
        """Decode; see `Reader.read`."""
        text = decode(data)
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        return Document(source, text, self.suffixes.get(suffix, "text/plain"))
