"""OMP transplant: a token that the base model lacks can be built of tokens it has, by a donor's recipe."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.method import get
from tokenmill.ops.match import combine
from tokenmill.run.train import token_losses

CLAIM = (
    "Tokens hidden from the model and rebuilt from a donor's space, each a sparse sum of shared tokens, predict text "
    "better than rows of zeros, the mean of all rows, or nearest neighbours' average, and lie closer to the true rows."
)
PAPER = "Llama to Mistral-NeMo 12B and Qwen to Llama 1B: best of zero, mean, WECHSEL, FOCUS, ZETT without training"
BEYOND = (
    "a second vocabulary, and a donor trained on its own: here the donor is the same model's hidden states of tokens "
    "read alone, three tenths of its depth up"
)
ANCHORS = 32
LAYER = 3 / 10  # how deep the donor's states are taken: another space than the embeddings, not yet the next token's


@torch.no_grad()
def _donor(lab: Lab, ids: Tensor) -> Tensor:
    """Hidden states (N, E) of tokens read alone after a line break, each coordinate at unit spread."""
    before = lab.reader.ids("\n")[:1]
    pairs = torch.stack([torch.full_like(ids, before[0]), ids], 1)
    states = []
    for part in pairs.split(512):
        layers = lab.model(input_ids=part, output_hidden_states=True, use_cache=False, logits_to_keep=1).hidden_states
        states.append(layers[round(LAYER * (len(layers) - 1))][:, 1].float())
    found = torch.cat(states)
    return (found - found.mean(0)) / found.std(0).clamp(min=1e-6)


@torch.no_grad()
def measure(lab: Lab) -> list[Check]:
    table = lab.model.get_input_embeddings().weight
    true = table.detach().clone()
    mine = f"omp_transplant(anchors={ANCHORS})"
    names = (mine, "zeros", "mean_transplant", "knn_transplant")
    nats: dict[str, list[float]] = {name: [] for name in ("full", *names)}
    cosine: dict[str, list[float]] = {name: [] for name in names}
    for seed in lab.seeds:
        lab.tick(f"seed {seed}: rebuilding hidden tokens")
        texts = [torch.tensor([s.prompt]) for s in lab.text(length=256, tail=1, each=4)][:4]
        used = torch.cat([t[0] for t in texts]).unique()
        draw = torch.Generator().manual_seed(seed)
        hidden = used[torch.randperm(len(used), generator=draw)[: len(used) // 5]]
        others = torch.randperm(len(true), generator=draw)[: 1000 if lab.quick else 4000]
        shared = torch.tensor(sorted({*others.tolist(), *used.tolist()} - set(hidden.tolist())))
        space = _donor(lab, torch.cat([hidden, shared]))
        rows = {"zeros": torch.zeros(len(hidden), true.shape[1])}
        for name, method in ((mine, get("omp_transplant")(anchors=ANCHORS)), *((n, get(n)) for n in names[2:])):
            plan = method(space[: len(hidden)], space[len(hidden) :])
            rows[name] = combine(true[shared].float(), plan.anchors, plan.coefficients)
        try:
            for name in nats:
                if name != "full":
                    table[hidden] = rows[name].to(table)
                    cosine[name].append(float(torch.cosine_similarity(rows[name], true[hidden].float()).mean()))
                nats[name] += [float(token_losses(lab.model, t)[:, 1:].mean()) for t in texts]
        finally:
            table.copy_(true)
    for name in nats:
        lab.note(name, "nats a token of text that uses the hidden tokens", nats[name])
    for name in names:
        lab.note(name, "cosine to the true rows", cosine[name])
    what = "a fifth of a text's tokens rebuilt, nats a token"
    return [
        *(check(what, (mine, nats[mine]), (name, nats[name]), "lower") for name in names[1:]),
        *(check("cosine to the true rows", (mine, cosine[mine]), (n, cosine[n]), "higher") for n in names[2:]),
    ]
