"""Parts of a measurement on disk, one line each as it is done, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenmill.errors import StoreError


class Checkpoint:
    """What is measured under a key, kept in a file; `settings` say which run the file belongs to.

    A file of other settings, or one without `resume`, is begun anew; a line that a kill tore is measured again.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool = False):
        self.path = path
        self.values: dict[str, Any] = {}
        self.seconds = 0.0  # that the stored parts took
        head = json.dumps(settings, sort_keys=True)
        lines = _complete_lines(path) if resume else []
        if lines and lines[0] == head:
            for line in lines[1:]:
                key, value, seconds = json.loads(line)
                self.values[key] = value
                self.seconds += seconds
        else:
            lines = [head]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.part")
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            os.replace(part, path)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}; choose another --out") from None

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """The stored value, or what `measure` returns (of what JSON has, tuples left out)."""
        if key not in self.values:
            began = time.perf_counter()
            value = measure()
            line = json.dumps([key, value, time.perf_counter() - began])
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise StoreError(
                    f"cannot write {self.path}: {error.strerror}; free some room and add --resume"
                ) from None
            self.values[key] = value
        return self.values[key]

    def remove(self) -> None:
        """The measurement is complete."""
        self.path.unlink(missing_ok=True)


def _complete_lines(path: Path) -> list[str]:
    """The lines that were written whole."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.split("\n")[:-1]:
        try:
            json.loads(line)
        except ValueError:
            break
        found.append(line)
    return found
