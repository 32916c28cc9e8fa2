"""Token-level LoRA: adapters of several tasks, mixed by how near the text is, on text that changes its task."""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from tokenmill.claims.lab import Lab
from tokenmill.claims.taught import taught
from tokenmill.claims.verdict import Check, check, mean
from tokenmill.method import Method, get
from tokenmill.methods.choose.token_lora import nats
from tokenmill.models.trained import trained
from tokenmill.run.corpus import Corpus, Tasks, tasks
from tokenmill.run.frozen import read
from tokenmill.types import Coming, Learned

CLAIM = (
    "Mixed for every other token by how near the text is to what each was trained on, adapters of several tasks cost "
    "fewer nats a token of held-out text of these tasks than none of them, each alone, all alike, and a mix that the "
    "prompt fixes."
)
PAPER = (
    "Llama-2-7b with four adapters of rank 64: above the base model on GSM8K, ARC-Challenge, SQuAD and CodeAlpaca-20k, "
    "on average above each single adapter, and best with new weights at every other token"
)
BEYOND = (
    "a model of 7 billion parameters and answers that are right or wrong: here nats a token of code, prose and tables, "
    "adapters of rank 16 that were trained for minutes, and the model's own embeddings in place of a sentence encoder"
)
ROWS, LENGTH = 6, 64
STEPS, QUICK_STEPS, RATE = 80, 12, 3e-3
STRETCH, QUICK_STRETCH = 48, 24  # tokens of one task, of two in every text
SURE, SLIGHT = 0.8, 0.01  # share of the tokens; nats a token
TOLD, EACH, ALIKE = "told which task each token is of", "new weights at every token", "all adapters alike"
WHAT = "nats a token of held-out text behind a prompt; two texts of three go on with another task"


def measure(lab: Lab) -> list[Check]:
    data = tasks(None, lambda text: list(lab.tokenizer(text, add_special_tokens=False)["input_ids"]), LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        mine, steps = taught(
            lab, get("token_lora"), data, Path(folder),
            part="adapters", steps=QUICK_STEPS if lab.quick else STEPS, rows=ROWS, length=LENGTH, lr=RATE,
        )  # fmt: skip
        columns, nearest = _columns(lab, mine, data)
    name = repr(mine(weights=None))
    lab.note(name, "steps of training", [steps])
    lab.note(name, "share of the tokens nearest to their own task", nearest)
    for spec, column in columns.items():
        lab.note(spec, WHAT, column)
    told, alike, own = mean(columns[TOLD]), mean(columns[ALIKE]), mean(nearest)
    lab.because(own < SURE, f"the nearest adapter is that of the token's own task for {own:.0%} of the tokens")
    lab.because(
        told > alike - SLIGHT,
        f"the right adapter for every token costs {told:.3f} nats and all alike {alike:.3f}: after {steps} steps of "
        "training, choosing among them gains nothing",
    )
    rivals = [spec for spec in columns if spec not in (name, TOLD, EACH)]  # of these two nothing is claimed here
    return [check(WHAT, (name, columns[name]), (spec, columns[spec]), "lower") for spec in rivals]


@torch.no_grad()
def _columns(lab: Lab, mine: Method, data: Tasks) -> tuple[dict[str, list[float]], list[float]]:
    """By how the adapters are mixed: what a token costs, in every text; and how many are nearest to their own task."""
    parts, model = trained(mine, lab.model), lab.model
    learned = Learned(parts, None, model.get_input_embeddings())  # type: ignore[arg-type]
    own, stretch = mine(weights=None), QUICK_STRETCH if lab.quick else STRETCH
    prompt, count = stretch * 2 // 3, len(data.names)
    out: dict[str, list[float]] = {}
    nearest: list[float] = []
    for seed in lab.seeds:
        ids, task = (x.to(model.device) for x in _texts(data, stretch, seed))
        batch, rows = read(model, mine, ids), len(ids)
        alone = torch.eye(count, device=ids.device)
        told = _told(mine, learned, ids, prompt)
        mixes = {
            repr(own): told,
            "no adapter": torch.zeros(rows, count),
            ALIKE: torch.full((rows, count), 1 / count),
            **{f"the adapter of {name} alone": alone[i].expand(rows, -1) for i, name in enumerate(data.names)},
            "a mix that the prompt fixes": told[:, 0],
            EACH: _told(mine(stride=1), learned, ids, prompt),
            TOLD: alone[task],
        }
        for number, (name, weights) in enumerate(mixes.items(), 1):
            lab.tick(f"seed {seed}: mix {number} of {len(mixes)}")
            cost = nats(parts, batch, weights.to(ids.device))[:, prompt - 1 :]
            out.setdefault(name, []).extend(cost.mean(1).tolist())
        nearest += (told.argmax(-1) == task)[:, prompt:].float().mean(1).tolist()
    return out, nearest


def _texts(data: Tasks, stretch: int, seed: int) -> tuple[Tensor, Tensor]:
    """(B, 2 stretch) held-out ids and the task of each: every task goes on by itself, and with every other."""
    texts, of = [], []
    for number, (first, then) in enumerate(product(range(len(data.names)), repeat=2)):
        held = [Corpus(data.texts[task].held_out, data.texts[task].held_out) for task in (first, then)]
        at = 100 * seed + number
        whole = held[0].batch(1, 2 * stretch, at, 0)[0]
        texts.append(whole if first == then else torch.cat([whole[:stretch], held[1].batch(1, stretch, at, 1)[0]]))
        of.append(torch.tensor([first] * stretch + [then] * stretch))
    return torch.stack(texts), torch.stack(of)


def _told(mine: Method, learned: Learned, ids: Tensor, prompt: int) -> Tensor:
    """(B, T, A): what the method says when it reads a prompt and then a token at a time."""
    embedded, real = learned.embed(ids), torch.ones_like(ids, dtype=torch.bool)
    weights, state = mine(Coming(embedded[:, :prompt], real[:, :prompt]), None, learned)
    each = [weights] * prompt
    for at in range(prompt, ids.shape[1]):
        weights, state = mine(Coming(embedded[:, at : at + 1], real[:, at : at + 1]), state, learned)
        each.append(weights)
    return torch.stack(each, 1)
