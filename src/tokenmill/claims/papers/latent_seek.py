"""LatentSeek: moving the states behind an answer's beginning, on sums that the model half knows."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from functools import partial

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.run.generate import generate

CLAIM = (
    "With the model's own reward, answers are right more often than greedy ones; with a reward that knows the answer, "
    "a right one is found more often than among as many answers drawn at temperature 1."
)
PAPER = (
    "Several families of models: above chain of thought and methods that fine-tune on GSM8K, MATH-500 and AIME 2024, "
    "usually in a few rounds"
)
BEYOND = (
    "reasoning in many steps, and the paper's reward, which is four questions to the model about its answer: its own "
    "reward is here how likely it holds the answer"
)
SHARE, STEPS, TOKENS = 0.5, 10, 6
OWN, KNOWING = f"latent_seek(share={SHARE}, rate={{}})", "latent_seek, the reward knows the answer"
CHANGED = "share of answers that are not the greedy one"
RATES = (0.03, 0.3)  # the paper's, and one at which this model's tokens change


def measure(lab: Lab) -> list[Check]:
    each = 3 if lab.quick else 10
    right: dict[str, list[float]] = defaultdict(list)
    other: dict[str, list[float]] = defaultdict(list)
    for seed in lab.seeds:
        draw = random.Random(f"sums/{seed}")
        for number in range(each):
            lab.tick(f"seed {seed}: question {number + 1} of {each}")
            prompt, answer = _question(draw)
            measure = partial(_asked, lab, lab.reader.ids(prompt), str(answer), 1000 * seed + number)
            for name, (good, also) in lab.unit(measure, prompt, answer, seed, number).items():
                right[name].append(good)
                other[name].append(also)
    for name, values in right.items():
        lab.note(name, "share of answers right", values)
        lab.note(name, "answers written for one question" if name in (KNOWING, "draws") else CHANGED, other[name])
    own, what = OWN.format(RATES[1]), "share of answers right"
    lab.because(
        not any(other[OWN.format(RATES[0])]),
        f"at the paper's rate of {RATES[0]}, {STEPS} rounds move no state of this model far enough to change a token",
    )
    return [
        check(what, (own, right[own]), ("greedy", right["greedy"]), "higher"),
        check(f"{what}, the reward knowing the answer", (KNOWING, right[KNOWING]), ("draws", right["draws"]), "higher"),
    ]


def _asked(lab: Lab, prompt: list[int], answer: str, seed: int) -> dict[str, tuple[float, float]]:
    """For each way to answer: whether it is right, and a number that is shown beside."""
    texts: set[tuple[int, ...]] = set()
    told: dict[str, tuple[float, float]] = {}

    def knows(row: int, ids: list[int]) -> float:
        texts.add(tuple(ids))
        return 0.0 if _right(lab, ids, answer) else -1.0

    def tell(name: str, good: bool, also: int) -> None:
        told[name] = float(good), float(also)

    greedy = generate(lab.model, None, [prompt], max_new_tokens=TOKENS)[0]
    tell("greedy", _right(lab, greedy.ids, answer), 0)
    for rate in RATES:
        name = OWN.format(rate)
        out = generate(lab.model, None, [prompt], name, max_new_tokens=TOKENS)[0]
        tell(name, _right(lab, out.ids, answer), out.ids != greedy.ids)
    out = generate(lab.model, None, [prompt], name, max_new_tokens=TOKENS, reward=knows)[0]
    tell(KNOWING, _right(lab, out.ids, answer), len(texts))
    drawn = [
        generate(lab.model, None, [prompt], temperature=1.0, seed=seed + 7919 * n, max_new_tokens=TOKENS)[0].ids
        for n in range(len(texts))
    ]
    tell("draws", any(_right(lab, ids, answer) for ids in drawn), len(drawn))
    return told


def _right(lab: Lab, ids: list[int], answer: str) -> bool:
    said = re.match(r"\s*(\d+)(?!\d)", lab.tokenizer.decode(ids))
    return said is not None and said[1] == answer


def _question(draw: random.Random) -> tuple[str, int]:
    """A few worked examples and one more, of two digits each."""
    rows = []
    for _ in range(5):
        a, b = draw.randrange(11, 90), draw.randrange(11, 90)
        rows.append((f"{a} + {b} = ", a + b))
    return "".join(f"{ask}{answer}.\n" for ask, answer in rows[:-1]) + rows[-1][0].rstrip(), rows[-1][1]
