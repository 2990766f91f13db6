"""The page's files, without a browser: no door for markup, nothing from outside, colours that can be read."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import tournant.serve

FOLDER = Path(tournant.serve.__file__).parent / "page"
SCRIPTS = sorted(FOLDER.glob("*.js"))
HTML = (FOLDER / "index.html").read_text("utf-8")
STYLE = (FOLDER / "style.css").read_text("utf-8")

# Everything by which text could become markup or code.
SINKS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|parseFromString|createContextualFragment|document\.write|srcdoc"
    r"|\beval\b|new Function|\bimport\(|javascript:"
)


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_markup_of_text(path: Path) -> None:
    assert not SINKS.search(path.read_text("utf-8"))


def test_nothing_comes_from_another_address() -> None:
    for path in [*SCRIPTS, FOLDER / "style.css", FOLDER / "index.html", FOLDER / "icon.svg"]:
        addresses = re.findall(r"(?:https?:)?//[a-z][\w.]+\.\w+[^\s\"')]*", path.read_text("utf-8"))
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, path.name


def test_the_page_needs_no_inline_script_or_style() -> None:
    for tag, attributes in Elements(HTML).found:
        assert tag != "style"
        assert tag != "script" or attributes["src"]
        assert not [name for name in attributes if name == "style" or name.startswith("on")], tag


def test_every_file_that_is_named_exists_and_every_element_that_is_used() -> None:
    elements = Elements(HTML).found
    named = [a.get("src") or a.get("href") for tag, a in elements if tag in ("script", "link")]
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    used = set()
    for path in SCRIPTS:
        text = path.read_text("utf-8")
        named += re.findall(r'from "\./([^"]+)"', text)
        used.update(re.findall(r'byId\("([^"]+)"\)', text))
    assert {name for name in named if name and not (FOLDER / name).is_file()} == set()
    assert used - set(ids) == set()


def test_every_field_has_a_name() -> None:
    elements = Elements(HTML).found
    labels = {a.get("for") for tag, a in elements if tag == "label"}
    fields = [
        a
        for tag, a in elements
        if tag in ("input", "select", "textarea") and a.get("aria-hidden") != "true"
    ]
    assert len(fields) == 5
    assert all(a["id"] in labels for a in fields)


def _colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


TEXTS = [("ink", "paper"), ("ink", "raised"), ("ink", "sunk"), ("soft", "paper"), ("soft", "raised"), ("soft", "accent-sunk"),
         ("accent", "paper"), ("accent", "raised"), ("accent", "accent-sunk"), ("on-ink", "ink"), ("on-ink", "accent"),
         ("bad", "paper"), ("bad", "bad-sunk"), ("ink", "bad-sunk"), ("ink", "accent-sunk"), ("soft", "sunk")]  # fmt: skip
EDGES = [("edge", "paper"), ("edge", "raised"), ("accent", "paper"), ("accent", "raised")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme: str) -> None:
    light, dark = STYLE.split("prefers-color-scheme: dark", 1)
    colours = _colours(light)
    if scheme == "dark":
        colours |= _colours(dark.split("}", 1)[0])
    assert [pair for pair in TEXTS if _contrast(colours[pair[0]], colours[pair[1]]) < 4.5] == []
    assert [pair for pair in EDGES if _contrast(colours[pair[0]], colours[pair[1]]) < 3] == []
