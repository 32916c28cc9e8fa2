"""One owner a model: contexts in any order, threads, tasks, streams that are let go, and the model as it was."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
import torch

import tokenmill as tm
from models.test_applied import GREEDY, Broken, breaking, fingerprint
from run.test_token_lora import random_parts
from tiny import ids, tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill.errors import ModelError, RecipeError
from tokenmill.models.adapters import attached
from tokenmill.models.admission import admitted
from tokenmill.models.apply import applied
from tokenmill.models.architectures import decoder_of
from tokenmill.models.owner import _entered, _open
from tokenmill.run import fit
from tokenmill.run.generate import generate, stream
from tokenmill.run.session import Session
from tokenmill.types import Learned

TEXT = ids(1, 30)
SPECS = (None, "h2o(budget=0.3)", "recent_window(budget=0.2)", "lazy_llm(budget=0.5)")
BOUND = 60  # seconds that a test of threads may take


def library(model, text=TEXT, new=12):
    with torch.no_grad():
        return model.generate(text, max_new_tokens=new, **GREEDY)[0, text.shape[1] :].tolist()


def under(model, spec, text=TEXT):
    with applied(model, spec):
        return library(model, text)


def ours(model, spec, text=TEXT, new=12):
    return generate(model, None, text.tolist(), spec, max_new_tokens=new, ignore_eos=True)[0].ids


def in_threads(*works):
    """Run these at once and give what each gave; an error is raised, and so is one that waits for ever."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(BOUND) for future in [pool.submit(work) for work in works]]


@pytest.fixture
def model():
    """A model of its own, that must be afterwards what it was."""
    made = tiny.__wrapped__("llama")
    before, text = fingerprint(made), library(made)
    yield made
    assert fingerprint(made) == before
    assert library(made) == text
    with torch.no_grad():
        assert type(made(TEXT, use_cache=True).past_key_values).__name__ == "DynamicCache"


# ---- contexts in any order ----


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (0, 2, 1), (2, 0, 1)])
def test_contexts_end_in_any_order(model, order):
    specs = ["h2o(budget=0.2)", "recent_window(budget=0.3)", "lazy_llm(budget=0.4)"]
    alone = [under(model, spec) for spec in specs]
    assert len({*map(tuple, alone)}) == 3
    contexts = [applied(model, spec) for spec in specs]
    for context in contexts:
        context.__enter__()
    inside = [0, 1, 2]
    for which in order:
        assert library(model) == alone[inside[-1]], "the innermost that is still open"
        contexts[which].__exit__(None, None, None)
        inside.remove(which)


def test_contexts_of_two_models_cross():
    one, two = copy.deepcopy(tiny("llama")), copy.deepcopy(tiny("gpt2"))
    wanted = [under(m, "h2o(budget=0.2)") for m in (one, two)]
    own = [library(m) for m in (one, two)]
    a, b = applied(one, "h2o(budget=0.2)"), applied(two, "h2o(budget=0.2)")
    a.__enter__()
    b.__enter__()
    assert [library(m) for m in (one, two)] == wanted
    a.__exit__(None, None, None)
    assert [library(m) for m in (one, two)] == [own[0], wanted[1]]
    b.__exit__(None, None, None)
    assert [library(m) for m in (one, two)] == own


def test_a_recipe_inside_a_recipe(model):
    inner = ours(model, "recent_window(budget=0.2)")
    outer = under(model, "h2o(budget=0.3)")
    with applied(model, "h2o(budget=0.3)"):
        assert ours(model, "recent_window(budget=0.2)") == inner
        assert library(model) == outer
    session = Session(model, "recent_window(budget=0.2)")
    with session.engaged():
        session.read(TEXT)
        assert under(model, "h2o(budget=0.3)") == outer


def test_the_model_is_its_own_between_two_passes(model):
    """What tokenmill.generate hands to a caller's function in the middle of its work."""
    before, wanted, seen = fingerprint(model), library(model), []

    def on_text(row, text):
        seen.append((fingerprint(model) == before, library(model) == wanted))

    generate(model, tiny_tokenizer(), TEXT.tolist(), "h2o(budget=0.3)", max_new_tokens=3, on_text=on_text)
    assert seen
    assert set(seen) == {(True, True)}


