"""The engine against the library and against its own limits: `python bench/engine.py [--quick] [--prompts FILE]`.

Prints one JSON object. Every speed is a ratio of two things measured in turn in this one run (A B A B …), given
as the median of the pairwise ratios with the least and the greatest. Seconds are there for orientation only.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch

import tokenmill as tm
from tokenmill.run.session import Session


def pairs(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Run both in turn. ratio > 1: ours is faster. A first run of each is not counted."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for run, kept in zip((ours, theirs), seconds, strict=True):
            began = time.perf_counter()
            run()
            if turn:
                kept.append(time.perf_counter() - began)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "greatest": round(max(ratios), 3),
        "ours_seconds": round(statistics.median(seconds[0]), 4),
        "theirs_seconds": round(statistics.median(seconds[1]), 4),
        "repeats": repeats,
    }


def text_ids(tokenizer: Any, length: int, skip: int = 1000) -> torch.Tensor:
    ids = tokenizer(" ".join(topics[name] for name in sorted(topics)))["input_ids"]
    return torch.tensor([ids[skip : skip + length]])


def greedy(model: Any, tokenizer: Any, context: int, new: int, repeats: int) -> dict[str, Any]:
    """Plain greedy decoding: tm.generate against model.generate, same ids asked for and checked."""
    ids = text_ids(tokenizer, context)
    said: dict[str, list[int]] = {}

    def ours() -> None:
        said["ours"] = tm.generate(model, tokenizer, ids.tolist(), max_new_tokens=new, ignore_eos=True)[0].ids

    def theirs() -> None:
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        said["theirs"] = out[0, context:].tolist()

    found = pairs(ours, theirs, repeats)
    return {"context": context, "new_tokens": new, **found, "identical": said["ours"] == said["theirs"]}


def overhead(model: Any, tokenizer: Any, recipe: str, context: int, new: int, repeats: int) -> dict[str, Any]:
    """What a recipe costs or gains over plain decoding, prompt and steps apart."""
    ids = text_ids(tokenizer, context)
    seconds: dict[str, list[tuple[float, float]]] = {"plain": [], recipe: []}
    for turn in range(repeats + 1):
        for name in seconds:
            stats = tm.generate(
                model, tokenizer, ids.tolist(), None if name == "plain" else recipe, max_new_tokens=new, ignore_eos=True
            )[0].stats
            if turn:
                seconds[name].append((stats.prefill_seconds, stats.decode_seconds / (new - 1)))
    out: dict[str, Any] = {"recipe": recipe, "context": context, "new_tokens": new, "repeats": repeats}
    for i, part in enumerate(("prefill", "step")):
        ratios = [a[i] / b[i] for a, b in zip(seconds[recipe], seconds["plain"], strict=True)]
        out[f"{part}_cost_ratio"] = round(statistics.median(ratios), 3)
        out[f"{part}_ms"] = round(1e3 * statistics.median(a[i] for a in seconds[recipe]), 1)
        out[f"plain_{part}_ms"] = round(1e3 * statistics.median(b[i] for b in seconds["plain"]), 1)
    return out


def eviction(
    model: Any, tokenizer: Any, rows: int, context: int, budget: float, steps: int, repeats: int
) -> dict[str, Any]:
    """Decode steps of a batch whose cache was cut to `budget`, against the untouched cache of the same engine.

    The prompt is read once and its cache repeated for every row: a step's time does not depend on what is in it.
    """
    ids = text_ids(tokenizer, context)
    sessions = {}
    for name, recipe in (("evicted", f"snapkv(budget={budget})"), ("whole", None)):
        session = Session(model, recipe)
        session.read(ids)
        assert session.cache is not None
        session.cache.batch_repeat_interleave(rows)
        sessions[name] = session
    token = ids[:, -1:].repeat(rows, 1)

    def run(name: str) -> Callable[[], None]:
        def steps_of() -> None:
            with sessions[name].engaged():
                for _ in range(steps):
                    sessions[name].read(token)

        return steps_of

    held = {name: s.stats.cache_bytes for name, s in sessions.items()}
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    found = pairs(run("evicted"), run("whole"), repeats)
    limit = (weights + held["whole"]) / (weights + held["evicted"])
    alone = Session(model, None)
    alone.read(ids[:, :1])
    alone.cache.batch_repeat_interleave(rows)  # type: ignore[union-attr]
    floor = pairs(lambda: alone.read(token), lambda: sessions["evicted"].read(token), repeats)["ours_seconds"]
    return {
        "rows": rows,
        "context": context,
        "budget": budget,
        **found,
        "bytes_moved_allow": round(limit, 2),
        "bytes": held,
        "weight_bytes": weights,
        "step_ms": {
            "evicted": round(1e3 * found["ours_seconds"] / steps, 1),
            "whole": round(1e3 * found["theirs_seconds"] / steps, 1),
            "no_cache_at_all": round(1e3 * floor, 1),
        },
    }


def dropping(model: Any, tokenizer: Any, context: int, repeats: int) -> dict[str, Any]:
    """Half of the prompt's tokens dropped after an early layer, against reading the whole prompt."""
    ids = text_ids(tokenizer, context)
    recipe = "lazy_llm(budget=0.5, stages=1, start=0.1)"
    work = {}

    def read(name: str, with_recipe: str | None) -> Callable[[], None]:
        def run() -> None:
            session = Session(model, with_recipe)
            session.read(ids)
            work[name] = session.stats.token_layers

        return run

    found = pairs(read("dropped", recipe), read("whole", None), repeats)
    return {
        "recipe": recipe,
        "context": context,
        **found,
        "token_layers_ratio": round(work["whole"] / work["dropped"], 3),
    }


