"""`tokenmill compare`: every method of a track side by side on one model, killable and resumable.

Writes into a folder: store.sqlite (what was measured), results.json, report.html and recipe.toml (the winner).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tokenmill import __version__
from tokenmill.bench import figures, report, sweep, tasks
from tokenmill.bench.figures import Choice, Metrics, Pace, Quality, Results, Row, interval_text, sample_size
from tokenmill.bench.measure import Engine
from tokenmill.bench.statistics import FEWEST, Interval, ratio_interval
from tokenmill.bench.store import FILE, Store
from tokenmill.bench.sweep import DECODE, PICTURE, PREFILL, READING, RowSpec, Sweep
from tokenmill.errors import InputError, ModelError, StoreError, TokenmillError, did_you_mean
from tokenmill.method import Recipe, recipe
from tokenmill.method_files import digests, with_files
from tokenmill.recipe_file import head, toml_text
from tokenmill.run.inputs import Record, checked, records
from tokenmill.run.machine import machine
from tokenmill.view.terminal import Column, Terminal, fitted

TRACKS = ("cache", "decode", "depth")
RUNS = Path("tokenmill-runs")


def compare(
    track: str,
    *,
    model: str = "smollm2",
    weights: str = "float32",
    device: str = "cpu",
    methods: Sequence[str] | None = None,
    budgets: Sequence[float] | None = None,
    input: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    quick: bool = False,
    prompt: str | None = None,
    wide: bool = False,
    console: Console | None = None,
) -> Path:
    """Measure methods side by side; returns the folder with results.json, report.html and recipe.toml.

    `methods` are specs (None: all of the track's); one without a budget is measured at every budget. `input` is
    the user's own text (.txt, .md, .jsonl), read for continuation and drift. `prompt` is the text on which the
    report of `cache` draws what each method kept. `wide` shows every column of the table. Raises a TokenmillError
    for everything the user can put right, also an option that the track does not use; on Ctrl-C says how to go on
    and raises KeyboardInterrupt.
    """
    if track not in TRACKS:
        raise TokenmillError(f"no track '{track}'; {did_you_mean(track, TRACKS)}")
    console = console or Terminal()
    specs = None if methods is None else [*map(with_files, methods)]
    _unused_options(track, specs, budgets, prompt)
    if track == "decode":
        return _compare_decode(console, model, weights, device, methods, input, out, resume, seed, quick, wide)
    deep = track == "depth"
    plan = (tasks.depth_plan if deep else tasks.plan)(quick, own_text=input is not None)
    shares = sweep.check_budgets(plan.budgets if budgets is None else budgets)
    asked = specs or (sweep.DEPTH_METHODS if deep else sweep.CACHE_METHODS)
    rows = sweep.expand(asked, shares)
    if prompt is not None and not prompt.strip():
        raise InputError("the prompt for the report is empty")
    checked(prompt or "", "the prompt for the report")
    source = records(input) if input is not None else None
    folder = _folder(track, out, resume)
    settings = {
        "track": track,
        "model": model,
        "weights": weights,
        "device": device,
        "methods": [row.spec for row in rows],
        "budgets": list(shares),
        "seed": seed,
        "quick": quick,
        "input": _sha(json.dumps([r.messages or r.text for r in source])) if source else None,
        "corpus": tasks.SHA256["english.txt"],
        "plan": _sha(json.dumps(asdict(plan))),
        "versions": _versions(),
        **_files(row.recipe for row in rows),
    }
    again = _command(track, model, weights, device, methods, budgets, input, folder, seed, quick, prompt)
    with Store(folder, settings, resume=resume) as store, _resumable(console, store, again):
        return _measure(
            store, console, track=track, model=model, weights=weights, device=device, rows=rows, plan=plan,
            seed=seed, quick=quick, source=source, input=input, prompt=prompt, settings=settings,
            wide=wide,
        )  # fmt: skip


def _unused_options(
    track: str, methods: Sequence[str] | None, budgets: Sequence[float] | None, prompt: str | None
) -> None:
    """An option without effect is a mistake: its user believes that it has one."""
    if prompt is not None and track != "cache":
        raise InputError(f"compare {track} draws no picture of what is kept, so --prompt has no effect; leave it out")
    if budgets is not None and track == "decode":
        raise InputError("compare decode measures no budgets, so --budgets has no effect; leave it out")
    for spec in methods or ():
        sweep.check_track(track, spec)
    if budgets is not None and methods is not None and not any(map(sweep.takes_budget, methods)):
        raise InputError(
            f"none of {', '.join(methods)} is without a budget of its own, so --budgets has no effect; leave it out"
        )


@contextmanager
def _resumable(console: Console, store: Store, again: str) -> Iterator[None]:
    """Around what Ctrl-C may end: says what is safe and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(
            f"\nStopped. {len(store.cells())} measured cells are safe in {store.file}; to go on:\n  {again}",
            style="yellow", soft_wrap=True, markup=False, highlight=False,
        )  # fmt: skip
        raise


@contextmanager
def _untimed(console: Console, rows: int) -> Iterator[None]:
    """Around what is compiled and calibrated before anything is timed: says that it happens, and how long it took."""
    what = f"every row once ({rows}), so that what is compiled and calibrated at first use is in no timed figure"
    began = time.perf_counter()
    with console.status(f"running {what}"):
        yield
    console.print(f"Ran {what}: {time.perf_counter() - began:.1f} s.", style="dim", highlight=False, soft_wrap=True)


def _noted(console: Console, notes: Sequence[str], refused: dict[str, str]) -> None:
    for note in [*notes, *(f"left out {spec}: {why}" for spec, why in refused.items())]:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)


