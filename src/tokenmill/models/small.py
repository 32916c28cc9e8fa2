"""A small decoder over bytes, trained from scratch: what whole-model methods put a router, a gate or a mixer into.

Residual blocks with RMS norms, rotary positions, plain attention heads, SwiGLU. A block runs on any tokens of a text:
it is given their positions, and attends among them alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu

from tokenmill.errors import SpecError

HEAD = 32  # size of an attention head
BYTES = 256


class FeedForward(nn.Module):
    def __init__(self, size: int, inner: int | None = None):
        super().__init__()
        inner = inner or 8 * size // 3
        self.up, self.down = nn.Linear(size, 2 * inner, bias=False), nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.up(x).chunk(2, -1)
        return self.down(silu(one) * other)


class Block(nn.Module):
    """x + gate * attention, then + gate * feed-forward. `sandwich`: norms after both as well, before the gate."""

    def __init__(self, size: int, sandwich: bool = False, feed_forward: Callable[[int], nn.Module] = FeedForward):
        super().__init__()
        if size % HEAD:
            raise SpecError(f"hidden={size} does not divide into attention heads of {HEAD}; give a multiple of {HEAD}")
        self.qkv, self.out = nn.Linear(size, 3 * size, bias=False), nn.Linear(size, size, bias=False)
        self.feed_forward = feed_forward(size)
        self.norms = nn.ModuleList(nn.RMSNorm(size, eps=1e-5) for _ in range(2))
        self.after = nn.ModuleList(nn.RMSNorm(size, eps=1e-5) if sandwich else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, positions: Tensor, real: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        """x (B, N, E) at positions (B, N), in text order. What is not `real` (B, N) is attended to by none.

        `gate` (B, N) multiplies what is added, and the attention that others pay to a token.
        """
        weight: Tensor | float = 1.0 if gate is None else gate[..., None]
        x = x + weight * self.after[0](self.attention(self.norms[0](x), positions, real, gate))
        return x + weight * self.after[1](self.feed_forward(self.norms[1](x)))

    def attention(self, x: Tensor, positions: Tensor, real: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        q, k, v = self.heads(x, positions)
        if real is None and gate is None:
            seen = scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            seen = scaled_dot_product_attention(q, k, v, attn_mask=_bias(x, real, gate))
        return self.out(seen.transpose(1, 2).flatten(2))

    def heads(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, N, D), turned."""
        q, k, v = (t.unflatten(-1, (-1, HEAD)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return turned(q, positions), turned(k, positions), v


def _bias(x: Tensor, real: Tensor | None, gate: Tensor | None) -> Tensor:
    """(B, 1, N, N) added to scores: what comes later or is not real is never seen, what is gated is seen less.

    A token may always see itself, so that a row in which nothing is left to see stays finite; what it then holds is
    multiplied by its own gate, or not used.
    """
    n = x.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
    shown = causal if real is None else causal & real[:, None, :]
    itself = torch.eye(n, dtype=torch.bool, device=x.device)
    # exp(log g) multiplies e^score by g; where g is 0 its logarithm has no gradient, so it is masked instead.
    if gate is not None:
        shown = shown & (gate > 0)[:, None, :]
    bias = x.new_zeros(x.shape[0], n, n).masked_fill(~(shown | itself), -torch.inf)
    if gate is not None:
        bias = bias + gate.clamp(min=1e-6).log()[:, None, :]
    return bias[:, None]


def turned(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions: x (B, H, N, D) turned by positions (B, N)."""
    half = x.shape[-1] // 2
    speed = 10_000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = positions[:, None, :, None] * speed
    one, other = x[..., :half], x[..., half:]
    return torch.cat([one * angle.cos() - other * angle.sin(), other * angle.cos() + one * angle.sin()], -1)


class Small(nn.Module):
    """Embedding, blocks, norm; the head is the embedding. Methods run the blocks in their own order."""

    def __init__(
        self, size: int, blocks: int, sandwich: bool = False, feed_forward: Callable[[int], nn.Module] = FeedForward
    ):
        super().__init__()
        self.embedding = nn.Embedding(BYTES, size)
        self.blocks = nn.ModuleList(Block(size, sandwich, feed_forward) for _ in range(blocks))
        self.norm_in = nn.RMSNorm(size, eps=1e-5) if sandwich else nn.Identity()
        self.norm = nn.RMSNorm(size, eps=1e-5)
        self.apply(initialise)

    @property
    def stack(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]  # for the type's sake: all are

    def start(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids (B, T) -> states (B, T, E) and positions (B, T)."""
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return self.norm_in(self.embedding(ids)), positions

    def end(self, x: Tensor) -> Tensor:
        """(B, T, E) -> logits (B, T, V)."""
        return nn.functional.linear(self.norm(x), self.embedding.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Every block, for every token: the dense model that others are compared with."""
        x, positions = self.start(ids)
        for block in self.blocks:
            x = block(x, positions)
        return self.end(x)


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def next_byte(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean -log p of each byte after the first, in nats."""
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def flops(size: int, tokens: float, context: float) -> float:
    """Multiplications and additions of one block's forward pass, per token of the text.

    `tokens` is the share of the text that runs the block, `context` the mean number of tokens that such a token sees.
    """
    return tokens * (attention_flops(size, context) + feed_forward_flops(size))


def attention_flops(size: int, context: float) -> float:
    return 2 * 4 * size * size + 4 * context * size


def feed_forward_flops(size: int, inner: int | None = None) -> float:
    return 2 * 3 * size * (inner or 8 * size // 3)


def head_flops(size: int) -> float:
    return 2.0 * size * BYTES
