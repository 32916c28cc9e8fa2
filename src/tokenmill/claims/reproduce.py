"""`tokenmill reproduce`: run published claims again, write one JSON a method."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from tokenmill import catalog
from tokenmill.claims.checkpoint import Checkpoint
from tokenmill.claims.lab import Claim, Lab, environment
from tokenmill.claims.source import changed, code, digests, needs_training, words
from tokenmill.claims.verdict import RULE, Code, Measured, Reproduction, again
from tokenmill.errors import InputError, RecipeError, SpecError, StoreError, UntrainedError, did_you_mean
from tokenmill.models.load import load
from tokenmill.models.trained import digest
from tokenmill.view.terminal import Terminal

PAPERS = "tokenmill.claims.papers"
COLOURS = {"supported": "green", "contradicted": "red", "inconclusive": "yellow", "not testable here": "cyan"}
SHIPPED = Path(__file__).parents[3] / "docs" / "reproductions"  # in a checkout; else nothing is there
USUAL = 300.0  # seconds of a claim of which nothing is known


def reproduce(
    names: str | Iterable[str],
    *,
    out: str | os.PathLike[str] | None = None,
    model: str = "smollm2",
    weights: str = "float32",
    device: str = "cpu",
    seeds: int = 3,
    quick: bool = False,
    resume: bool = False,
    console: Console | None = None,
) -> list[Path]:
    """Re-run the claims of these methods (names, a verb, or "all") and write OUT/NAME.json for each.

    Baselines without a paper claim nothing: they are left out, or refused when nothing else is asked for. What is
    measured lies in OUT/.NAME.checkpoint until its claim is complete: with `resume`, a run that was stopped goes on
    there, and complete records of the same settings and code are taken as they are.
    Raises SpecError for a name that does not exist, InputError for what has no claim, StoreError for a folder that
    cannot be written. Ctrl-C says how to go on and raises KeyboardInterrupt.
    """
    asked = [names] if isinstance(names, str) else list(names)
    wanted, missing = _with_claims(_expanded(asked))
    if seeds < 1:
        raise InputError(f"seeds must be at least 1, not {seeds}")
    folder = Path(out) if out is not None else Path("reproductions")
    _writable(folder)
    console = console or Terminal()
    if missing:
        console.print(f"no claim is written yet for {', '.join(missing)}; the others are run", highlight=False)
    network, tokenizer = load(model, weights=weights, device=device)
    settings = {
        "model": model, "weights": weights, "device": device, "seeds": list(range(seeds)), "quick": quick,
        "digest": digest(network),
    }  # fmt: skip
    rows = []
    with _resumable(console, asked, folder, settings, seeds), _progress(console, wanted, folder) as bar:
        for name in wanted:
            made = _complete(folder / f"{name}.json", name, settings) if resume else None
            known = made is not None
            if made is None:
                bar.begin(name)
                checkpoint = Checkpoint(folder / f".{name}.checkpoint", {**settings, "code": digests(name)}, resume)
                lab = Lab(network, tokenizer, list(range(seeds)), quick, bar.tick, checkpoint=checkpoint)
                made = run_claim(name, lab, model, weights, settings)
                _write(folder, made)
                checkpoint.remove()
            rows.append(made)
            bar.end(name, known)
            colour, behind = COLOURS[made.verdict], " (measured before)" if known else ""
            bar.print(Text(f"{made.verdict:17}", colour) + f" {name}{behind}")
    _show(console, rows, folder)
    return [folder / f"{name}.json" for name in wanted]


def run_claim(
    name: str, lab: Lab, model: str = "smollm2", weights: str = "float32", settings: dict[str, Any] | None = None
) -> Reproduction:
    """Measure one claim and judge it."""
    claim: Claim = importlib.import_module(f"{PAPERS}.{name}")  # type: ignore[assignment]
    began, before = time.perf_counter(), lab.checkpoint.seconds if lab.checkpoint else 0.0
    unable = ""
    try:
        checks = claim.measure(lab)
    except (RecipeError, UntrainedError) as error:  # a method that cannot run on this model, and says why
        checks, unable = [], str(error)
    own = {c.method for c in checks}
    missing = getattr(claim, "MISSING_CONDITION", "")
    if not checks:
        missing = unable or f"the model's context of {lab.context} tokens is too short for this claim's text"
    return again(
        Reproduction(
            method=name,
            title=catalog.find(name).title,
            claim=claim.CLAIM,
            paper_figure=claim.PAPER,
            measured=Measured(
                rule=RULE,
                checks=checks,
                figures={spec: values for spec, values in lab.figures.items() if spec in own or name in spec},
                reasons=lab.reasons,
            ),
            baseline={spec: values for spec, values in lab.figures.items() if spec not in own and name not in spec},
            verdict="inconclusive",
            why="",
            missing=missing,
            beyond=claim.BEYOND,
            environment={
                **environment(lab.model, lab.quick),
                "name": model,
                "weights": weights,
                "model_digest": settings["digest"] if settings else digest(lab.model),
                "seconds": round(time.perf_counter() - began + before, 1),
            },
            seeds=lab.seeds,
            code=Code(**code(name)),
        ),
        rerun=needs_training(name, [spec for c in checks for spec in (c.method, c.rival)]),
    )


def current(record: Reproduction) -> Reproduction:
    """A stored record by today's rule and words; stale, in its own words, where its code has changed."""
    stale, said = changed(record.method, record.code.digests), words(record.method)
    if not stale:
        missing = said.get("MISSING_CONDITION", "") or ("" if record.measured.checks else record.missing)
        update = {"claim": said["CLAIM"], "paper_figure": said["PAPER"], "beyond": said["BEYOND"], "missing": missing}
        record = record.model_copy(update=update)
    specs = [spec for check in record.measured.checks for spec in (check.method, check.rival)]
    return again(record, stale, needs_training(record.method, specs))


