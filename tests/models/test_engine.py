"""The engine against the library: what a recipe keeps is attended to, exactly that, and nothing else changes."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from models import reference
from tiny import ARCHITECTURES, ids, tiny
from tokenmill import catalog
from tokenmill.errors import RecipeError
from tokenmill.method import get, parse, recipe
from tokenmill.models.architectures import decoder_of
from tokenmill.models.plan import plan_of
from tokenmill.run.session import Session
from tokenmill.types import Trace

TURNS = (44, 9, *[1] * 4)  # a prompt past the window of 24, a turn of several tokens, single steps


def there(spec: str) -> bool:
    """Whether all methods of a spec are written yet."""
    try:
        parse(spec)
    except Exception:
        return False
    return True


def runs_on(spec: str, model) -> bool:
    try:
        plan_of(recipe(spec), decoder_of(model))
    except RecipeError:
        return False
    return True


def evicting(budget: float = 0.3) -> list[str]:
    """Every score and keep of the catalogue that evicts, with a budget."""
    scores = [f"{name}(budget={budget})" for name in catalog.methods("score")]
    keeps = [
        f"{name}(budget={budget})"
        for name in catalog.methods("keep")
        if name != "full" and get(name).card.acts == "cache"
    ]
    return scores + keeps


def split(x: torch.Tensor, sizes) -> list[torch.Tensor]:
    return list(x.split(list(sizes), 1))


def logged(model, spec, text: torch.Tensor, sizes, session: Session | None = None):
    """Read a text (1, T) in passes: all its logits (T, V), and the history of what was held."""
    session = session or Session(model, spec)
    history = reference.History(model)
    out = []
    for piece in split(text, sizes):
        out.append(session.read(piece, all_logits=True)[0])
        history.told(piece.shape[1], session.kept())
    return torch.cat(out), history, session


def frequencies(model) -> list[torch.Tensor]:
    """Each layer's rotary frequencies, read off the library's own module."""
    rotary, types = model.model.rotary_emb, getattr(model.config, "layer_types", None)
    count = model.config.num_hidden_layers
    if hasattr(rotary, "inv_freq"):
        return [rotary.inv_freq] * count
    return [getattr(rotary, f"{types[i]}_inv_freq") for i in range(count)]


# ---- keeping everything ----


@cache
def untouched(name: str, length: int, seed: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return tiny(name)(ids(1, length, seed)).logits[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_reference_is_the_library(name):
    model, text = tiny(name), ids(1, 60)
    torch.testing.assert_close(
        reference.logits(model, text, reference.causal(model, 60)), untouched(name, 60), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("spec", [None, "full"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_keeping_everything_is_the_untouched_model(name, spec):
    for sizes in ((60,), (44, 9, *[1] * 7), (1,) * 30 + (30,), (7,) * 8 + (4,), (1, 59), (30, 30)):
        logits, _, _ = logged(tiny(name), spec, ids(1, 60), sizes)
        torch.testing.assert_close(logits, untouched(name, 60), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_long_generation_under_full(name):
    """Past the point where sliding windows have dropped tokens many times."""
    logits, _, _ = logged(tiny(name), None, ids(1, 140), (30, *[1] * 110))
    torch.testing.assert_close(logits, untouched(name, 140), atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk", [1, 5, 16, 59, 60, 61])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_chunked_reading(name, chunk):
    session = Session(tiny(name))
    last = session.read(ids(1, 60), chunk=chunk)
    torch.testing.assert_close(last[0], untouched(name, 60)[-1], atol=1e-4, rtol=0)
    newest = Session(tiny(name)).read(ids(1, 60), chunk=chunk, last=7)
    torch.testing.assert_close(newest[0], untouched(name, 60)[-7:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_left_padded_rows_and_ragged_turns(name):
    model, session = tiny(name), Session(tiny(name))
    texts = [ids(1, n, seed)[0].tolist() for seed, n in enumerate((60, 33, 50))]
    turns = [(40, 9, 1, 1, 9), (20, 1, 1, 1, 10), (1, 30, 1, 1, 17)]
    at = [0, 0, 0]
    for turn in range(5):
        rows = [texts[row][at[row] : at[row] + turns[row][turn]] for row in range(3)]
        logits = session.read(rows)
        at = [a + len(r) for a, r in zip(at, rows, strict=True)]
        for row in range(3):
            with torch.no_grad():
                own = model(torch.tensor([texts[row][: at[row]]])).logits[0, -1]
            torch.testing.assert_close(logits[row], own, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_bfloat16(name):
    model = tiny(name, torch.bfloat16)
    with torch.no_grad():
        whole = model(ids(1, 60)).logits[0].float()
    logits, _, _ = logged(model, None, ids(1, 60), (*TURNS, 1, 2))
    assert (logits.float() - whole).abs().mean() < 0.03 * whole.std()
    for spec in ("h2o(budget=0.3)", "adaptive(budget=0.3)", "snapkv(budget=0.5) + zip_cache"):
        if there(spec):
            assert torch.isfinite(logged(model, spec, ids(1, sum(TURNS)), TURNS)[0]).all()


# ---- what is evicted is not attended to, what is kept is ----


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    "spec",
    [
        "random_tokens(budget=0.3)",
        "snapkv(budget=0.2, window=8)",
        "h2o(budget=0.25)",
        "tova(slots=6)",
        "keyformer(budget=0.3)",
        "keydiff(slots=10)",
        "adaptive(score=h2o, budget=0.2)",
        "adaptive(score=random_tokens, budget=0.3)",
        "pyramid(score=knorm, budget=0.3)",
        "recent_window(slots=8)",
        "streaming_llm(budget=0.3, renumber=False)",
    ],
)
def test_eviction_equals_a_mask_over_the_whole(name, spec):
    model, text = tiny(name), ids(1, sum(TURNS))
    logits, history, _ = logged(model, spec, text, TURNS)
    torch.testing.assert_close(logits, reference.logits(model, text, history.layers()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
@pytest.mark.parametrize("spec", ["snapkv(slots=8)", "adaptive(score=knorm, slots=8)", "h2o(slots=40)"])
def test_eviction_then_seventy_steps(name, spec):
    """Few tokens are held, but of these some are outside the window by the time a query comes."""
    model, sizes = tiny(name), (40, *[1] * 72, 5)
    text = ids(1, sum(sizes))
    logits, history, _ = logged(model, spec, text, sizes)
    torch.testing.assert_close(logits, reference.logits(model, text, history.layers()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("spec", ["adaptive(score=h2o, budget=0.3)", "pyramid(score=snapkv(window=4), budget=0.3)"])
def test_eviction_in_padded_rows(name, spec):
    model, session = tiny(name), Session(tiny(name), spec)
    lengths = [(44, 9, 1, 1), (13, 9, 1, 1), (30, 2, 1, 1)]
    texts = [ids(1, sum(n), seed) for seed, n in enumerate(lengths)]
    histories = [reference.History(model, row) for row in range(3)]
    out: list[list[torch.Tensor]] = [[], [], []]
    pieces = [split(text, n) for text, n in zip(texts, lengths, strict=True)]
    for turn in range(4):
        logits = session.read([pieces[row][turn][0].tolist() for row in range(3)])
        for row in range(3):
            histories[row].told(pieces[row][turn].shape[1], session.kept())
            out[row].append(logits[row])
    for row in range(3):
        whole = reference.logits(model, texts[row], histories[row].layers())
        ends = torch.tensor(lengths[row]).cumsum(0) - 1
        torch.testing.assert_close(torch.stack(out[row]), whole[ends], atol=1e-4, rtol=0)


@pytest.mark.parametrize("spec", evicting())
def test_the_first_decision_is_the_methods_own(spec):
    """Shown the library's keys, values and queries, the method decides what the engine kept."""
    for name in ("llama", "mistral" if spec.startswith("knorm") else "gemma3"):  # Gemma's keys are all of one length
        model, text = tiny(name), ids(1, 50)
        if not runs_on(spec, model):
            continue
        layers = reference.causal(model, 50)
        decoder = decoder_of(model)
        plan = plan_of(recipe(spec), decoder)
        session = Session(model, spec)
        # What layers are shown depends on what those below attended to: nothing is evicted before the prompt ends.
        session.read(text)
        reference.logits(model, text, layers)
        at = torch.arange(50)
        for index, layer in enumerate(layers):
            window = reference.windows(model)[index]
            start = 0 if window is None else 50 - window
            heads = layer.keys.shape[1]
            trace = Trace(
                keys=layer.keys[:, :, start:],
                values=layer.values[:, :, start:],
                positions=at[start:].expand(1, heads, -1),
                queries=layer.queries if plan.queries is None else layer.queries[:, :, 50 - plan.queries :],
                query_positions=at[None] if plan.queries is None else at[None, 50 - plan.queries :],
                seen=torch.tensor([50 - start]),
                layer=index,
                layers=len(layers),
                scale=layer.queries.shape[-1] ** -0.5,
                rotary=decoder.rotaries[index],
                window=window,
            )
            keep = plan.spend(trace, plan.score(trace, None)[0] if plan.scores else None)
            wanted = [p[m].tolist() for p, m in zip(trace.positions[0], keep.mask[0].expand(heads, -1), strict=True)]
            assert session.kept()[index][0] == wanted


