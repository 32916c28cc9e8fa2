"""Paths that a user writes."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` replaced; as it is where the user or the home is not known, which pathlib raises for."""
    return Path(os.path.expanduser(path))