def _complete(path: Path, name: str, settings: dict[str, Any]) -> Reproduction | None:
    """The record of an earlier run with the same settings and code; None if there is none."""
    try:
        found = Reproduction.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    at = found.environment
    same = {
        "model": at.get("name"), "weights": at.get("weights"), "quick": at.get("quick"), "seeds": found.seeds,
        "digest": at.get("model_digest"), "device": settings["device"],
    }  # fmt: skip
    return found if same == settings and not changed(name, found.code.digests) else None


@contextmanager
def _resumable(
    console: Console, names: list[str], folder: Path, settings: dict[str, Any], seeds: int
) -> Iterator[None]:
    """Ctrl-C names the command that goes on."""
    try:
        yield
    except KeyboardInterrupt:
        words = ["tokenmill", "reproduce", *names, "--out", str(folder), "--resume"]
        usual = {"model": "smollm2", "weights": "float32", "device": "cpu"}
        for option, value in usual.items():
            words += [f"--{option}", settings[option]] if settings[option] != value else []
        words += ["--seeds", str(seeds)] if seeds != 3 else []
        words += ["--quick"] if settings["quick"] else []
        console.print(f"stopped; what is measured is kept. Go on with: {shlex.join(words)}", highlight=False)
        raise


class _Bar:
    """One bar for all claims; time left from what each took in earlier records, at the pace of this run."""

    def __init__(self, progress: Progress, expected: dict[str, float]):
        self.progress, self.expected = progress, expected
        self.left = dict(expected)
        self.name, self.began = "", time.perf_counter()
        self.took = self.foreseen = 0.0  # seconds of the claims that this run has measured
        self.task = progress.add_task("starting", total=len(expected), bar=self)

    def begin(self, name: str) -> None:
        self.name, self.began = name, time.perf_counter()
        self.tick("starting")

    def tick(self, step: str) -> None:
        self.progress.update(self.task, description=f"{self.name}: {step}")

    def end(self, name: str, known: bool) -> None:
        if not known:
            self.took += time.perf_counter() - self.began
            self.foreseen += self.expected[name]
        del self.left[name]
        self.name = ""
        self.progress.advance(self.task)

    def print(self, text: Text) -> None:
        self.progress.console.print(text, highlight=False)

    def seconds_left(self) -> float:
        now = time.perf_counter() - self.began if self.name else 0.0
        pace = self.took / self.foreseen if self.foreseen else 1.0
        rest = sum(seconds for name, seconds in self.left.items() if name != self.name) * pace
        return rest + max(0.0, self.left.get(self.name, 0.0) * pace - now)


class _Left(ProgressColumn):
    def render(self, task: Task) -> Text:
        seconds = round(task.fields["bar"].seconds_left())
        return Text(f"about {seconds // 60}:{seconds % 60:02d} left", style="cyan")


@contextmanager
def _progress(console: Console, names: list[str], folder: Path) -> Iterator[_Bar]:
    columns = (
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _Left(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress, {name: _expected(name, folder) for name in names})


def _expected(name: str, folder: Path) -> float:
    """Seconds that the claim took in an earlier record."""
    for path in (folder / f"{name}.json", SHIPPED / f"{name}.json"):
        try:
            return float(Reproduction.model_validate_json(path.read_bytes()).environment["seconds"])
        except (OSError, ValidationError, KeyError, TypeError, ValueError):
            continue
    return USUAL


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


def _writable(folder: Path) -> None:
    """Found out before anything is measured."""
    probe = folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write into {folder}: {error.strerror}; choose another --out") from None


def _write(folder: Path, made: Reproduction) -> Path:
    """Complete or not there at all."""
    path = folder / f"{made.method}.json"
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(made.model_dump_json(indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror}; choose another --out") from None
    return path


def _show(console: Console, rows: list[Reproduction], folder: Path) -> None:
    table = Table("method", "verdict", "checks", "n", "claim", box=None, pad_edge=False)
    for made in rows:
        checks = [c for c in made.measured.checks if c.decides]
        held = f"{sum(c.outcome == 'supported' for c in checks)}/{len(checks)}"
        fewest = str(min((c.samples for c in checks), default=0))
        table.add_row(
            made.method, Text(made.verdict, COLOURS[made.verdict]), held, fewest, made.claim
        )  # fmt: skip
    console.print(table)
    console.print(f"written to {folder}", highlight=False)
