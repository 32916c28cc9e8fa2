"""Coloured tokens: nothing of the text is taken for markup, and colours say what the scores say."""

import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from tokenmill.view import html, terminal
from tokenmill.view.colour import background, shades, visible

NASTY = ["<script>", "&amp;", "\"quo'te", "[bold]", "\n", "\x1b[31m", "{x}", ""]


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text, self.styles = [], "", []

    def handle_starttag(self, tag, attributes):
        assert {name for name, _ in attributes} <= {"style", "title"}
        self.open.append(tag)
        self.styles.append(dict(attributes).get("style"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html_escapes_and_closes_what_it_opens():
    reader = Reader()
    snippet = html.coloured(NASTY, range(len(NASTY)), title="<b>why</b>")
    reader.feed(snippet)
    assert reader.open == []
    assert reader.text == "<b>why</b>" + "".join(map(visible, NASTY))


def test_html_needs_nothing_from_outside():
    snippet = html.coloured(NASTY, [0.5] * len(NASTY))
    assert not re.search(r"<script|<link|<img|src=|href=|url\(|http", snippet)


def test_html_shows_the_score_and_its_colour():
    snippet = html.coloured(["a", "b", "c"], [1.0, 0.0, -0.5])
    reader = Reader()
    reader.feed(snippet)
    assert 'title="-0.5"' in snippet
    assert [bool(style) for style in reader.styles] == [True, True, False, True]  # the block, a, b, c


def test_terminal_prints_the_text_as_it_is():
    console = Console(width=200, color_system=None, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal.coloured(NASTY, [0.1] * len(NASTY)), end="")
    printed = console.export_text()
    assert "[bold]" in printed
    assert "\x1b" not in printed
    styles = [span.style for span in terminal.coloured(["a", "b"], [1, 0]).spans]
    assert styles == [f"black on {background(1)}"]


def test_a_score_too_many_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        terminal.coloured(["a"], [1, 2])


def test_shades():
    assert shades([2, -4, 0]) == [0.5, -1, 0]
    assert shades([float("nan"), float("inf"), 3]) == [0, 0, 1]
    assert shades([0, 0]) == [0, 0]
    assert shades([]) == []
    assert background(0) is None
    assert background(1) != background(-1)
    assert all(re.fullmatch("#[0-9a-f]{6}", background(s)) for s in (1, -1, 0.3))


# ---- tables

ROWS = ["short", "prompt_lookup(nodes=4) + typical_acceptance", "first_layers(layers=20, nodes=4)", "[bold]x[/b]"]
COLUMNS = [
    terminal.Column("speed\nn=8", ["1.00 [0.90, 1.10]"] * 4, ["1.00"] * 4),
    terminal.Column("identical", ["100%"] * 4),
    terminal.Column("a very\nlong heading", ["text of some length"] * 4),
    terminal.Column("last", ["9"] * 4),
]


def shown(width):
    table, total = terminal.fitted(
        terminal.Column("method", ROWS, justify="left"),
        COLUMNS,
        width,
        title="of [/x]",
        caption="what it is",
        sections=(0,),
    )
    console = Console(width=width or 60)
    with console.capture() as capture:
        console.print(table, width=total, crop=False)
    return capture.get(), total


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 120, None])
def test_a_table_fits_and_never_cuts_a_name(width):
    text, total = shown(width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= (width or total)
    first = "".join(line.split("│")[1].strip() for line in lines if line.startswith("│")).replace(" ", "")
    assert first == "".join(ROWS).replace(" ", "")
    assert "of [/x]" in text


def test_what_does_not_fit_is_named_and_wide_shows_it():
    text, _ = shown(60)
    assert "1.00 [0.90, 1.10]" in text
    assert "identical" in text
    assert "text of some length" not in text
    assert "also show: a very long heading" in " ".join(text.split())
    assert "1.00 [" not in shown(40)[0]
    assert "1.00" in shown(40)[0]
    wide, total = shown(None)
    assert total > 60
    assert "text of some length" in wide
    assert "--wide" not in wide
