"""`tokenmill reproduce`: run published claims again, write one JSON a method."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tokenmill import catalog
from tokenmill.claims.lab import Claim, Lab, environment
from tokenmill.claims.verdict import RULE, Reproduction, overall
from tokenmill.errors import InputError, RecipeError, SpecError, StoreError, UntrainedError, did_you_mean
from tokenmill.models.load import load

PAPERS = "tokenmill.claims.papers"
COLOURS = {"holds": "green", "fails": "red", "out-of-reach": "yellow"}


def reproduce(
    names: str | Iterable[str],
    *,
    out: str | os.PathLike[str] | None = None,
    model: str = "smollm2",
    weights: str = "float32",
    device: str = "cpu",
    seeds: int = 3,
    quick: bool = False,
    console: Console | None = None,
) -> list[Path]:
    """Re-run the claims of these methods (names, a verb, or "all") and write OUT/NAME.json for each.

    Baselines without a paper claim nothing: they are left out, or refused when nothing else is asked for.
    Raises SpecError for a name that does not exist, InputError for what has no claim.
    """
    wanted, missing = _with_claims(_expanded([names] if isinstance(names, str) else list(names)))
    if seeds < 1:
        raise InputError(f"seeds must be at least 1, not {seeds}")
    folder = Path(out) if out is not None else Path("reproductions")
    console = console or Console()
    if missing:
        console.print(f"no claim is written yet for {', '.join(missing)}; the others are run", highlight=False)
    network, tokenizer = load(model, weights=weights, device=device)
    written, rows = [], []
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(wanted))
        for name in wanted:

            def tick(step: str, name: str = name) -> None:
                bar.update(task, description=f"{name}: {step}")

            tick("starting")
            made = run_claim(name, Lab(network, tokenizer, list(range(seeds)), quick, tick), model, weights)
            written.append(_write(folder, made))
            rows.append(made)
            bar.console.print(f"[{COLOURS[made.verdict]}]{made.verdict:12}[/] {name}", highlight=False)
            bar.advance(task)
    _show(console, rows, folder)
    return written


def run_claim(name: str, lab: Lab, model: str = "smollm2", weights: str = "float32") -> Reproduction:
    """Measure one claim and judge it."""
    claim: Claim = importlib.import_module(f"{PAPERS}.{name}")  # type: ignore[assignment]
    began = time.perf_counter()
    unable = ""
    try:
        checks = claim.measure(lab)
    except (RecipeError, UntrainedError) as error:  # a method that cannot run on this model, and says why
        checks, unable = [], str(error)
    verdict = overall(checks)
    own = {c.method for c in checks}
    if not checks:
        lab.because(True, unable or f"the model's context of {lab.context} tokens is too short for this claim's text")
    parts = [c.told() for c in checks if verdict == "holds" or c.outcome != "holds"]
    # Reasons are for what did not hold, and each was chosen by a condition on the numbers.
    parts += lab.reasons if verdict != "holds" else []
    parts += [f"not asked here: {claim.BEYOND}"] if claim.BEYOND else []
    return Reproduction(
        method=name,
        title=catalog.find(name).title,
        claim=claim.CLAIM,
        paper_figure=claim.PAPER,
        measured={
            "rule": RULE,
            "checks": [c.model_dump() for c in checks],
            "figures": {spec: values for spec, values in lab.figures.items() if spec in own or name in spec},
        },
        baseline={spec: values for spec, values in lab.figures.items() if spec not in own and name not in spec},
        verdict=verdict,
        why=f"{sum(c.outcome == 'holds' for c in checks)} of {len(checks)} checks hold. " + "; ".join(parts),
        environment={
            **environment(lab.model, lab.quick),
            "name": model,
            "weights": weights,
            "seconds": round(time.perf_counter() - began, 1),
        },
        seeds=lab.seeds,
    )


def _expanded(names: list[str]) -> list[str]:
    known = catalog.methods()
    out: dict[str, None] = {}
    for name in names:
        if name == "all":
            out |= dict.fromkeys(known)
        elif name in catalog.VERBS:
            out |= dict.fromkeys(catalog.methods(name))
        elif name in known:
            out[name] = None
        else:
            raise SpecError(f"no method or verb '{name}'; {did_you_mean(name, [*known, *catalog.VERBS, 'all'])}")
    return list(out)


def _with_claims(names: list[str]) -> tuple[list[str], list[str]]:
    """Those that have a claim, and papers whose claim is not written yet."""
    papers = [name for name in names if catalog.find(name).title]
    if not papers:
        told = ", ".join(names) if names else "this verb has no methods yet:"
        raise InputError(f"{told} has no paper and claims nothing; `tokenmill reproduce all` runs every claim")
    missing = [name for name in papers if importlib.util.find_spec(f"{PAPERS}.{name}") is None]
    if missing and len(missing) == len(papers):
        raise InputError(f"no claim is written yet for {', '.join(missing)}; add claims/papers/{missing[0]}.py")
    return [name for name in papers if name not in missing], missing


def _write(folder: Path, made: Reproduction) -> Path:
    """Complete or not there at all."""
    path = folder / f"{made.method}.json"
    part = path.with_name(f".{path.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(made.model_dump_json(indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; choose another --out") from None
    return path


def _show(console: Console, rows: list[Reproduction], folder: Path) -> None:
    table = Table("method", "verdict", "checks", "claim", box=None, pad_edge=False)
    for made in rows:
        checks: list[dict[str, Any]] = made.measured["checks"]
        held = f"{sum(c['outcome'] == 'holds' for c in checks)}/{len(checks)}"
        table.add_row(made.method, f"[{COLOURS[made.verdict]}]{made.verdict}[/]", held, made.claim)
    console.print(table)
    console.print(f"written to {folder}", highlight=False)
