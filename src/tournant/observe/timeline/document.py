"""The HTML document: the parts in ``page/`` joined, the texts of each recording escaped, and a policy that lets nothing else run."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files

from tournant.observe.recording import Recording
from tournant.observe.timeline.encode import encode

#: The scripts, each after those that it imports from.
SCRIPTS = (
    "dom.js",
    "words.js",
    "inflate.js",
    "data.js",
    "rows.js",
    "follow.js",
    "colours.js",
    "view.js",
    "layout.js",
    "bars.js",
    "charts.js",
    "marks.js",
    "axis.js",
    "plot.js",
    "minimap.js",
    "tip.js",
    "panel.js",
    "legend.js",
    "keys.js",
    "pointer.js",
    "section.js",
    "search.js",
    "app.js",
)
STYLES = ("style.css", "board.css", "beside.css", "media.css")
#: A summary of fewer lines than this is no table but words.
_SENTENCES = 3

_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w.]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const|let) )", re.MULTILINE)


def document(recordings: Sequence[Recording], *, title: str = "") -> str:
    """Return the whole HTML document; see `tournant.observe.timeline.save_timeline`."""
    if not title:
        title = recordings[0].title if len(recordings) == 1 else "Timeline"
    data = encode(recordings)  # first, for it refuses what is none
    theme, script, style = part("theme.js"), joined(), "".join(part(name) for name in STYLES)
    values = {
        "POLICY": f"default-src 'none'; script-src {_hash(theme)} {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        "TITLE": escape(title),
        # One recording has its title above its picture; it need not be seen twice.
        "HEADING": ' class="hidden"' if [one.title for one in recordings] == [title] else "",
        "THEME": theme,
        "STYLE": style,
        "RUNS": "".join(
            _run(number, one, alone=len(recordings) == 1) for number, one in enumerate(recordings)
        )
        or '<p class="nothing">There is no recording in this file.</p>',
        "DATA": data,
        "SCRIPT": script,
    }
    # One pass, so that a text that looks like a placeholder stays a text.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], part("page.html"))


@cache
def part(name: str) -> str:
    """Return the text of a part of the page."""
    return files(__package__).joinpath("page", name).read_text(encoding="utf-8")


@cache
def joined() -> str:
    """Return the scripts as one module: their imports fall away, for all of them share its scope."""
    return "".join(_EXPORT.sub("", _IMPORT.sub("", part(name))) for name in SCRIPTS)


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _run(number: int, recording: Recording, *, alone: bool) -> str:
    """The head of one recording, which reads without JavaScript too, and the place of its timeline."""
    from tournant.observe.advice import advise

    advice = advise(recording)
    # The run's own report has the figures that the advice is drawn from; a recording without one has them reckoned.
    text = recording.summary.strip("\n") or "\n".join(advice.lines)
    sentence = advice.statement
    if text.count("\n") < _SENTENCES and recording.summary:
        # Whoever made the recording said in a few words what it shows: theirs go before ours.
        sentence, text = text, ""
    lost = (
        f"{recording.lost:,} older events were overwritten while it ran, so what happened first is missing here."
        if recording.lost
        else ""
    )
    parts = [
        f'<section class="run" id="run-{number}" aria-labelledby="run-{number}-title">',
        '<header class="run-head">',
        f'<h2 id="run-{number}-title" title="{escape(recording.title)}">{escape(recording.title)}</h2>',
        f'<p class="facts">{escape(_facts(recording))}</p>',
        f'<p class="advice">{escape(sentence)}</p>' if sentence else "",
        f'<p class="lost">{escape(lost)}</p>' if lost else "",
        f'<details class="report"{" open" if alone else ""}><summary>Report</summary><pre tabindex="0">{escape(text)}</pre></details>'
        if text
        else "",
        "</header>",
        f'<div class="timeline" data-recording="{number}"></div>',
        "</section>\n",
    ]
    return "\n".join(filter(None, parts))


def _facts(recording: Recording) -> str:
    calls = len(recording.slices)
    facts = [
        _count(len(recording.inputs), "input"),
        _count(calls, "call"),
        _duration(recording.duration),
        _count(recording.cores, "core"),
    ]
    if recording.began > 0:
        try:
            began = datetime.fromtimestamp(recording.began, UTC)
        except (OverflowError, OSError, ValueError):
            pass
        else:
            facts.append(f"{began:%Y-%m-%d %H:%M:%S} UTC")
    return " · ".join(facts)


def _duration(seconds: float) -> str:
    """Return a duration as the page itself tells it: ``5.85 ms``, ``17.2 s``, ``5 min 12 s``, ``10 h 0 min``."""
    if seconds >= 120:
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"
    value, unit = (seconds, "s") if seconds >= 1 or not seconds else (seconds * 1e3, "ms")
    return f"{value:.3g} {unit}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
