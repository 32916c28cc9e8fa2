"""How claims about drawn text are measured: openings of real text, what people wrote next, what each rival writes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from statistics import fmean

import torch

from tokenmill.bench.tasks import paragraphs
from tokenmill.claims.lab import Lab
from tokenmill.run.generate import generate
from tokenmill.run.session import Session

OPENING = 32  # tokens
PEOPLE = "people"
WINDOWS = (16, 32, 128)


@dataclass
class Written:
    """One number an opening, by spec; people's own continuation is one of the specs."""

    nats: dict[str, list[float]] = field(default_factory=dict)  # nats a token under the untouched model
    rep: dict[str, list[float]] = field(default_factory=dict)
    loops: dict[str, list[float]] = field(default_factory=dict)  # 1 where the text ends in a loop
    diversity: dict[str, list[float]] = field(default_factory=dict)


def written(lab: Lab, specs: Sequence[str], *, tokens: int = 96, each: int = 10) -> Written:
    """Continue every opening under each spec, by so many tokens; so many openings a seed."""
    out, texts = Written(), openings(lab, *((48, 1) if lab.quick else (tokens, each)))
    for number, (prompt, people) in enumerate(texts, 1):
        lab.tick(f"opening {number} of {len(texts)}")
        for spec in (PEOPLE, *specs):
            ids = people
            if spec != PEOPLE:
                write = partial(_continued, lab, prompt, spec, len(people), number)
                ids = lab.unit(write, "written", spec, prompt, len(people), number)
            out.nats.setdefault(spec, []).append(nats(lab, prompt, ids))
            out.rep.setdefault(spec, []).append(rep(ids))
            out.loops.setdefault(spec, []).append(float(loops(ids)))
            out.diversity.setdefault(spec, []).append(diversity(ids))
    for spec in (PEOPLE, *specs):
        lab.note(spec, "nats a token of text under the model", out.nats[spec])
        lab.note(spec, "REP", out.rep[spec])
        lab.note(spec, "share of texts that end in a loop", out.loops[spec])
        lab.note(spec, "diversity", out.diversity[spec])
    return out


def _continued(lab: Lab, prompt: list[int], spec: str, tokens: int, seed: int) -> list[int]:
    return generate(lab.model, None, [prompt], spec, max_new_tokens=tokens, seed=seed, ignore_eos=True)[0].ids


def openings(lab: Lab, tokens: int, each: int) -> list[tuple[list[int], list[int]]]:
    """Beginnings of real paragraphs, none twice, and the text that really follows, into the paragraphs after it."""
    found, text = [], paragraphs()
    for at in random.Random("openings").sample(range(len(text)), each * len(lab.seeds)):
        ids: list[int] = []
        end = at
        while len(ids) < OPENING + tokens:
            ids += lab.reader.ids(f" {text[end % len(text)]}" if ids else text[end])
            end += 1
        found.append((lab.reader.prefix + ids[:OPENING], ids[OPENING : OPENING + tokens]))
    return found


def away(column: dict[str, list[float]], spec: str) -> tuple[str, list[float]]:
    """How far a spec's mean is from people's, as numbers an opening: their mean is the distance of the two means."""
    differences = [mine - theirs for mine, theirs in zip(column[spec], column[PEOPLE], strict=True)]
    sign = 1.0 if fmean(differences) >= 0 else -1.0
    return spec, [sign * d for d in differences]


def nats(lab: Lab, prompt: list[int], ids: list[int]) -> float:
    """Nats a token of `ids` after the prompt, under the model."""
    logits = Session(lab.model).read([prompt + ids], last=len(ids) + 1)[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids, device=logits.device)))


def diversity(ids: list[int]) -> float:
    """Product over n = 2, 3, 4 of the share of distinct n-grams."""
    grams = ([tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)] for n in (2, 3, 4))
    return prod(len(set(g)) / len(g) for g in grams)


def rep(ids: list[int]) -> float:
    """Share of tokens that are among the newest l before them, mean over l = 16, 32, 128 (Welleck et al., 2020)."""
    return fmean(token in ids[max(0, at - n) : at] for n in WINDOWS for at, token in enumerate(ids))


def loops(ids: list[int]) -> bool:
    """Whether the text ends in a phrase of two tokens or more that stands there three times in a row."""
    return any(ids[-n:] == ids[-2 * n : -n] == ids[-3 * n : -2 * n] for n in range(2, len(ids) // 3 + 1))