# ---- renumbered positions ----


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "gpt2"])
@pytest.mark.parametrize("spec", ["streaming_llm(slots=12)", "streaming_llm(budget=0.4, sinks=2)"])
def test_renumbered_keys_are_as_if_they_had_been_there(name, spec):
    model, sizes = tiny(name), (*TURNS, *[1] * 62, 6)  # the decision after 64 steps falls in between
    text = ids(1, sum(sizes))
    logits, history, _ = logged(model, spec, text, sizes)
    whole = reference.logits(model, text, history.layers(frequencies(model)))
    torch.testing.assert_close(logits, whole, atol=2e-4, rtol=0)


def test_renumbering_goes_past_the_models_context():
    model, session = tiny("llama"), Session(tiny("llama"), "streaming_llm(slots=16)")
    session.read(ids(1, 500))
    seen = []
    for token in ids(1, 200, 3)[0]:
        assert torch.isfinite(session.read(token.view(1, 1))).all()
        seen.append(int(session.cache.seen[0] - session.cache.shift[0][0]))
    assert session.cache.seen.tolist() == [700]
    assert model.config.max_position_embeddings < 700
    assert max(seen) <= 16 + 64, "positions in the cache stay small"


# ---- rows ----


def everything() -> list[str]:
    """Every method that acts on a running cache, and some pairs."""
    found = evicting()
    found += [f"{n}(budget=0.5)" for n in catalog.methods("keep") if get(n).card.acts != "cache"]
    ready = [n for verb in ("merge", "quantize", "skip") for n in catalog.methods(verb)]
    found += [n for n in ready if get(n).card.trains != "model"]
    pairs = [
        "h2o(budget=0.3) + zip_cache",
        "adaptive(score=snapkv(window=8), budget=0.4) + zip_cache",
        "snapkv(budget=0.3) + d3(alpha=0.98)",
        "streaming_llm(slots=12)",
    ]
    return found + [p for p in pairs if there(p)]


