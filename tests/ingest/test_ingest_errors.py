from __future__ import annotations

import pickle

import pytest

from tournant.errors import TournantError
from tournant.ingest import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.UnreadableFile("/a\n\udce9.pdf", "it is damaged"),
        errors.MissingExtra("reading .docx files", "markitdown", "office"),
        errors.EmbedderUnavailable("onnx:x", "no model"),
        errors.InvalidOption("no"),
        errors.IndexMissing("/i", "none"),
        errors.IndexDamaged("/i", "bad"),
        errors.IndexMismatch("/i", "other"),
        errors.IndexBusy("/i", "busy"),
        errors.IndexWriteFailed("/i", "full"),
        errors.SearchFailed("/i", "lost"),
    ],
)
def test_errors_cross_process_boundaries(error: errors.IngestError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, TournantError)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_messages_are_one_printable_line_with_the_mend() -> None:
    shown = str(errors.UnreadableFile("/a\n\udce9.pdf", "it is damaged"))
    assert shown == r"can't read '/a\n\udce9.pdf': it is damaged"
    missing = str(errors.MissingExtra("reading .docx files", "markitdown", "office"))
    assert "pip install 'tournant[office]'" in missing