def _finished(
    store: Store, console: Console, results: BaseModel, drawn: str, toml: str | None, shown: tuple[Table, int],
    choice: Choice | None, lines: Sequence[str],
) -> Path:  # fmt: skip
    """Write the files of a run and print its table, what there is to say to it, and where the files are."""
    path = store.write("results.json", results.model_dump_json(by_alias=True, indent=1) + "\n")
    page = store.write("report.html", drawn)
    recipe_file = store.folder / "recipe.toml"
    if toml is not None:
        store.write("recipe.toml", toml)
    table, width = shown
    console.print(table, width=width, crop=False)
    said = [choice.text()] if choice else []
    files = [f"Report: {page}", f"Figures: {path}", *([f"Recipe: {recipe_file}"] if toml is not None else [])]
    for line in [*lines, *said, *files]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return store.folder


def _measure(
    store: Store, console: Console, *, track: str, model: str, weights: str, device: str, rows: list[RowSpec],
    plan: tasks.Plan, seed: int, quick: bool, source: list[Record] | None, input: str | Path | None, prompt: str | None,
    settings: dict[str, Any], wide: bool,
) -> Path:  # fmt: skip
    with console.status(Text(f"loading {model}")):
        network, tokenizer = _load(model, weights, device)
    context = _context(network)
    plan = plan.scaled(context)
    if not plan.tasks:
        raise ModelError(f"{model} reads {context} tokens at most; the shortest task of compare needs more")
    _same_weights(store, network, model)
    reader = tasks.Reader(tokenizer)
    own: list[list[int]] = []
    notes: list[str] = []
    if source is not None:
        texts = [record.whole(tokenizer) for record in source]
        own, notes = tasks.own_pieces(texts, str(input), reader, plan, context, seed)
        plan = tasks.with_own(plan, len(own))
    work = Sweep(
        _engine(), network, reader, list(rows), plan, seed, store, own,
        tasks.default_prompt() if prompt is None else prompt,
    )  # fmt: skip
    with _untimed(console, len(rows)):
        refused = work.preflight()
    _noted(console, notes, refused)
    _run(work, console)
    cells = store.cells()
    environment = {
        **_environment(network, track, model, seed, quick),
        "weights": weights,
        "settings": settings,
        "chat_format": any(r.messages for r in source or ()) and bool(getattr(tokenizer, "chat_template", None)),
        "corpus": tasks.SHA256,
        "tasks": [asdict(task) for task in plan.tasks],
        "speed": asdict(plan.speed),
        "quality": figures.QUALITY,
        "cost": _cost(cells, work.rows),
        "notes": notes,
        "left_out": refused,
    }
    measured = {row.spec: _row(row, cells, plan) for row in work.rows}
    made = [row for row, _ in measured.values()]
    qualities = {spec: quality for spec, (_, quality) in measured.items() if quality is not None}
    if track == "depth":
        weights_of = environment["products"] = _products(network)
        for row in made:
            row.metrics.operations_share = _operations(row.spec, cells, plan, weights_of)
        figures.set_against_constant(made, qualities)
    figures.mark(made, qualities)
    made = figures.best_first(made)
    choice = (figures.shallow_winner if track == "depth" else figures.winner)(made, qualities)
    environment["winner"] = choice.model_dump() if choice else None
    results = Results(schema=2, track=track, model=model, environment=environment, rows=made)
    drawn = report.depth_html(results) if track == "depth" else report.html(results, _picture(work, cells))
    toml = None if choice is None else recipe_toml(results, choice)
    return _finished(store, console, results, drawn, toml, table(results, None if wide else console.width), choice,
                     _closing(results))  # fmt: skip


