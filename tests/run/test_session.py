"""Sessions: one reading for many recipes equals many readings; forks; figures; what is refused."""

from __future__ import annotations

import pytest
import torch

from models import reference
from models.test_engine import everything, runs_on, there
from models.test_parts import real_bytes
from tiny import ARCHITECTURES, ids, tiny
from tokenmill.errors import InputError, ModelError, RecipeError
from tokenmill.method import method
from tokenmill.models import engine
from tokenmill.run.session import Session, pad_left, read_once
from tokenmill.types import Depth, Step

PAIRS = [
    "adaptive(score=h2o, budget=0.3)",
    "pyramid(score=keydiff, budget=0.3)",
    "snapkv(budget=0.5, window=4) + mini_cache",
]


@pytest.mark.parametrize("name", ["qwen2", "mistral", "gemma3", "gpt2"])
def test_one_reading_for_all_is_a_reading_for_each(name):
    model, rows = tiny(name), [ids(1, n, n)[0].tolist() for n in (50, 31, 2)]
    specs = [
        s for s in [*everything(), *filter(there, PAIRS[:2]), "h2o(budget=0.5)", None] if s is None or runs_on(s, model)
    ]
    reading = read_once(model, rows, specs)
    for spec in specs:
        shared, own = reading.session(spec), Session(model, spec)
        own.read(rows)
        assert shared.kept() == own.kept(), spec
        assert shared.stats.cache_bytes <= own.stats.cache_bytes + 4096, spec
        for step in range(4):
            turn = ids(3, 5 if step == 2 else 1, step)
            torch.testing.assert_close(
                shared.read(turn), own.read(turn), atol=1e-4, rtol=0, msg=lambda m, s=spec: f"{s}: {m}"
            )
        assert shared.kept() == own.kept(), spec
        for one, other in zip(shared.cache.stores, own.cache.stores, strict=True):
            assert one.fresh == other.fresh, spec
            if spec and ("zip_cache" in spec or "mini_cache" in spec):
                assert one.unpacked == other.unpacked, spec


@pytest.mark.parametrize("length", [1, 2])
def test_the_shortest_prompts(length):
    model = tiny("llama")
    specs = [s for s in everything() if runs_on(s, model)]
    reading = read_once(model, ids(1, length), specs)
    for spec in specs:
        shared, own = reading.session(spec), Session(model, spec)
        own.read(ids(1, length))
        for step in range(3):
            torch.testing.assert_close(shared.read(ids(1, 1, step)), own.read(ids(1, 1, step)), atol=1e-4, rtol=0)
        assert shared.kept() == own.kept(), spec


def test_the_reading_stays_whole():
    model = tiny("llama")
    reading = read_once(model, ids(1, 40), ["h2o(budget=0.2)", "streaming_llm(slots=8)"])
    with torch.no_grad():
        torch.testing.assert_close(reading.logits, model(ids(1, 40)).logits[:, -1], atol=1e-4, rtol=0)
    one, other = reading.session("h2o(budget=0.2)"), reading.session("h2o(budget=0.2)")
    for _ in range(3):
        one.read(ids(1, 5))
    assert len(other.kept()[0][0][0]) == 8
    torch.testing.assert_close(reading.session("h2o(budget=0.2)").read(ids(1, 1)), other.read(ids(1, 1)))
    with pytest.raises(RecipeError, match="was not among"):
        reading.session("h2o(budget=0.3)")


@pytest.mark.parametrize("spec", [None, *everything()])
def test_forks_share_nothing_that_changes(spec):
    model = tiny("llama")
    if spec and not runs_on(spec, model):
        pytest.skip("needs what this model lacks")
    session = Session(model, spec)
    session.read(ids(2, 40))
    session.read(ids(2, 1))
    twin, other = session.fork(), session.fork()
    bytes_before = real_bytes(twin.cache.stores, twin.cache.rows)
    for seed in range(3):
        other.read(ids(2, 7, seed))
        other.read(ids(2, 1, seed))
    assert real_bytes(twin.cache.stores, twin.cache.rows) == bytes_before
    assert twin.kept() == session.kept()
    for turn in (ids(2, 1, 5), ids(2, 4, 6)):
        assert torch.equal(twin.read(turn), session.read(turn))
    assert twin.stats.forward_calls == 4
    assert other.stats.forward_calls == 8


