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
    "better than rows of zeros, the mean of all rows, or nearest neighbours' average."
)
PAPER = "Llama to Mistral-NeMo 12B and Qwen to Llama 1B: best of zero, mean, WECHSEL, FOCUS, ZETT without training"
BEYOND = (
    "a donor trained on its own with a vocabulary of its own: here one donor is the model's own table in a random "
    "rotation, the other its first layer's states of tokens read alone"
)
RIVALS = ("zeros", "mean_transplant", "knn_transplant")
METHODS = ("omp_transplant", *RIVALS[1:])


@torch.no_grad()
def measure(lab: Lab) -> list[Check]:
    table = lab.model.get_input_embeddings().weight
    true = table.detach().clone()
    nats: dict[str, dict[str, list[float]]] = {}  # donor -> method -> a text each
    for seed in lab.seeds:
        lab.tick(f"seed {seed}: rebuilding hidden tokens")
        own = Lab(lab.model, lab.tokenizer, [seed], lab.quick)
        texts = [torch.tensor([s.prompt]) for s in own.text(length=256, tail=1, each=4)]
        if not texts:
            return []
        draw = torch.Generator().manual_seed(seed)
        hidden, shared = _split(texts, len(true), draw)
        ids = torch.cat([hidden, shared])
        turn = torch.linalg.qr(torch.randn(true.shape[1], true.shape[1], generator=draw))[0]
        donors = {"its own table, rotated": true[ids].float() @ turn, "its first layer's states": _states(lab, ids)}
        for donor, space in donors.items():
            columns = nats.setdefault(donor, {name: [] for name in (*METHODS, "zeros", "full")})
            for name, values in columns.items():
                if name == "zeros":
                    table[hidden] = 0
                elif name != "full":
                    plan = get(name)(space[: len(hidden)], space[len(hidden) :])
                    rows = combine(true[shared].float(), plan.anchors, plan.coefficients)
                    lab.note(name, f"cosine to the true rows, donor {donor}, seed {seed}", _cosine(rows, true[hidden]))
                    table[hidden] = rows.to(table)
                try:
                    values += [float(token_losses(lab.model, text)[:, 1:].mean()) for text in texts]
                finally:
                    table.copy_(true)
    checks = []
    for donor, columns in nats.items():
        for name, values in columns.items():
            lab.note(name, f"nats a token, a fifth of the text's tokens rebuilt, donor {donor}", values)
        what = f"donor: {donor}, nats a token"
        mine = "omp_transplant", columns["omp_transplant"]
        checks += [check(what, mine, (name, columns[name]), "lower") for name in RIVALS]
    return checks


def _split(texts: list[Tensor], vocabulary: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """A fifth of the tokens that the texts use, to hide; the others and two thousand more, to build of."""
    used = torch.cat([text[0] for text in texts]).unique()
    hidden = used[torch.randperm(len(used), generator=draw)[: len(used) // 5]]
    more = torch.randperm(vocabulary, generator=draw)[:2000]
    shared = torch.cat([used, more]).unique()
    return hidden, shared[~torch.isin(shared, hidden)]


def _states(lab: Lab, ids: Tensor) -> Tensor:
    """The first layer's output (N, E) for tokens read alone, after a line break."""
    before = torch.full_like(ids, (lab.reader.ids("\n") or lab.reader.ids("a"))[0])
    parts = torch.stack([before, ids], 1).split(512)
    run = [lab.model(input_ids=p, output_hidden_states=True, use_cache=False, logits_to_keep=1) for p in parts]
    return torch.cat([out.hidden_states[1][:, 1].float() for out in run])


def _cosine(rows: Tensor, true: Tensor) -> list[float]:
    return torch.cosine_similarity(rows, true.float(), dim=-1).tolist()
