"""The three commands on real files and a real index."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tournant.cli import main

PATIENCE = 90.0
FILLER = (
    "The brigade prepares stock, sauce and pastry before the first order of the evening comes. "
)
FACTS = {
    "oven.txt": "The oven of the old station reaches exactly 473 degrees.",
    "menu.md": "# Menu\n\nOn Thursdays the soup is made of chanterelles.",
    "staff.html": "<title>Staff</title><p>Odile Marchand keeps the keys of the wine cellar.",
    "sub/stock.csv": "item,count\ncopper pans,41\nladles,12\n",
    "sub/order.json": '{"supplier": "Fromagerie Valbonne", "kilograms": 17}',
}


def encrypted_pdf() -> bytes:
    keys = f"/O <{'41' * 32}> /U <{'42' * 32}>"
    bodies = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>",
        f"<< /Filter /Standard /V 1 /R 2 {keys} /P -4 >>",
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    start = len(out)
    out += f"xref\n0 {len(bodies) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{offset:010d} 00000 n \n".encode() for offset in offsets)
    ids = f"/ID [<{'43' * 16}> <{'43' * 16}>]"
    trailer = f"trailer\n<< /Root 1 0 R /Size 5 /Encrypt 4 0 R {ids} >>\n"
    return out + f"{trailer}startxref\n{start}\n%%EOF\n".encode()


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with documents, and an index of it beside it. Not to be changed."""
    place = tmp_path_factory.mktemp("kitchen")
    for name, text in FACTS.items():
        path = place / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for number in range(30):
        (place / f"docs/filler{number}.txt").write_text(f"{number}. {FILLER * (1 + number % 5)}")
    assert main(["ingest", str(place / "docs"), "--index", str(place / "index"), "--quiet"]) == 0
    return place


