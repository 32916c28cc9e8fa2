"""MiniCache: neighbouring deep layers are alike enough to store one direction for both."""

from __future__ import annotations

from dataclasses import replace

import torch

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import NEAR, Check
from tokenmill.method import get, method
from tokenmill.run.session import Session
from tokenmill.types import Merge, Trace

CLAIM = (
    "From the middle layers up, two neighbouring layers can store one direction per token and their own lengths with "
    "almost no loss, with less loss than storing their plain average, and than evicting to as many bytes."
)
PAPER = (
    "LLaMA-2-7B on ShareGPT: with 4-bit storage 5.02x smaller, near-lossless; neighbours' states alike in deep layers"
)
BEYOND = "its combination with 4-bit storage, and throughput"
ALIKE = 0.9  # cosine below which one direction cannot stand for two: their halfway vector misses both by 13 degrees


@method(verb="merge", title="")
def plain_average(lower: Trace, upper: Trace) -> Merge | None:
    """Both layers read the mean of their states, lengths included; the same tokens stay apart, at the same cost."""
    merge = get("mini_cache")(lower, upper)
    if merge is None:
        return None
    keys, values = (lower.keys + upper.keys) / 2, (lower.values + upper.values) / 2
    norms = [x.norm(dim=-1) for x in (keys, values)]
    parts = [x / n.clamp(min=1e-12)[..., None] for x, n in zip((keys, values), norms, strict=True)]
    twice = [torch.stack((n, n)) for n in norms]
    return replace(merge, key_direction=parts[0], value_direction=parts[1], key_norms=twice[0], value_norms=twice[1])


def measure(lab: Lab) -> list[Check]:
    samples = lab.text(each=6)
    held = lab.columns(samples[:1], ["mini_cache"], "nats a token of real text").get("mini_cache bytes", [1.0])[0]
    evicting = f"h2o(budget={min(1.0, held):.2f})"  # as many bytes
    nats = lab.columns(samples, ["mini_cache", plain_average, evicting], "nats a token of real text")
    keys, values = _likeness(lab, samples[0].prompt) if samples else (1.0, 1.0)
    lab.note("mini_cache", "cosine of neighbouring layers' keys, upper half", [keys])
    lab.note("mini_cache", "cosine of neighbouring layers' values, upper half", [values])
    lab.because(
        min(keys, values) < ALIKE,
        f"neighbouring layers of this model are not alike: in the upper half the mean cosine is {keys:.2f} for keys "
        f"and {values:.2f} for values, where one direction for both needs about {ALIKE:g}",
    )
    return [
        *lab.compare("against the untouched cache, nats a token", nats, "mini_cache", None, margin=NEAR),
        *lab.compare(f"{held:.0%} of the bytes, nats a token", nats, "mini_cache", [plain_average, evicting]),
    ]


def _likeness(lab: Lab, prompt: list[int]) -> tuple[float, float]:
    """Mean cosine of the keys, and of the values, that the pairs of the upper half would merge."""
    session = Session(lab.model)
    session.read([prompt])
    assert session.cache is not None
    views = [store.view() for store in session.cache.stores]
    pairs = [(a, a + 1) for a in range(len(views) // 2, len(views) - 1) if (len(views) - a) % 2 == 0]
    found = [
        [torch.cosine_similarity(views[a][side], views[b][side], dim=-1).mean() for a, b in pairs] for side in (0, 1)
    ]
    return float(torch.stack(found[0]).mean()), float(torch.stack(found[1]).mean())
