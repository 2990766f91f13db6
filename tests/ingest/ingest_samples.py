"""Files and documents that the tests of ingest share."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

import numpy as np

from tournant.ingest.documents import ChunkedDocument, Document, EmbeddedDocument

DIMENSIONS = 8


def pdf(*pages: str, title: str = "", encrypted: bool = False) -> bytes:
    """A small PDF with one line of Helvetica per page."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, text in enumerate(pages):
        shown = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        stream = f"BT /F1 12 Tf 72 720 Td ({shown}) Tj ET" if text else ""
        objects += [
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * n} 0 R >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    trailer = f"/Root 1 0 R /Size {len(objects) + 2}"
    if title:
        objects.append(f"<< /Title ({title}) >>")
        trailer += f" /Info {len(objects)} 0 R"
    if encrypted:
        # Keys that no empty password fits.
        keys = f"/O <{'41' * 32}> /U <{'42' * 32}>"
        objects.append(f"<< /Filter /Standard /V 1 /R 2 {keys} /P -4 >>")
        trailer += f" /Encrypt {len(objects)} 0 R /ID [<{'43' * 16}> <{'43' * 16}>]"
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{offset:010d} 00000 n \n".encode() for offset in offsets)
    out += f"trailer\n<< {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(out)


def archive(name: str = "word/document.xml") -> bytes:
    """A ZIP archive, as Office documents are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, "<x/>")
    return buffer.getvalue()


def unit(seed: int, dimensions: int = DIMENSIONS) -> np.ndarray:
    """A vector of length 1 that is always the same for the same seed."""
    vector = np.random.default_rng(seed).standard_normal(dimensions).astype(np.float32)
    return vector / np.linalg.norm(vector)


def embedded(
    source: str, texts: Sequence[str], seed: int = 0, dimensions: int = DIMENSIONS, title: str = ""
) -> EmbeddedDocument:
    """A document of these chunks; chunk n has the vector ``unit(seed + n)``."""
    starts, ends, position = [], [], 0
    for text in texts:
        starts.append(position)
        ends.append(position + len(text))
        position += len(text) + 1
    chunks = ChunkedDocument(
        Document(source, "\n".join(texts), "text/plain", title), tuple(starts), tuple(ends)
    )
    vectors = np.array([unit(seed + n, dimensions) for n in range(len(texts))], dtype=np.float32)
    return EmbeddedDocument(chunks, vectors.reshape(len(texts), dimensions))