def drafting(model: Any, tokenizer: Any, prompts: list[str], new: int, recipe: str) -> dict[str, Any]:
    """A drafter against our own greedy loop, prompt by prompt in turn."""
    ratios, calls, tokens, same = [], 0, 0, 0
    for prompt in prompts:
        ids = [
            tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)[
                "input_ids"
            ]
        ]
        plain = tm.generate(model, tokenizer, ids, max_new_tokens=new)[0]
        drafted = tm.generate(model, tokenizer, ids, recipe, max_new_tokens=new)[0]
        ratios.append(plain.stats.decode_seconds / max(drafted.stats.decode_seconds, 1e-9))
        calls += drafted.stats.forward_calls - 1
        tokens += len(drafted.ids) - 1
        same += plain.ids == drafted.ids
    return {
        "recipe": recipe,
        "prompts": len(prompts),
        "new_tokens": new,
        "ratio": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "greatest": round(max(ratios), 3),
        "tokens_per_call": round(tokens / max(calls, 1), 3),
        "identical": f"{same}/{len(prompts)}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs, not to quote")
    parser.add_argument("--prompts", type=Path, help="JSON lines with 'turns' (Spec-Bench's question.jsonl)")
    parser.add_argument("--count", type=int, default=16, help="prompts to draft for")
    parser.add_argument("--only", help="one of: greedy, overhead, eviction, dropping, drafting")
    parser.add_argument("--repeats", type=int, default=5, help="pairs that count")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model, tokenizer = tm.load("smollm2")
    quick, repeats = args.quick, 2 if args.quick else args.repeats
    prompts = [p for name in sorted(topics) for p in (f"Explain this: {topics[name][:300]}",)][: args.count]
    if args.prompts:
        lines = [json.loads(line) for line in args.prompts.read_text().splitlines() if line]
        prompts = [line["turns"][0] for line in lines][: args.count]
    jobs: dict[str, Callable[[], Any]] = {
        "greedy": lambda: [
            greedy(model, tokenizer, c, 16 if quick else 64, repeats) for c in ((256,) if quick else (256, 2048))
        ],
        "overhead": lambda: [
            overhead(model, tokenizer, r, 256 if quick else 1024, 16 if quick else 32, 1 if quick else repeats)
            for r in (
                "h2o(budget=0.2)",
                "snapkv(budget=0.25)",
                "adaptive(budget=0.25)",
                "token_select(budget=0.25)",
                "zip_cache",
                "mini_cache",
            )
        ],
        "eviction": lambda: eviction(model, tokenizer, 8, 512 if quick else 4096, 0.25, 4, repeats),
        "dropping": lambda: dropping(model, tokenizer, 512 if quick else 1536, repeats),
        "drafting": lambda: [
            drafting(model, tokenizer, prompts[: 2 if quick else None], 32 if quick else 128, r)
            for r in ("token_recycling", "prompt_lookup")
        ],
    }
    found = {name: job() for name, job in jobs.items() if args.only in (None, name)}
    machine = {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "quick": quick,
        "seed": args.seed,
    }
    print(json.dumps({"environment": machine, **found}, indent=2))


if __name__ == "__main__":
    main()
