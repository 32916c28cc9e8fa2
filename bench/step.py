"""The plain step in every number format, against its limits and llama.cpp: `python bench/step.py [--quick]`.

Prints one JSON object. All formats (and llama.cpp, if `llama_cpp` can be imported) take turns in this one process:
one step of each, then the next of each. Figures are the least and the median over turns; ratios are of the least,
which other work on the machine disturbs least. `--clock cpu` counts the process's own seconds instead of the wall's:
for one thread on a machine that others use too.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from importlib.metadata import version
from pydoc_data.topics import topics
from typing import Any

import torch

import tokenmill as tm
from tokenmill.models.default import _gguf
from tokenmill.models.weights import FORMATS, held
from tokenmill.run.session import Session

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
now = time.perf_counter


def turns(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, one of each in turn. A first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            began = now()
            run()
            if turn:
                seconds[name].append(now() - began)
    return seconds


def figures(seconds: dict[str, list[float]], base: Iterable[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, found in seconds.items():
        out[name] = {"least_ms": round(1e3 * min(found), 2), "median_ms": round(1e3 * statistics.median(found), 2)}
        for other in base:
            if other in seconds and other != name:
                out[name][f"of {other}"] = round(min(found) / min(seconds[other]), 3)
    return out


def text_ids(tokenizer: Any, length: int, skip: int = 1000) -> torch.Tensor:
    ids = tokenizer(" ".join(topics[name] for name in sorted(topics)))["input_ids"]
    return torch.tensor([ids[skip : skip + length]])


def bandwidth() -> float:
    """Bytes a second at which memory can be read: a sum over 512 MB, the best of several."""
    numbers = torch.ones(128 << 20)
    return numbers.nbytes / min(turns({"": numbers.sum}, 10)[""])


class Rival:
    """llama.cpp on the default model's own file."""

    def __init__(self, ids: list[int], threads: int):
        from llama_cpp import Llama

        self.ids = ids
        self.model = Llama(
            str(_gguf()), n_ctx=4096, n_batch=2048, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def read(self, count: int) -> None:
        self.model.reset()
        self.model.eval(self.ids[:count])

    def step(self) -> None:
        self.model.eval(self.ids[:1])


def steps(models: dict[str, Any], rival: Rival | None, ids: torch.Tensor, context: int, repeats: int) -> dict[str, Any]:
    """One token more, after `context`: our greedy loop's step in each format, the library's, llama.cpp's."""
    token = ids[:, :1]
    runs: dict[str, Callable[[], Any]] = {}
    with ExitStack() as stack:
        for name, model in models.items():
            session = Session(model)
            session.read(ids[:, :context])
            stack.enter_context(session.engaged())
            runs[name] = lambda session=session: session.read(token)
        own = copy.deepcopy(
            models["float32"]
        )  # the library's forward: that of a model under the engine is the engine's
        own.set_attn_implementation("sdpa")
        own.model.__dict__.pop("forward", None)
        with torch.no_grad():
            cache = own(ids[:, :context], use_cache=True).past_key_values
            runs["transformers"] = lambda: own(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
            if rival is not None:
                rival.read(context)
                runs["llama.cpp"] = rival.step
            found = turns(runs, repeats)
    return figures(found, ("float32", "transformers", "llama.cpp"))


def widths(models: dict[str, Any], ids: torch.Tensor, context: int, repeats: int) -> dict[str, Any]:
    """A pass that checks a chain of so many tokens after `context`, relative to a pass of one."""
    out: dict[str, Any] = {}
    for name, model in models.items():
        session = Session(model)
        session.read(ids[:, :context])

        def check(width: int, session: Session = session) -> Callable[[], None]:
            def run() -> None:
                seen = torch.ones(width, width, dtype=torch.bool).tril()
                session.verify(ids[0, :width], torch.arange(width), seen)
                session.accept(torch.tensor([0]))

            return run

        with session.engaged():
            found = turns({str(w): check(w) for w in (1, 2, 4, 8, 16, 32)}, repeats)
        out[name] = {
            w: {"least_ms": round(1e3 * min(s), 2), "of one": round(min(s) / min(found["1"]), 2)}
            for w, s in found.items()
        }
    return out


def prefill(models: dict[str, Any], rival: Rival | None, ids: torch.Tensor, repeats: int) -> dict[str, Any]:
    """Reading the whole prompt."""
    runs: dict[str, Callable[[], Any]] = {
        name: (lambda model=model: Session(model).read(ids)) for name, model in models.items()
    }
    if rival is not None:
        runs["llama.cpp"] = lambda: rival.read(ids.shape[1])
    return {"tokens": ids.shape[1], **figures(turns(runs, repeats), ("float32", "llama.cpp"))}


@torch.no_grad()
def quality(models: dict[str, Any], tokenizer: Any, pieces: int, length: int, new: int) -> dict[str, Any]:
    """What a format costs: nats a token on real text, KL from float32, and greedy text that stays the same."""
    texts = [text_ids(tokenizer, length, 1000 + 3 * length * i) for i in range(pieces)]

    def said(model: Any) -> tuple[list[torch.Tensor], list[list[int]]]:
        logits = [model(t).logits[0, :-1].float().log_softmax(-1) for t in texts]
        out = [tm.generate(model, None, t[:, :64].tolist(), max_new_tokens=new, ignore_eos=True)[0].ids for t in texts]
        return logits, out

    wanted, greedy = said(models["float32"])
    out = {}
    for name, model in models.items():
        logits, own = said(model)
        pairs = list(zip(wanted, logits, strict=True))
        nll = [-x.gather(1, t[0, 1:, None]).mean().item() for x, t in zip(logits, texts, strict=True)]
        same = [
            next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), new)
            for x, y in zip(greedy, own, strict=True)
        ]
        out[name] = {
            "nll": round(statistics.mean(nll), 4),
            "kl": round(statistics.mean((a.exp() * (a - b)).sum(-1).mean().item() for a, b in pairs), 6),
            "same_next": round(
                statistics.mean((a.argmax(-1) == b.argmax(-1)).float().mean().item() for a, b in pairs), 4
            ),
            "same_greedy": f"{statistics.mean(same):.1f} of {new} tokens until the first that differs",
        }
    return {"tokens": pieces * (length - 1), **out}


