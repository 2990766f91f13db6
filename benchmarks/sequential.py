"""The script a user writes first: `python -m benchmarks.sequential CORPUS --index DIR`.

One document after the other, one process; rows are added to the table in batches.
"""

import time

from benchmarks import parts


def main() -> None:
    """Ingest a folder."""
    started = time.perf_counter()
    given = parts.arguments()
    import numpy

    model = parts.OnnxEmbedder(given.onnx) if given.onnx else parts.static_embedder()
    cutter = parts.Cutter()
    table = parts.Table(given.index)
    keys: list[tuple[str, int]] = []
    texts: list[str] = []
    vectors = []
    done = chunks = 0

    def write() -> None:
        if texts:
            table.add(keys, texts, numpy.concatenate(vectors))
        keys.clear(), texts.clear(), vectors.clear()

    for path in parts.documents(given.corpus):
        try:
            pieces = cutter.pieces(path)
        except Exception as error:
            parts.say(f"{path}: {error}")
            continue
        if pieces:
            vectors.append(model.embed(pieces, norm=True))
            keys.extend((str(path), position) for position in range(len(pieces)))
            texts.extend(pieces)
        done += 1
        chunks += len(pieces)
        if len(texts) >= parts.WRITE_ROWS:
            write()
    write()
    full_text = table.finish()
    parts.report(started, documents=done, chunks=chunks, full_text=round(full_text, 3))


if __name__ == "__main__":
    main()