@pytest.fixture
def here(kitchen: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(kitchen)
    return kitchen


# Searching


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
@pytest.mark.parametrize(
    ("words", "name", "fact"),
    [
        ("how hot is the oven of the old station", "oven.txt", "473 degrees"),
        ("soup made of chanterelles", "menu.md", "Thursdays"),
        ("keys of the wine cellar", "staff.html", "Odile Marchand"),
        ("copper pans", "sub/stock.csv", "41"),
        ("supplier kilograms Fromagerie", "sub/order.json", "17"),
    ],
)
def test_a_planted_fact_is_found_first(
    here: Path, capsys: pytest.CaptureFixture[str], mode: str, words: str, name: str, fact: str
) -> None:
    assert main(["search", *words.split(), "--index", "index", "--mode", mode, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hits"][0]["source"] == str(here / "docs" / name)
    assert fact in found["hits"][0]["text"]
    assert (found["mode"], found["query"], len(found["hits"]) <= 5) == (mode, words, True)


def test_a_search_reads_well(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "wine cellar keys", "--index", "index", "-k", "1"]) == 0
    head, passage = capsys.readouterr().out.splitlines()
    assert head.startswith("1. docs/staff.html  ")
    assert head.endswith("  Staff")
    assert passage.strip() == "Odile Marchand keeps the keys of the wine cellar."


def test_a_search_for_what_is_nowhere(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "xylophone", "--index", "index", "--mode", "text"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "Nothing found.\n")


@pytest.mark.parametrize("command", [["search", "words"], ["status"]])
def test_where_there_is_no_index_the_mend_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert main([*command, "--index", "docs"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "there is no index here; make one with `tournant ingest`" in said.err
    assert not list((here / "docs").glob("*.json"))


def test_a_reader_that_leaves_is_no_error(here: Path) -> None:
    command = f"{sys.executable} -m tournant search kitchen --index index -k 30 | head -n 1"
    ended = subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    line, code = ended.stdout.splitlines()
    assert line.startswith("1. docs/")
    assert (code in ("0", "141"), ended.stderr) == (True, "")


# The other commands


def test_status_says_what_is_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--index", "index", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["documents"], found["failures"], found["busy"]) == (35, [], False)
    assert found["chunks"] >= 35
    assert found["embedder"].startswith("static:")
    assert found["last_run"]["ended"] >= found["last_run"]["started"]
    assert found["last_run"]["summary"]["done"] in (35, 0)
    assert main(["status", "--index", "index"]) == 0
    assert capsys.readouterr().out.startswith(f"35 documents, {found['chunks']} chunks, ")


def test_a_run_without_changes_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["ingest", "docs", "--index", "index"]
    assert main([*argv, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(argv) == 0
    said = capsys.readouterr()
    assert said.out.startswith("0 documents in ")
    assert said.out.endswith(", 0 chunks, 35 unchanged.\n")
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["documents"], found["unchanged"], found["interrupted"]) == (0, 35, False)
    assert {stage["items_in"] for stage in found["report"]["stages"]} == {0}


def test_a_run_without_changes_loads_no_store_and_starts_no_worker(here: Path) -> None:
    code = (
        "import sys; from tournant.cli import main\n"
        "code = main(['ingest', 'docs', '--index', 'index', '--quiet'])\n"
        "heavy = {'lancedb', 'pyarrow', 'numpy', 'tokenizers', 'selectolax', 'rich'} & set(sys.modules)\n"
        "import psutil\n"
        "print(code, sorted(heavy), len(psutil.Process().children()))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert (ended.stdout, ended.stderr) == ("0 [] 0\n", "")


def test_another_embedder_or_size_is_refused_with_the_mend(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["ingest", "docs", "--index", "index", "--quiet"]
    assert main([*argv, "--chunk-size", "200"]) == 1
    said = capsys.readouterr().err
    assert "was built with chunker" in said
    assert "or ingest into a new folder" in said
    assert main([*argv, "--embedder", "onnx:docs"]) == 1
    assert "docs" in capsys.readouterr().err
    assert main([*argv, "--embedder", "magic"]) == 2
    assert main([*argv, "--chunk-size", "100", "--chunk-overlap", "100"]) == 2


def test_globs_choose_files(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = str(tmp_path / "index")
    argv = ["ingest", "docs", "--index", index, "--json"]
    assert main([*argv, "--include", "*.txt", "--include", "*.md", "--exclude", "filler*"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 2
    assert main([*argv, "--exclude", "docs/sub/", "--exclude", "filler*"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["documents"], found["unchanged"], found["removed"]) == (1, 2, 0)
    assert main([*argv, "--include", "sub"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["documents"], found["unchanged"], found["removed"]) == (2, 0, 3)


# Bad files


#: Root may read everything by two capabilities; without them it is as anyone else. They go with the next exec.
UNPRIVILEGED = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        if ctypes.CDLL(None).prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
            sys.exit(99)
os.execv(sys.executable, [sys.executable, "-m", "tournant", *sys.argv[1:]])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux says who may read what")
def test_bad_files_are_listed_and_the_rest_goes_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    docs, index = tmp_path / "docs", str(tmp_path / "index")

    def tournant(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, *argv],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def asked(*argv: str) -> str:
        assert main([*argv, "--index", index]) == 0
        return capsys.readouterr().out

    docs.mkdir()
    (docs / "good.txt").write_text("Turmeric is kept in the third drawer.")
    (docs / "empty.txt").write_text("")
    (docs / "bytes.txt").write_bytes(b"Saffron \xff\xfe\x80 is kept in the safe.")
    with open(docs / "zeros.txt", "wb") as file:
        file.truncate(1 << 30)
    (docs / "cut.pdf").write_bytes(encrypted_pdf()[:200])
    (docs / "locked.pdf").write_bytes(encrypted_pdf())
    os.mkfifo(docs / "pipe.txt")
    (docs / "loop.txt").symlink_to("loop.txt")
    (docs / "round").symlink_to(docs)
    closed = docs / "closed"
    closed.mkdir()
    (closed / "inside.txt").write_text("Nobody sees this.")
    closed.chmod(0)
    secret = docs / "secret.txt"
    secret.write_text("Cardamom is behind the flour.")
    secret.chmod(0)
    (docs / "two\nlines.txt").write_text("Nutmeg is beside the window.")
    stray = os.fsdecode(os.path.join(os.fsencode(docs), b"caf\xe9.txt"))
    Path(stray).write_text("Vanilla is under the sink.")

    ended = tournant("ingest", "docs", "--index", index, "--json", "--quiet")
    assert ended.returncode == 3, ended.stderr
    found = json.loads(ended.stdout)
    bad = {"zeros.txt", "cut.pdf", "locked.pdf", "pipe.txt", "loop.txt", "closed", "secret.txt"}
    reasons = {os.path.basename(each["source"]): each["reason"] for each in found["rejected"]}
    assert set(reasons) == bad
    assert found["documents"] == 5
    for name, words in {
        "zeros.txt": "binary",
        "locked.pdf": "encrypted",
        "pipe.txt": "it is a FIFO",
        "loop.txt": "leads back to itself",
        "closed": "permission denied",
        "secret.txt": "permission denied",
    }.items():
        assert words in reasons[name]

    listed = json.loads(asked("status", "--json"))["failures"]
    assert {os.path.basename(each["source"]): each["reason"] for each in listed} == reasons
    shown = asked("status")
    assert "7 files did not get in:\n" in shown
    assert f"  docs/locked.pdf: {reasons['locked.pdf']}\n" in shown

    for words, name in (
        ("turmeric third drawer", "good.txt"),
        ("saffron kept in the safe", "bytes.txt"),
        ("nutmeg beside the window", "two\nlines.txt"),
        ("vanilla under the sink", "caf\ufffd.txt"),
    ):
        (hit,) = json.loads(asked("search", words, "--json", "-k", "1"))["hits"]
        assert os.path.basename(hit["source"]) == name
    assert base64.b64decode(hit["source_base64"]) == os.fsencode(stray)
    lines = asked("search", "vanilla nutmeg", "-k", "2")
    assert "$'docs/two\\nlines.txt'" in lines
    assert "$'docs/caf\\xe9.txt'" in lines

    # Mended, one way or another.
    (docs / "zeros.txt").write_text("Zeroes no more.")
    (docs / "cut.pdf").unlink()
    (docs / "locked.pdf").unlink()
    (docs / "pipe.txt").unlink()
    (docs / "loop.txt").unlink()
    closed.chmod(0o755)
    secret.chmod(0o644)
    ended = tournant("ingest", "docs", "--index", index, "--json", "--quiet")
    assert (ended.returncode, ended.stderr) == (0, "")
    found = json.loads(ended.stdout)
    assert (found["documents"], found["unchanged"], found["rejected"]) == (3, 5, [])
    status = json.loads(asked("status", "--json"))
    assert (status["failures"], status["documents"]) == ([], 7)
    # A folder that can no longer be looked into has not lost what was in it.
    closed.chmod(0)
    ended = tournant("ingest", "docs", "--index", index, "--json", "--quiet")
    assert ended.returncode == 3
    assert json.loads(ended.stdout)["removed"] == 0
    closed.chmod(0o755)  # for whoever clears up
    (hit,) = json.loads(asked("search", "nobody sees", "--json", "-k", "1"))["hits"]
    assert hit["text"] == "Nobody sees this."


def test_an_argument_that_is_not_there_is_listed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ingest", "docs", "dcos", "--index", "index", "--quiet"]) == 3
    assert capsys.readouterr().err == "1 file skipped:\n  dcos: no such file or directory\n"
    assert main(["status", "--index", "index", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failures"] == []