@pytest.mark.parametrize(
    "spec", [None, "h2o(budget=0.3)", "lazy_llm(budget=0.5)", "snapkv(budget=0.3) + prompt_lookup"]
)
def test_an_exception_in_the_middle(model, spec):
    hook = breaking(model)
    with pytest.raises(Broken):
        ours(model, spec)
    if spec is None or "lookup" not in spec:
        with pytest.raises(Broken), applied(model, "full"), applied(model, spec):
            library(model)
    hook.remove()


def test_an_exception_while_installing(model, monkeypatch):
    from tokenmill.models import owner

    def fail(self, base):
        base.forward = None
        raise Broken

    with monkeypatch.context() as patched:
        patched.setattr(owner.Owner, "_install", fail)
        with pytest.raises(Broken), applied(model, "full"):
            pass
    model.model.__dict__.pop("forward", None)  # what the fault itself left
    assert under(model, "full") == library(model)


def test_an_error_at_the_first_use_is_not_remembered():
    """A configuration that the engine has not seen, and a hook that raises while it is being looked at."""
    torch.manual_seed(0)
    config = copy.deepcopy(tiny("llama").config)
    config.rms_norm_eps = 3e-6
    fresh = type(tiny("llama"))(config).eval()
    before = fingerprint(fresh)
    hook = breaking(fresh)
    for _ in range(2):
        with pytest.raises((Broken, ModelError)):
            ours(fresh, "h2o(budget=0.3)")
    hook.remove()
    assert ours(fresh, None) == library(fresh)
    assert fingerprint(fresh)[2:] == before[2:]


def test_threads_that_use_a_model_for_the_first_time():
    torch.manual_seed(0)
    config = copy.deepcopy(tiny("llama").config)
    config.rms_norm_eps = 4e-6
    fresh = type(tiny("llama"))(config).eval()
    wanted, start = library(fresh), threading.Barrier(4)

    def work(way):
        start.wait(BOUND)
        return way()

    plain, engine = (lambda: library(fresh)), (lambda: ours(fresh, None))
    assert in_threads(*(lambda way=way: work(way) for way in (plain, engine, plain, engine))) == [wanted] * 4
    assert admitted(fresh, lambda: None).skippable, "what other threads ran did not disturb the proof"


def test_a_forward_that_somebody_wrapped_meanwhile_stays_wrapped(model):
    calls = []
    context = applied(model, "h2o(budget=0.2)")
    context.__enter__()
    inner = model.model.forward

    def wrapper(*args, **kwargs):
        calls.append(1)
        return inner(*args, **kwargs)

    model.model.forward = wrapper
    context.__exit__(None, None, None)
    wanted = library(tiny("llama"))
    assert library(model) == wanted
    assert calls, "the wrapper is still there, and what it wraps gives the model's own"
    del model.model.forward


def test_the_table_of_contexts_is_empty_in_the_end(model):
    with applied(model, "full"):
        library(model)
    assert not _open
    assert not _entered.get()
    other = copy.deepcopy(model)
    under(other, "full")
    import weakref

    gone = weakref.ref(other.model)
    del other
    gc.collect()
    assert gone() is None, "the record does not hold the model"


