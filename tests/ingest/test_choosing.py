from __future__ import annotations

import os
from pathlib import Path

import pytest

from tournant.ingest.choosing import PathSet, matcher, on_the_way, places


def test_a_set_of_paths_knows_what_was_added() -> None:
    paths = PathSet()
    for path in ("a", "a", "caf\udce9"):
        paths.add(path)
    assert ("a" in paths, "caf\udce9" in paths, "b" in paths, len(paths)) == (True, True, False, 2)


@pytest.mark.parametrize(
    ("glob", "path", "fits"),
    [
        ("*.md", "/docs/sub/a.md", True),
        ("*.md", "/docs/sub/a.MD", False),
        ("sub/*.md", "/docs/sub/a.md", True),
        ("sub", "/docs/sub", True),
        ("sub", "/docs/subway", False),
        ("sub/", "/docs/sub", True),
        ("docs/sub", "/docs/sub", False),
        ("/docs/sub", "/docs/sub", True),
        ("doc?", "/docs", True),
        ("two\nlines*", "/docs/two\nlines.txt", True),
        ("caf?.txt", "/docs/caf\udce9.txt", True),
        ("[", "/docs/[", True),
    ],
)
def test_a_glob_fits_a_name_a_path_below_the_argument_or_a_whole_path(
    glob: str, path: str, fits: bool
) -> None:
    assert matcher([glob])(path, "/docs") is fits
    assert matcher(["nothing", glob])(path, "/docs") is fits


def test_a_glob_fits_a_path_as_seen_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    matches = matcher(["./docs/private/*"])
    assert matches(f"{tmp_path}/docs/private/a.txt", f"{tmp_path}/docs")
    assert not matches("/elsewhere/docs/private/a.txt", "/elsewhere/docs")


def test_a_folder_on_the_way_counts_but_not_the_argument_or_what_is_above() -> None:
    for glob, found in (
        ("sub", True),
        ("deep", True),
        ("a.txt", True),
        ("docs", False),
        ("x", False),
    ):
        assert on_the_way(matcher([glob]), "/x/docs/sub/deep/a.txt", "/x/docs") is found


def test_a_folder_is_named_as_a_walk_comes_upon_it(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    (real / "sub/index").mkdir(parents=True)
    link.symlink_to(real)
    index = str(real / "sub/index")
    found = places(index, [str(link), str(link / "sub"), str(link / "sub/index"), str(tmp_path)])
    assert set(found) == {index, str(link / "sub/index")}
    assert places(os.path.join(link, "sub/index"), [str(real)])[1:] == [index]
    assert places(index, [str(tmp_path / "other")]) == [index]
