"""From scores to colours: orange speaks for, blue against, no colour is zero."""

from __future__ import annotations

import math
from collections.abc import Iterable

FOR, AGAINST = (255, 140, 0), (60, 130, 246)


def shades(scores: Iterable[float]) -> list[float]:
    """Scores divided by the largest size among them: in [-1, 1]. What is not finite gets 0."""
    values = [float(s) if math.isfinite(s) else 0.0 for s in scores]
    largest = max(map(abs, values), default=0.0)
    return [v / largest if largest else 0.0 for v in values]


def background(shade: float) -> str | None:
    """'#rrggbb', paler the closer to zero; None where no colour would be seen."""
    if abs(shade) < 0.02:
        return None
    full = FOR if shade > 0 else AGAINST
    return "#" + "".join(f"{round(255 + (c - 255) * abs(shade)):02x}" for c in full)


def visible(text: str) -> str:
    """Line ends marked, so that their colour shows; other control characters (escape codes) as symbols."""
    marked = text.replace("\r\n", "\n").replace("\n", "↵\n").replace("\t", "⇥\t")
    return "".join(_symbol(c) for c in marked)


def _symbol(c: str) -> str:
    if c in "\n\t":
        return c
    if ord(c) < 32:
        return chr(0x2400 + ord(c))
    return "\u2421" if ord(c) == 127 else ("\ufffd" if 0x80 <= ord(c) < 0xA0 else c)