def test_a_copy_made_inside_is_a_model_of_its_own(model):
    with applied(model, "h2o(budget=0.2)"):
        copied = copy.deepcopy(model)
        with pytest.raises(ModelError, match=r"leave tokenmill.applied"):
            pickle.dumps(model)
        plain = library(copied)
        assert under(copied, "recent_window(budget=0.3)") == ours(model, "recent_window(budget=0.3)")
    assert plain == library(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.neg_()
        assert library(copied) == plain
        for weight in model.parameters():
            weight.neg_()


def test_a_model_over_several_devices_is_refused(model):
    model.hf_device_map = {"model": 0, "lm_head": 1}
    with pytest.raises(ModelError, match="spread over the devices 0, 1"):
        ours(model, None)
    model.hf_device_map = {"model": 0, "lm_head": "cpu"}
    ours(model, None)
    del model.hf_device_map


def test_modules_modes_are_theirs_again():
    """A model that is partly in train mode, as with frozen layers, after what puts all of it into one mode."""
    model = copy.deepcopy(tiny("llama"))

    def modes():
        return [module.training for module in model.modules()]

    model.train()
    model.model.layers[1].eval()
    before = modes()
    tm.explain(model, None, TEXT[0, :6].tolist(), "gradient_norm")
    assert modes() == before
    tm.probe(model, None, [TEXT[0, :6].tolist()], "layer_drop")
    assert modes() == before
    with fit._at_rest(model):
        assert not any(modes())
    assert modes() == before
    trained = copy.deepcopy(model)
    tm.train(trained, [TEXT], "rho1", reference=model, steps=1)
    assert modes() == before == [module.training for module in trained.modules()]


# ---- threads ----


@pytest.mark.parametrize("way", [ours, under])
def test_threads_each_get_their_own_text(model, way):
    texts = [ids(1, 30, seed) for seed in range(len(SPECS))]
    alone = [way(model, spec, text) for spec, text in zip(SPECS, texts, strict=True)]
    start = threading.Barrier(len(SPECS))

    def work(spec, text):
        start.wait(BOUND)
        return [way(model, spec, text) for _ in range(4)]

    got = in_threads(*(lambda s=spec, t=text: work(s, t) for spec, text in zip(SPECS, texts, strict=True)))
    assert got == [[one] * 4 for one in alone]


def test_the_librarys_own_calls_run_beside_ours(model):
    """Plain generate and forward in other threads, also while a pass of ours is under way."""
    wanted, spec = library(model), "h2o(budget=0.3)"
    alone = ours(model, spec)
    start = threading.Barrier(3)

    def plain():
        start.wait(BOUND)
        return [library(model) for _ in range(8)]

    def engine():
        start.wait(BOUND)
        return [ours(model, spec) for _ in range(8)]

    assert in_threads(plain, engine, plain) == [[wanted] * 8, [alone] * 8, [wanted] * 8]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_forward_of_the_models_own_in_the_middle_of_a_pass(attention):
    """Another thread's, started inside a layer of our pass: the attention and the masks it finds are its own."""
    model = copy.deepcopy(tiny("llama"))
    model.set_attn_implementation(attention)
    padded, mask = ids(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[0, :7] = 0
    with torch.no_grad():
        wanted = model(padded, attention_mask=mask).logits
    found = []

    def forward():
        with torch.no_grad():
            return model(padded, attention_mask=mask).logits

    def hook(*_):
        if not found:
            found.append(None)  # the other forward comes through here too
            found[0] = in_threads(forward)[0]

    handle = model.model.layers[1].register_forward_pre_hook(hook)
    Session(model, "h2o(budget=0.3)").read(TEXT)
    handle.remove()
    assert torch.equal(found[0], wanted)
    assert model.config._attn_implementation == attention


def test_a_recipe_serves_threads_that_have_none(model):
    """The library's streamers: generate runs in a thread beside the one that has entered the recipe."""
    wanted, other = under(model, "h2o(budget=0.2)"), ours(model, "recent_window(budget=0.2)")
    with applied(model, "h2o(budget=0.2)"):
        assert in_threads(lambda: library(model)) == [wanted]
        assert in_threads(lambda: ours(model, "recent_window(budget=0.2)")) == [other]
        assert in_threads(lambda: under(model, "full")) == [under(model, "full")]


def test_two_threads_recipes_and_a_third_that_has_none(model):
    entered, leave = threading.Barrier(3), threading.Event()

    def hold(spec):
        with applied(model, spec):
            entered.wait(BOUND)
            leave.wait(BOUND)
            return library(model)

    alone = [under(model, spec) for spec in ("h2o(budget=0.2)", "lazy_llm(budget=0.5)")]
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(hold, spec) for spec in ("h2o(budget=0.2)", "lazy_llm(budget=0.5)")]
        entered.wait(BOUND)
        try:
            with pytest.raises(RecipeError, match="several threads hold this model"):
                library(model)
            assert ours(model, "recent_window(budget=0.2)")
        finally:
            leave.set()
        assert [one.result(BOUND) for one in both] == alone


def test_a_context_that_another_thread_ends(model):
    context = applied(model, "h2o(budget=0.2)")
    context.__enter__()
    in_threads(lambda: context.__exit__(None, None, None))


def test_tasks_each_have_their_own_recipe(model):
    """Two coroutines in one thread, each inside its recipe, taking turns."""
    alone = [under(model, spec) for spec in ("h2o(budget=0.2)", "recent_window(budget=0.3)")]

    async def work(spec):
        with applied(model, spec):
            out = []
            for _ in range(2):
                await asyncio.sleep(0)
                out.append(library(model))
            return out

    async def both():
        return await asyncio.gather(work("h2o(budget=0.2)"), work("recent_window(budget=0.3)"))

    assert asyncio.run(both()) == [[one] * 2 for one in alone]


def test_readings_take_turns(model):
    """Sessions of two recipes in one thread, engaged across each other."""
    specs = ("h2o(budget=0.2)", "recent_window(budget=0.3)")
    wanted = [Session(model, spec).read(TEXT) for spec in specs]
    one, two = (Session(model, spec) for spec in specs)
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(one.engaged())
        second.enter_context(two.engaged())
        assert torch.equal(one.read(TEXT), wanted[0])
        first.close()
        assert torch.equal(two.read(TEXT), wanted[1])
        assert library(model) == library(tiny("llama"))


# ---- streams ----


def streamed(model, spec="h2o(budget=0.3)", new=40):
    return stream(model, tiny_tokenizer(), "w5 w9 w30 w31 w77", recipe=spec, max_new_tokens=new, ignore_eos=True)


def consumed(pieces):
    for _ in pieces:
        raise Broken
    yield


@pytest.mark.parametrize("spec", [None, "h2o(budget=0.3)", "prompt_lookup", "contrastive"])
@pytest.mark.parametrize("how", ["closed", "collected", "consumer raises", "forgotten"])
def test_a_stream_that_is_left(model, spec, how):
    threads, passes = threading.active_count(), []
    hook = model.model.layers[0].register_forward_pre_hook(lambda *_: passes.append(1))
    pieces = streamed(model, spec)
    next(pieces)
    before = len(passes)
    if how == "closed":
        pieces.close()
    elif how == "collected":
        del pieces
        gc.collect()
    elif how == "consumer raises":
        pieces = consumed(pieces)
        with pytest.raises(Broken):
            next(pieces)
        assert library(model) == library(tiny("llama"))
    assert threading.active_count() == threads, "nobody goes on writing"
    assert how == "consumer raises" or len(passes) == before
    hook.remove()
    assert library(model) == library(tiny("llama"))


@pytest.mark.parametrize("spec", [None, "h2o(budget=0.3)", "prompt_lookup"])
def test_streams_take_turns_and_give_the_text(model, spec):
    whole = generate(model, tiny_tokenizer(), "w5 w9 w30 w31 w77", spec, max_new_tokens=40, ignore_eos=True)[0].text
    one, two, out = streamed(model, spec), streamed(model, spec), ["", ""]
    for first, second in zip(one, two, strict=True):
        out[0] += first
        out[1] += second
        assert library(model, new=1) == library(tiny("llama"), new=1)
    assert out == [whole, whole]


def test_a_stream_reports_its_error(model):
    with pytest.raises(RecipeError, match="compares whole texts"):
        list(streamed(model, "beam + temperature(temperature=0.5)"))


# ---- adapters ----


@contextmanager
def adapters(monkeypatch):
    def found(method, model, *, folder=None):
        return Learned(random_parts(model), None, model.get_input_embeddings())

    with monkeypatch.context() as patched:
        patched.setattr("tokenmill.run.adapt.learned", found)
        yield


def test_adapters_act_in_the_passes_they_are_mixed_for(model, monkeypatch):
    with adapters(monkeypatch):
        wanted, plain = ours(model, "token_lora"), library(model)
        assert wanted != plain
        pieces = streamed(model, "token_lora")
        next(pieces)
        assert library(model) == plain, "between two passes"
        start = threading.Barrier(3)

        def work(spec):
            start.wait(BOUND)
            return [ours(model, spec) for _ in range(4)]

        got = in_threads(lambda: work("token_lora"), lambda: work(None), lambda: work("token_lora"))
        assert got == [[wanted] * 4, [plain] * 4, [wanted] * 4]
        pieces.close()


def test_adapters_are_a_threads_own(model):
    with attached(decoder_of(model), random_parts(model)) as mixer, torch.no_grad():
        plain = model(TEXT).logits
        mixer.weights = torch.ones(1, 1, 3)
        assert not torch.equal(model(TEXT).logits, plain)
        assert torch.equal(in_threads(lambda: model(TEXT).logits.detach())[0], plain)
