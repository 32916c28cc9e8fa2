"""Skip-middle: a gate in each early block may close for a token, which then skips all blocks between it and its mirror.

    s_i = s_{i-1} + relu(w_i . h_i + b_i)                       i in the first half of the L blocks
    g_i = g_{L-1-i} = 1 - min(s_i, 1)
    h <- h + g_i norm(attention_i(norm(h)))                     keys weigh g_i: who skipped a block is not seen there
    h <- h + g_i norm(feed_forward_i(norm(h)))
    loss = next token + mean_i(m_i mean(g_i) + v_i var(g_i))
    m_i <- m_i + rate (mean(g_i) - target_i),  v_i <- v_i + rate (var(g_i) - target_i (1 - target_i))

Lawson and Aitchison, "Learning to Skip the Middle Layers of Transformers", 2025. The finding is negative.

s only grows with i, so a closed gate stays closed up to the mirror. The targets fall in a straight line from 1 at the
outermost blocks to `target` at the innermost; a deviation below 0.01 moves nothing. Gates that are exactly 0 cost
nothing in use: the block runs for the other tokens alone.

Differs: a small model over bytes, and a `rate` ten times the authors', for trainings of a thousand steps. The authors'
released attention adds log g to the rows of queries, where softmax ignores it; here it is added to the columns of keys,
as the paper says. In training a token that skips a block is computed there and may see itself, but what comes of it is
multiplied by 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenmill.method import method
from tokenmill.models.small import Small, flops, head_flops, initialise, next_byte
from tokenmill.ops.active import gather, put
from tokenmill.types import Batch

DEADBAND = 0.01
TRAINING = {"steps": 1000, "lr": 3e-3, "rows": 8, "length": 128}


@method(
    title="Learning to Skip the Middle Layers of Transformers",
    paper="arXiv:2506.21103",
    year=2025,
    trains="model",
)
def skip_middle(
    closing: Tensor, *, layers: int = 6, hidden: int = 96, target: float = 0.5, rate: float = 1e-2
) -> Tensor:
    """closing (N, B, T): w_i . h_i + b_i of the first N blocks -> the newest gate (B, T)."""
    return 1 - closing.relu().sum(0).clamp(max=1)


class Gated(Small):
    """`dense`: gates stay open; the same model otherwise."""

    targets: Tensor
    coefficients: Tensor

    def __init__(self, layers: int, hidden: int, target: float, rate: float, dense: bool = False):
        super().__init__(hidden, layers, sandwich=True)
        self.size, self.rate, self.dense = hidden, rate, dense
        half = layers // 2
        self.gates = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(0 if dense else half))
        self.gates.apply(initialise)
        falling = torch.linspace(1, target, half)
        middle = falling[-1:] if layers % 2 else falling[:0]
        self.register_buffer("targets", torch.cat([falling, middle, falling.flip(0)]))
        self.register_buffer("coefficients", torch.zeros(2, layers))

    def forward(self, ids: Tensor, skipping: bool = False) -> Tensor:
        return self.run(ids, skipping)[0]

    def run(self, ids: Tensor, skipping: bool = False) -> tuple[Tensor, Tensor]:
        """Logits and gates (L, B, T). With `skipping`, a block runs for the tokens whose gate is open."""
        x, positions = self.start(ids)
        half, layers = len(self.gates), len(self.blocks)
        closing: list[Tensor] = []
        gates: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if self.dense:
                gates.append(torch.ones_like(x[..., 0]))
                x = block(x, positions)
                continue
            if i < half:
                closing.append(self.gates[i](x).squeeze(-1))
                gate = skip_middle(torch.stack(closing))
            else:
                gate = gates[min(layers - 1 - i, half - 1)]
            gates.append(gate)
            if not skipping:
                x = block(x, positions, gate=gate)
            elif bool((gate > 0).any()):
                places, real, h, at, open_ = gather(gate > 0, x, positions, gate)
                x = put(x, places, real, block(h, at, real, open_))
        return self.end(x), torch.stack(gates)

    def regularise(self, gates: Tensor) -> Tensor:
        """The penalty with the coefficients as they are, which then move towards the targets."""
        flat = gates.flatten(1)
        told = torch.stack([flat.mean(1), flat.var(1)])  # (2, L)
        penalty = (self.coefficients.clone() * told).mean(1).sum()
        if self.training:
            off = told.detach() - torch.stack([self.targets, self.targets * (1 - self.targets)])
            self.coefficients += self.rate * off * (off.abs() > DEADBAND)
        return penalty

    def cost(self, gates: Tensor) -> float:
        """Forward operations a token, for the tokens whose gates are open."""
        length = gates.shape[-1]
        shares = (gates > 0).float().mean((1, 2)).tolist()
        return head_flops(self.size) + sum(flops(self.size, s, (s * length + 1) / 2) for s in shares)


def parts(*, layers: int = 6, hidden: int = 96, target: float = 0.5, rate: float = 1e-2) -> nn.Module:
    return Gated(layers, hidden, target, rate)


def objective(parts: Gated, batch: Batch) -> Tensor:
    logits, gates = parts.run(batch.ids)
    loss = next_byte(logits, batch.ids)
    return loss if parts.dense else loss + parts.regularise(gates)


def figure(parts: Gated, batch: Batch) -> dict[str, float]:
    logits, gates = parts.run(batch.ids, skipping=True)
    return {
        "nats a byte": float(next_byte(logits, batch.ids)),
        "blocks a byte": float((gates > 0).float().mean((1, 2)).sum()),
        "mean gate": float(gates.mean()),
        "operations a byte": parts.cost(gates),
    }
