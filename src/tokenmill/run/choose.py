"""How tokens are chosen from logits."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.errors import SpecError


class Chooser:
    """Greedy at temperature 0; otherwise draws, every row from a generator of its own."""

    def __init__(self, temperature: float, top_p: float, seed: int, rows: int):
        if temperature < 0:
            raise SpecError(f"temperature must be 0 (greedy) or above, not {temperature:g}")
        if not 0 < top_p <= 1:
            raise SpecError(f"top_p must be in (0, 1], not {top_p:g}")
        self.temperature, self.top_p = temperature, top_p
        self.generators = [torch.Generator().manual_seed(seed) for _ in range(rows)]

    @property
    def greedy(self) -> bool:
        """The likeliest token is taken."""
        return self.temperature == 0

    def generator(self, row: int) -> torch.Generator:
        """What a row draws with."""
        return self.generators[row]

    def __call__(self, logits: Tensor, row: int | None = None) -> Tensor:
        """logits (B, V) to tokens (B,). With `row`, all of them belong to that row."""
        if self.temperature == 0:
            return logits.argmax(-1)
        probabilities = self.probabilities(logits)
        own = [self.generators[i if row is None else row] for i in range(len(logits))]
        drawn = [torch.multinomial(p.cpu(), 1, generator=g) for p, g in zip(probabilities, own, strict=True)]
        return torch.cat(drawn).to(logits.device)

    def probabilities(self, logits: Tensor) -> Tensor:
        """(N, V) logits to the distributions tokens are drawn from (N, V)."""
        probabilities = (logits.float() / self.temperature).softmax(-1)
        if self.top_p < 1:
            ordered, index = probabilities.sort(-1, descending=True)
            ordered[ordered.cumsum(-1) - ordered >= self.top_p] = 0
            probabilities = torch.zeros_like(probabilities).scatter(-1, index, ordered)
        return probabilities
