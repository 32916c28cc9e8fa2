"""ReAGent: replacing tokens by plausible others finds those the prediction rests on."""

from __future__ import annotations

import torch

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.method import get
from tokenmill.ops.faithfulness import soft
from tokenmill.run.explain import asking

CLAIM = (
    "Its token scores are more faithful than noise's and than input x gradient's: hiding softly what they call "
    "important changes the prediction more, and keeping it preserves the prediction better."
)
PAPER = "six decoders up to 6.7B, three data sets: above seven methods in soft sufficiency and comprehensiveness"
BEYOND = "replacements by RoBERTa, which sees both sides; here the model's own predictions replace"
RIVALS = ("random_attribution", "gradient_norm", "occlusion")


def measure(lab: Lab) -> list[Check]:
    methods = [get("reagent"), *map(get, RIVALS)]
    specs = [repr(m) for m in methods]
    mine = specs[0]
    kept: dict[str, list[float]] = {spec: [] for spec in specs}
    hidden: dict[str, list[float]] = {spec: [] for spec in specs}
    asked: dict[str, list[float]] = {spec: [] for spec in specs}
    ask = asking(lab.model, lab.tokenizer)
    prompts = [torch.tensor(s.prompt) for s in lab.text(length=24, tail=1, each=5)]
    for number, ids in enumerate(prompts, 1):
        lab.tick(f"prompt {number} of {len(prompts)}")
        target = int(ask.probabilities(ids[None])[0].argmax())
        for spec, method in zip(specs, methods, strict=True):
            told = method(ask, ids, target)
            found = soft(ask, ids, told.scores, samples=8, seed=number)
            kept[spec].append(found.sufficiency)
            hidden[spec].append(found.comprehensiveness)
            asked[spec].append(told.calls)
    for spec in specs:
        lab.note(spec, "soft sufficiency", kept[spec])
        lab.note(spec, "soft comprehensiveness", hidden[spec])
        lab.note(spec, "rows asked", asked[spec])
    # Occlusion is not among the paper's rivals: its figures stand beside, and decide nothing.
    return [
        check(f"soft {name}", (mine, values[mine]), (rival, values[rival]), "higher")
        for name, values in (("sufficiency", kept), ("comprehensiveness", hidden))
        for rival in RIVALS[:2]
    ]
