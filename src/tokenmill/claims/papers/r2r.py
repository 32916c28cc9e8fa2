"""R2R: which tokens a small model may write by itself can be told from its own state, token by token."""

from __future__ import annotations

import random
import tempfile
from collections import defaultdict
from pathlib import Path

import torch

from tokenmill.bench.tasks import paragraphs
from tokenmill.claims.lab import Lab
from tokenmill.claims.taught import taught
from tokenmill.claims.verdict import Check, check
from tokenmill.method import Method, get
from tokenmill.methods.choose.r2r import places
from tokenmill.models.architectures import decoder_of
from tokenmill.models.trained import trained
from tokenmill.ops.noise import at
from tokenmill.run.corpus import Corpus, corpus
from tokenmill.run.frozen import read
from tokenmill.run.generate import generate
from tokenmill.run.session import Session

CLAIM = (
    "At the same share of tokens that the large model gives, asking it where the router says leaves fewer tokens that "
    "differ from the large model's than asking where the small model's entropy is highest, or anywhere."
)
PAPER = (
    "R1-1.5B and R1-32B, 5.6B parameters active on average: 1.6 times the accuracy of R1-7B over maths, code and "
    "questions, above R1-14B, 2.8 times as fast as R1-32B"
)
BEYOND = (
    "reasoning benchmarks and models of 1.5 and 32 billion parameters: here the first layers of one model write and "
    "all of them are asked; labels by a verifier; a router that is trained for hours"
)
LAYERS, SHARE, LENGTH, NEW = 24, 0.25, 128, 40
STEPS, QUICK_STEPS = 80, 10
WHAT = f"share of tokens that are not the large model's, which is asked at {SHARE:.0%} of the places"
ENTROPY, RANDOM = "where the small model's entropy is highest", "anywhere"


def measure(lab: Lab) -> list[Check]:
    spec = f"r2r(layers={LAYERS})"
    layers = len(decoder_of(lab.model).layers)
    if layers <= LAYERS:
        lacking = f"a model of more than {LAYERS} layers"
        return [check(WHAT, (spec, []), (name, []), "lower", lacking=lacking) for name in (ENTROPY, RANDOM)]
    with tempfile.TemporaryDirectory() as folder:
        mine, steps = taught(
            lab, get("r2r")(layers=LAYERS), _text(lab), Path(folder),
            part="router", steps=QUICK_STEPS if lab.quick else STEPS,
        )  # fmt: skip
        left = _on_text(lab, mine)
        _written(lab, mine)
    lab.note(spec, "steps of training", [steps])
    for name, column in left.items():
        lab.note(name, WHAT, column)
    return [check(WHAT, (spec, left[spec]), (name, left[name]), "lower") for name in (ENTROPY, RANDOM)]


def _text(lab: Lab) -> Corpus:
    return corpus(None, lambda text: list(lab.tokenizer(text, add_special_tokens=False)["input_ids"]), LENGTH)


@torch.no_grad()
def _on_text(lab: Lab, mine: Method) -> dict[str, list[float]]:
    """By who says where to ask: the share of a row's places where the token is still not the large model's."""
    parts, rows = trained(mine, lab.model), _text(lab).judged(8 if lab.quick else 24, LENGTH)
    out: dict[str, list[float]] = {}
    for number, ids in enumerate(rows.split(1), 1):
        lab.tick(f"text {number} of {len(rows)}")
        said, differs, small = places(parts, read(lab.model, mine, ids.to(lab.model.device)))
        where = torch.arange(LENGTH) + LENGTH * number
        scores = {
            f"r2r(layers={LAYERS})": said[0],
            ENTROPY: torch.special.entr(small[0].float().softmax(-1)).sum(-1),
            RANDOM: at(torch.zeros(LENGTH), where, lab.seeds[0]),
        }
        for name, score in scores.items():
            left = differs[0].clone()
            left[score.topk(round(SHARE * LENGTH)).indices] = False
            out.setdefault(name, []).append(float(left.float().mean()))
        out.setdefault("the small model alone", []).append(float(differs.float().mean()))
    return out


def _written(lab: Lab, mine: Method) -> None:
    """Text that is generated, for the report: how often the large model was asked, and how likely it holds the text."""
    nats: dict[float, list[float]] = defaultdict(list)
    asked: dict[float, list[float]] = defaultdict(list)
    new = NEW // 4 if lab.quick else NEW
    for seed in lab.seeds:
        lab.tick(f"writing, seed {seed}")
        prompt = lab.reader.ids(random.Random(f"openings/{seed}").choice(paragraphs()))[:32]
        for threshold in (0.0, 0.5, 1.0):
            out = generate(lab.model, None, [prompt], mine(threshold=threshold), max_new_tokens=new, ignore_eos=True)[0]
            logits = Session(lab.model).read([prompt + out.ids], last=new + 1)[0, :-1].float()
            lost = torch.nn.functional.cross_entropy(logits, torch.tensor(out.ids, device=logits.device))
            nats[threshold].append(float(lost))
            asked[threshold].append(out.stats.asked / new)
    for threshold in nats:
        name = f"r2r(layers={LAYERS}, threshold={threshold})"
        lab.note(name, "nats a token of what is written, under the large model", nats[threshold])
        lab.note(name, "share of the written tokens that the large model gave", asked[threshold])
