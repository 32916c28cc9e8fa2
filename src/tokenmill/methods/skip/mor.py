"""MoR: one stack of layers is run again and again, and a router decides after each round which tokens go on.

    h_0 = first(x);   y = last(h_R)
    r = 1..R:   g_t = scale * sigmoid(w_r . h_t)           for the tokens t still active
                active <- top (R - r + 1) / R of the text by g      in training
                active <- g_t > scale / 2                           in use, where the future is not known
                h_t <- h_t + g_t * stack(h_active)_t       stack sees active tokens alone
    loss = next token + weight * BCE(w_r . h_t, was t chosen)

Bae et al., "Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level Computation", 2025.

Expert-choice routing, a first and a last layer of their own, keys and values of active tokens alone. The auxiliary
loss teaches the router to say by a threshold what top-k says by looking at the whole text.

Differs: a small model over bytes; no warm-up of the capacity; shared keys and values and token-choice routing are left
out. The authors' code keeps top-k when it evaluates, which looks ahead; the figure here is by the threshold, and the
other one stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from tokenmill.method import method
from tokenmill.models.small import Small, flops, head_flops, initialise, next_byte
from tokenmill.ops.active import gather, put
from tokenmill.types import Batch

AUXILIARY = 1e-3
TRAINING = {"steps": 1000, "lr": 3e-3, "rows": 8, "length": 128}


@method(
    title="Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level Computation",
    paper="arXiv:2507.10524",
    year=2025,
    trains="model",
)
def mor(
    scores: Tensor, keep: int | None, *, recursions: int = 3, scale: float = 0.1, layers: int = 2, hidden: int = 96
) -> tuple[Tensor, Tensor]:
    """scores (B, T), -inf = not active -> which go on (B, T) bool, and the weights.

    `keep` go on in each row; None: those above the threshold. `layers` are in the shared stack.
    """
    weights = scale * scores.sigmoid()
    if keep is None:
        return scores > 0, weights
    best = scores.topk(keep, -1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True) & scores.isfinite(), weights


class Recursive(Small):
    """`routing`: "learned" is the paper's, "random" draws as many tokens, "all" runs every token in every round.

    Drawn tokens are weighed by a router that learns, as in the paper: only who goes on is left to chance.
    """

    def __init__(self, recursions: int, scale: float, layers: int, hidden: int, routing: str = "learned"):
        super().__init__(hidden, layers + 2)
        self.recursions, self.routing, self.size = recursions, routing, hidden
        self.routers = nn.ModuleList(nn.Linear(hidden, 1, bias=False) for _ in range(recursions))
        self.decide = mor(recursions=recursions, scale=scale, layers=layers, hidden=hidden)
        self.routers.apply(initialise)

    def forward(self, ids: Tensor, by_rank: bool = True, skipping: bool = True) -> Tensor:
        return self.run(ids, by_rank, skipping)[0]

    def run(self, ids: Tensor, by_rank: bool = True, skipping: bool = True) -> tuple[Tensor, list[Tensor], Tensor]:
        """Logits, who ran in each round, the auxiliary loss. Without `skipping` all is computed, then masked."""
        x, positions = self.start(ids)
        first, *stack, last = self.blocks
        x = first(x, positions)
        active, ran, auxiliary = torch.ones_like(ids, dtype=torch.bool), [], x.new_zeros(())
        for number, router in enumerate(self.routers):
            if self.routing == "all":
                x = self.through(stack, x, positions)
                ran.append(active)
                continue
            scores = router(x).squeeze(-1)
            keep = max(1, ids.shape[1] * (self.recursions - number) // self.recursions)
            chosen, weights = self.decide(scores.masked_fill(~active, -torch.inf), keep if by_rank else None)
            if self.routing == "random":
                chosen, _ = self.decide(torch.randn_like(scores).masked_fill(~active, -torch.inf), keep)
            if self.routing == "learned":
                auxiliary = auxiliary + binary_cross_entropy_with_logits(scores[active], chosen[active].float())
            if skipping and bool(chosen.any()):
                places, real, h, at = gather(chosen, x, positions)
                done = self.through(stack, h, at, None if bool(real.all()) else real)
                x = put(x, places, real, h + weights.gather(1, places)[..., None] * done)
            elif not skipping:
                done = self.through(stack, x, positions, chosen)
                x = torch.where(chosen[..., None], x + weights[..., None] * done, x)
            active = chosen
            ran.append(chosen)
        return self.end(last(x, positions)), ran, auxiliary / self.recursions

    @staticmethod
    def through(stack: Sequence[nn.Module], x: Tensor, positions: Tensor, real: Tensor | None = None) -> Tensor:
        for block in stack:
            x = block(x, positions, real)
        return x

    def cost(self, ran: list[Tensor]) -> float:
        """Forward operations a token, by who ran."""
        length = ran[0].shape[1]
        total = 2 * flops(self.size, 1.0, (length + 1) / 2) + head_flops(self.size)
        for chosen in ran:
            share = float(chosen.float().mean())
            total += (len(self.blocks) - 2) * flops(self.size, share, (share * length + 1) / 2)
        return total


def parts(*, recursions: int = 3, scale: float = 0.1, layers: int = 2, hidden: int = 96) -> nn.Module:
    return Recursive(recursions, scale, layers, hidden)


def objective(parts: Recursive, batch: Batch) -> Tensor:
    logits, _, auxiliary = parts.run(batch.ids)
    return next_byte(logits, batch.ids) + AUXILIARY * auxiliary


def figure(parts: Recursive, batch: Batch) -> dict[str, float]:
    """By the threshold, as in use; by rank, as in training, which looks ahead."""
    logits, ran, _ = parts.run(batch.ids, by_rank=False)
    ranked, ran_ranked, _ = parts.run(batch.ids)
    return {
        "nats a byte": float(next_byte(logits, batch.ids)),
        "rounds a byte": sum(float(r.float().mean()) for r in ran),
        "operations a byte": parts.cost(ran),
        "nats a byte, routed by rank": float(next_byte(ranked, batch.ids)),
        "operations a byte, routed by rank": parts.cost(ran_ranked),
    }
