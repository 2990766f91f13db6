from __future__ import annotations

import pytest

from tournant.ingest.readers.registry import parse


def text(html: str | bytes) -> str:
    return parse("a.html", html if isinstance(html, bytes) else html.encode()).text


def test_only_what_a_reader_sees_is_kept() -> None:
    page = """<html><head><title> The
      title </title><style>p {}</style><script>var x = "<p>no";</script></head><body>
      <nav><a href=/>Home</a></nav><div role="navigation">Menu</div>
      <h1>Heading</h1><p>Some <b>bold</b>
      text<!-- no -->.</p><noscript>no</noscript><template>no</template><p hidden>no</p>
      <footer>Imprint</footer></body></html>"""
    document = parse("a.html", page.encode())
    assert document.title == "The title"
    assert document.text == "Heading\n\nSome bold text."


def test_blocks_are_lines_and_inline_markup_is_not() -> None:
    assert text("<p>one<p>t<i>w</i>o<ul><li>a</li><li>b</li></ul>") == "one\n\ntwo\n\na\nb"
    assert text("a<br>b<br/>c") == "a\nb\nc"
    assert text("<p>9.1.&nbsp;Title&nbsp;<p>&nbsp;") == "9.1. Title"
    assert text("<table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>") == "1 2\n3"
    assert text("<P>Upper</P><P>CASE</P>").split() == ["Upper", "CASE"]


def test_preformatted_text_keeps_its_layout() -> None:
    page = "<p>see</p><pre>def f():\n    return 1\n\n\nf()</pre><p>end\nof it"
    assert text(page) == "see\n\ndef f():\n    return 1\n\nf()\n\nend of it"


def test_words_beside_preformatted_text_stay_apart() -> None:
    assert text("<pre>a</pre> b <pre>c") == "a\n\nb\n\nc"
    assert text("x <pre>unclosed\n  y").endswith("unclosed\n  y")


@pytest.mark.parametrize(
    "page",
    [
        "<meta charset=iso-8859-2><p>Zażółć gęślą jaźń".encode("iso-8859-2"),
        "<p>Zażółć gęślą jaźń".encode("utf-16"),
        "<p>Zażółć gęślą jaźń".encode("utf-8-sig"),
        "<meta charset=utf-8><p>Zażółć gęślą jaźń".encode(),
        b"<meta charset=no-such-thing><p>" + "Zażółć gęślą jaźń".encode(),
    ],
)
def test_pages_are_decoded_as_they_declare(page: bytes) -> None:
    assert text(page) == "Zażółć gęślą jaźń"


def test_broken_and_hostile_pages_are_read() -> None:
    assert text("<p>x" + "<pre>" * 50_000).startswith("x")
    assert "x" in text("<div>" * 5_000 + "x")
    assert text("<p>&#xd800;&amp;&lt;x&gt;") == "\ufffd&<x>"
    text("<" * 200_000)


def test_a_page_without_a_body_is_empty() -> None:
    assert text("<!-- nothing -->") == ""
    assert text("<frameset><frame src=x></frameset>") == ""
