"""Token-level LoRA: an adapter a task, mixed anew as the text goes on by how near the text is to each task's own.

    x = mean embedding of the text so far;   c_a = mean embedding of the texts that adapter a was trained on
    s_a = cosine(x, c_a), the highest of them times `scale`;   w = softmax(s), anew at every `stride`-th token
    in every layer:  q <- q + 16 / rank * sum_a w_a B_a A_a h,   v alike, with matrices of its own

A_a (rank, E) begins at random, B_a (outputs, rank) at zero; nothing else is trained. The prompt, and with it the first
token of the answer, has the weights of all of it.

Belofsky, "Token-Level Adaptation of LoRA Adapters for Downstream Task Generalization", 2023.

Differs: text is embedded by the model's own input embeddings, which cost nothing; the authors use a sentence encoder. A
token's keys and values stay as they were made, with the weights of its time; the authors read the whole text anew after
every change. They have rank 64 and dropout, and their library adds up the As and the Bs apart, so that each B meets
every A; here it is the sum of the products, as in the formula. The default is their best stride, every other token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, one_hot

from tokenmill.method import method
from tokenmill.types import Batch, Coming, Learned

ALPHA = 16
TRAINING = {"rows": 6, "steps": 200, "lr": 1e-3}
State = tuple[Tensor, Tensor, int, Tensor]  # sum of embeddings (B, E), tokens (B, 1), since when, weights (B, A)


class Adapters(nn.Module):
    """The matrices of every layer, and where each task's texts lie."""

    centroids: Tensor  # (A, E)
    seen: Tensor  # (A,) rows they are the mean of

    def __init__(self, config: Any, adapters: int, rank: int):
        super().__init__()
        layers, size, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
        head = getattr(config, "head_dim", None) or size // heads
        wide = {"query": heads * head, "value": (getattr(config, "num_key_value_heads", None) or heads) * head}
        self.share = ALPHA / rank
        self.down = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(layers, adapters, rank, size).uniform_(-1, 1) / size**0.5) for name in wide}
        )
        self.up = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(layers, adapters, outputs, rank)) for name, outputs in wide.items()}
        )
        self.register_buffer("centroids", torch.zeros(adapters, size))
        self.register_buffer("seen", torch.zeros(adapters))

    def added(self, layer: int) -> list[tuple[Tensor, Tensor]]:
        """A (A, r, E) and B (A, O, r) for the layer's queries, then for its values."""
        return [(self.down[name][layer], self.share * self.up[name][layer]) for name in ("query", "value")]

    def remember(self, tasks: Tensor, embedded: Tensor) -> None:
        """Take rows (B, E) into the means of their tasks (B,)."""
        own = one_hot(tasks, len(self.seen)).T.to(embedded)  # (A, B)
        self.seen += own.sum(1)
        self.centroids += (own @ embedded - own.sum(1)[:, None] * self.centroids) / self.seen.clamp(min=1)[:, None]


def parts(config: Any, *, adapters: int = 3, rank: int = 16) -> nn.Module:
    return Adapters(config, adapters, rank)


def mixture(centroids: Tensor, text: Tensor, scale: float) -> Tensor:
    """Mean embeddings (..., E) of texts -> the weights of the adapters (..., A)."""
    alike = cosine_similarity(text.float()[..., None, :], centroids.float(), dim=-1)  # (..., A)
    highest = one_hot(alike.argmax(-1), len(centroids))
    return (alike * (1 + (scale - 1) * highest)).softmax(-1)


def nats(parts: Any, batch: Batch, weights: Tensor) -> Tensor:
    """What each token costs (B, T - 1) with the adapters so mixed: weights (B, A) or (B, T, A)."""
    logits = batch.head(batch.adapted(parts, weights)[:, :-1]).float()
    return cross_entropy(logits.transpose(1, 2), batch.ids[:, 1:], reduction="none")


def objective(parts: Any, batch: Batch) -> Tensor:
    assert batch.tasks is not None
    with torch.no_grad():
        parts.remember(batch.tasks, batch.embed(batch.ids).float().mean(1))
    return nats(parts, batch, _own(parts, batch)).mean()


def figure(parts: Any, batch: Batch) -> dict[str, float]:
    own, so_far = _own(parts, batch), torch.arange(1, batch.ids.shape[1] + 1, device=batch.ids.device)
    routed = mixture(parts.centroids, batch.embed(batch.ids).float().cumsum(1) / so_far[:, None], 4.0)  # (B, T, A)
    return {
        "nats a token without adapters": float(nats(parts, batch, torch.zeros_like(own)).mean()),
        "nats a token with the task's own adapter": float(nats(parts, batch, own).mean()),
        "nats a token with adapters mixed for each token": float(nats(parts, batch, routed).mean()),
        "of the tokens, nearest to their own task": float((routed.argmax(-1) == batch.tasks[:, None]).float().mean()),  # type: ignore[index]
    }


def _own(parts: Any, batch: Batch) -> Tensor:
    """(B, A): all of a row's own adapter."""
    assert batch.tasks is not None
    return one_hot(batch.tasks, len(parts.seen)).float()


@method(
    title="Token-Level Adaptation of LoRA Adapters for Downstream Task Generalization",
    paper="arXiv:2311.10847",
    year=2023,
    role="adapt",
    needs=("tasks",),
    trains="part",
)
def token_lora(
    coming: Coming, state: State | None, learned: Learned, *,
    adapters: int = 3, rank: int = 16, stride: int = 2, scale: float = 4.0, weights: str | None = None,
) -> tuple[Tensor, State]:  # fmt: skip
    new = (coming.embedded.float() * coming.real[..., None]).sum(1)  # (B, E)
    count = coming.real.sum(1, keepdim=True)  # (B, 1)
    if state is None:
        total, since, mixed = new, 0, mixture(learned.parts.centroids, new / count, scale)
        return mixed, (total, count, since, mixed)
    total, count, since, mixed = state[0] + new, state[1] + count, state[2] + 1, state[3]
    if since == stride:
        since, mixed = 0, mixture(learned.parts.centroids, total / count, scale)
    return mixed, (total, count, since, mixed)
