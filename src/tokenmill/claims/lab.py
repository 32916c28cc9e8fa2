"""Where claims are measured: a model, real text, and the same samples for every rival."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol, cast

import torch

from tokenmill.bench.figures import FLOOR
from tokenmill.bench.measure import Engine, Trial, follow, follow_singly, judge
from tokenmill.bench.tasks import TAIL_ROOM, Reader, Sample, Task, build
from tokenmill.claims.checkpoint import Checkpoint
from tokenmill.claims.verdict import NEAR, Check, check, mean
from tokenmill.errors import ModelError
from tokenmill.method import Method, Recipe
from tokenmill.method import recipe as as_recipe
from tokenmill.run import session as engine
from tokenmill.run.machine import machine

COPIED = 1.0  # nats a token
MISSED = 0.1  # share of answers
# SnapKV's windows for needles: as many queries as the question has, pooled as widely as the fact, whose digits are a
# token each here and are looked at one after the other.
FITTED = "snapkv(window=8, kernel=13)"

Spec = str | Method | Recipe | None
Column = tuple[str, list[float]]


class Claim(Protocol):
    """What a file in `papers/` defines.

    It may also define MISSING_CONDITION: an essential condition of the paper (size, training, domain) that is absent
    here. The figures are shown then, and the claim is not testable here.
    """

    CLAIM: str  # what the paper says, as far as it can be asked here
    PAPER: str  # the paper's own figure, and where it was taken
    BEYOND: str  # what the paper also says and this check leaves out; "" if nothing

    @staticmethod
    def measure(lab: Lab) -> list[Check]: ...


@dataclass
class Lab:
    """The model and its samples. A claim asks it for columns of numbers and compares them."""

    model: Any
    tokenizer: Any
    seeds: list[int]
    quick: bool = False
    tick: Callable[[str], None] = lambda _: None
    figures: dict[str, dict[str, float]] = field(default_factory=dict)  # spec -> quantity -> mean
    reasons: list[str] = field(default_factory=list)  # found in the numbers
    assistant: Any = None  # a smaller model of the same vocabulary, for claims about two models
    checkpoint: Checkpoint | None = None  # where parts of the measurement are kept until it is complete

    def __post_init__(self) -> None:
        self.reader = Reader(self.tokenizer)
        config = self.model.config.get_text_config(decoder=True)
        self.context: int = getattr(config, "max_position_embeddings", None) or 1 << 30

    def unit(self, measure: Callable[[], Any], *key: Any) -> Any:
        """What `measure` returns, or what a run that was stopped stored of it. `key`: all that it depends on.

        The value is of what JSON has: numbers, text, lists, dictionaries with text as keys.
        """
        if self.checkpoint is None:
            return measure()
        return self.checkpoint.get(hashlib.sha256(repr(key).encode()).hexdigest()[:24], measure)

    # ---- samples ----

    def text(self, *, length: int = 512, tail: int = 64, block: int = 16, each: int = 3) -> list[Sample]:
        """Real text and what follows it, read in blocks: the figure is nats a token."""
        if self.quick:
            length, tail = min(length, 256), min(tail, 32)
        return self._samples(Task("text", "", "continuation", each, length, tail=tail, block=block, measure="nll"))

    def needles(self, *, seen: bool, length: int = 512, each: int = 4) -> list[Sample]:
        """A fact hidden in text; the figure is nats a token of the answer. `seen`: the question is in the prompt.

        All of it then: bench tasks read the question's last token after the choice, and it is the one that looks
        for the answer. The answer's first token, a space, is not scored.
        """
        task = Task("needle", "", "needle", each, length, block=4, question_seen=seen, measure="nll")
        samples = self._samples(task)
        if not seen:
            return samples
        return [
            replace(s, prompt=s.prompt + s.tail[:1], tail=s.tail[1:], scored=[i - 1 for i in s.scored if i > 1])
            for s in samples
        ]

    def _samples(self, task: Task) -> list[Sample]:
        each = 1 if self.quick else task.samples
        if task.length + max(task.tail, TAIL_ROOM) > self.context:
            return []
        return [build(task, index, seed, self.reader) for seed in self.seeds for index in range(each)]

    # ---- columns ----

    def columns(self, samples: Sequence[Sample], specs: Sequence[Spec], quantity: str) -> dict[str, list[float]]:
        """Each spec's figure for each sample, by the spec's text; the untouched model is "full".

        The bytes each held after the prompt, relative to the untouched model, come along as "SPEC bytes"; for
        needles, whether greedy decoding would write the whole answer, 1 or 0, as "SPEC recalled".
        """
        recipes = list(dict.fromkeys(as_recipe(s) for s in (None, *specs)))
        out: dict[str, list[float]] = {}
        for number, sample in enumerate(samples, 1):
            self.tick(f"{quantity}: sample {number} of {len(samples)}")
            measured = self.unit(partial(self._asked, sample, recipes), sample, recipes)
            for name, value in measured.items():
                out.setdefault(name, []).append(value)
        for recipe in recipes:
            self.note(repr(recipe), quantity, out.get(repr(recipe), []))
            self.note(repr(recipe), f"{quantity}: share recalled", out.get(f"{recipe!r} recalled", []))
            self.note(repr(recipe), "share of the untouched cache's bytes", out.get(f"{recipe!r} bytes", []))
        return out

    def _asked(self, sample: Sample, recipes: Sequence[Recipe]) -> dict[str, float]:
        """One sample's figures, by the names of `columns`."""
        trial, whole, out = Trial(cast(Engine, engine), self.model, sample, recipes), 0, {}
        for recipe in recipes:
            held, logits = _asked(trial, recipe)
            whole = whole or held
            out[repr(recipe)] = _judged(sample, logits, trial.tail)
            out[f"{recipe!r} bytes"] = held / whole
            if sample.task.kind == "needle":
                exact = replace(sample, task=replace(sample.task, measure="exact"))
                out[f"{recipe!r} recalled"] = _judged(exact, logits, trial.tail)
        return out

    def note(self, spec: str, quantity: str, values: Sequence[float]) -> None:
        """Put a mean into the report."""
        if values and all(v == v and abs(v) != float("inf") for v in values):
            self.figures.setdefault(spec, {})[quantity] = mean(values)

    # ---- checks ----

    def compare(
        self,
        what: str,
        columns: Mapping[str, list[float]],
        method: Spec,
        rivals: Spec | Sequence[Spec],
        *,
        better: Literal["lower", "higher"] = "lower",
        margin: float = 0.0,
        lacking: str = "",
        decides: bool = True,
    ) -> list[Check]:
        """The method against each rival, on columns measured together."""
        many = rivals if isinstance(rivals, list | tuple) else [rivals]
        name = repr(as_recipe(method))
        found = []
        for rival in many:
            other = repr(as_recipe(rival))  # type: ignore[arg-type]
            if not columns and not lacking:
                lacking = f"the model's context of {self.context} tokens is too short for this text"
            pair = (name, columns.get(name, [])), (other, columns.get(other, []))
            found.append(check(what, *pair, better, margin=margin, lacking=lacking, decides=decides))
        return found

    def recalls(self, what: str, columns: Mapping[str, list[float]], method: Spec, *, lacking: str = "") -> list[Check]:
        """The method recalls as the untouched model does, but for less than MISSED of the answers."""
        recalled = {name.removesuffix(" recalled"): v for name, v in columns.items() if name.endswith(" recalled")}
        what = f"{what} against the whole cache, share of answers recalled"
        return self.compare(what, recalled, method, None, better="higher", margin=MISSED, lacking=lacking)

    def above(self, what: str, method: Column, number: float) -> Check:
        """The method against a plain number that its figure must exceed."""
        return check(what, method, ("required", [number] * len(method[1])), "higher")

    def unable(self, columns: Mapping[str, list[float]]) -> str:
        """Why a needle task says nothing on this model; "" if the untouched model can do it.

        The answer's tokens need a mean probability of FLOOR: -log FLOOR nats.
        """
        if not columns:
            return ""
        nats, most = mean(columns["full"]), -float(torch.tensor(FLOOR).log())
        if nats <= most:
            return ""
        return f"the untouched model itself needs {nats:.2f} nats a token for the answer (at most {most:.2f} count)"

    def copied(self, columns: Mapping[str, list[float]], method: Spec) -> None:
        """A reason that text columns may hold: most of what a method loses, it loses where text repeats itself.

        Below COPIED nats a token the untouched model is copying from earlier in the prompt.
        """
        mine, full = columns.get(repr(as_recipe(method)), []), columns.get("full", [])
        lost = [a - b for a, b in zip(mine, full, strict=True)]
        copies = [loss for loss, nats in zip(lost, full, strict=True) if nats < COPIED]
        rest = [loss for loss, nats in zip(lost, full, strict=True) if nats >= COPIED]
        self.because(
            bool(copies and rest) and sum(copies) > sum(lost) / 2 and mean(copies) > NEAR,
            f"{len(copies)} of {len(lost)} texts repeat an earlier passage (the untouched model needs under {COPIED:g} "
            f"nats a token there): they cost {mean(copies or [0]):+.2f} nats, the others {mean(rest or [0]):+.2f}",
        )

    def because(self, condition: bool, text: str) -> None:
        """A reason found in the numbers: told if the condition, computed from them, is true."""
        if condition:
            self.reasons.append(text)


def _asked(trial: Trial, recipe: Recipe) -> tuple[int, torch.Tensor | None]:
    """The bytes the recipe keeps of the sample's prompt, and the predictions of its tail; None if they broke."""
    session = trial.prompt.session(recipe)
    held = int(session.stats.cache_bytes)
    try:
        if recipe.acts("walk"):
            return held, follow_singly(session, trial.tail, trial.sample.scored[0])
        return held, follow(session, trial.tail, trial.sample.task.block)
    except ModelError:
        if not recipe.methods:
            raise
        return held, None


def _judged(sample: Sample, logits: torch.Tensor | None, tail: torch.Tensor) -> float:
    figure = None if logits is None else judge(sample, logits, tail)
    return float("nan") if figure is None else figure


def environment(model: Any, quick: bool) -> dict[str, Any]:
    """The machine and the software, for the report."""
    from importlib.metadata import version

    from tokenmill import __version__

    weight = next(model.parameters())
    return {
        "machine": machine(weight.device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,  # seconds mean little above cores
        "device": weight.device.type,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {"tokenmill": __version__, **{p: version(p) for p in ("torch", "transformers")}},
        "quick": quick,
        "date": time.strftime("%Y-%m-%d"),
    }
