"""Coloured tokens for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from tokenmill.view.colour import background, shades, visible


def coloured(tokens: Sequence[str], scores: Iterable[float]) -> Text:
    """The tokens as one text that Rich prints, each on the colour of its score."""
    text = Text()
    for token, shade in zip(tokens, shades(scores), strict=True):
        colour = background(shade)
        text.append(visible(token), style=f"black on {colour}" if colour else None)
    return text
