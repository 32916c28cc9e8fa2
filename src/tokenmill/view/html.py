"""Coloured tokens as HTML that needs nothing from outside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tokenmill.view.colour import background, shades, visible

_BLOCK = "font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.7"


def coloured(tokens: Sequence[str], scores: Iterable[float], title: str = "") -> str:
    """One <div>: the tokens on the colours of their scores, the score itself shown on hovering. Text is escaped."""
    values = list(scores)
    spans = []
    for token, score, shade in zip(tokens, values, shades(values), strict=True):
        colour = background(shade)
        style = f' style="background: {colour}; color: #111"' if colour else ""
        spans.append(f'<span title="{score:.4g}"{style}>{escape(visible(token))}</span>')
    head = f"<div><b>{escape(title)}</b></div>" if title else ""
    return f'<div style="{_BLOCK}">{head}{"".join(spans)}</div>'


def page(title: str, body: str) -> str:
    """A whole page around a piece of HTML. The title is escaped, the body is taken as it is."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width"></head>\n'
        f'<body style="margin: 2em; max-width: 60em">\n{body}\n</body></html>\n'
    )
