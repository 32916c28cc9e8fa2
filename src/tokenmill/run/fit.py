"""Train the learned part of a method on any text: `tokenmill train NAME`.

The method's file holds `parts`, `objective` and `figure`; this page owns the loop: AdamW, warm-up and cosine, gradients
clipped, batches that seed and step fix, checkpoints, and a log. The model under a part is frozen: it reads each batch
once, without gradients. A run that is killed and resumed gives what it would have given.
"""

from __future__ import annotations

import copy
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from tokenmill.errors import InputError, ModelError, SpecError, StoreError
from tokenmill.method import Method, parse
from tokenmill.models.owner import mode
from tokenmill.models.trained import (
    about,
    alone,
    build,
    digest,
    place,
    restore,
    save,
    shaping,
    source,
    store,
    stored_as,
    whole,
    write,
)
from tokenmill.paths import expanded
from tokenmill.run.corpus import Corpus, Tasks, corpus, tasks
from tokenmill.run.drafter import second_model
from tokenmill.run.frozen import Reader, read
from tokenmill.run.machine import machine
from tokenmill.run.own import own_text

DEFAULTS: dict[str, Any] = {"steps": 400, "lr": 1e-3, "rows": 8, "length": 128}
WARM_UP = 0.05  # share of the steps
FLOOR = 0.1  # of the learning rate, where the cosine ends
CLIP = 1.0
SAVE_SECONDS = 30.0
HELD_OUT_ROWS = 32
TOLD = 600  # steps that a log holds at most


@dataclass(frozen=True)
class Fitted:
    """What a training made."""

    parts: nn.Module
    path: Path
    held_out: dict[str, float]
    history: list[dict[str, float]]  # step, loss, lr