# ---- layers that tokens skip ----


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("fill", ["carry", "missing"])
def test_skipped_layers(name, fill):
    """The prompt in all layers, what comes later in the first and the last: as a reference that lacks the others."""

    @method(title="", verb="skip")
    def ends(step: Step) -> Depth:
        return Depth(tuple(range(4)) if step.generated == 0 else (0, 3), fill)

    model, session = tiny(name), Session(tiny(name), ends)
    text = ids(1, 46)
    got = [session.read(piece)[0] for piece in text.split([30, *[1] * 6, 9, 1], 1)]
    ends_at = [29, 30, 31, 32, 33, 34, 35, 44, 45]
    windows = reference.windows(model)
    for layer, window in enumerate(windows):
        held = session.kept()[layer][0][0]
        last = 29 if fill == "missing" and layer in (1, 2) else 45
        assert held[-1] == last
        assert held == list(range(held[0], last + 1))
        assert held[0] == 0 if window is None else held[0] <= last - window + 1
    layers = (getattr(model, "model", None) or model.transformer).layers if name != "gpt2" else model.transformer.h

    def passing_by(module, args, kwargs, out):
        whole = out[0] if isinstance(out, tuple) else out
        before = args[0] if args else kwargs["hidden_states"]
        whole = torch.cat([whole[:, :30], before[:, 30:]], 1)
        return (whole, *out[1:]) if isinstance(out, tuple) else whole

    hooks = [layers[i].register_forward_hook(passing_by, with_kwargs=True) for i in (1, 2)]
    try:
        whole = reference.logits(model, text, reference.causal(model, 46))
    finally:
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(torch.stack(got), whole[ends_at], atol=1e-4, rtol=0)


@pytest.mark.skipif(not there("snapkv(budget=0.25) + d3"), reason="not written yet")
def test_skipped_layers_keep_their_budget():
    session = Session(tiny("llama"), "snapkv(slots=10, window=4) + d3(alpha=0.5, core=0.5)")
    session.read(ids(1, 40))
    for step in range(140):
        session.read(ids(1, 1, step))
    assert all(len(head) <= 10 + 64 for layer in session.kept() for head in layer[0])


# ---- tokens dropped between layers ----


@pytest.mark.skipif(not there("lazy_llm(budget=1.0)"), reason="not written yet")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_walking_with_nothing_dropped_is_the_untouched_model(name):
    model, text = tiny(name), ids(1, 60)
    with torch.no_grad():
        wanted = model(text).logits[0]
    session, at = Session(model, "lazy_llm(budget=1.0)"), 0
    for size in (44, 5, *[1] * 8, 3):
        got = session.read(text[:, at : at + size])
        at += size
        torch.testing.assert_close(got[0], wanted[at - 1], atol=1e-4, rtol=0)
    assert session.cache.rows[0].revived == 0


@pytest.mark.skipif(not there("lazy_llm(budget=0.3)"), reason="not written yet")
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_walking_equals_a_mask_over_the_whole(name, monkeypatch):
    """A token's key in a layer is computed once, in the pass that first needs it, from what was active then.

    The reference computes all tokens in all layers at once, and lets each see in each layer what was active in the pass
    that computed it there. Rows of dropped tokens are computed too, and seen by nobody.
    """
    model, sizes = tiny(name), (44, 1, 1, 1, 6, 1, 1)
    text = ids(1, sum(sizes), 4)
    session = Session(model, "lazy_llm(budget=0.3)")
    layers = reference.causal(model, sum(sizes))
    window = [layer.sees.clone() for layer in layers]
    held: list[set[int]] = [set() for _ in layers]
    active_now: list[torch.Tensor] = []
    original = engine.Pass._layer

    def spied(self, *given):
        active_now.append(self.visible.clone())
        return original(self, *given)

    monkeypatch.setattr(engine.Pass, "_layer", spied)
    got, ends = [], []
    for piece in text.split(list(sizes), 1):
        active_now.clear()
        got.append(session.read(piece)[0])
        ends.append(piece.shape[1] + (ends[-1] if ends else -1))
        for index, layer in enumerate(layers):
            now = set(session.cache.rows[0].stores[index].positions()[0, 0].tolist())
            for token in now - held[index]:
                active = torch.zeros(sum(sizes), dtype=torch.bool)
                active[active_now[index]] = True
                layer.sees[:, token] = window[index][:, token] & active
            held[index] = now
    # Tokens that some layer never computed see themselves there, so that nothing is NaN.
    for layer in layers:
        layer.sees |= torch.eye(sum(sizes), dtype=torch.bool)
    whole = reference.logits(model, text, layers)
    torch.testing.assert_close(torch.stack(got), whole[ends], atol=1e-4, rtol=0)
    for index, layer in enumerate(layers):
        keys, values, positions = session.cache.rows[0].stores[index].lanes.view()
        torch.testing.assert_close(keys[0], layer.keys[0][:, positions[0, 0].long()], atol=1e-4, rtol=0)
        torch.testing.assert_close(values[0], layer.values[0][:, positions[0, 0].long()], atol=1e-4, rtol=0)
    assert session.cache.rows[0].revived > 0, "some token came back"
    assert len(held[-1]) < len(held[0])


