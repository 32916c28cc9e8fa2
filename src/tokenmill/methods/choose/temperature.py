"""Temperature: below 1 likely tokens become likelier still, above 1 less so.

p = softmax(z / temperature);  0 is greedy
"""

from __future__ import annotations

from torch import Tensor

from tokenmill.method import get, method
from tokenmill.ops.logits import heat


@method(title="", role="warp")
def temperature(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    return logits / heat(temperature) if temperature > 0 else get("greedy")(logits)
