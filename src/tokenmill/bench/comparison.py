"""`tokenmill compare` from Python: the same options, and what was found as a value."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenmill.errors import InputError, StoreError
from tokenmill.method import Method, Recipe, get
from tokenmill.view.terminal import Terminal

SHOWN = 12  # rows of a notebook's table


class Comparison:
    """What a compare run measured: the files of its folder, read."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        path = self.folder / "results.json"
        try:
            self._results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}; has the run ended?") from None
        except ValueError:
            raise StoreError(f"{path} is not JSON; measure again with resume=True") from None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One a method and budget, in the table's order: method, spec, budget, metrics."""
        return self._results["rows"]

    @property
    def report(self) -> Path:
        """The page with tables and drawings."""
        return self.folder / "report.html"

    @property
    def recipe(self) -> Path | None:
        """The winner, as `tm.load_recipe` reads it; None if there is none."""
        path = self.folder / "recipe.toml"
        return path if path.is_file() else None

    def to_dict(self) -> dict[str, Any]:
        """All of results.json."""
        return self._results

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        found = self._results
        return f"Comparison({found['track']} on {found['model']}: {len(self)} rows, {self.report})"

    def _repr_html_(self) -> str:
        """The first rows with their single figures; everything else is in the report."""
        names: list[str] = []
        for row in self.rows:
            names += [k for k in row["metrics"] if k not in names and _figure(row["metrics"][k]) is not None]
        head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in ["spec", *names])
        lines = [
            f"<tr><td>{html.escape(row['spec'])}</td>"
            + "".join(f"<td>{_figure(row['metrics'].get(name)) or '–'}</td>" for name in names)
            + "</tr>"
            for row in self.rows[:SHOWN]
        ]
        more = f" and {len(self) - SHOWN} more rows" if len(self) > SHOWN else ""
        title, page = f"compare {self._results['track']}: {self._results['model']}", str(self.report)
        return (
            f"<div><b>{html.escape(title)}</b><table><tr>{head}</tr>{''.join(lines)}</table>"
            f"{more} <code>{html.escape(page)}</code></div>"
        )


def _figure(value: Any) -> str | None:
    """A number, or an interval's mean or ratio, as text."""
    if isinstance(value, dict):
        value = value.get("mean", value.get("ratio"))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return f"{value:.3g}"


def compare(
    track: str,
    *,
    methods: str | Sequence[str | Method | Recipe] | None = None,
    budgets: Sequence[float] | None = None,
    out: str | os.PathLike[str] | None = None,
    input: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **options: Any,
) -> Comparison:
    """Measure methods side by side, as `tokenmill compare` does, with its options under the same names.

    `methods` are specs (`"snapkv(window=16)"`, `"mine.py:peak"`), methods or recipes, or one text of specs with commas
    between them; None: all that fit the track. `out` is the folder to write into, one under tokenmill-runs if None.
    `progress` prints what the command prints. Raises a TokenmillError for everything that the caller can put right.
    """
    from tokenmill.bench.compare import compare as measure
    from tokenmill.method_files import split_specs

    if isinstance(methods, str):
        specs: list[str] | None = split_specs(methods)
    else:
        specs = None if methods is None else [_spec(m) for m in methods]
    folder = measure(
        track,
        methods=specs,
        budgets=budgets,
        out=None if out is None else Path(out),
        input=None if input is None else Path(input),
        console=Terminal(quiet=not progress),
        **options,
    )
    return Comparison(folder)


def _spec(what: str | Method | Recipe) -> str:
    if isinstance(what, str):
        return what
    for m in what if isinstance(what, Recipe) else (what,):
        if get(m.name).fn is not m.fn:
            raise InputError(f"{m.name} is also the name of another method, which specs mean by it; rename yours")
    return repr(what)