def _compare_decode(
    console: Console, model: str, weights: str, device: str, methods: Sequence[str] | None,
    input: str | Path | None, out: str | Path | None, resume: bool, seed: int, quick: bool, wide: bool,
) -> Path:  # fmt: skip
    """The track `decode`: see bench/decode.py."""
    from tokenmill.bench import decode, decode_report, prompts

    each, new = (2, 32) if quick else (4, 128)
    given = prompts.default_prompts(each, seed) if input is None else prompts.spread(
        prompts.read_prompts(input), each if quick else 16, seed
    )  # fmt: skip
    asked = decode.default_rows() if methods is None else [repr(recipe(with_files(spec))) for spec in methods]
    rows = list(dict.fromkeys([decode.FULL, decode.LIBRARY, decode.LOOKUP, *asked]))
    folder = _folder("decode", out, resume)
    settings = {
        "track": "decode", "model": model, "weights": weights, "device": device, "methods": rows, "seed": seed,
        "quick": quick, "prompts": len(given), "texts": _sha(json.dumps([asdict(p) for p in given])), "new_tokens": new,
        "versions": _versions(), **_files(recipe(row) for row in rows if row not in decode.BASELINES),
    }  # fmt: skip
    again = _command("decode", model, weights, device, methods, None, input, folder, seed, quick, None)
    with Store(folder, settings, resume=resume) as store, _resumable(console, store, again):
        with console.status(Text(f"loading {model}")):
            network, tokenizer = _load(model, weights, device)
        _same_weights(store, network, model)
        context = _context(network)
        ids = [prompts.encoded(tokenizer, p, min(1024, context - new - 1)) for p in given]
        with _untimed(console, len(rows)):
            refused = decode.preflight(network, tokenizer, rows, ids[0])
        _noted(console, [], refused)
        kept = [row for row in rows if row not in refused]
        work = decode.Decoding(network, tokenizer, given, ids, kept, store, new)
        _run(work, console)
        cells = store.cells()
        measured = cells[decode.COST, 0, decode.FULL][0]
        environment = {
            **_environment(network, "decode", model, seed, quick), "weights": weights, "settings": settings,
            "chat_format": bool(getattr(tokenizer, "chat_template", None)),
            "corpus": tasks.SHA256 if input is None else {}, "new_tokens": new, "pass_cost": measured, "notes": [],
            "left_out": refused,
        }  # fmt: skip
        made = decode.best_first([decode.row_of(row, cells, given) for row in kept])
        choice = decode.winner(made, cells)
        environment["winner"] = choice.model_dump() if choice else None
        results = decode.DecodeResults(schema=2, track="decode", model=model, environment=environment, rows=made)
        seconds = {int(w): s for w, s in measured["seconds"].items()}
        drawn = decode_report.html(results, seconds, measured["context"])
        toml = None
        if choice is not None and choice.spec != decode.FULL:  # greedy needs no recipe
            m = next(row.metrics for row in made if row.spec == choice.spec)
            of = {"speed": m.speed.mean, "speed_low": m.speed.low, "speed_high": m.speed.high} if m.speed else {}
            of["tokens_a_pass"] = m.tokens_a_pass.mean if m.tokens_a_pass else None
            toml = recipe_lines(choice, model, of, environment, "our greedy loop, 1 = as fast")
        curve = ", ".join(f"{w} tokens {s * 1000:.0f} ms" for w, s in sorted(seconds.items()))
        noise = next(row.metrics.speed for row in made if row.spec == decode.FULL)
        lines = [
            f"a pass behind {measured['context']} tokens: {curve}",
            f"The noise of the speeds: our greedy loop against itself measures {interval_text(noise)} "
            f"(n = {len(given)} prompts)." + (f" n too small: under {FEWEST}." if len(given) < FEWEST else ""),
        ]
        shown = decode.table(results, None if wide else console.width)
        return _finished(store, console, results, drawn, toml, shown, choice, lines)


