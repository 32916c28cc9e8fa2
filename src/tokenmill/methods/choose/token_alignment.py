"""Token alignment: a prompt that ends inside a token is completed as if it had been cut between tokens.

the last `back` tokens of the prompt are dropped; r = the bytes they spelled
while r is left:   z_v = -inf unless v begins with r, or r begins with v;   then r loses the bytes of the token emitted

Athiwaratkun et al., "Token Alignment via Character Matching for Subword Completion", 2024.

Special tokens are never dropped, and the first token of the prompt stays.

Differs: tokens that fit are found by bisecting the sorted vocabulary, not in a trie, and no masks are stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.spelling import Spelling


@method(
    title="Token Alignment via Character Matching for Subword Completion",
    paper="arXiv:2403.08688",
    year=2024,
    role="heal",
    needs=("tokenizer",),
)
def token_alignment(logits: Tensor, rest: Sequence[bytes], vocabulary: Spelling, *, back: int = 3) -> Tensor:
    # `back` is spent by the engine, which drops the tokens.
    out = logits.clone()  # (N, V)
    for row, text in enumerate(rest):
        if text:
            fits = vocabulary.within(text) + vocabulary.beyond(text)
            out[row] = -math.inf
            out[row, fits] = logits[row, fits]
    return out
