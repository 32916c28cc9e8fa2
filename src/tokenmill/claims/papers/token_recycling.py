"""Token Recycling: yesterday's runners-up are tomorrow's guesses."""

from __future__ import annotations

import time

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.run.generate import generate

CLAIM = (
    "Text comes out exactly as without drafting, in fewer passes; a pass gives more tokens than with drafts looked up "
    "in the text so far, at the same number of drafted tokens."
)
PAPER = (
    "Vicuna 7B to 33B on Spec-Bench: about 2x faster, 30 % above the best method without training; under 2 MB stored"
)
BEYOND = "the speed of a pass over a tree on a GPU, where drafted tokens cost almost nothing"
NODES = 12


def measure(lab: Lab) -> list[Check]:
    rivals = {"greedy": None, "prompt_lookup": f"prompt_lookup(nodes={NODES})"}
    mine = "token_recycling"  # nodes=12 is its default
    tokens = 24 if lab.quick else 96
    prompts = [s.prompt for s in lab.text(length=128, tail=1, each=4)]
    alike: list[float] = []
    a_pass: dict[str, list[float]] = {name: [] for name in (*rivals, mine)}
    seconds: dict[str, list[float]] = {name: [] for name in (*rivals, mine)}
    for number, prompt in enumerate(prompts, 1):
        lab.tick(f"prompt {number} of {len(prompts)}")
        texts = {}
        for name in a_pass:
            began = time.perf_counter()
            out = generate(lab.model, None, [prompt], rivals.get(name, name), max_new_tokens=tokens, ignore_eos=True)[0]
            seconds[name].append(time.perf_counter() - began)
            texts[name] = out.ids
            a_pass[name].append((len(out.ids) - 1) / max(1, out.stats.forward_calls - 1))
        alike.append(float(texts[mine] == texts["greedy"]))
    for name, values in a_pass.items():
        lab.note(rivals.get(name) or name, "tokens a pass", values)
        lab.note(rivals.get(name) or name, "seconds against greedy, in turns", [
            a / b for a, b in zip(seconds[name], seconds["greedy"], strict=True)
        ])  # fmt: skip
    lookup = rivals["prompt_lookup"] or ""
    return [
        check(
            "share of texts that equal greedy decoding's",
            (mine, alike),
            ("all but one", [1 - 1 / max(1, len(alike))] * len(alike)),
            "higher",
        ),
        check("tokens a pass", (mine, a_pass[mine]), ("greedy", a_pass["greedy"]), "higher"),
        check("tokens a pass", (mine, a_pass[mine]), (lookup, a_pass["prompt_lookup"]), "higher"),
    ]
