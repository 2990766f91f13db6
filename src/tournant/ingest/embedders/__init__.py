"""Embedders: texts in, vectors out. `embedder` makes one from its spec, in whatever process it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tournant.ingest.errors import InvalidOption

if TYPE_CHECKING:
    from tournant.ingest.embedders.base import Embedder

__all__ = ["embedder"]


def embedder(spec: str = "static") -> Embedder:
    """Make the embedder that a spec names.

    Args:
        spec: ``"static"`` for the built-in static word vectors (256 dimensions, tens of microseconds a
            text), or ``"onnx:FOLDER"`` for a transformer whose folder holds ``model.onnx`` and
            ``tokenizer.json``.

    Raises:
        InvalidOption: the spec names no embedder.
        EmbedderUnavailable: its files are missing or of another kind.
        MissingExtra: a package it needs is not installed.
    """
    kind, colon, argument = spec.partition(":")
    if kind == "static" and not colon:
        from tournant.ingest.embedders.static import StaticEmbedder

        return StaticEmbedder()
    if kind == "onnx" and argument:
        from tournant.ingest.embedders.onnx import OnnxEmbedder

        return OnnxEmbedder(argument)
    raise InvalidOption(f"no embedder {spec!r}; use 'static' or 'onnx:FOLDER'")
