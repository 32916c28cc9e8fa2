"""Mistakes a user can make. The command line prints them as one line, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TokenmillError(Exception):
    """Something the user can put right. The message says what was wrong, what exists and what to do."""


class SpecError(TokenmillError, ValueError):
    """A spec that cannot be read: an unknown method or knob, a value out of range, knobs that contradict."""


class RecipeError(TokenmillError, ValueError):
    """Methods that cannot work together, or not on this model. The message has the reason."""


class ModelError(TokenmillError, ValueError):
    """A model that is missing, of the wrong kind, or that broke (NaN logits)."""


class UntrainedError(ModelError):
    """A learned part that nobody has trained for this model."""


class InputError(TokenmillError, ValueError):
    """A prompt or file that cannot be used."""


class StoreError(TokenmillError, RuntimeError):
    """A run folder that is corrupted, locked by another run, or of another run's making."""


def did_you_mean(name: str, known: Iterable[str], limit: int = 12) -> str:
    """'did you mean x?' if something is close, else what exists."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    shown = ", ".join(known[:limit]) + (", …" if len(known) > limit else "")
    return f"there is {shown}" if known else "there is none"
