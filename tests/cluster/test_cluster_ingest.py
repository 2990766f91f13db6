"""`tournant ingest --cluster` and `tournant batch --cluster` on a local cluster of two one-core nodes."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from pathlib import Path

import pytest

from tournant.cli import main
from tournant.cluster import connection
from tournant.ingest.indexes.locations import open_index
from tournant.ingest.job import IngestOptions, run_ingest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

for package in ("lancedb", "semantic_text_splitter", "wordllama"):
    pytest.importorskip(package)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for n in range(40):
        words = " ".join(f"word{n}x{i}" for i in range(300))
        (folder / f"{n:02}.txt").write_text(f"The number of this document is {n}.\n\n{words}\n")
    return folder


def ingest(capsys, *arguments: object) -> dict:
    code = main(["ingest", *map(str, arguments), "--json", "--quiet"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out)


def rows(index: Path) -> list[tuple]:
    """Everything that an index holds, without the order in which it came."""
    from tournant.ingest.indexes.table import open_table

    found = open_table(str(index)).to_arrow().to_pylist()
    return sorted(
        (row["source"], row["ordinal"], row["text"], tuple(row["vector"])) for row in found
    )


def test_an_ingest_on_two_nodes_makes_the_index_that_one_machine_makes_and_follows_changes(
    ray_cluster, folder: Path, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    cluster = ["--cluster", f"ray://{ray_cluster.address}"]
    first = ingest(capsys, "docs", "--index", "there", *cluster, "--nodes", 2)
    assert (first["documents"], first["rejected"], first["reused"]) == (40, [], 0)
    assert first["report"]["cores"] == 2
    here = ingest(capsys, "docs", "--index", "here")
    assert first["chunks"] == here["chunks"] > 40
    assert rows(tmp_path / "there") == rows(tmp_path / "here")

    changed = folder / "07.txt"
    changed.write_text(
        changed.read_text() + "\n\nAnd a last paragraph, of which nothing was known before.\n"
    )
    (folder / "08.txt").unlink()
    again = ingest(capsys, "docs", "--index", "there", *cluster)
    assert (again["documents"], again["unchanged"], again["removed"]) == (1, 38, 1)
    assert 0 < again["reused"] < again["chunks"]
    ingest(capsys, "docs", "--index", "here")
    assert rows(tmp_path / "there") == rows(tmp_path / "here")


def test_what_others_print_during_a_run_on_a_cluster_does_not_reach_standard_output(capsys):
    """Ray prints there when a node dies, in the middle of what was to be JSON."""
    from argparse import Namespace

    from tournant.cli.clusters import own_output

    with own_output(Namespace(cluster="ray")):
        print("(raylet) a node died")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "(raylet) a node died\n")


def test_a_node_that_does_not_see_the_files_ends_the_ingest_and_says_so(
    ray_cluster, folder: Path, tmp_path: Path, monkeypatch
):
    """The driver's folder is moved away as soon as it has been walked: nodes find what other machines would."""
    from tournant.ingest import job

    real = job.walk

    def walked(*args, **options):
        found = list(real(*args, **options))
        folder.rename(tmp_path / "moved")
        return iter(found)

    monkeypatch.setattr(job, "walk", walked)
    options = IngestOptions(
        (str(folder),), str(tmp_path / "index"), cluster=f"ray:{ray_cluster.address}"
    )
    with pytest.raises(job.UnreadableFile, match=r"no such folder.*at the same path"):
        run_ingest(options)


def test_a_node_that_does_not_see_the_index_embeds_again(folder: Path, tmp_path: Path):
    from tournant.ingest import spread
    from tournant.ingest.chunkers import ChunkSettings, SemanticChunker
    from tournant.ingest.readers.registry import read

    index = tmp_path / "index"
    run_ingest(IngestOptions((str(folder),), str(index)))
    document = SemanticChunker(ChunkSettings()).chunk(read(str(folder / "03.txt"), 10**6))
    with open_index(index) as opened:
        settings = opened.settings
    there = spread.NodeRecall(str(index), settings)
    (found,) = spread.recall([document], there)
    assert len(found.rows) == len(document)
    shutil.rmtree(index)
    assert spread.recall([document], there) == [document]
    spread.close_recall(there)
    assert spread.recall([document], spread.NodeRecall(str(index), settings)) == [document]


# Batches.


@pytest.fixture
def provider():
    pytest.importorskip("aiohttp")
    from tournant.llm.mock import MockSettings, serving

    with serving(MockSettings(error_rate=0.05, rpm=30_000)) as there:
        yield there


