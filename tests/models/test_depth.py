"""Layers that tokens skip, against the library's own model over the whole text at once: a token that skips a layer
keeps its hidden state, and its key there is that state's or is hidden from everybody."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import tokenmill as tm
from models import reference
from tiny import ARCHITECTURES, ids, tiny
from tokenmill.errors import RecipeError, SpecError
from tokenmill.method import get, method, recipe
from tokenmill.models.architectures import decoder_of
from tokenmill.run.session import Session
from tokenmill.types import Depth, Exit, Midway, Step

LEVEL = {"top": 0.043, "margin": 0.012, "saturation": 0.75}  # where the tiny models leave at different layers
EXIT = f"early_exit(threshold={LEVEL['top']}, measure='top', stride=1, start=0.1)"
SPECS = (
    "d3(alpha=0.9, core=0.5)",
    "skip_decode(least=0.5, length=6)",  # generation is longer than the schedule
    "constant_skip(share=0.5)",
    "random_depth(share=0.5)",
)


def slow(model, text: torch.Tensor, runs: torch.Tensor, fill: str, layers=None):
    """Logits (T, V), and the states (L + 1, T, E) around every layer; runs (T, L) bool: the layers a token runs."""
    layers = layers or reference.causal(model, text.shape[1])
    states: list[torch.Tensor] = []

    def hold(module, args, kwargs, out, index):
        before = args[0] if args else kwargs["hidden_states"]
        after = out[0] if isinstance(out, tuple) else out
        if not states:
            states.append(before[0])
        kept = torch.where(runs[:, index][None, :, None], after, before)
        states.append(kept[0])
        return (kept, *out[1:]) if isinstance(out, tuple) else kept

    decoder = decoder_of(model)
    for index, layer in enumerate(layers):
        if fill == "missing":
            layer.sees &= runs[:, index] | torch.eye(len(runs), dtype=torch.bool)
    hooks = [
        layer.register_forward_hook(partial(hold, index=index), with_kwargs=True)
        for index, layer in enumerate(decoder.layers)
    ]
    try:
        return reference.logits(model, text, layers), torch.stack(states)
    finally:
        for hook in hooks:
            hook.remove()


def logged(m):
    """The same exit method, writing down for each pass which layers each of its rows ran."""
    log: list[list[tuple[int, torch.Tensor]]] = []

    @method(title="", verb="skip", acts="exit")
    def spy(midway: Midway, *, fill: str = m.knobs["fill"]) -> Exit | None:
        out = m(midway)
        if midway.layer == 0:
            log.append([])
        if out is not None:
            log[-1].append((midway.layer, out.rows.clone()))
        return out

    return spy, log


def depths(passes, rows: int, layers: int) -> torch.Tensor:
    """(passes, rows): how many layers each row ran, from what was decided about the rows that were still walking."""
    out = torch.full((len(passes), rows), layers)
    for number, decisions in enumerate(passes):
        going = torch.arange(rows)
        for layer, leaves in decisions:
            out[number, going[leaves]] = layer + 1
            going = going[~leaves]
    return out


@pytest.mark.parametrize("sizes", [(30, *[1] * 14), (1, *[1] * 14), (20, *[1] * 6, 5, *[1] * 6)])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_schedules(name, spec, sizes):
    model, m = tiny(name), recipe(spec).get("skip")
    text, count = ids(1, sum(sizes)), model.config.num_hidden_layers
    session, out, runs, generated, at = Session(model, spec), [], [], 0, 0
    for number, (piece, size) in enumerate(zip(text.split(list(sizes), 1), sizes, strict=True)):
        prompt = size > 1 or number == 0
        generated += 0 if prompt else 1
        at += size
        depth = m(Step(at - 1, generated, count, prompt))
        runs += [[index in depth.layers for index in range(count)]] * size
        out.append(session.read(piece, all_logits=True)[0])
    runs = torch.tensor(runs)
    assert not runs.all()
    want, _ = slow(model, text, runs, depth.fill)
    torch.testing.assert_close(torch.cat(out), want, atol=2e-4, rtol=0)
    assert session.stats.token_layers == int(runs.sum())


@pytest.mark.parametrize("fill", ["carry", "missing"])
@pytest.mark.parametrize("measure", ["top", "margin", "saturation"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_early_exit(name, measure, fill):
    """The decisions follow from the states of the slow way, and so does what comes out."""
    model = tiny(name)
    level = {"qwen2": 0.65, "qwen3": 0.65}.get(name, 0.75) if measure == "saturation" else LEVEL[measure]
    m = get("early_exit")(threshold=level, measure=measure, stride=1, start=0.1, fill=fill)
    spy, log = logged(m)
    sizes = (20, *[1] * 12, 5, *[1] * 12)  # past the windows of 24, and a turn of several tokens
    text, count = ids(1, sum(sizes)), model.config.num_hidden_layers
    session = Session(model, spy)
    out = [session.read(piece, all_logits=True)[0] for piece in text.split(list(sizes), 1)]
    ran = iter(depths(log, 1, count)[:, 0].tolist())
    deep = [n for size in sizes for n in ([next(ran)] if size == 1 else [count] * size)]
    assert len({*deep}) > 1, "no row left early: the test shows nothing"
    runs = torch.arange(count) < torch.tensor(deep)[:, None]
    want, states = slow(model, text, runs, fill)
    torch.testing.assert_close(torch.cat(out), want, atol=2e-4, rtol=0)
    assert session.stats.token_layers == int(runs.sum())
    decoder, generated = decoder_of(model), [size == 1 for size in sizes for _ in range(size)]
    asked = 0
    for t in (t for t, single in enumerate(generated) if single):
        for layer in range(min(deep[t], count - 1)):
            here, below = states[layer + 1, t], states[layer, t]
            with torch.no_grad():
                p = model.get_output_embeddings()(decoder.final_norm(here)).softmax(-1).sort().values
            c = {"top": p[-1], "margin": p[-1] - p[-2], "saturation": here @ below / here.norm() / below.norm()}[
                measure
            ]
            if abs(float(c) - level) > 1e-5:
                assert (float(c) > level) == (layer + 1 == deep[t])
            asked += 1
    assert session.stats.exit_heads == (0 if measure == "saturation" else asked)


@pytest.mark.parametrize("fill", ["carry", "missing"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_leave_at_layers_of_their_own_and_are_what_they_are_alone(name, fill):
    model = tiny(name)
    m = get("early_exit")(threshold=LEVEL["top"], measure="top", stride=1, start=0.1, fill=fill)
    spy, log = logged(m)
    texts = [ids(1, n + 14, seed)[0] for seed, n in enumerate((26, 9, 1, 17))]
    session = Session(model, spy)
    out = [session.read([t[:-14].tolist() for t in texts])]
    out += [session.read(torch.stack([t[i - 14] for t in texts])[:, None]) for i in range(14)]
    ran = depths(log, 4, model.config.num_hidden_layers)
    assert any(len({*row}) > 1 for row in ran.tolist()), "all rows left together: the test shows nothing"
    assert session.stats.token_layers == (26 + 9 + 1 + 17 + 3 * 26 - 27) * 4 + int(ran.sum())
    for row, text in enumerate(texts):
        alone = Session(model, m)
        want = [alone.read(text[None, :-14])] + [alone.read(text[i - 14].view(1, 1)) for i in range(14)]
        torch.testing.assert_close(torch.cat([x[row : row + 1] for x in out]), torch.cat(want), atol=2e-4, rtol=0)


@pytest.mark.parametrize("other", ["h2o(budget=0.5)", "snapkv(budget=0.5, window=4)", "zip_cache"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
def test_a_cache_method_in_the_same_recipe_sees_each_row_as_alone(name, other):
    spec = f"{other} + {EXIT}"
    model, texts = tiny(name), ids(3, 44)
    session = Session(model, spec)
    together = [session.read(piece) for piece in texts.split([30, *[1] * 14], 1)]
    for row in range(3):
        alone = Session(model, spec)
        want = [alone.read(piece) for piece in texts[row : row + 1].split([30, *[1] * 14], 1)]
        torch.testing.assert_close(torch.stack(together)[:, row], torch.cat(want), atol=2e-4, rtol=0)
        for layer, own in zip(session.kept(), alone.kept(), strict=True):
            assert layer[row] == own[0]


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_h2o_and_early_exit_against_the_slow_way(name):
    model = tiny(name)
    spy, log = logged(get("early_exit")(threshold=LEVEL["top"], measure="top", stride=1, start=0.1))
    sizes, count = (30, *[1] * 12), model.config.num_hidden_layers
    text, session, history = ids(1, 42), Session(model, recipe("h2o(budget=0.5)") + spy), reference.History(model)
    out = []
    for piece in text.split(list(sizes), 1):
        out.append(session.read(piece, all_logits=True)[0])
        history.told(piece.shape[1], session.kept())
    deep = [count] * 30 + depths(log, 1, count)[:, 0].tolist()
    assert len({*deep}) > 1
    want, _ = slow(model, text, torch.arange(count) < torch.tensor(deep)[:, None], "carry", history.layers())
    torch.testing.assert_close(torch.cat(out), want, atol=2e-4, rtol=0)


@pytest.mark.parametrize("spec", [*SPECS, EXIT])
def test_inside_the_librarys_generate(spec):
    model, prompt = tiny("llama"), ids(2, 12)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with tm.applied(model, spec):
        told = model.generate(prompt, max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0)
    own = tm.generate(model, None, prompt, recipe=spec, max_new_tokens=10, ignore_eos=True)
    assert own[0].stats.token_layers < 2 * 21 * 4
    assert told[:, 12:].tolist() == [o.ids for o in own]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_left_padded_generate():
    model, spec = tiny("llama"), EXIT
    rows = [ids(1, n, n)[0].tolist() for n in (12, 5)]
    together = tm.generate(model, None, rows, recipe=spec, max_new_tokens=12, ignore_eos=True)
    for row, out in zip(rows, together, strict=True):
        alone = tm.generate(model, None, [row], recipe=spec, max_new_tokens=12, ignore_eos=True)
        assert out.ids == alone[0].ids


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", [*SPECS, EXIT])
def test_half_precision(spec, dtype):
    session = Session(tiny("llama", dtype), spec)
    for piece in ids(3, 30).split([20, *[1] * 10], 1):
        assert session.read(piece).isfinite().all()


def test_an_exit_that_never_comes_is_the_untouched_model():
    model = tiny("llama")
    m = get("early_exit")(threshold=1.0, stride=1, start=0.1)
    session, full = Session(model, m), Session(model)
    for piece in ids(2, 30).split([20, *[1] * 10], 1):
        torch.testing.assert_close(session.read(piece), full.read(piece), atol=1e-5, rtol=0)
    assert session.stats.token_layers == full.stats.token_layers
    assert session.stats.exit_heads == 2 * 10 * 3


def test_upper_layers_are_not_computed_for_rows_that_left():
    """Rows that left are not among those the feed-forward of a later layer is given."""
    model, seen = tiny("llama"), []
    m = get("early_exit")(threshold=LEVEL["top"], measure="top", stride=1, start=0.1)
    session = Session(model, m)
    session.read(ids(6, 20))
    hook = model.model.layers[-1].mlp.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    try:
        for piece in ids(6, 12, 1).split(1, 1):
            session.read(piece)
    finally:
        hook.remove()
    assert sum(seen) < 6 * 12
    assert session.stats.token_layers < 6 * 32 * 4


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (1, 0, 2, 3), (0, 3), (3, 0)])
def test_layers_run_in_the_order_asked_for(order):
    @method(title="", verb="skip")
    def permuted(step: Step) -> Depth:
        return Depth(order, fill="missing")

    model, text = tiny("llama"), ids(1, 24)
    whole = Session(model, permuted).read(text, all_logits=True)
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList(layers[i] for i in order)
    count, model.config.num_hidden_layers = model.config.num_hidden_layers, len(order)
    try:
        with torch.no_grad():
            want = model(text, use_cache=False).logits
    finally:
        model.model.layers, model.config.num_hidden_layers = layers, count
    torch.testing.assert_close(whole, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("order", [(0, 0, 1), (0, 9), (-1,)])
def test_impossible_orders_are_told(order):
    @method(title="", verb="skip")
    def wrong(step: Step) -> Depth:
        return Depth(order)

    with pytest.raises(RecipeError, match="once at most"):
        Session(tiny("llama"), wrong).read(ids(1, 5))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("d3 + token_recycling", "depth of its own"),
        ("early_exit + prompt_lookup", "depth of its own"),
        ("mini_cache + skip_decode", "pass by layers"),
        ("token_select + early_exit", "rows that left it have none"),
        ("h2o(budget=0.5) + early_exit(fill='missing')", "own count"),
        ("zip_cache + early_exit(fill='missing')", "own count"),
        ("lazy_llm + early_exit", "already chooses the layers"),
        ("d3 + early_exit", "one of a kind"),
    ],
)
def test_what_cannot_combine_is_told(spec, why):
    with pytest.raises(RecipeError, match=why):
        recipe(spec)


@pytest.mark.parametrize("knob", ["measure='entropy'", "fill='copy'"])
def test_unknown_words_are_told(knob):
    session = Session(tiny("llama"), f"early_exit({knob}, start=0.1)")
    session.read(ids(1, 5))
    with pytest.raises(SpecError, match="margin, top, saturation"):
        session.read(ids(1, 1))
