"""CNTP: trying several ways where the model is unsure, on sums and products it half knows."""

from __future__ import annotations

import random
import re

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.run.generate import generate

CLAIM = "Drawn at the same temperature, answers are right more often than one token after the other."
PAPER = "GSM8K, StrategyQA, MATH, TruthfulQA with models up to 70B: above temperature and nucleus sampling throughout"
BEYOND = "reasoning in many steps, self-consistency on top, models of images"
SPEC = "cntp"  # the paper's: ten trials, entropies of 0.01 and 1.5 nats
RIVALS = ("temperature(temperature=1.0)", "greedy")


def measure(lab: Lab) -> list[Check]:
    each = 6 if lab.quick else 100
    right: dict[str, list[float]] = {spec: [] for spec in (SPEC, *RIVALS)}
    passes: dict[str, list[float]] = {spec: [] for spec in right}
    for seed in lab.seeds:
        draw = random.Random(f"sums/{seed}")
        for number in range(each):
            lab.tick(f"seed {seed}: question {number + 1} of {each}")
            prompt, answer = _question(draw)
            for spec in right:
                out = generate(lab.model, lab.tokenizer, [prompt], spec, max_new_tokens=8, seed=1000 * seed + number)[0]
                said = re.match(r"\s*(\d+)(?!\d)", out.text)
                right[spec].append(float(said is not None and said[1] == str(answer)))
                passes[spec].append(out.stats.forward_calls)
    for spec, values in right.items():
        lab.note(spec, "share of answers right", values)
        lab.note(spec, "passes an answer", passes[spec])
    # Greedy stands beside: the paper compares with sampling.
    return [check("share of answers right", (SPEC, right[SPEC]), (RIVALS[0], right[RIVALS[0]]), "higher")]


def _question(draw: random.Random) -> tuple[str, int]:
    """A few worked examples and one more, of two digits and one."""
    rows = []
    for _ in range(5):
        a, b = draw.randrange(11, 90), draw.randrange(2, 10)
        rows.append((f"{a} + {b} = ", a + b))
    return "".join(f"{ask}{answer}.\n" for ask, answer in rows[:-1]) + rows[-1][0].rstrip(), rows[-1][1]
