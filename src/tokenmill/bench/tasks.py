"""What `compare cache` asks a model to do: real text, deterministic by seed, and tasks the untouched model can do.

Every task has one shape. A *prompt* is read; the recipe decides what stays of it; then a *tail* is read, in
blocks, and some of its tokens are scored against what the model predicts for them. The first token of the tail
is never scored, so every scored token is predicted from the cache that was decided on.
Scoring the given answer in one pass is exact: all its tokens are right if and only if greedy decoding writes it.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from tokenmill.errors import InputError
from tokenmill.ops.text import MOST_CHARACTERS, cut

_WORDS = (
    "anchor basket candle desert engine falcon garden hammer island jacket kettle lantern marble napkin orange "
    "pencil quartz ribbon saddle temple umbrella velvet window yellow zipper bridge copper dragon forest guitar "
    "harbor ladder mirror needle oyster pepper rabbit silver tunnel violin walnut turtle spider pillow"
)
_ITEMS = (
    "teapot carpet bottle cheese pocket finger doctor market summer school monkey tomato button camera flower "
    "kitten letter magnet oxygen palace rocket singer ticket valley wallet parrot hotel potato table river "
    "stone bread chair cloud horse lemon mouse paper plant queen shirt snake spoon storm sugar tiger train truck"
)
WORDS, ITEMS = tuple(_WORDS.split()), tuple(_ITEMS.split())
TAIL_ROOM = 160  # tokens that the longest question and answer of a task take
MIN_INPUT_TOKENS = 96  # of the user's text: less leaves nothing to choose from


# ---- the plan: everything that decides how long a run takes, as data -------------------------------------------


@dataclass(frozen=True)
class Task:
    """One line of the plan: `samples` samples of one kind at one length."""

    name: str
    family: str  # families count equally in the aggregate quality
    kind: str  # needle, recall, continuation, drift
    samples: int
    length: int  # tokens of the prompt
    tail: int = 0  # tokens after the prompt that are scored (continuation, drift)
    block: int = 256  # tokens read in one pass after the decision
    needles: int = 1
    items: int = 16  # of the list that is to be recalled
    question_seen: bool = False
    measure: str = "exact"  # exact, share, nll, kl: what a sample's figure is
    own_text: bool = False

    def source(self, index: int) -> str:
        """The text that a sample is made of: samples of one source are no two independent samples."""
        return f"own/{index}" if self.own_text else f"{self.kind}/{self.needles}/{self.length}/{index}"


@dataclass(frozen=True)
class Speed:
    """Where speed is measured, always against the untouched model, in pairs of turns."""

    decode_batch: int
    decode_context: int
    decode_steps: int  # a turn; each side has `turns`
    prefill_batch: int
    prefill_context: int
    turns: int = 8
    prefill_turns: int = 8


@dataclass(frozen=True)
class Plan:
    tasks: tuple[Task, ...]
    speed: Speed
    budgets: tuple[float, ...]
    picture_tokens: int = 320  # of the prompt that the report draws; 0 = it draws none

    def scaled(self, context: int) -> Plan:
        """The same plan for a model with a shorter context: what does not fit is dropped, or measured at what fits."""
        tasks = tuple(t for t in self.tasks if t.length + max(t.tail, TAIL_ROOM) <= context)
        if not any(t.kind == "drift" for t in tasks):  # text can be read at any length
            tasks += tuple(
                replace(t, length=max(16, context - 2 * t.tail))
                for t in self.tasks
                if t.kind in ("continuation", "drift") and context >= 3 * t.tail
            )
        room = context - 1 - self.speed.turns * self.speed.decode_steps
        speed = replace(
            self.speed,
            decode_context=min(self.speed.decode_context, room),
            prefill_context=min(self.speed.prefill_context, room),
        )
        return replace(self, tasks=tasks, speed=speed, picture_tokens=min(self.picture_tokens, context - 1))


def _needles(counts: dict[tuple[int, int], int]) -> Iterator[Task]:
    """Needles hidden in text; counts: {(length, needles): samples}. Asked after the choice, and before it."""
    for seen in (False, True):
        for (length, needles), samples in counts.items():
            when = "seen" if seen else "after"
            many = "needle" if needles == 1 else f"needles{needles}"
            yield Task(
                f"{many}_{length}_{when}", f"needle_{when}", "needle", samples, length,
                needles=needles, question_seen=seen,
            )  # fmt: skip


def _text(length: int, continuation: tuple[int, int], drift: tuple[int, int], own: bool = False) -> Iterator[Task]:
    """Real text: (samples, tokens) of the continuation and of the drift."""
    prefix = "own_" if own else ""
    yield Task(f"{prefix}continuation", f"{prefix}continuation", "continuation", continuation[0], length,
               tail=continuation[1], block=64, measure="nll", own_text=own)  # fmt: skip
    yield Task(f"{prefix}drift", f"{prefix}drift", "drift", drift[0], length,
               tail=drift[1], block=16, measure="kl", own_text=own)  # fmt: skip


def plan(quick: bool = False, own_text: bool = False) -> Plan:
    """The samples, lengths and places of a full or a quick run."""
    if quick:
        return Plan(
            tasks=(
                *_needles({(384, 1): 1, (384, 3): 1}),
                Task("recall", "recall", "recall", 2, 384, measure="share", items=6),
                *_text(256, continuation=(2, 16), drift=(2, 12), own=own_text),
            ),
            speed=Speed(1, decode_context=512, decode_steps=1, prefill_batch=1, prefill_context=128, prefill_turns=3),
            budgets=(0.25,),
        )
    return Plan(
        tasks=(
            *_needles({(512, 1): 5, (1024, 1): 2, (2048, 1): 1, (512, 3): 3, (1024, 3): 1}),
            Task("recall", "recall", "recall", 4, 512, measure="share"),
            *_text(1024, continuation=(3, 128), drift=(3, 64), own=own_text),
        ),
        speed=Speed(decode_batch=8, decode_context=2048, decode_steps=2, prefill_batch=1, prefill_context=256),
        budgets=(0.5, 0.25, 0.1),
    )


def depth_plan(quick: bool = False, own_text: bool = False) -> Plan:
    """The same tasks, read one token at a time after the prompt: what a depth method saves is on generated tokens."""
    few = plan(True, own_text)
    tasks = few.tasks if quick else (
        *_needles({(512, 1): 5}),
        Task("recall", "recall", "recall", 3, 512, measure="share"),
        *_text(512, continuation=(5, 64), drift=(5, 48), own=own_text),
    )  # fmt: skip
    return Plan(
        tasks=tuple(replace(task, block=1) for task in tasks),
        speed=Speed(
            1, decode_context=256, decode_steps=2 if quick else 16, prefill_batch=1, prefill_context=256,
            prefill_turns=2,
        ),
        budgets=(0.9, 0.75) if quick else (0.95, 0.9, 0.75),
        picture_tokens=0,
    )  # fmt: skip


# ---- text --------------------------------------------------------------------------------------------------------


# The default text ships with the package, so that figures do not depend on the Python that measures (see LICENSE.txt).
CORPUS = Path(__file__).parent / "corpus"
SHA256 = {
    "english.txt": "10006498a1b86120b5315b30f04f924aace1a6a64aef18f233a6ec35cb09e6d6",
    "functions.json": "5a09ce98adabde3c42e825b5ce51b27e02f0b2afb9ca4024cf1d80533ad0f500",
}


def corpus(name: str) -> str:
    """A file of the shipped corpus; raises InputError if it is not, byte for byte, the one this version measures on."""
    try:
        raw = (CORPUS / name).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {CORPUS / name}: {error.strerror}; install Tokenmill again") from None
    if (found := hashlib.sha256(raw).hexdigest()) != SHA256[name]:
        raise InputError(
            f"{CORPUS / name} is not the text this version measures on (its SHA-256 begins with {found[:12]}, "
            f"not {SHA256[name][:12]}); install Tokenmill again"
        )
    return raw.decode("utf-8")


@cache
def paragraphs() -> tuple[str, ...]:
    """Real English: paragraphs of the prose of Python's reference, in a fixed order."""
    return tuple(corpus("english.txt").rstrip("\n").split("\n"))


