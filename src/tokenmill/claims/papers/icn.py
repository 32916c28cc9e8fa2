"""ICN: new right answers an iteration, to questions that have many."""

from __future__ import annotations

import random
import re
from functools import partial
from itertools import product

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.methods.choose.icn import LEAD, OPENING
from tokenmill.run.generate import generate

CLAIM = (
    "Of as many answers, those that begin with the likeliest tokens behind a list of what was found name more right "
    "ones than those that begin with the next ranks of the plain distribution, and than answers drawn anew."
)
PAPER = "knowledge probing with models of 7B and 8B: more new right answers an iteration than by the next ranks"
BEYOND = "open-ended text and chains of thought, and how ranks follow the similarity of output embeddings"
ITERATIONS, EACH, LENGTH = 3, 10, 12
ANSWERS = ITERATIONS * EACH
SPEC = f"icn(answers={ANSWERS}, each={EACH}, length={LENGTH})"
RANKS = f"icn(answers={ANSWERS}, each={ANSWERS}, length={LENGTH})"  # one iteration: no list comes into the context
DRAWN = "temperature(temperature=1.0)"
WORDINGS = list(product(("Please show me", "Name", "List", "Give me", "Tell me"), ("some", "a few", "several", "many")))
FACTS = {
    "planets": "mercury venus earth mars jupiter saturn uranus neptune",
    "months of the year": "january february march april may june july august september october november december",
    "countries in Europe": "albania andorra armenia austria azerbaijan belarus belgium bosnia bulgaria croatia cyprus "
    "czechia czech denmark estonia finland france georgia germany greece hungary iceland ireland italy kosovo latvia "
    "liechtenstein lithuania luxembourg macedonia malta moldova monaco montenegro netherlands norway poland portugal "
    "romania russia serbia slovakia slovenia spain sweden switzerland turkey ukraine uk kingdom england scotland wales "
    "vatican",
    "colors": "red orange yellow green blue indigo violet purple pink brown black white gray grey gold silver beige "
    "turquoise teal cyan magenta maroon crimson scarlet navy olive lavender lilac ivory coral salmon tan amber mint "
    "peach plum burgundy mauve aqua azure khaki lime emerald ruby bronze cream charcoal fuchsia",
    "fruits": "apple banana orange pear grape cherry mango peach plum strawberry blueberry raspberry blackberry "
    "cranberry kiwi lemon lime melon watermelon cantaloupe pineapple apricot fig date grapefruit papaya guava lychee "
    "pomegranate coconut avocado nectarine tangerine mandarin clementine passionfruit persimmon durian jackfruit "
    "tomato olive currant gooseberry mulberry quince starfruit kumquat elderberry",
    "metals": "iron copper gold silver tin lead zinc aluminum aluminium nickel titanium platinum mercury steel cobalt "
    "chromium tungsten palladium magnesium manganese lithium sodium potassium calcium uranium bronze brass cadmium "
    "bismuth antimony iridium osmium rhodium ruthenium vanadium molybdenum zirconium barium beryllium gallium indium "
    "tantalum niobium thorium plutonium rubidium cesium strontium scandium yttrium hafnium rhenium thallium radium",
    "musical instruments": "piano guitar violin flute drum trumpet cello clarinet saxophone harp trombone organ viola "
    "oboe bassoon tuba horn banjo ukulele mandolin accordion harmonica xylophone marimba vibraphone tambourine bongo "
    "cymbal bass lute sitar lyre recorder piccolo bagpipe keyboard synthesizer harpsichord fiddle triangle maraca "
    "djembe conga tabla gong bell castanet zither dulcimer cornet bugle glockenspiel timpani didgeridoo",
    "animals": "cat dog cow pig sheep goat horse chicken duck goose turkey donkey lion tiger bear elephant giraffe "
    "zebra monkey gorilla chimpanzee orangutan wolf fox deer moose elk rabbit hare mouse rat squirrel hamster beaver "
    "otter seal walrus whale dolphin shark fish salmon tuna octopus squid crab lobster frog toad snake lizard turtle "
    "tortoise crocodile alligator eagle hawk falcon owl parrot penguin ostrich peacock pigeon sparrow raven crow swan "
    "hummingbird flamingo kangaroo koala panda leopard cheetah jaguar panther cougar puma lynx hyena hippo "
    "hippopotamus rhino rhinoceros camel llama alpaca buffalo bison antelope gazelle bat hedgehog porcupine raccoon "
    "skunk badger weasel ferret mole sloth armadillo anteater lemur bee ant butterfly spider scorpion snail worm "
    "beetle bird insect",
}


def measure(lab: Lab) -> list[Check]:
    found: dict[str, list[list[int]]] = {SPEC: [], RANKS: [], DRAWN: []}  # new right answers of each iteration
    facts = list(FACTS.items())[: 3 if lab.quick else len(FACTS)]
    for seed in lab.seeds:
        for kind, names in facts:
            lab.tick(f"seed {seed}: {kind}")
            prompt, right = _prompt(kind, seed), set(names.split())
            for spec in found:
                answers = lab.unit(
                    partial(_drawn if spec == DRAWN else _written, lab, prompt, seed, spec), prompt, spec
                )
                found[spec].append(_new(answers, right))
    for spec, samples in found.items():
        for n in range(ITERATIONS):
            lab.note(spec, f"new right answers of iteration {n + 1}", [sample[n] for sample in samples])
    what = f"new right answers an iteration, {ITERATIONS} of {EACH} answers"
    mine, ranks, drawn = ([sum(sample) / ITERATIONS for sample in samples] for samples in found.values())
    return [
        check(f"{what}, against the next ranks", (SPEC, mine), (RANKS, ranks), "higher"),
        check(f"{what}, against drawing anew", (SPEC, mine), (DRAWN, drawn), "higher"),
    ]


def _prompt(kind: str, seed: int) -> str:
    """The question as plain text, to a chat model too, as the authors ask. ICN draws nothing, so the wording varies."""
    asked, some = random.Random(f"wordings/{kind}").sample(WORDINGS, len(WORDINGS))[seed % len(WORDINGS)]
    return f"{asked} {some} {kind}.{LEAD}"


def _written(lab: Lab, prompt: str, seed: int, spec: str) -> list[str]:
    out = generate(lab.model, lab.tokenizer, prompt, spec, max_new_tokens=ANSWERS * (LENGTH + 1))
    return out[0].text.split("\n")


def _drawn(lab: Lab, prompt: str, seed: int, spec: str = DRAWN) -> list[str]:
    """As many answers as ICN gives, each drawn from its first token on where ICN's go on."""
    prompt += OPENING
    return [
        generate(
            lab.model, lab.tokenizer, prompt, DRAWN, max_new_tokens=LENGTH, stop=['"', "\n"], seed=ANSWERS * seed + n
        )[0].text
        for n in range(ANSWERS)
    ]


def _new(answers: list[str], right: set[str]) -> list[int]:
    """How many right names each iteration has that none before it had."""
    found: set[str | None] = {None}
    new = []
    for begin in range(0, ANSWERS, EACH):
        named = {_named(answer, right) for answer in answers[begin : begin + EACH]} - found
        new.append(len(named))
        found |= named
    return new


def _named(answer: str, right: set[str]) -> str | None:
    """The first right name in an answer, in the singular or the plural."""
    for word in re.findall("[a-z]+", answer.lower()):
        for name in (word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)):
            if name in right:
                return name
    return None
