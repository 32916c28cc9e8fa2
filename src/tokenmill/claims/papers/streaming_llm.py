"""StreamingLLM: a window alone collapses once the first tokens leave it; four sinks hold it up, past the context."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.bench.tasks import sentences
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import NEAR, Check, check
from tokenmill.run.session import Session

CLAIM = (
    "With four sinks and a window, text streams past the model's context length as well as if each window were read "
    "anew; the same window without sinks collapses."
)
PAPER = "Llama-2, MPT, Falcon, Pythia: steady over 4 million tokens; a plain window fails once the cache is full"
BEYOND = "millions of tokens, and the up to 22.2x over reading windows anew, measured on a GPU"
BLOCK = 64


def _stream(lab: Lab, ids: Tensor, spec: str, judged: range) -> list[float]:
    """Nats a token of the blocks `judged`, the whole text (1, N) read block by block through one cache."""
    session, found = Session(lab.model, spec), []
    blocks = ids.split(BLOCK, 1)
    with session.engaged():
        for number, block in enumerate(blocks[: judged.stop]):
            if number in judged:
                found.append(_nats(session.read(block, all_logits=True)[0], block[0]))
            else:
                session.read(block)
            lab.tick(f"{spec}: token {(number + 1) * BLOCK} of {judged.stop * BLOCK}")
    return found


def _nats(logits: Tensor, block: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits[:-1].float(), block[1:]))


def measure(lab: Lab) -> list[Check]:
    slots = 64 if lab.quick else 256
    # A context too long to stream past here is not streamed past; the figures say how far the text went.
    past = 4 * slots if lab.quick or lab.context > 16384 else lab.context
    count = 2 if lab.quick else 6
    judged = range(past // BLOCK, past // BLOCK + count)
    mine, bare = f"streaming_llm(slots={slots})", f"streaming_llm(sinks=0, slots={slots})"
    anew = "windows read anew"
    columns: dict[str, list[float]] = {mine: [], bare: [], anew: []}
    for seed in lab.seeds:
        lines = sentences(f"stream/{seed}")
        text = lab.reader.stretch(lines, judged.stop * BLOCK - len(lab.reader.prefix))
        ids = torch.tensor([lab.reader.prefix + [i for line in text for i in line]])
        columns[mine] += _stream(lab, ids, mine, judged)
        # Without sinks it collapses as soon as the window is full, so the last four windows' worth of text shows it.
        skipped = max(0, judged.start - 4 * slots // BLOCK)
        columns[bare] += _stream(
            lab, ids[:, skipped * BLOCK :], bare, range(judged.start - skipped, judged.stop - skipped)
        )
        for number in judged:
            window = ids[:, (number + 1) * BLOCK - slots : (number + 1) * BLOCK]
            logits = Session(lab.model).read(window, last=BLOCK)[0]
            columns[anew].append(_nats(logits, window[0, -BLOCK:]))
    for name, values in columns.items():
        lab.note(name, f"nats a token after {past} tokens", values)
    lab.note(mine, "tokens streamed before the first judged one", [past])
    what = f"after {past} tokens, nats a token"
    return [
        check(what, (mine, columns[mine]), (bare, columns[bare]), "lower"),
        check(what, (mine, columns[mine]), (anew, columns[anew]), "lower", margin=NEAR),
    ]
