"""Contrastive search: text that neither repeats itself nor loses its thread."""

from __future__ import annotations

import random
import time

from torch.nn.functional import normalize

from tokenmill.bench.tasks import paragraphs
from tokenmill.claims import writing
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.run.generate import generate
from tokenmill.run.session import Session

CLAIM = (
    "Continuations repeat themselves less than greedy decoding's (diversity: product over n = 2, 3, 4 of the share of "
    "distinct n-grams) and are likelier under the model than those of top-p sampling."
)
PAPER = "GPT-2 tuned on Wikitext-103: diversity 0.94 against 0.31 of beam and 0.94 of nucleus, MAUVE and coherence best"
BEYOND = "the contrastive loss the paper trains with, MAUVE and people's judgement; the model here is as it came"
SPECS = {"contrastive": "contrastive", "greedy": "greedy", "top_p": "top_p(share=0.95)"}


def measure(lab: Lab) -> list[Check]:
    tokens, each = (48, 3) if lab.quick else (96, 5)
    diversity: dict[str, list[float]] = {name: [] for name in SPECS}
    nats: dict[str, list[float]] = {name: [] for name in SPECS}
    seconds: dict[str, list[float]] = {name: [] for name in SPECS}
    alike: list[float] = []
    prompts = [
        (seed, lab.reader.ids(text)[:32])
        for seed in lab.seeds
        for text in random.Random(f"openings/{seed}").sample(paragraphs(), each)
    ]
    for number, (seed, prompt) in enumerate(prompts, 1):
        lab.tick(f"opening {number} of {len(prompts)}")
        for name, spec in SPECS.items():
            began = time.perf_counter()
            out = generate(lab.model, None, [prompt], spec, max_new_tokens=tokens, seed=seed, ignore_eos=True)[0]
            seconds[name].append(time.perf_counter() - began)
            diversity[name].append(writing.diversity(out.ids))
            nats[name].append(writing.nats(lab, prompt, out.ids))
        session = Session(lab.model)
        with session.engaged():
            session.read([prompt])
            states = normalize(session.hidden()[0].float(), dim=-1)
        alike.append(float(((states @ states.T).sum() - len(prompt)) / (len(prompt) * (len(prompt) - 1))))
    for name, spec in SPECS.items():
        lab.note(spec, "diversity", diversity[name])
        lab.note(spec, "nats a token under the model", nats[name])
        lab.note(spec, "seconds against greedy, in turns", [
            a / b for a, b in zip(seconds[name], seconds["greedy"], strict=True)
        ])  # fmt: skip
    lab.note("greedy", "mean cosine of the prompt's states, two by two", alike)
    mine, sampled = "contrastive", SPECS["top_p"]
    return [
        check("diversity", (mine, diversity[mine]), ("greedy", diversity["greedy"]), "higher"),
        check("nats a token under the model", (mine, nats[mine]), (sampled, nats["top_p"]), "lower"),
    ]