def main() -> None:
    global now
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs, not to quote")
    parser.add_argument("--formats", default=",".join(FORMATS), help="float32 is always among them")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--repeats", type=int, default=20, help="steps of each that count")
    parser.add_argument("--contexts", default="256,2048", help="tokens before the step")
    parser.add_argument("--only", help="some of: steps,widths,prefill,quality")
    args = parser.parse_args()
    now = CLOCKS[args.clock]
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    models, tokenizer = {}, None
    for name in dict.fromkeys(["float32", *args.formats.split(",")]):
        models[name], tokenizer = tm.load(weights=name)
    ids = text_ids(tokenizer, 256 if args.quick else 2048)
    wanted = set(args.only.split(",")) if args.only else {"steps", "widths", "prefill", "quality"}
    rival = None
    if importlib.util.find_spec("llama_cpp") and wanted != {"quality"}:
        rival = Rival(ids[0].tolist(), args.threads)
    speed = bandwidth()
    weights = {name: held(model) for name, model in models.items()}
    found: dict[str, Any] = {
        "environment": {
            "threads": args.threads, "clock": args.clock, "torch": version("torch"),
            "transformers": version("transformers"), "capability": torch.backends.cpu.get_cpu_capability(),
            "llama_cpp": version("llama_cpp_python") if rival else None, "quick": args.quick,
        },
        "memory_gb_a_second": round(speed / 1e9, 1),
        "weight_bytes": weights,
    }  # fmt: skip
    repeats = 3 if args.quick else args.repeats
    if "steps" in wanted:
        for context in (64,) if args.quick else map(int, args.contexts.split(",")):
            now_at = steps(models, rival, ids, context, repeats)
            for name, size in weights.items():
                limit = (size + cache_bytes(models[name], context)) / speed
                now_at[name]["limit_ms"] = round(1e3 * limit, 2)
                now_at[name]["of limit"] = round(now_at[name]["least_ms"] / 1e3 / limit, 2)
            found[f"step_at_{context}"] = now_at
    if "widths" in wanted:
        found["pass_by_width_at_256"] = widths(models, ids, min(256, ids.shape[1]), repeats)
    if "prefill" in wanted:
        found["prefill"] = prefill(models, rival, ids, 1 if args.quick else 3)
    if "quality" in wanted:
        found["quality"] = quality(models, tokenizer, *((2, 128, 16) if args.quick else (4, 256, 32)))
    print(json.dumps(found, indent=2))


def cache_bytes(model: Any, context: int) -> int:
    """Keys and values of the context."""
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * context * config.num_hidden_layers * config.num_key_value_heads * size * model.dtype.itemsize


if __name__ == "__main__":
    main()