def sentences(seed: str) -> Iterator[str]:
    """Endless sentences of real text, beginning at a place the seed chooses."""
    text = paragraphs()
    at = random.Random(seed).randrange(len(text))
    while True:
        for sentence in re.split(r"(?<=[.!?:]) (?=[A-Z])", text[at % len(text)]):
            yield " " + sentence
        at += 1


DEFAULT_PROMPT_SEED = "picture5"  # a place that reads well


def default_prompt() -> str:
    """The text on which the report draws what each method kept: real prose with one fact in it."""
    lines = sentences(DEFAULT_PROMPT_SEED)
    before = [next(lines) for _ in range(5)]
    after = [next(lines) for _ in range(6)]
    return "".join([*before, " The access code for lantern is 4917.", *after]).strip()


# ---- samples ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One sample of one task, as token ids."""

    task: Task
    index: int
    prompt: list[int]
    tail: list[int]  # read after the decision; tail[0] is never scored
    scored: list[int] = field(default_factory=list)  # indexes into tail


class Reader:
    """A tokenizer as the tasks need it: text to ids without special tokens, and the prefix prompts begin with."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        plain = self.ids("a")
        special = list(tokenizer("a")["input_ids"])
        at = next((i for i in range(len(special)) if special[i : i + len(plain)] == plain), 0)
        self.prefix: list[int] = special[:at]

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def stretch(self, lines: Iterator[str], length: int) -> list[list[int]]:
        """Sentences as ids, exactly `length` tokens in all; the last sentence is cut."""
        taken: list[list[int]] = []
        while length > 0:
            ids = self.ids(next(lines))[:length]
            taken.append(ids)
            length -= len(ids)
        return taken


def build(task: Task, index: int, seed: int, reader: Reader, own: Sequence[list[int]] = ()) -> Sample:
    """The sample: the same for the same task, index, seed and tokenizer, wherever and whenever it is built."""
    key = f"{seed}/{task.source(index)}"
    if task.kind == "needle":
        return _needle(task, index, key, reader)
    if task.kind == "recall":
        return _recall(task, index, key, reader)
    return _stretch(task, index, key, reader, own)


def _needle(task: Task, index: int, key: str, reader: Reader) -> Sample:
    """Facts hidden in text, and a question about one of them. Both settings have the same text, needles and question.

    The opening of the answer is always read after the choice: before it, nothing has looked at the code yet, so a
    method must know from the question alone what will be asked for.
    """
    rng = random.Random(key)
    words = rng.sample(WORDS, task.needles)
    codes = rng.sample(range(1000, 10000), task.needles)
    facts = [reader.ids(f" The access code for {w} is {c}.") for w, c in zip(words, codes, strict=True)]
    question = reader.ids(f"\n\nQuestion: What is the access code for {words[0]}?\nAnswer:")
    opening = reader.ids(f" The access code for {words[0]} is")
    answer = reader.ids(f" The access code for {words[0]} is {codes[0]}")[len(opening) :]
    text = reader.stretch(sentences(key), task.length - len(reader.prefix) - sum(map(len, facts)))
    # Each fact stands before another sentence of the text, never at its very end, where any window would hold it.
    places = rng.sample(range(max(len(text), task.needles)), task.needles)
    for place, fact in sorted(zip(places, facts, strict=True), reverse=True):
        text.insert(place, fact)
    prompt = reader.prefix + [i for sentence in text for i in sentence]
    tail = opening + answer
    if task.question_seen:
        return Sample(task, index, prompt + question, tail, list(range(len(opening), len(tail))))
    tail = question + tail
    return Sample(task, index, prompt, tail, list(range(len(tail) - len(answer), len(tail))))


def _recall(task: Task, index: int, key: str, reader: Reader) -> Sample:
    rng = random.Random(key)
    items = rng.sample(ITEMS, task.items)
    lines = [f"{n}. {item}\n" for n, item in enumerate(items, 1)]
    listed = reader.ids("Shopping list:\n" + "".join(lines) + "\n")
    ask = reader.ids("\n\nThe shopping list again:\n")
    filler = reader.stretch(sentences(key), max(0, task.length - len(reader.prefix) - len(listed)))
    prompt = reader.prefix + listed + [i for sentence in filler for i in sentence]
    tail = list(ask)
    scored: list[int] = []
    for n, item in enumerate(items, 1):
        tail += reader.ids(f"{n}.")
        word = reader.ids(f"{n}. {item}")[len(reader.ids(f"{n}.")) :]
        scored += range(len(tail), len(tail) + len(word))
        tail += word + reader.ids("\n")
    return Sample(task, index, prompt, tail, scored)


def _stretch(task: Task, index: int, key: str, reader: Reader, own: Sequence[list[int]]) -> Sample:
    """Text and what really follows it. For drift the tail is what the untouched model writes: filled in later."""
    follow = task.tail if task.kind == "continuation" else 0
    size = task.length - len(reader.prefix) + follow
    text = [own[index][:size]] if task.own_text else reader.stretch(sentences(key), size)
    ids = reader.prefix + [i for part in text for i in part]
    # What the user's text is too short for comes off the prompt first, but never more than half of it.
    cut = len(ids) - min(follow, len(ids) // 2) - 1
    return Sample(task, index, ids[:cut], ids[cut:], list(range(1, len(ids) - cut)))


def own_pieces(
    texts: list[str], name: str, reader: Reader, plan: Plan, context: int, seed: int
) -> tuple[list[list[int]], list[str]]:
    """The user's text in pieces a task can read, in an order the seed chooses, and notes for the user.

    Pieces do not overlap: samples that share text would make the intervals too narrow. Of more than MOST_CHARACTERS
    the seed chooses stretches, so that a huge file is not tokenized whole.
    """
    notes = []
    size = max(t.length + t.tail for t in plan.tasks if t.own_text) - len(reader.prefix)
    total = sum(map(len, texts))
    if total > MOST_CHARACTERS:
        parts = [part for text in texts for part in cut(text, MOST_CHARACTERS // 64)]
        random.Random(f"{seed}/stretches").shuffle(parts)
        before = accumulate(map(len, parts), initial=0)
        texts = [part for part, characters in zip(parts, before, strict=False) if characters < MOST_CHARACTERS]
        notes.append(f"the text has {total:,} characters: {sum(map(len, texts)):,}, chosen by the seed, are read")
    read = [reader.ids(text) for text in texts]
    if reader.prefix:  # a chat format may write it too
        read = [ids[len(reader.prefix) :] if ids[: len(reader.prefix)] == reader.prefix else ids for ids in read]
    pieces = [ids[at : at + size] for ids in read for at in range(0, len(ids), size)]
    pieces = [piece for piece in pieces if len(piece) >= MIN_INPUT_TOKENS]
    longest, short = max(map(len, read)), sum(len(ids) < MIN_INPUT_TOKENS for ids in read)
    if not pieces:
        raise InputError(
            f"{name} is too short: its longest text has {longest} tokens, "
            f"and there must be at least {MIN_INPUT_TOKENS} for anything to be dropped and measured"
        )
    if short:
        notes.append(f"{short} of {len(texts)} texts have under {MIN_INPUT_TOKENS} tokens: left out")
    if longest > size:
        limit = f", and the model reads {context} at most" if longest > context else ""
        notes.append(f"the longest text has {longest} tokens{limit}: cut into pieces of {size}")
    random.Random(f"{seed}/own").shuffle(pieces)
    wanted = max(t.samples for t in plan.tasks if t.own_text)
    if len(pieces) < wanted:
        notes.append(f"the text gives {len(pieces)} samples of its own instead of {wanted}")
    elif len(pieces) > wanted:
        notes.append(f"{wanted} of {len(pieces)} pieces of the text are measured")
    return pieces, notes


def with_own(plan: Plan, pieces: int) -> Plan:
    """The plan with no more samples of the user's own text than there are pieces of it."""
    tasks = (replace(t, samples=min(t.samples, pieces)) if t.own_text else t for t in plan.tasks)
    return replace(plan, tasks=tuple(tasks))
