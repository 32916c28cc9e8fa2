"""Prompts for `compare decode`: the user's own, by category, or some made of the shipped text and code."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.bench.tasks import corpus, paragraphs
from tokenmill.ops.text import MOST_CHARACTERS, Message, chat_text
from tokenmill.run.inputs import records

FREE = (
    "Explain why the sky is blue.", "Write a short letter that thanks a neighbour for help.",
    "What should I think about before I buy a used car?", "Tell a story about a lighthouse keeper and a storm.",
    "Give me five ideas for a rainy weekend with children.", "How do vaccines work?",
    "Describe a market square early in the morning.", "What are the advantages of public libraries?",
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    category: str
    text: str
    messages: tuple[Message, ...] = ()  # instead, where the file has a conversation


def default_prompts(each: int, seed: int) -> list[Prompt]:
    """`each` prompts of four categories: what copies much of what was read, and what copies nothing."""
    draw = random.Random(f"prompts/{seed}")
    passages = draw.sample(list(paragraphs()), 2 * each)
    modules: dict[str, dict[str, str]] = json.loads(corpus("functions.json"))
    functions = [modules[name][draw.choice(sorted(modules[name]))] for name in draw.sample(sorted(modules), each)]
    return [
        *(Prompt("summary", f"Summarise this in two sentences:\n\n{p[:900]}") for p in passages[:each]),
        *(
            Prompt("question", f"Read this and say what it is about, quoting the words that show it:\n\n{p[:900]}")
            for p in passages[each:]
        ),
        *(Prompt("code", f"Rewrite this function with clearer names and a docstring:\n\n{f[:900]}") for f in functions),
        *(Prompt("free", text) for text in draw.sample(FREE, each)),
    ]


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a file or folder (see run/inputs.py); blank lines part those of a plain text.

    Of `turns` it is the first; of `messages`, those before the model's last. Raises InputError.
    """
    found = []
    for record in records(path, paragraphs=True):
        given = record.prompt
        text = given if isinstance(given, str) else "\n\n".join(str(m["content"]) for m in given)
        found.append(Prompt(record.category, text, () if isinstance(given, str) else tuple(given)))
    return found


def spread(prompts: list[Prompt], each: int, seed: int) -> list[Prompt]:
    """At most `each` prompts of every category, by lot, in the order of the file."""
    draw, out = random.Random(f"spread/{seed}"), []
    for category in dict.fromkeys(p.category for p in prompts):
        mine = [i for i, p in enumerate(prompts) if p.category == category]
        out += sorted(draw.sample(mine, min(each, len(mine))))
    return [prompts[i] for i in out]


def encoded(tokenizer: Any, prompt: Prompt, most: int) -> list[int]:
    """The prompt's newest `most` ids, in the model's chat format where it has one."""
    chats = bool(getattr(tokenizer, "chat_template", None))
    text = chat_text(tokenizer, prompt.messages or [{"role": "user", "content": prompt.text}]) if chats else prompt.text
    # A chat format writes its special tokens itself.
    ids = tokenizer(text[-MOST_CHARACTERS:], add_special_tokens=not chats)["input_ids"]
    return [int(i) for i in ids][-most:]
