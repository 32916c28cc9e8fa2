"""Min-p: at high temperatures answers stay right, and text stays text, where top-p lets the tail in."""

from __future__ import annotations

import random
from statistics import fmean

import torch

from tokenmill.claims.lab import MISSED, Column, Lab
from tokenmill.claims.verdict import NEAR, Check, check
from tokenmill.claims.writing import away, written
from tokenmill.method import recipe
from tokenmill.run.choose import Chooser
from tokenmill.run.session import Session

CLAIM = (
    "At temperatures 1.5 and 2 the right answer is drawn more often with min-p 0.1 than with top-p 0.9, and with the "
    "best of four min-p than with the best of four top-p; at 1 about as often. In perplexity, text of min-p 0.1 at 1.5 "
    "is nearer to people's than that of top-p 0.9 or 0.7 at 1.5, and no farther than that of top-p 0.9 at 1, which is "
    "less diverse."
)
PAPER = (
    "GSM8K, Mistral 7B, min-p 0.1 against top-p 0.9: 31 % right against 28 at temperature 1, 18 against 1 at 1.5, 6 "
    "against 0 at 2, 0 against 0 at 3; with top-p 0.7 33 at 1, 0 at 2 (the authors' logs)"
)
BEYOND = "reasoning in many steps, creative writing judged by models and people"
# What the authors' logs have; the first of each is what the paper compares most.
MINE = tuple(f"min_p(share={share})" for share in (0.1, 0.05, 0.2, 0.3))
RIVAL = tuple(f"top_p(share={share})" for share in (0.9, 0.95, 0.8, 0.7))
COOL, WARM, HOT, HOTTER = 1.0, 1.5, 2.0, 3.0
SUMS, CODES = "sums of two digits", "codes hidden in 256 tokens of text"


def measure(lab: Lab) -> list[Check]:
    checks = []
    for task, asked in ((SUMS, _sums(lab)), (CODES, _codes(lab))):
        specs = [_at(t, spec) for t in (COOL, WARM, HOT, HOTTER) for spec in (*MINE, *RIVAL)]
        right, lacking = _chances(lab, task, asked, [*specs, "greedy"])
        for t in (COOL, WARM, HOT):
            what = f"{task}: chance that the right answer is drawn at temperature {t:g}"
            mine, rival = (
                [(spec, right.get(spec, [])) for spec in (_at(t, s) for s in some)] for some in (MINE, RIVAL)
            )
            margin = MISSED if t == COOL else 0.0
            checks.append(check(what, mine[0], rival[0], "higher", margin=margin, lacking=lacking))
            best = max(mine, key=_mean), max(rival, key=_mean)
            checks.append(check(f"{what}, each at its best share", *best, "higher", margin=margin, lacking=lacking))
    hot, cool, rivals = _at(WARM, MINE[0]), _at(COOL, RIVAL[0]), [_at(WARM, RIVAL[0]), _at(WARM, RIVAL[-1])]
    out = written(lab, [hot, cool, *rivals, "greedy"])
    what = "nats a token under the model, distance from people's text"
    checks += [check(what, away(out.nats, hot), away(out.nats, rival), "lower") for rival in rivals]
    checks.append(check(what, away(out.nats, hot), away(out.nats, cool), "lower", margin=NEAR))
    checks.append(check("diversity", (hot, out.diversity[hot]), (cool, out.diversity[cool]), "higher"))
    return checks


def _mean(column: Column) -> float:
    return fmean(column[1] or [0.0])


def _at(temperature: float, spec: str) -> str:
    return f"temperature(temperature={temperature}) + {spec}"


def _chances(
    lab: Lab, task: str, asked: list[tuple[list[int], list[int]]], specs: list[str]
) -> tuple[dict[str, list[float]], str]:
    """How likely each spec draws the whole answer, exactly: the product over its tokens; and why that may say nothing.

    What may be drawn after each token of the right answer is known from one pass.
    """
    out: dict[str, list[float]] = {}
    nats: list[float] = []
    for number, (prompt, answer) in enumerate(asked, 1):
        lab.tick(f"{task}: {number} of {len(asked)}")
        logits = Session(lab.model).read([prompt + answer], last=len(answer) + 1)[0, :-1]
        right = torch.tensor(answer, device=logits.device)
        nats.append(float(torch.nn.functional.cross_entropy(logits.float(), right)))
        for spec in specs:
            p = Chooser.of(recipe(spec), None, 1.0, 0, 1).probabilities(logits)
            out.setdefault(spec, []).append(float(p.gather(-1, right[:, None]).prod()))
    for spec, values in out.items():
        lab.note(spec, f"{task}: chance of the right answer", values)
    return out, lab.unable({"full": nats}) if nats else ""


def _sums(lab: Lab) -> list[tuple[list[int], list[int]]]:
    """Four worked sums and one more; the stop behind the answer belongs to it."""
    found = []
    for seed in lab.seeds:
        draw = random.Random(f"digits/{seed}")
        for _ in range(3 if lab.quick else 30):
            rows = [(draw.randrange(1, 10), draw.randrange(1, 10)) for _ in range(5)]
            lines = [f"{a} + {b} = {a + b}." for a, b in rows]
            asked, answer = "\n".join(lines).rsplit("=", 1)
            found.append((lab.reader.prefix + lab.reader.ids(f"{asked}="), lab.reader.ids(answer)))
    return found


def _codes(lab: Lab) -> list[tuple[list[int], list[int]]]:
    found = []
    for sample in lab.needles(seen=True, length=256, each=10):
        first = sample.scored[0]
        found.append((sample.prompt + sample.tail[:first], sample.tail[first:]))
    return found