def steps_of(spec: str) -> int:
    """Enough single steps to decide again while generating."""
    every = max(m.card.every for m in recipe(spec))
    return 6 if every == 1 else every + 6


@pytest.mark.parametrize("spec", everything())
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_a_row_of_a_batch_is_the_row_alone(name, spec):
    if "knorm" in spec:  # Qwen3 and Gemma give all keys the same length: nothing but rounding to choose by
        name = {"qwen3": "qwen2", "gemma3": "mistral"}[name]
    # A code is chosen by rounding, and in float32 a batch's last bit may choose another than a row's.
    model = tiny(name, torch.float64 if any(m.verb in ("quantize", "merge") for m in recipe(spec)) else torch.float32)
    if not runs_on(spec, model):
        pytest.skip("needs what this model lacks")
    steps = steps_of(spec) if name in ("gemma3", "mistral") else 3
    prompts = [ids(1, n, seed)[0].tolist() for seed, n in enumerate((41, 7, 1, 29))]
    turn = [ids(1, n, seed + 9)[0].tolist() for seed, n in enumerate((3, 12, 70, 2))]
    later = ids(4, steps, 5)

    def told(rows):
        session = Session(model, spec)
        logits = [session.read([prompts[r] for r in rows])]
        logits += [session.read(later[rows, i : i + 1]) for i in range(steps)]
        held = session.kept()
        logits.append(session.read([turn[r] for r in rows]))
        logits.append(session.read(later[rows, :1]))
        return torch.stack(logits, 1), held, session.kept()

    rows = [0, 1, 2, 3] if steps < 50 else [2, 3]
    together, held, after = told(rows)
    for row, number in enumerate(rows):
        alone, own_held, own_after = told([number])
        assert [layer[row] for layer in held] == [layer[0] for layer in own_held]
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=0)
        assert [layer[row] for layer in after] == [layer[0] for layer in own_after]
