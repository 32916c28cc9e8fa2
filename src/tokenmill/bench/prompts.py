"""Prompts for `compare decode`: the user's own, by category, or some made of the shipped text and code."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.bench.tasks import corpus, paragraphs
from tokenmill.errors import InputError
from tokenmill.ops.text import as_message
from tokenmill.paths import expanded

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
    """A file of prompts: JSON lines with prompt, text, question or turns (and category), or text, by blank lines.

    Raises InputError for a file that holds none, with the line that is wrong.
    """
    path = expanded(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if path.suffix != ".jsonl":
        found = [Prompt("input", part.strip()) for part in text.split("\n\n") if part.strip()]
    else:
        found = [_of(json_line(path, n, line), path, n) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not found:
        raise InputError(f"{path} holds no prompt")
    return found


def json_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}, line {number} is not a JSON object")
    return value


def _of(value: dict[str, Any], path: Path, number: int) -> Prompt:
    turns = value.get("turns")
    text = next((value[k] for k in ("prompt", "text", "question") if isinstance(value.get(k), str)), None)
    if text is None and isinstance(turns, list) and turns and isinstance(turns[0], str):
        text = turns[0]
    if not text or not text.strip():
        raise InputError(f"{path}, line {number} has no prompt, text, question or turns")
    return Prompt(str(value.get("category", "input")), text)


def spread(prompts: list[Prompt], each: int, seed: int) -> list[Prompt]:
    """At most `each` prompts of every category, by lot, in the order of the file."""
    draw, out = random.Random(f"spread/{seed}"), []
    for category in dict.fromkeys(p.category for p in prompts):
        mine = [i for i, p in enumerate(prompts) if p.category == category]
        out += sorted(draw.sample(mine, min(each, len(mine))))
    return [prompts[i] for i in out]


def encoded(tokenizer: Any, prompt: Prompt, most: int) -> list[int]:
    """The prompt's newest `most` ids, in the model's chat format where it has one."""
    return [int(i) for i in tokenizer(as_message(tokenizer, prompt.text))["input_ids"]][-most:]
