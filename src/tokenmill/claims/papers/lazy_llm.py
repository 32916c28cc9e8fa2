"""LazyLLM: prompt tokens that the newest one ignores need not pass the deeper layers."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from tokenmill.claims.lab import Lab, Spec
from tokenmill.claims.verdict import Check, check
from tokenmill.method import get, method
from tokenmill.ops import noise
from tokenmill.ops.select import protect, top_share
from tokenmill.run.session import Session
from tokenmill.types import Keep, Trace

CLAIM = (
    "Dropping prompt tokens layer by layer, as attention of the newest token says, gives the first token sooner and "
    "answers as well as the whole prompt, and better than dropping by lot or all at once for the same computation."
)
PAPER = "Llama-2-7B on multi-document questions: first token 2.34x sooner at the same accuracy"
BEYOND = "the size of the gain at 7 billion parameters and 4K tokens"
SHARE = 0.25


@method(verb="keep", title="", acts="walk", needs=("queries",))
def lazy_by_lot(trace: Trace, *, budget: float | None = None, stages: int = 3) -> Keep:
    """lazy_llm's schedule, the tokens drawn."""
    filled = trace.filled[:, :1]
    count = get("lazy_llm")(trace, budget=budget, stages=stages).mask.sum(-1)  # (B, 1)
    lot = noise.at(torch.full_like(trace.positions[:, :1], 7), trace.positions[:, :1], 0)
    return Keep(top_share(protect(lot.expand_as(trace.positions), trace, window=1)[:, :1], filled, count))


def measure(lab: Lab) -> list[Check]:
    mine = f"lazy_llm(budget={SHARE})"
    work = (
        1 + SHARE ** (1 / 3) + SHARE ** (2 / 3) + SHARE
    ) / 4  # share of token-layers that its four stretches compute
    # Half of the layers whole, the rest with what is left.
    at_once = f"lazy_llm(budget={2 * work - 1:.4f}, stages=1, start=0.5)"
    by_lot = lazy_by_lot(budget=SHARE)
    samples = lab.needles(seen=True, each=2)
    gentler = "lazy_llm(budget=0.5)"
    answers = lab.columns(samples, [mine, gentler, at_once, by_lot], "nats a token of the answer, question seen")
    unable = lab.unable(answers)
    spared = lab.recalls("", answers, gentler)
    lab.because(
        bool(spared) and spared[0].outcome == "supported",
        f"with half of the tokens left after the last stage, {gentler}, it recalls as the whole prompt does",
    )
    prompts = [
        torch.tensor([s.prompt]) for s in (lab.text(length=1024, tail=1, each=1) if not lab.quick else samples[:3])
    ]
    seconds: dict[str, list[float]] = {name: [] for name in ("full", mine)}
    for prompt in prompts:
        lab.tick("seconds to the first token, in turns")
        for name in seconds:
            seconds[name].append(_first_token(lab, prompt, None if name == "full" else mine))
    ratios = [a / b for a, b in zip(seconds["full"], seconds[mine], strict=True)]
    lab.note(mine, "times sooner to the first token", ratios)
    what = "question seen, nats a token of the answer"
    return [
        *lab.compare(what, answers, mine, [by_lot, at_once], lacking=unable),
        *lab.recalls("question seen", answers, mine, lacking=unable),
        check("times sooner to the first token", (mine, ratios), ("untouched", [1.0] * len(ratios)), "higher"),
    ]


def _first_token(lab: Lab, prompt: Tensor, spec: Spec) -> float:
    """The least of two turns: what else the machine does only ever adds."""
    turns = []
    for _ in range(2):
        session, began = Session(lab.model, spec), time.perf_counter()
        session.read(prompt)
        turns.append(time.perf_counter() - began)
    return min(turns)