# ---- the run ----------------------------------------------------------------------------------------------------


class Work(Protocol):
    """What is measured, as the progress bar sees it."""

    def total(self) -> float: ...
    def left(self) -> float: ...
    def run(self, tick: Callable[[str, float], None]) -> None: ...


class _Left(ProgressColumn):
    """Time left at the pace of this run so far."""

    def render(self, task: Task) -> Text:
        done, elapsed = task.completed - task.fields["before"], task.elapsed or 0.0
        if done <= 0 or elapsed < 2 or task.total is None:
            return Text("time left ?", style="cyan")
        seconds = round(max(0.0, task.total - task.completed) * elapsed / done)
        return Text(f"{seconds // 60}:{seconds % 60:02d} left", style="cyan")


def _run(work: Work, console: Console) -> None:
    total, left = work.total(), work.left()
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), _Left(), console=console, transient=True,
    ) as progress:  # fmt: skip
        bar = progress.add_task("starting", total=total, before=total - left)
        progress.update(bar, completed=total - left)

        def tick(what: str, weight: float) -> None:
            progress.update(bar, advance=weight, description=what or None)

        work.run(tick)


def _load(model: str, weights: str, device: str) -> tuple[Any, Any]:
    from tokenmill.models.load import load

    return load(model, weights=weights, device=device)


def _engine() -> Engine:
    from tokenmill.run import session

    return session  # type: ignore[return-value]


def _context(network: Any) -> int:
    config = network.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 1 << 20)


def _same_weights(store: Store, network: Any, model: str) -> None:
    """A resumed run must go on with the same weights, also when a local path's content has changed."""
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        part = weight.detach().flatten()[:: max(1, weight.numel() // 1024)].float().cpu()
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode() + part.numpy().tobytes())
    now = digest.hexdigest()
    known = store.cells().get(("(model)", 0, "weights"))
    if known is None:
        store.add("(model)", 0, "weights", now, 0.0)
    elif known[0] != now:
        raise StoreError(
            f"{store.folder} was measured with other weights of {model} (or another number format); use another --out"
        )


def _folder(track: str, out: str | Path | None, resume: bool) -> Path:
    if out is not None:
        return Path(out)
    if resume:
        runs = sorted(p.parent for p in RUNS.glob(f"{track}-*/{FILE}"))
        if not runs:
            raise StoreError(f"nothing to resume under {RUNS}/; say which folder with --out")
        return runs[-1]
    return RUNS / f"{track}-{time.strftime('%Y%m%d-%H%M%S')}"


def _command(
    track: str, model: str, weights: str, device: str, methods: Sequence[str] | None, budgets: Sequence[float] | None,
    input: str | Path | None, folder: Path, seed: int, quick: bool, prompt: str | None,
) -> str:  # fmt: skip
    words = ["tokenmill", "compare", track, "--out", str(folder), "--resume"]
    words += ["--model", model] if model != "smollm2" else []
    words += ["--weights", weights] if weights != "float32" else []
    words += ["--device", device] if device != "cpu" else []
    words += ["--methods", ", ".join(methods)] if methods is not None else []
    words += ["--budgets", ",".join(f"{b:g}" for b in budgets)] if budgets is not None else []
    words += ["--input", str(input)] if input is not None else []
    words += ["--seed", str(seed)] if seed else []
    words += ["--quick"] if quick else []
    words += ["--prompt", prompt] if prompt is not None else []
    return shlex.join(words)


def _files(recipes: Iterable[Recipe]) -> dict[str, Any]:
    """What a store remembers of methods in the user's files, if there are any."""
    found = digests(recipes)
    return {"files": found} if found else {}


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"tokenmill": __version__, "python": python, **{p: version(p) for p in ("torch", "transformers")}}