# ---- figures and refusals ----


def test_stats():
    session = Session(tiny("llama"), "snapkv(budget=0.5, window=4)")
    session.read([ids(1, 40)[0].tolist(), ids(1, 30)[0].tolist()])
    session.read(ids(2, 1))
    stats = session.stats
    assert (stats.forward_calls, stats.prompt_tokens, stats.token_layers) == (2, 70, (80 + 2) * 4)
    assert 0 < stats.cache_bytes <= stats.peak_cache_bytes
    one = Session(tiny("llama"))
    one.read(ids(1, 1))
    assert one.stats.prompt_tokens == 1


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2"])
def test_a_sessions_logits_are_the_models_and_who_listens_to_its_calls_is_heard(name):
    model, heard = tiny(name), []
    logits = Session(model).read(ids(1, 9), last=3)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(ids(1, 9)).logits[:, -3:], atol=1e-5, rtol=1e-4)
    for listened in (model, model.base_model):
        handle = listened.register_forward_hook(lambda *given: heard.append(1))
        try:
            again = Session(model).read(ids(1, 9), last=3)
        finally:
            handle.remove()
        assert len(heard) == 1
        assert torch.equal(again, logits)
        heard.clear()


def test_pad_left():
    padded, mask = pad_left([[5, 6, 7], [8]])
    assert padded.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]
    assert pad_left([[5], [6]])[1] is None


def test_right_padding_and_holes_are_moved_in_front():
    model, text = tiny("gemma3"), ids(2, 20)
    valid = torch.rand(2, 20, generator=torch.Generator().manual_seed(0)) < 0.6
    got = Session(model).read(text, valid=valid)
    for row in range(2):
        own = Session(model).read(text[row : row + 1, valid[row]])
        torch.testing.assert_close(got[row], own[0], atol=1e-4, rtol=0)


def test_errors():
    import copy

    model = tiny("llama")
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight.fill_(float("nan"))
    rows = [ids(1, 40)[0].tolist(), ids(1, 4)[0].tolist()]
    for ask, kind, words in (
        (lambda: Session(model).read([]), InputError, "no prompt"),
        (lambda: Session(model).read([[1], []]), InputError, "empty"),
        (lambda: Session(model).read(ids(1, 5)[:, :0]), InputError, "empty"),
        (lambda: Session(model).read(ids(1, 5)[0]), InputError, "rows, tokens"),
        (lambda: Session(model).read(ids(2, 5), valid=torch.tensor([[True] * 5, [False] * 5])), InputError, "padding"),
        (lambda: Session(model).read(rows, chunk=8), InputError, "padding"),
        (lambda: Session(broken).read(ids(1, 5)), ModelError, "NaN"),
    ):
        with pytest.raises(kind, match=words) as error:
            ask()
        assert "\n" not in str(error.value)
    session = Session(broken)
    with pytest.raises(ModelError):
        session.read(ids(1, 5))
    with pytest.raises(RecipeError, match="new cache"):
        session.read(ids(1, 5))
