"""Token-level LoRA: adapters of several tasks, mixed by how near the text is, on text that changes its task."""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from tokenmill.claims.beside import ENCODER_LACKS, sentence_encoder
from tokenmill.claims.lab import Lab
from tokenmill.claims.taught import taught
from tokenmill.claims.verdict import Check, check, mean
from tokenmill.method import Method, get
from tokenmill.methods.choose.token_lora import mixture, nats
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
    "and adapters of rank 16 that were trained for minutes. The method as it runs routes by the model's own "
    "embeddings: its figures stand beside"
)
ROWS, LENGTH = 6, 64
STEPS, QUICK_STEPS, RATE = 240, 12, 3e-3
CENTRE = 64  # rows of a task's training text whose mean embedding stands for it
STRETCH, QUICK_STRETCH = 48, 24  # tokens of one task, of two in every text
SURE, SLIGHT = 0.8, 0.01  # share of the tokens; nats a token
MINE = "token_lora, routed by a sentence encoder"
TOLD, EACH, ALIKE = "told which task each token is of", "new weights at every token", "all adapters alike"
FIXED, ALONE = "a mix that the prompt fixes", "the adapter of {} alone"
WHAT = "nats a token of held-out text behind a prompt; two texts of three go on with another task"


def measure(lab: Lab) -> list[Check]:
    data = tasks(None, lambda text: list(lab.tokenizer(text, add_special_tokens=False)["input_ids"]), LENGTH)
    rivals = ["no adapter", *(ALONE.format(name) for name in data.names), ALIKE, FIXED]
    if sentence_encoder() is None:
        return [check(WHAT, (MINE, []), (rival, []), "lower", lacking=ENCODER_LACKS) for rival in rivals]
    with tempfile.TemporaryDirectory() as folder:
        mine, steps = taught(
            lab, get("token_lora"), data, Path(folder),
            part="adapters", steps=QUICK_STEPS if lab.quick else STEPS, rows=ROWS, length=LENGTH, lr=RATE,
        )  # fmt: skip
        columns, nearest = _columns(lab, mine, data)
    for spec, share in nearest.items():
        lab.note(spec, "share of the tokens nearest to their own task", share)
    lab.note(MINE, "steps of training", [steps])
    for spec, column in columns.items():
        lab.note(spec, WHAT, column)
    told, alike, own = mean(columns[TOLD]), mean(columns[ALIKE]), mean(nearest[MINE])
    lab.because(own < SURE, f"the nearest adapter is that of the token's own task for {own:.0%} of the tokens")
    lacking = ""
    if told > alike - SLIGHT:  # nothing that routes could then do better than all alike
        lacking = (
            f"adapters that differ: after {steps} steps of training the right adapter for every token costs {told:.3f} "
            f"nats and all alike {alike:.3f}, so there is nothing to choose"
        )
    return [check(WHAT, (MINE, columns[MINE]), (spec, columns[spec]), "lower", lacking=lacking) for spec in rivals]


@torch.no_grad()
def _columns(lab: Lab, mine: Method, data: Tasks) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """By how the adapters are mixed: what a token costs, in every text; and how many are nearest to their own task."""
    parts, model = trained(mine, lab.model), lab.model
    learned = Learned(parts, None, model.get_input_embeddings())  # type: ignore[arg-type]
    own, stretch = mine(weights=None), QUICK_STRETCH if lab.quick else STRETCH
    prompt, count = stretch * 2 // 3, len(data.names)
    out: dict[str, list[float]] = {}
    nearest: dict[str, list[float]] = {}
    centres = _centres(lab, data)
    for seed in lab.seeds:
        ids, task = (x.to(model.device) for x in _texts(data, stretch, seed))
        batch, rows = read(model, mine, ids), len(ids)
        alone = torch.eye(count, device=ids.device)
        encoded = _routed(lab, centres, ids, prompt, own)
        mixes = {
            MINE: encoded,
            repr(own): _told(mine, learned, ids, prompt),
            "no adapter": torch.zeros(rows, count),
            ALIKE: torch.full((rows, count), 1 / count),
            **{ALONE.format(name): alone[i].expand(rows, -1) for i, name in enumerate(data.names)},
            FIXED: encoded[:, 0],
            EACH: _routed(lab, centres, ids, prompt, own(stride=1)),
            TOLD: alone[task],
        }
        for number, (name, weights) in enumerate(mixes.items(), 1):
            lab.tick(f"seed {seed}: mix {number} of {len(mixes)}")
            cost = nats(parts, batch, weights.to(ids.device))[:, prompt - 1 :]
            out.setdefault(name, []).extend(cost.mean(1).tolist())
        for name in (MINE, repr(own)):
            right = (mixes[name].argmax(-1).to(task.device) == task)[:, prompt:].float().mean(1)
            nearest.setdefault(name, []).extend(right.tolist())
    return out, nearest


def _centres(lab: Lab, data: Tasks) -> Tensor:
    """(A, E): the mean embedding of rows that each task is trained on, by the sentence encoder."""
    encode = sentence_encoder()
    assert encode is not None
    rows = 4 if lab.quick else CENTRE
    texts = [lab.tokenizer.batch_decode(text.batch(rows, LENGTH, 0, 0)) for text in data.texts]
    return torch.stack([encode(rows).mean(0) for rows in texts])


def _routed(lab: Lab, centres: Tensor, ids: Tensor, prompt: int, method: Method) -> Tensor:
    """(B, T, A): the method's weights, the text so far embedded by the sentence encoder, as in the paper.

    The prompt, and with it the first token after it, has the weights of all of it; then new ones every `stride`.
    """
    encode = sentence_encoder()
    assert encode is not None
    each: list[Tensor] = []
    for length in range(prompt, ids.shape[1] + 1):
        if not each or (length - prompt) % method.stride == 0:
            each.append(mixture(centres, encode(lab.tokenizer.batch_decode(ids[:, :length])), method.scale))
        else:
            each.append(each[-1])
    return torch.stack(each[:1] * prompt + each[1:], 1)


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