def _environment(network: Any, track: str, model: str, seed: int, quick: bool) -> dict[str, Any]:
    import torch

    weight = next(network.parameters())
    return {
        "machine": machine(weight.device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "device": weight.device.type,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in network.parameters()),
        "versions": _versions(),
        "seed": seed,
        "quick": quick,
        "date": time.strftime("%Y-%m-%d"),
    }


# ---- from cells to rows -----------------------------------------------------------------------------------------

Cells = dict[tuple[str, int, str], tuple[Any, float]]


def _row(row: RowSpec, cells: Cells, plan: tasks.Plan) -> tuple[Row, Quality | None]:
    def scores(task: tasks.Task, spec: str) -> list[float | None]:
        return [cells[task.name, i, spec][0]["score"] for i in range(task.samples)]

    mine = {task.name: scores(task, row.spec) for task in plan.tasks}
    full = {task.name: scores(task, "full") for task in plan.tasks}
    shown = {task.name: figures.figure(task, mine[task.name], full[task.name]) for task in plan.tasks}
    quality, interval = None, None
    if all(figure is not None for figure in shown.values()):
        quality = figures.quality(plan.tasks, mine, full)  # type: ignore[arg-type]
    if quality is not None:
        interval = quality.interval()
        if row.method == "full":  # what all others are set against: its own aggregate is 1 by definition
            interval = Interval(mean=1.0, low=1.0, high=1.0, n=interval.n, method="baseline")
    fast, read = cells[DECODE, 0, row.spec][0], cells[PREFILL, 0, row.spec][0]
    place = plan.speed
    made = Row(
        method=row.method,
        spec=row.spec,
        budget=row.budget,
        metrics=Metrics(
            quality=interval,
            tasks=shown,
            families=quality.families if quality else {},
            bytes_share=fast["bytes"] / fast["bytes_untouched"],
            layers_share=_layers(row.spec, cells, plan),
            bytes_held=fast["bytes"],
            bytes_held_untouched=fast["bytes_untouched"],
            peak_share=read["peak"] / read["peak_untouched"],
            prefill=_pace(read, place.prefill_batch, place.prefill_context, faster_is_less=True),
            decode=_pace(fast, place.decode_batch, place.decode_context, faster_is_less=False),
            seconds=sum(seconds for (_, _, spec), (_, seconds) in cells.items() if spec == row.spec),
        ),
    )
    return made, quality


def _layers(spec: str, cells: Cells, plan: tasks.Plan) -> float | None:
    """Layers a token after the prompt, relative to the untouched model; None where the track is not about them."""
    if plan.picture_tokens:
        return None
    ran = lambda name: [cells[task.name, i, name][0]["layers"] for task in plan.tasks for i in range(task.samples)]
    mine, full = ran(spec), ran("full")
    return None if None in mine else statistics.fmean(mine) / statistics.fmean(full)


def _products(network: Any) -> dict[str, int]:
    """Numbers a token is multiplied with: in all layers, and in the head."""
    from tokenmill.models.architectures import decoder_of

    def size(part: Any) -> int:
        if hasattr(part, "in_features"):  # also of packed weights
            return int(part.in_features * part.out_features)
        weight = getattr(part, "weight", None)
        return weight.numel() if weight is not None and weight.ndim == 2 else 0

    layers = decoder_of(network).layers
    one = sum(size(part) for layer in layers for part in layer.modules()) // len(layers)
    return {"layer": one, "layers": len(layers), "head": size(network.get_output_embeddings())}


