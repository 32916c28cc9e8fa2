"""Layer drop: what a model loses when one layer is left out, or runs after its upper neighbour.

    p = softmax of the untouched model,  q = with layer l left out, or l and l + 1 in exchanged places,
        or read off behind layer l by the model's own norm and head ("lens")
    agreement = share of places where argmax q = argmax p,  kl = mean KL(p || q),  nats = mean -log q(next token)

Lad et al., "The Remarkable Robustness of LLMs: Stages of Inference?", 2024.

Differs: the paper's stages also rest on probes of attention and neurons, which are left out.
"""

from __future__ import annotations

from torch import Tensor

from tokenmill.method import method
from tokenmill.types import Findings, Inquiry


@method(title="The Remarkable Robustness of LLMs: Stages of Inference?", paper="arXiv:2406.19384", year=2024)
def layer_drop(ask: Inquiry, ids: Tensor) -> Findings:
    every = tuple(range(ask.layers))
    p = ask.logits(ids, every).log_softmax(-1)  # (T, V)
    rows = [("untouched", -1, *_against(p, p, ids))]
    for index in every if ask.layers > 1 else ():
        left = every[:index] + every[index + 1 :]
        rows.append(("delete", index, *_against(p, ask.logits(ids, left), ids)))
    for index in every[:-1]:
        swapped = (*every[:index], index + 1, index, *every[index + 2 :])
        rows.append(("swap", index, *_against(p, ask.logits(ids, swapped), ids)))
    for index, logits in enumerate(ask.lens(ids)):
        rows.append(("lens", index, *_against(p, logits, ids)))
    return Findings(("what", "layer", "agreement", "kl", "nats"), tuple(rows), _read_off(rows, ask.layers))


def _against(p: Tensor, logits: Tensor, ids: Tensor) -> tuple[float, float, float]:
    q = logits.log_softmax(-1)
    agreement = (p.argmax(-1) == q.argmax(-1)).float().mean()
    divergence = (p.exp() * (p - q)).sum(-1).mean()
    nats = -q[:-1].gather(-1, ids[1:, None]).mean()
    return float(agreement), float(divergence), float(nats)


def _read_off(rows: list[tuple[str, int, float, float, float]], layers: int) -> dict[str, float]:
    """Means of agreement over the edges, the outer tenth of the layers on either side, and over those between."""
    edge = max(1, layers // 10)
    out = {"nats untouched": rows[0][4]}
    for what in ("delete", "swap"):
        found = [row for row in rows if row[0] == what]
        touched = {row[1]: range(row[1], row[1] + (2 if what == "swap" else 1)) for row in found}
        outer = [r[2] for r in found if any(i < edge or i >= layers - edge for i in touched[r[1]])]
        inner = [r[2] for r in found if not any(i < edge or i >= layers - edge for i in touched[r[1]])]
        for where, values in (("edges", outer), ("middle", inner)):
            if values:
                out[f"agreement, {what}, {where}"] = sum(values) / len(values)
    return out