def fit(
    method: str | Method,
    model: Any = None,
    tokenizer: Any = None,
    *,
    name: str = "",
    text: str | Path | Corpus | Tasks | None = None,
    out: str | Path | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    lr: float | None = None,
    rows: int | None = None,
    length: int | None = None,
    seed: int = 0,
    own: int = 0,
    resume: bool = False,
    device: str = "cpu",
    assistant: Any = None,
    console: Console | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Fitted:
    """Train the learned part of `method` and store it where `trained` finds it, or in the folder `out`.

    `model` is the frozen model under a part, `name` what the user calls it; a method that is a model of its own takes
    none. `minutes` chooses the number of steps by timing a few first. `own` trains on that many tokens that the model
    itself writes, instead of on the text. `assistant` is the model that the knob `model` names, if it is loaded
    already. Raises SpecError for a method without a learned part, StoreError for a folder
    with an unfinished run, ModelError when the loss breaks.
    """
    chosen = parse(method) if isinstance(method, str) else method
    if not isinstance(chosen, Method):
        raise SpecError(f"{chosen!r} is a recipe; train one method at a time")
    file = source(chosen)
    scratch = chosen.card.trains == "model"
    if scratch:
        model = tokenizer = None
    elif model is None:
        raise InputError(f"{chosen.name} is trained on top of a model; give one")
    if scratch and own:
        raise InputError(f"{chosen.name} starts from nothing and has no text of its own; leave out --own")
    if steps is not None and minutes is not None:
        raise InputError("steps and minutes contradict each other; give one of them")
    if (minutes is not None and minutes <= 0) or (steps is not None and steps < 1) or own < 0:
        raise InputError("steps, minutes and own must be above zero")
    usual = DEFAULTS | getattr(file, "TRAINING", {})
    lr, rows, length = lr or usual["lr"], rows or usual["rows"], length or usual["length"]
    if not scratch:
        device = str(next(model.parameters()).device)
    path = place(chosen, model, None if out is None else expanded(out))
    with alone(path):
        encode = None if tokenizer is None else lambda t: list(tokenizer(t, add_special_tokens=False)["input_ids"])
        data = _data(chosen, text, encode, rows, length, tokenizer)
        work = path.with_suffix(".checkpoint")
        saved = _checkpoint(work, resume)
        told = None  # what the model says over a text that it wrote
        if own:
            if isinstance(data, Tasks):
                raise InputError(
                    f"{chosen.name} learns from texts of several tasks, a model writes one; leave out --own"
                )
            data, told = own_text(model, tokenizer, data, own, seed, text is None, console)
            if min(len(data.train), len(data.held_out)) < length:
                raise InputError(f"the model wrote {len(data.train)} tokens, fewer than a row of {length}; raise --own")
        second = second_model(chosen, model, tokenizer, assistant) if chosen.knobs.get("model") else None

        with _seeded(seed), _at_rest(model), _at_rest(second):
            parts = build(chosen, model).to(device).train()
            done = about(path)["plan"] if saved is None and resume and path.is_file() else None
            before = saved["plan"] if saved is not None else done
            reader = Reader(chosen, model, data, rows, length, seed, second, device, told)
            if before is not None:
                steps, reader.count = steps or before["steps"], before.get("read", reader.count)
            elif minutes is not None:
                steps = _affordable(reader, parts, minutes)
            plan = {
                "spec": repr(chosen), "knobs": {k: repr(v) for k, v in shaping(chosen).items()}, "base": digest(model),
                "text": data.digest, "seed": seed, "lr": lr, "rows": rows, "length": length, "own": own,
                "read": reader.count,
            }  # fmt: skip
            steps = steps or usual["steps"]
            plan["steps"] = steps
            if done == plan:
                return _finished(chosen, model, path)
            optimizer = adam(parts, lr)
            history: list[dict[str, float]] = []
            seconds = 0.0
            if saved is not None:
                if saved["plan"] != plan:
                    odd = [k for k in plan if saved["plan"].get(k) != plan[k]]
                    raise StoreError(f"{work} was begun with another {', '.join(odd)}; give the same, or remove it")
                parts.load_state_dict(saved["parts"])
                optimizer.load_state_dict(saved["optimizer"])
                history, seconds = saved["history"], saved["seconds"]

            def keep() -> None:
                store(work, {
                    "plan": plan, "steps": steps, "parts": parts.state_dict(), "optimizer": optimizer.state_dict(),
                    "history": history, "seconds": seconds + time.perf_counter() - began,
                })  # fmt: skip

            # Saved between steps only: what an interrupt leaves in mid-step is no state that training goes through.
            began = last = time.perf_counter()
            with _bar(chosen.name, steps, console) as tick, _interruptible() as interrupted:
                for step in range(len(history), steps):
                    torch.manual_seed(seed * 1_000_003 + step)
                    rate = lr * schedule(step, steps)
                    batch = reader.batch(step, step / steps)
                    value = update(optimizer, file.objective(parts, batch), rate)
                    if not math.isfinite(value):
                        raise ModelError(f"the loss is not a number at step {step}; lower lr ({lr:g})")
                    history.append({"step": step, "loss": value, "lr": rate})
                    now = time.perf_counter()
                    tick(step + 1, value, (step + 1) * rows * length / (seconds + now - began))
                    if on_step is not None:
                        on_step(step)
                    if now - last > SAVE_SECONDS or interrupted():
                        keep()
                        last = now
                    if interrupted():
                        raise KeyboardInterrupt(f"stopped after step {step + 1} of {steps}; go on with --resume")
            seconds += time.perf_counter() - began
            for t in parts.state_dict().values():  # the figure is of what is stored
                if t.is_floating_point():
                    t.copy_(t.to(stored_as(chosen)))
            held_out = judge(chosen, parts, model, data, length, second, seed=seed)
        about_it = {"model": name, "plan": plan, "seed": seed, "steps": steps, "held_out": held_out}
        about_it |= {"tasks": list(data.names)} if isinstance(data, Tasks) else {}
        log = {
            "method": repr(chosen), "model": name, "plan": plan, "held_out": held_out, "seconds": round(seconds, 1),
            "tokens": steps * rows * length, "environment": _environment(parts),
            "history": history[:: -(-len(history) // TOLD)],
        }  # fmt: skip
        write(path.with_suffix(".json"), (json.dumps(log, indent=1) + "\n").encode())
        save(path, parts, chosen, model, about_it)  # last: who finds the weights finds the log
        work.unlink(missing_ok=True)
        return Fitted(parts.eval(), path, held_out, history)


def schedule(step: int, steps: int) -> float:
    """Up in a straight line, down along a cosine: the learning rate's share at a step."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def adam(parts: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parts.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)


def update(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> float:
    """One step down the loss, at this learning rate; the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate
        nn.utils.clip_grad_norm_(group["params"], CLIP)
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def judge(
    method: Method,
    parts: nn.Module,
    model: Any,
    data: Corpus | Tasks,
    length: int,
    second: Any = None,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """The method's figure on held-out text: means over batches. What it draws depends on `seed` alone."""
    was = parts.training
    parts.eval()
    device = next(parts.parameters()).device
    columns: dict[str, list[float]] = {}
    judged = data.judged(HELD_OUT_ROWS, length)
    labels = data.labels(len(judged))
    with _seeded(seed):
        for first in range(0, len(judged), 8):
            some = slice(first, first + 8)
            own = None if labels is None else labels[some]
            batch = read(model, method, judged[some].to(device), second=second, tasks=own)
            for what, value in source(method).figure(parts, batch).items():
                columns.setdefault(what, []).append(float(value))
    parts.train(was)
    return {what: sum(values) / len(values) for what, values in columns.items()}


def _affordable(reader: Reader, parts: nn.Module, minutes: float) -> int:
    """Steps that fit into the minutes, by the speed of a few on a copy; the first, which warms up, is not counted.

    Of a reader that remembers, also how many rows it reads: what takes half of the time at most.
    """
    tried, took, learning = copy.deepcopy(parts), [], []
    for step in range(4):
        began = time.perf_counter()
        batch = reader.batch(step, 0.0)
        met = time.perf_counter()
        source(reader.method).objective(tried, batch).backward()
        took.append(time.perf_counter() - began)
        learning.append(time.perf_counter() - met)
    whole, learn = sorted(took[1:])[1], sorted(learning[1:])[1]
    seconds = minutes * 60 / 1.1  # a tenth for the optimizer and checkpoints
    if not reader.remembers:
        return max(1, int(seconds / whole))
    a_row = (whole - learn) / reader.rows
    reader.count = max(reader.rows, min(reader.count, int(seconds / 2 / a_row)))
    return max(1, int(max(seconds / whole, (seconds - reader.count * a_row) / learn)))


def _data(
    method: Method, text: str | Path | Corpus | Tasks | None, encode: Callable[[str], list[int]] | None, rows: int,
    length: int, tokenizer: Any,
) -> Corpus | Tasks:  # fmt: skip
    """One text, or texts of as many tasks as the method has adapters."""
    several = "tasks" in method.card.needs
    if isinstance(text, Corpus if several else Tasks):
        raise InputError(f"{method.name} learns from {'texts of several tasks' if several else 'one text'}")
    if not several:
        return text if isinstance(text, Corpus) else corpus(text, encode, length, tokenizer)  # type: ignore[arg-type]
    made = text if isinstance(text, Tasks) else tasks(text, encode, length, tokenizer)  # type: ignore[arg-type]
    count, wanted = len(made.names), method.knobs["adapters"]
    if count != wanted:
        where = "the text" if isinstance(text, Tasks) else text or "the standard library"
        raise InputError(
            f"{where} has {count} tasks ({', '.join(made.names)}) and {method!r} has "
            f"{wanted} adapters; train '{method(adapters=count)!r}'"
        )
    if rows < count:
        raise InputError(f"a batch has {rows} rows for {count} tasks; give at least a row to each")
    return made


def _checkpoint(work: Path, resume: bool) -> dict[str, Any] | None:
    if not work.is_file():
        return None
    if not resume:
        raise StoreError(f"{work} is of an unfinished training; go on with --resume, or remove it")
    try:
        return restore(work)
    except OSError as error:
        raise StoreError(f"cannot read {work}: {error.strerror}") from None
    except Exception:  # beside a wrong digest: what another version wrote may raise anything
        raise StoreError(f"{work} is damaged; remove it and train again") from None


def _finished(method: Method, model: Any, path: Path) -> Fitted:
    parts = build(method, model)
    parts.load_state_dict(whole(path, "remove it and train again"))
    return Fitted(parts.eval(), path, about(path)["held_out"], [])


def _environment(parts: nn.Module) -> dict[str, Any]:
    from importlib.metadata import version

    from tokenmill import __version__

    weight = next(parts.parameters())
    return {
        "machine": machine(weight.device),
        "threads": torch.get_num_threads(),
        "device": weight.device.type,
        "parameters": sum(p.numel() for p in parts.parameters()),
        "versions": {"tokenmill": __version__, **{p: version(p) for p in ("torch", "transformers")}},
        "date": time.strftime("%Y-%m-%d"),
    }


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generator is the caller's again afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _at_rest(model: Any) -> Iterator[None]:
    """The frozen model in eval mode: parts that learn through its layers leave no gradients on its weights."""
    if model is None:
        yield
        return
    learning = [p for p in model.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        with mode(model, training=False):
            yield
    finally:
        for p in learning:
            p.requires_grad_(True)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came. The step that runs is finished first; a second one breaks it off."""
    came: list[int] = []

    def note(signum: int, frame: Any) -> None:
        if came:
            raise KeyboardInterrupt("stopped")
        came.append(signum)

    # Only the main thread may set handlers, and only those that are still Python's own are replaced.
    usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    mine = threading.current_thread() is threading.main_thread()
    replaced = [s for s, handler in usual.items() if mine and signal.getsignal(s) is handler]
    for signum in replaced:
        signal.signal(signum, note)
    try:
        yield lambda: bool(came)
    finally:
        for signum in replaced:
            signal.signal(signum, usual[signum])


@contextmanager
def _bar(name: str, steps: int, console: Console | None) -> Iterator[Callable[[int, float, float], None]]:
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=console is None) as bar:
        task = bar.add_task(name, total=steps, loss=float("nan"), speed=0.0)
        yield lambda done, loss, speed: bar.update(task, completed=done, loss=loss, speed=speed)