def _operations(spec: str, cells: Cells, plan: tasks.Plan, size: dict[str, int]) -> float | None:
    """Products with weights for a token after the prompt, relative to the untouched model's.

    Attention over the cache is left out, and what a skipped layer stores for a token.
    """
    ran = [cells[task.name, i, spec][0] for task in plan.tasks for i in range(task.samples)]
    if any(cell["layers"] is None for cell in ran):
        return None
    layers, heads = (statistics.fmean(cell[key] for cell in ran) for key in ("layers", "heads"))
    whole = size["layers"] * size["layer"] + size["head"]
    return (layers * size["layer"] + (1 + heads) * size["head"]) / whole


def _pace(cell: dict[str, list[float]], batch: int, context: int, *, faster_is_less: bool) -> Pace:
    mine, full = cell["mine"], cell["untouched"]
    found = ratio_interval(full, mine) if faster_is_less else ratio_interval(mine, full)
    return Pace(
        batch=batch, context=context, value=statistics.median(mine), untouched=statistics.median(full),
        ratio=found.mean, low=found.low, high=found.high, n=found.n,
    )  # fmt: skip


def _cost(cells: Cells, rows: list[RowSpec]) -> dict[str, Any]:
    """What one more method and budget costs, from the seconds of this run's own cells."""
    readings = [(value["decisions"], seconds) for (_, _, row), (value, seconds) in cells.items() if row == READING]
    deciding = sum(sum(decisions.values()) for decisions, _ in readings)
    reading = max(0.0, sum(seconds for _, seconds in readings) - deciding)
    seconds_of = {row.spec: 0.0 for row in rows}
    for (_, _, spec), (_, seconds) in cells.items():
        if spec in seconds_of:
            seconds_of[spec] += seconds
    baseline = seconds_of.pop("full")
    others = max(1, len(seconds_of))
    more = (sum(seconds_of.values()) + deciding) / others
    total, alone = sum(seconds for _, seconds in cells.values()), reading + baseline + more
    return {
        "run_seconds": total,
        "rows": len(rows),
        "one_more_row_seconds": more,
        "share_of_this_run": more / total,
        "alone_seconds": alone,
        "share_of_a_run_alone": more / alone,
        "how": (
            "one_more_row_seconds: mean over the rows of the seconds of a row's own cells and of its decisions on "
            "the shared readings. alone_seconds: that, plus reading every prompt and measuring the untouched model, "
            "for one row only."
        ),
    }


def _picture(work: Sweep, cells: Cells) -> dict[str, Any]:
    name = f"{PICTURE} {work.picture_key}"
    return {
        "tokens": [work.reader.tokenizer.decode([i]) for i in work.picture_ids()],
        "kept": {row.spec: cells[name, 0, row.spec][0] for row in work.rows},
    }


# ---- what the user reads ----------------------------------------------------------------------------------------


def recipe_lines(
    choice: Choice, model: str, measured: dict[str, float | None], environment: dict[str, Any], scale: str
) -> str:
    """recipe.toml, as `tokenmill run --recipe-file` reads it; it claims no more than the winner line does."""
    lines = [
        *([] if choice.decided else ["# The recipe has the best mean, no more: others may be as good."]),
        *head(choice.spec, model, environment["weights"], choice.text(most=20)),
        "",
        f"[measured]  # relative to {scale}",
        f"n = {choice.n}  # {choice.unit}",
        f"distinguishable = {toml_text(choice.decided)}  # from every other row that qualifies",
        f"not_distinguishable_from = {toml_text(choice.rivals)}",
        *(
            f"{key} = {value:.6g}" if value % 1 else f"{key} = {value:.1f}"
            for key, value in measured.items()
            if value is not None
        ),
        f"machine = {toml_text(str(environment['machine']))}",
        f"date = {toml_text(environment['date'])}",
    ]
    return "\n".join(lines) + "\n"


