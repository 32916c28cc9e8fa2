"""The terminal: a console that takes no text for markup, coloured tokens, and tables that fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.status import Status
from rich.table import Table
from rich.text import Text

from tokenmill.view.colour import background, shades, visible


class Terminal(Console):
    """Every text is printed as it is: a folder may be named `a[/b]` or `:smile:`. Styles are given as Text or style=.

    All that the package prints goes through it. Columns of a progress bar need `markup=False` for themselves.
    """

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, **options)

    def status(self, status: RenderableType, **options: Any) -> Status:
        return super().status(Text(status) if isinstance(status, str) else status, **options)


def coloured(tokens: Sequence[str], scores: Iterable[float]) -> Text:
    """The tokens as one text that Rich prints, each on the colour of its score."""
    text = Text()
    for token, shade in zip(tokens, shades(scores), strict=True):
        colour = background(shade)
        text.append(visible(token), style=f"black on {colour}" if colour else None)
    return text


@dataclass(frozen=True)
class Column:
    """One column: a heading (its lines, then its samples as "n=8"), a cell a row, and the cells where room is short."""

    title: str
    cells: Sequence[str]
    short: Sequence[str] | None = None
    justify: Literal["left", "right"] = "right"

    @property
    def name(self) -> str:
        return " ".join(line for line in self.title.split("\n") if not line.startswith("n="))

    def width(self, *, short: bool = False) -> int:
        cells = self.short if short and self.short is not None else self.cells
        return max(cell_len(line) for text in (self.title, *cells) for line in text.split("\n"))


GAP = 3  # what a column takes beside its text: a space on both sides and a line
NAME = 24  # a name column narrower than this folds most names


def fitted(
    names: Column, columns: Sequence[Column], width: int | None, *, title: str, caption: str = "",
    sections: Sequence[int] = (), bold: Sequence[int] = (),
) -> tuple[Table, int]:  # fmt: skip
    """A table whose first column is `names`, never cut (folded where it must be), and its width.

    The other columns come in order of their importance: one that does not fit into `width` is shown by its short cells
    or left out, and the caption names it. None: everything is shown, however wide. `sections` are rows with a line
    below them. Nothing is read as markup.
    """
    longest = names.width()
    room = None if width is None else width - 1 - GAP - min(longest, max(NAME, width // 4))
    shown: list[tuple[Column, Sequence[str], int]] = []
    for column in columns:
        for short in (False, True) if column.short is not None else (False,):
            wide = column.width(short=short)
            if room is None or room >= wide + GAP:
                shown.append((column, column.short if short and column.short is not None else column.cells, wide))
                room = None if room is None else room - wide - GAP
                break
    taken = 1 + sum(wide + GAP for _, _, wide in shown)
    name = longest if width is None else min(longest, max(1, width - taken - GAP))
    total = taken + name + GAP
    left_out = [c.name for c in columns if all(c is not s for s, _, _ in shown)]
    if left_out:
        caption += f"{'; ' if caption else ''}--wide and the report also show: {'; '.join(left_out)}"
    table = Table(title=Text(title), caption=Text(caption), width=total)
    table.add_column(Text(names.title), width=name, overflow="fold")
    for column, _, wide in shown:
        table.add_column(Text(column.title), justify=column.justify, width=wide, no_wrap=True)
    for at, text in enumerate(names.cells):
        cells = [text, *(cells[at] for _, cells, _ in shown)]
        table.add_row(*map(Text, cells), style="bold" if at in bold else None, end_section=at in sections)
    return table, total
