"""Standard streams that may be closed, full, or unable to write every character."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any


def steady_streams() -> None:
    """A stream that is closed takes everything and gives nothing; a character that cannot be written is escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open until the end
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def silence(stream: Any) -> None:
    """Nothing more is written; else the interpreter complains at its end about what is left in the buffer."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