def recipe_toml(results: Results, choice: Choice) -> str:
    """The row that has the best mean among those that qualify."""
    m = next(row for row in results.rows if row.spec == choice.spec).metrics
    measured = {
        "quality": m.quality.mean if m.quality else None,
        "quality_low": m.quality.low if m.quality else None,
        "quality_high": m.quality.high if m.quality else None,
        "bytes_share": m.bytes_share,
        "layers_share": m.layers_share,
        "decode_ratio": m.decode.ratio if m.decode else None,
        "prefill_ratio": m.prefill.ratio if m.prefill else None,
    }
    scale = "the untouched model, 1 = as good, as large, as fast"
    return recipe_lines(choice, results.model, measured, results.environment, scale)


def _spent(results: Results) -> str:
    return "layers" if results.track == "depth" else "bytes"


def marks_of(row: Row) -> str:
    m = row.metrics
    return "●" * m.pareto_bytes + "◆" * m.pareto_speed + "≈" * m.within_noise


def table(results: Results, width: int | None) -> tuple[Table, int]:
    """The untouched model, then best first, and the table's width; None shows every column, however wide."""
    deep, rows = results.track == "depth", results.rows
    paces = [("decode", [row.metrics.decode for row in rows])]
    paces += [] if deep else [("prefill", [row.metrics.prefill for row in rows])]
    qualities = [row.metrics.quality for row in rows]
    speeds = [_pace_column(name, found) for name, found in paces]
    columns = [
        Column("", [marks_of(row) for row in rows], justify="left"),
        Column(f"quality\n{sample_size(qualities, 'texts')}", [*map(interval_text, qualities)]),
        Column(_spent(results), [_share(figures.size_of(row)) for row in rows]),
        Column("budget", [f"{row.budget:g}" if row.budget is not None else "" for row in rows]),
    ]
    if deep:
        constant = [row.metrics.against_constant for row in rows]
        columns += [
            Column("operations", [_share(row.metrics.operations_share) for row in rows]),
            Column("vs constant", [*map(interval_text, constant)], [f"{i.mean:+.2f}" if i else "–" for i in constant]),
        ]
    columns.append(speeds[0])
    for column in report.columns(results):
        found = [f for row in rows if (f := column.samples(row)) is not None]
        heading = column.title.replace(", ", ",\n") + (f"\nn={max(found)}" if found else "")
        columns.append(Column(heading, [column.text(row) for row in rows]))
    columns += speeds[1:]
    names = [report.method_of(row) for row in rows]
    return fitted(
        Column("method", names, justify="left"), columns, width, title=f"compare {results.track}: {results.model}",
        sections=(0,), bold=(0,),
        caption=f"● nothing that holds as few {_spent(results)} is as good within the noise, ◆ nothing as fast is, "
        "≈ within noise of the best row that qualifies as the winner",
    )  # fmt: skip


def _share(value: float | None) -> str:
    return f"{value:.0%}" if value is not None else "–"


def _pace_column(name: str, paces: Sequence[Pace | None]) -> Column:
    ratios = [pace.interval if pace else None for pace in paces]
    short = [f"{ratio.mean:.2f}" if ratio else "–" for ratio in ratios]
    return Column(f"{name}\n{sample_size(ratios)}", [*map(interval_text, ratios)], short)


def _closing(results: Results) -> list[str]:
    cost, speed = results.environment["cost"], results.environment["speed"]
    kinds = ("decode",) if results.track == "depth" else ("decode", "prefill")
    full = results.rows[0].metrics
    noise = [f"{kind} {interval_text(pace.interval)}" for kind in kinds if (pace := getattr(full, kind)) is not None]
    few = [kind for kind in kinds if (pace := getattr(full, kind)) is not None and pace.n < FEWEST]
    return [
        f"decode: tokens a second at batch {speed['decode_batch']}, context {speed['decode_context']}; "
        f"prefill: batch {speed['prefill_batch']}, context {speed['prefill_context']}; both as ratios to the "
        "untouched model, in pairs (n) taken in turns.",
        f"The noise of the speeds: the untouched model against itself measures {', '.join(noise)}."
        + (f" n too small for {' and '.join(few)}: under {FEWEST} pairs." if few else ""),
        f"One more method and budget costs {cost['one_more_row_seconds']:.1f} s, "
        f"{cost['share_of_this_run']:.1%} of this run ({cost['share_of_a_run_alone']:.0%} of measuring it alone).",
    ]
