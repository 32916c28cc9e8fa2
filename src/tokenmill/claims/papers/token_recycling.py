"""Token Recycling: yesterday's runners-up are tomorrow's guesses."""

from __future__ import annotations

import random
import time
from statistics import fmean

from tokenmill.bench.tasks import paragraphs
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check, check
from tokenmill.run.generate import generate

CLAIM = (
    "Text comes out exactly as without drafting, in fewer passes; a pass gives more tokens than with drafts looked up "
    "in the text so far, at the same number of drafted tokens."
)
PAPER = (
    "Vicuna 7B to 33B on Spec-Bench: about 2x faster, 30 % above the best method without training; under 2 MB stored"
)
BEYOND = "the speed of a pass over a tree on a GPU, where drafted tokens cost almost nothing"
NODES = 12
REPETITIVE = 0.25
TASKS = (
    "Explain this to a child", "Summarise this in one sentence", "Ask three questions about this",
    "Write a short story in which this matters",
)  # fmt: skip


def measure(lab: Lab) -> list[Check]:
    rivals = {"greedy": None, "prompt_lookup": f"prompt_lookup(nodes={NODES})"}
    mine = "token_recycling"  # nodes=12 is its default
    tokens = 24 if lab.quick else 64
    prompts = _prompts(lab)
    again: list[float] = []
    alike: list[float] = []
    a_pass: dict[str, list[float]] = {name: [] for name in (*rivals, mine)}
    seconds: dict[str, list[float]] = {name: [] for name in (*rivals, mine)}
    for number, prompt in enumerate(prompts, 1):
        lab.tick(f"prompt {number} of {len(prompts)}")
        texts = {}
        for name in a_pass:
            began = time.perf_counter()
            out = generate(lab.model, None, [prompt], rivals.get(name, name), max_new_tokens=tokens)[0]
            seconds[name].append(time.perf_counter() - began)
            texts[name] = out.ids
            a_pass[name].append((len(out.ids) - 1) / max(1, out.stats.forward_calls - 1))
        again.append(_repeated(texts["greedy"]))
        alike.append(float(texts[mine] == texts["greedy"]))
    for name, values in a_pass.items():
        lab.note(rivals.get(name) or name, "tokens a pass", values)
        lab.note(rivals.get(name) or name, "seconds against greedy, in turns", [
            a / b for a, b in zip(seconds[name], seconds["greedy"], strict=True)
        ])  # fmt: skip
    lab.note("greedy", "share of its four-token runs that it had written before", again)
    lab.because(
        fmean(again) > REPETITIVE,
        f"{fmean(again):.0%} of the four-token runs of this model's greedy text repeat an earlier one, which is what "
        "looking drafts up in the text is made for",
    )
    lookup = rivals["prompt_lookup"] or ""
    return [
        check("share of texts equal to greedy's", (mine, alike), ("all", [1.0] * len(alike)), "higher", margin=1e-6),
        check("tokens a pass", (mine, a_pass[mine]), ("greedy", a_pass["greedy"]), "higher"),
        check("tokens a pass", (mine, a_pass[mine]), (lookup, a_pass["prompt_lookup"]), "higher"),
    ]


def _prompts(lab: Lab) -> list[list[int]]:
    """Requests as the paper's are, about real paragraphs; in the model's chat format where it has one."""
    found = []
    for seed in lab.seeds:
        draw = random.Random(f"requests/{seed}")
        for task in TASKS[: 1 if lab.quick else len(TASKS)]:
            request = f"{task}: {draw.choice(paragraphs())[:600]}"
            if getattr(lab.tokenizer, "chat_template", None):
                asked = [{"role": "user", "content": request}]
                request = lab.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            found.append(lab.reader.ids(request)[-256:])
    return found


def _repeated(ids: list[int]) -> float:
    runs = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(runs)) / max(1, len(runs))
