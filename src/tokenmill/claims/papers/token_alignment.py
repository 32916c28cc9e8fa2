"""Token alignment: prompts that end inside a token, and prompts that do not."""

from __future__ import annotations

import random
import re
import time

from tokenmill.bench.tasks import paragraphs
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.run.generate import generate

CLAIM = (
    "Where a prompt ends inside a token, the word is completed rightly more often than by greedy decoding; where it "
    "ends between words, what follows is right as often."
)
PAPER = "code and text models on partial tokens, space prefixes and indentation: marked gains, a minor increase in time"
BEYOND = "code with partial indentation, and larger models"
LENGTH = 300  # characters before the cut, at least
WORD = re.compile(r"(?<= )[a-z]{6,}(?= )")


def measure(lab: Lab) -> list[Check]:
    inside: dict[str, list[float]] = {"greedy": [], "token_alignment": []}
    between: dict[str, list[float]] = {"greedy": [], "token_alignment": []}
    seconds: dict[str, list[float]] = {"greedy": [], "token_alignment": []}
    each = 4 if lab.quick else 16
    for number, (before, word, cut) in enumerate(_words(lab, each), 1):
        lab.tick(f"word {number} of {each * len(lab.seeds)}")
        for column, prompt, right in (
            (inside, before + word[:cut], word[cut:]),
            (between, before[:-1], " " + word),
        ):
            for name, values in column.items():
                began = time.perf_counter()
                text = generate(lab.model, lab.tokenizer, [prompt], name, max_new_tokens=6)[0].text
                seconds[name].append(time.perf_counter() - began)
                values.append(float(re.match(re.escape(right) + r"(?![a-z])", text) is not None))
    for name in inside:
        lab.note(name, "share of words completed, cut inside a token", inside[name])
        lab.note(name, "share of words right, cut before the word", between[name])
        lab.note(name, "seconds against greedy, in turns", [
            a / b for a, b in zip(seconds[name], seconds["greedy"], strict=True)
        ])  # fmt: skip
    mine, rival = "token_alignment", "greedy"
    return [
        check("share of words completed, cut inside a token", (mine, inside[mine]), (rival, inside[rival]), "higher"),
        check(
            "share of words right, cut before the word", (mine, between[mine]), (rival, between[rival]), "higher",
            margin=0.1,
        ),
    ]  # fmt: skip


def _words(lab: Lab, each: int) -> list[tuple[str, str, int]]:
    """(text before, word, letters shown): cut where the tokens of what is shown are not those of the whole text."""
    found = []
    for seed in lab.seeds:
        draw, taken = random.Random(f"cuts/{seed}"), 0
        while taken < each:
            text = draw.choice(paragraphs())
            words = [m for m in WORD.finditer(text) if m.start() >= LENGTH]
            if not words:
                continue
            word = draw.choice(words)
            cut = draw.randrange(2, len(word[0]) - 1)
            before = text[max(0, word.start() - 2 * LENGTH) : word.start()]
            shown, whole = lab.reader.ids(before + word[0][:cut]), lab.reader.ids(before + word[0])
            if whole[: len(shown)] != shown:
                found.append((before, word[0], cut))
                taken += 1
    return found
