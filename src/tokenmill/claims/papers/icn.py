"""ICN: how many different right answers to a question that has many."""

from __future__ import annotations

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.run.generate import generate

CLAIM = "Asking again for something else finds more different right answers than drawing as many answers anew."
PAPER = "knowledge probing with models of 7B and 8B: more new right answers an iteration than by the next ranks"
BEYOND = "open-ended text and chains of thought, and how ranks follow the similarity of output embeddings"
ANSWERS = 5
SPEC = f"icn(answers={ANSWERS}, length=16)"
RIVAL = "temperature(temperature=1.0)"
FACTS = {
    "planet of the solar system": "mercury venus earth mars jupiter saturn uranus neptune",
    "country in Europe": "albania austria belgium bulgaria croatia denmark estonia finland france germany greece "
    "hungary iceland ireland italy latvia lithuania luxembourg malta norway poland portugal romania russia serbia "
    "slovakia slovenia spain sweden switzerland ukraine",
    "month of the year": "january february march april may june july august september october november december",
    "colour of the rainbow": "red orange yellow green blue indigo violet",
    "fruit": "apple banana orange pear grape cherry mango peach plum strawberry blueberry raspberry kiwi lemon lime "
    "melon watermelon pineapple apricot fig",
    "metal": "iron copper gold silver tin lead zinc aluminum aluminium nickel titanium platinum mercury steel cobalt",
    "musical instrument": "piano guitar violin flute drum trumpet cello clarinet saxophone harp trombone organ viola",
    "farm animal": "cow pig sheep goat horse chicken duck goose turkey donkey rooster hen",
}


def measure(lab: Lab) -> list[Check]:
    mine: list[float] = []
    drawn: list[float] = []
    facts = list(FACTS.items())[: 3 if lab.quick else len(FACTS)]
    for seed in lab.seeds:
        for kind, names in facts:
            lab.tick(f"seed {seed}: {kind}")
            prompt, right = _prompt(lab, kind), set(names.split())
            pooled = generate(
                lab.model, lab.tokenizer, [prompt], SPEC, max_new_tokens=16 * ANSWERS, temperature=1.0, seed=seed
            )[0].text.splitlines()
            anew = [
                generate(lab.model, lab.tokenizer, [prompt], RIVAL, max_new_tokens=16, seed=100 * seed + n)[0].text
                for n in range(ANSWERS)
            ]
            mine.append(_distinct(pooled, right))
            drawn.append(_distinct(anew, right))
    lab.note(SPEC, "different right answers", mine)
    lab.note(RIVAL, "different right answers", drawn)
    return [check("different right answers", (SPEC, mine), (RIVAL, drawn), "higher")]


def _prompt(lab: Lab, kind: str) -> str:
    asked = f"Name one {kind}. Answer with its name only."
    if getattr(lab.tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": asked}]
        return str(lab.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return f"{asked}\n"


def _distinct(answers: list[str], right: set[str]) -> float:
    """The first right name of each answer, each counted once."""
    found = set()
    for answer in answers:
        words = "".join(c if c.isalpha() else " " for c in answer.lower()).split()
        named = (w if w in right else w.removesuffix("s") for w in words)
        found.add(next((w for w in named if w in right), None))
    return float(len(found - {None}))