def batch(capsys, tmp_path: Path, url: str, *arguments: object, code: int = 0) -> dict:
    command = [
        "batch",
        tmp_path / "requests.jsonl",
        "-o",
        tmp_path / "results.jsonl",
        "--model",
        "any",
        "--prompt",
        "Say {text}",
    ]
    said = main([*map(str, command), "--base-url", url, "--json", "--quiet", *map(str, arguments)])
    out = capsys.readouterr()
    assert said == code, out.err
    return json.loads(out.out) if out.out else {"error": out.err}


def answers(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    return sorted(json.loads(line)["custom_id"] for line in lines)


def test_a_batch_asks_from_both_nodes_and_every_answer_is_in_the_results_once(
    ray_cluster, provider, tmp_path: Path, capsys
):
    ids = [f"r{n:03}" for n in range(300)]
    (tmp_path / "requests.jsonl").write_text(
        "".join(json.dumps({"id": name, "text": name}) + "\n" for name in ids)
    )
    cluster = ["--cluster", f"ray://{ray_cluster.address}", "--rpm", 30_000]
    said = batch(capsys, tmp_path, provider.url, *cluster)
    assert (said["answered"], said["failed"], said["unfinished"]) == (300, {}, 0)
    assert answers(tmp_path) == ids
    assert said["attempts"] > 300, "no error was tried again"
    assert said["prompt_tokens"] > 0
    assert said["report"]["cores"] == 2
    again = batch(capsys, tmp_path, provider.url, *cluster)
    assert (again["answered"], again["answered_before"]) == (0, 300)


def test_a_provider_that_is_gone_stops_the_batch_from_the_nodes(
    ray_cluster, tmp_path: Path, capsys
):
    pytest.importorskip("aiohttp")
    (tmp_path / "requests.jsonl").write_text(
        "".join(json.dumps({"text": n}) + "\n" for n in range(50))
    )
    gone = ["--cluster", f"ray://{ray_cluster.address}", "--patience", 0.5, "--nodes", 1]
    said = batch(capsys, tmp_path, "http://127.0.0.1:1/v1", *gone, code=1)
    assert "could not be reached" in said["error"]
    assert "0 of 50 requests answered" in said["error"]


# What can't be.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes", "2"], "give --cluster ray"),
        (["--cluster", "dask"], "give ray, or ray://HOST:PORT"),
        (["--cluster", "ray://"], "give ray, or ray://HOST:PORT"),
        (["--cluster", "ray", "--nodes", "0"], "--nodes"),
    ],
)
@pytest.mark.parametrize("command", ["ingest", "batch"])
def test_options_that_can_not_be_are_wrong_usage(command, arguments, said, tmp_path: Path, capsys):
    (tmp_path / "a.txt").write_text("")
    target = (
        ["--index", str(tmp_path / "index")]
        if command == "ingest"
        else ["-o", str(tmp_path / "results")]
    )
    assert main([command, str(tmp_path / "a.txt"), *target, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_what_is_to_run_at_the_driver_is_the_ingests_own_matter(tmp_path: Path):
    import tournant as tn

    with pytest.raises(ValueError, match="driver_from"):
        IngestOptions((str(tmp_path),), "index", cluster=tn.cluster.Ray(driver_from="embed"))


def test_an_address_where_something_else_listens_is_refused_at_once(
    tmp_path: Path, monkeypatch, capsys
):
    """Ray itself would try for minutes."""
    monkeypatch.setattr(connection, "_REACH", 0.2)
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    (tmp_path / "a.txt").write_text("something")
    silent = socket.create_server(("127.0.0.1", 0))
    talks = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        there, _ = talks.accept()
        with there:
            there.recv(100)
            there.sendall(b"HTTP/1.1 505 HTTP Version Not Supported\r\n\r\n")

    answering = threading.Thread(target=answer)
    answering.start()
    with silent, talks:
        for server, said in ((silent, "said nothing"), (talks, "is not Ray")):
            address = f"ray://127.0.0.1:{server.getsockname()[1]}"
            command = [
                "ingest",
                str(tmp_path / "a.txt"),
                "--index",
                str(tmp_path / "index"),
                "--cluster",
                address,
            ]
            assert main([*command, "--quiet"]) == 1
            error = capsys.readouterr().err
            for part in (f"no Ray cluster at {address}", said, "ray start --head"):
                assert part in error
            assert not (tmp_path / "index").exists()
    answering.join()
