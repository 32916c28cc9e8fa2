"""Text that a model writes for what is to learn from it."""

from __future__ import annotations

import copy
import math
from contextlib import suppress
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tokenmill.models.default import cache_folder
from tokenmill.models.trained import digest, restore, store
from tokenmill.models.weights import AUTO, pack
from tokenmill.ops.logits import largest
from tokenmill.ops.text import around_message, as_message
from tokenmill.run.choose import Chooser
from tokenmill.run.corpus import Corpus
from tokenmill.run.frozen import Said
from tokenmill.run.generate import ends_of, refuse_too_long
from tokenmill.run.session import Session

PROMPT, ASKED, LENGTH = 32, 48, 128  # tokens of an opening, a question, an answer
AT_ONCE = 16, 2048  # texts: on a CPU, and at most where there is memory for so many
HELD_OUT = 1 << 14  # tokens at most that are written to judge by
TEMPERATURE = 0.7


def own_text(
    model: Any, tokenizer: Any, data: Corpus, tokens: int, seed: int, asks: bool, console: Console | None = None
) -> tuple[Corpus, Said]:
    """Text that the model writes, and what it says over what is to train on; cached, for it takes long.

    A model with a chat format answers messages, for that is how it is used: where it `asks`, messages that it writes
    itself when it is given the format up to where a user's begins (Xu et al., "Magpie", 2024), else openings from the
    corpus. Another goes on from openings. On a CPU a copy with packed weights writes, which is several times faster.
    """
    chats = bool(getattr(tokenizer, "chat_template", None))
    asks = asks and chats
    key = f"{digest(model)}-{'asks' if asks else data.digest}-{tokens}-{seed}"
    file = cache_folder() / "own" / f"{key}.pt"
    with suppress(OSError, ValueError, KeyError):
        kept = restore(file)
        return Corpus(kept["train"], kept["held_out"]), (kept["states"], kept["likeliest"])

    on_cpu = next(model.parameters()).device.type == "cpu"
    writer, rows = pack(copy.deepcopy(model), AUTO) if on_cpu else model, _at_once(model)
    ends = ends_of(model, tokenizer) if chats else frozenset()

    def encoded(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def openings(ids: Tensor, first: int, count: int) -> list[list[int]]:
        """Of texts `first`, `first` + 1, .."""
        if asks:
            before, after = around_message(tokenizer)
            seeds = [seed * 1_000_003 + first + i for i in range(count)]
            begun = [encoded(before)] * count
            asked = [own[len(begun[0]) :] for own, *_ in written(writer, begun, ASKED, 1.0, seeds, ends)]
            texts = [tokenizer.decode(own, skip_special_tokens=True) for own in asked]
            return [encoded(before + text.strip() + after) for text in texts]
        draw = torch.Generator().manual_seed(seed * 1_000_003 + first)
        at = torch.randint(max(1, len(ids) - PROMPT), (count, 1), generator=draw)
        rows = ids[(at + torch.arange(PROMPT)).clamp(max=len(ids) - 1)].tolist()
        return [encoded(as_message(tokenizer, tokenizer.decode(row).strip())) for row in rows] if chats else rows

    def texts(ids: Tensor, first: int, tokens: int, told: str) -> tuple[Tensor, Said]:
        end = first + max(1, math.ceil(tokens / LENGTH))
        groups = range(first, end, rows)
        made: list[tuple[list[int], Tensor, Tensor]] = []
        for group in track(groups, told, console=console, transient=True, disable=console is None):
            count = min(rows, end - group)
            seeds = [seed * 1_000_003 + group + i for i in range(count)]
            made += written(writer, openings(ids, group, count), LENGTH, TEMPERATURE, seeds, ends)
        columns = [torch.cat(column) for column in zip(*((s, x) for _, s, x in made), strict=True)]
        return torch.tensor([i for own, *_ in made for i in own]), (columns[0], columns[1])

    train, said = texts(data.train, 0, tokens, f"{tokens:,} tokens of its own")
    held_out, _ = texts(data.held_out, 1 << 30, max(LENGTH, min(tokens // 10, HELD_OUT)), "and some to judge by")
    store(file, {"train": train, "held_out": held_out, "states": said[0], "likeliest": said[1]})
    return Corpus(train, held_out), said


def _at_once(model: Any) -> int:
    """Texts that are written side by side: what half of a GPU's free memory holds."""
    weight = next(model.parameters())
    if weight.device.type != "cuda":
        return AT_ONCE[0]
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_token = 4 * heads * size * config.num_hidden_layers * weight.element_size()  # keys and values, while they grow
    a_text = (ASKED + LENGTH + PROMPT) * a_token + 32 * config.vocab_size  # and its logits, in a few forms
    return max(AT_ONCE[0], min(AT_ONCE[1], torch.cuda.mem_get_info(weight.device)[0] // 2 // a_text))


@torch.no_grad()
def written(
    model: Any, prompts: list[list[int]], tokens: int, temperature: float, seeds: list[int], ends: frozenset[int]
) -> list[tuple[list[int], Tensor, Tensor]]:
    """What the model writes after each prompt, the prompt with it; its last states (T, E) over that, in 16 bits; and
    what it would most likely have said after each token (T,)."""
    refuse_too_long(model, (), prompts, tokens)
    session, chooser = Session(model), Chooser(temperature, seed=seeds, rows=len(prompts))
    states, likeliest, new = [], [], []
    with session.engaged():
        logits = session.read(prompts)
        states.append(session.hidden())
        head = model.get_output_embeddings()  # row by row: a prompt's logits are as long as the vocabulary
        likeliest.append(torch.stack([largest(head(row))[1] for row in states[0]]))
        for _ in range(tokens):
            new.append(chooser(logits))
            logits = session.read(new[-1][:, None])
            states.append(session.hidden())
            likeliest.append(largest(logits)[1][:, None])
    held, said, longest = torch.cat(states, 1).half().cpu(), torch.cat(likeliest, 1).cpu(), max(map(len, prompts))
    out = []
    for row, (prompt, own) in enumerate(zip(prompts, torch.stack(new, 1).tolist(), strict=True)):
        length = next((i + 1 for i, token in enumerate(own) if token in ends), tokens)
        at = slice(longest - len(prompt), longest + length)  # prompts are padded on the left
        out.append((prompt + own[:length], held[row, at], said[row, at]))
    return out
