"""The library's own forward, generate and pipelines under a recipe, and the model as it was afterwards."""

from __future__ import annotations

import copy
import hashlib
from contextlib import nullcontext

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)

from models.test_engine import evicting, runs_on, there
from models.test_parts import real_bytes
from tiny import ARCHITECTURES, ids, tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill import catalog
from tokenmill.errors import InputError, ModelError, RecipeError, TokenmillError
from tokenmill.models.apply import applied
from tokenmill.models.architectures import CACHE
from tokenmill.models.lanes import SLACK
from tokenmill.run.generate import generate
from tokenmill.run.session import Session

GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "use_cache": True}


def fingerprint(model) -> tuple:
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    attributes = {name: sorted(m.__dict__) for name, m in model.named_modules()}
    forwards = {name: m.__dict__.get("forward") for name, m in model.named_modules()}
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    implementation = [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]
    return weights.hexdigest(), attributes, forwards, hooks, implementation, model.config.to_dict(), model.training


class Broken(Exception):
    pass


def breaking(model, layer: int = 2):
    """A hook that raises inside a layer."""

    def fail(*_):
        raise Broken

    decoder = getattr(model, "model", None) or model.transformer
    return (decoder.layers if hasattr(decoder, "layers") else decoder.h)[layer].register_forward_pre_hook(fail)


# ---- as it was ----


@pytest.mark.parametrize("spec", [None, "h2o(budget=0.3)", "lazy_llm(budget=0.5)", "zip_cache", "mini_cache", "d3"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_the_model_is_as_it_was(name, spec):
    model = tiny(name)
    if spec and not (there(spec) and runs_on(spec, model)):
        pytest.skip("needs what this model lacks")
    before = fingerprint(model)
    with applied(model, spec):
        model.generate(ids(2, 20), max_new_tokens=5, **GREEDY)
        with applied(model, "snapkv(budget=0.5)"):
            model(ids(1, 9))
        model(ids(1, 9))
    assert fingerprint(model) == before
    hook = breaking(model)
    with pytest.raises(Broken), applied(model, spec):
        model(ids(1, 9))
    hook.remove()
    after = fingerprint(model)
    assert after[:3] + after[4:] == before[:3] + before[4:]


@pytest.mark.parametrize("spec", [None, "h2o(budget=0.3)", "lazy_llm(budget=0.5)"])
def test_after_an_exception_the_cache_is_refused_and_the_model_works(spec):
    if spec and not there(spec):
        pytest.skip("not written yet")
    model = tiny("llama")
    with torch.no_grad():
        wanted = model(ids(1, 20)).logits
    session = Session(model, spec)
    session.read(ids(1, 20))
    hook = breaking(model)
    with pytest.raises(Broken):
        session.read(ids(1, 3))
    hook.remove()
    for again in (lambda: session.read(ids(1, 3)), lambda: session.fork().read(ids(1, 1))):
        with pytest.raises(RecipeError, match="start again with a new cache"):
            again()
    with pytest.raises(RecipeError, match="new cache"):
        session.cache.reorder_cache(torch.tensor([0]))
    with torch.no_grad():
        assert torch.equal(model(ids(1, 20)).logits, wanted)
    torch.testing.assert_close(Session(model).read(ids(1, 20)), wanted[:, -1], atol=1e-4, rtol=0)


# ---- the library's generate ----


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
        {"do_sample": True, "temperature": 1.3, "top_k": 20},
        {"num_return_sequences": 3, "do_sample": True},
        {"repetition_penalty": 1.3},
        {"use_cache": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2"])
def test_generate_under_full_is_the_librarys_own(name, how):
    model, text = tiny(name), ids(2, 40)
    mask = torch.ones_like(text)
    text[1, :17], mask[1, :17] = 0, 0
    asked = {**GREEDY, **how, "max_new_tokens": 12}
    torch.manual_seed(3)
    plain = model.generate(text, attention_mask=mask, **asked)
    torch.manual_seed(3)
    with applied(model, "full"):
        milled = model.generate(text, attention_mask=mask, **asked)
    assert torch.equal(plain, milled)


def test_a_static_cache_is_refused():
    """The library makes a 4D mask for it, in its sliding layers or where there is padding."""
    with pytest.raises(RecipeError, match="not a static one"), applied(tiny("gemma3")):
        tiny("gemma3").generate(ids(1, 20), max_new_tokens=3, cache_implementation="static", **GREEDY)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("length", [12, 60])
def test_assisted_generation_under_full(name, length):
    model = tiny(name)
    text = ids(1, 6).repeat(1, length // 6)  # the library's prompt lookup has something to find
    plain = model.generate(text, max_new_tokens=40, **GREEDY)
    with applied(model, None):
        milled = model.generate(text, max_new_tokens=40, prompt_lookup_num_tokens=5, **GREEDY)
    assert torch.equal(plain, milled)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_several_turns_with_generate(name):
    model = tiny(name)
    first = ids(1, 30)
    with torch.no_grad():
        out = model.generate(first, max_new_tokens=8, **GREEDY)
        second = torch.cat([out, ids(1, 11, 5)], 1)
        wanted = model.generate(second, max_new_tokens=8, **GREEDY)
    with applied(model, None):
        one = model.generate(first, max_new_tokens=8, return_dict_in_generate=True, **GREEDY)
        assert torch.equal(one.sequences, out)
        got = model.generate(second, **{CACHE: one[CACHE]}, max_new_tokens=8, **GREEDY)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    "spec",
    [
        "h2o(budget=0.4)",
        "adaptive(score=tova, budget=0.4)",
        "snapkv(budget=0.5) + zip_cache",
        "mini_cache",
        "streaming_llm(slots=12)",
        "lazy_llm(budget=0.5)",
    ],
)
def test_beams_that_are_one_beam(spec):
    """Rows that are re-ordered keep their own tokens: each beam's later logits are those of the text it holds."""
    if not there(spec):
        pytest.skip("not written yet")
    model = tiny("llama")
    rows = ids(4, 30)
    session = Session(model, spec)
    session.read(rows)
    session.read(ids(4, 1, 8))
    index = torch.tensor([3, 3, 0, 1])
    moved = session.fork()
    moved.cache.reorder_cache(index)
    assert [[layer[r] for layer in moved.kept()] for r in range(4)] == [
        [layer[i] for layer in session.kept()] for i in index
    ]
    for turn in (ids(4, 1, 2), ids(4, 5, 3), ids(4, 1, 4)):
        got, own = moved.read(turn[index]), session.read(turn)
        torch.testing.assert_close(got, own[index], atol=1e-4, rtol=0)
    repeated = session.fork()
    repeated.cache.batch_repeat_interleave(2)
    torch.testing.assert_close(
        repeated.read(ids(8, 1, 6)[:4].repeat_interleave(2, 0)),
        session.read(ids(8, 1, 6)[:4]).repeat_interleave(2, 0),
        atol=1e-4,
        rtol=0,
    )
    with applied(model, spec):
        assert model.generate(rows[:2], num_beams=3, max_new_tokens=6, **GREEDY).shape == (2, 36)


def test_pipeline():
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    text = " ".join(f"w{i}" for i in range(10, 40))
    ask = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")  # else a GPU, if there is one
    plain = ask(text, max_new_tokens=8, do_sample=False)
    with applied(model, None):
        assert ask(text, max_new_tokens=8, do_sample=False) == plain
    with applied(model, "snapkv(budget=0.3, window=4)") as engine:
        ask(text, max_new_tokens=8, do_sample=False)
        assert all(len(head) <= 9 + 8 for layer in engine.cache.kept() for head in layer[0])


def test_forward_without_no_grad():
    model = tiny("llama")
    with applied(model, "h2o(budget=0.5)"):
        out = model(ids(1, 20), use_cache=True)
        for _ in range(3):
            out = model(ids(1, 1), **{CACHE: out[CACHE]})
    assert torch.isfinite(out.logits).all()


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_embeddings_instead_of_ids(name):
    model = tiny(name)
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids(1, 30))
        wanted = model(inputs_embeds=embeds).logits
        with applied(model):
            torch.testing.assert_close(model(inputs_embeds=embeds).logits, wanted, atol=1e-4, rtol=0)


# ---- crop ----


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_crop(name):
    model = tiny(name)
    session = Session(model)
    session.read([ids(1, 30)[0].tolist(), ids(1, 25, 1)[0].tolist()])
    session.cache.crop(-7)
    got = session.read(ids(2, 4, 2))
    for row, (n, seed) in enumerate(((30, 0), (25, 1))):
        with torch.no_grad():
            text = torch.cat([ids(1, n, seed)[:, :-7], ids(2, 4, 2)[row : row + 1]], 1)
            torch.testing.assert_close(got[row], model(text).logits[0, -1], atol=1e-4, rtol=0)


def test_crop_is_refused_where_tokens_are_gone():
    evicted = Session(tiny("llama"), "h2o(budget=0.5)")
    slid = Session(tiny("mistral"))
    for session, reason in ((evicted, "cannot take tokens back"), (slid, "sliding window")):
        session.read(ids(1, 60))
        with pytest.raises(RecipeError, match=reason):
            session.cache.crop(-3)


# ---- bytes ----


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize(
    "spec",
    [
        None,
        *evicting(0.25),
        "pyramid(score=knorm, budget=0.25)",
        "h2o(budget=0.25) + zip_cache",
        "mini_cache",
        "token_select(budget=0.25)",
        "lazy_llm(budget=0.25)",
        "streaming_llm(slots=50)",
        "snapkv(budget=0.25) + d3(alpha=0.9)",
    ],
)
def test_bytes_are_what_is_held(name, spec):
    model = tiny(name)
    if spec and not (there(spec) and runs_on(spec, model)):
        pytest.skip("needs what this model lacks")
    length, steps = 400, 70
    session = Session(model, spec)
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = config.hidden_size // config.num_attention_heads
    slot = 2 * size * 4 + 4  # key, value, position
    window = getattr(config, "sliding_window", None) or 10**9
    every = 64
    state = 4 if spec and ("h2o" in spec or "keyformer" in spec) else 0
    # 2 * SLACK slots a head of room, `every` tokens until the next decision; their queries; a state a slot
    constant = heads * ((2 * SLACK + every) * (slot + state)) + every * (config.num_attention_heads * size * 4 + 8)
    for step in range(steps):
        session.read(ids(1, length) if step == 0 else ids(1, 1, step))
        if step not in (0, 1, 62, 63, 64, steps - 1):
            continue
        cache = session.cache
        actual = real_bytes([vars(s) for s in cache.stores], cache.rows, cache.stash)
        tables = sum(
            x.untyped_storage().nbytes()
            for s in [*cache.stores, *(s for row in cache.rows for s in row.stores)]
            for x in (s.lanes.starts, s.lanes.rooms, s.lanes.counts)
            if x is not None
        )
        assert actual - tables - 2000 <= cache.nbytes <= actual, "what is said is what is there"
        if spec in evicting(0.25) or (spec and "+" in spec) or (spec and spec.startswith("pyramid")):
            untouched = heads * slot * min(length + step, window)
            layers = len(cache.stores)
            held = [store.nbytes for store in cache.stores]
            assert sum(held) <= layers * (0.25 * untouched + constant)
            if "pyramid" not in spec:
                assert max(held) <= 0.25 * untouched + constant


def test_ragged_heads_are_freed_each():
    """A layer whose heads keep very different counts costs what they keep, not the longest times the heads."""
    session = Session(tiny("llama"), "adaptive(score=random_tokens, budget=0.3, safeguard=0.0)")
    session.read(ids(1, 400))
    uneven = 0
    for store, layer in zip(session.cache.stores, session.kept(), strict=True):
        counts = [len(head) for head in layer[0]]
        assert sum(counts) == 240
        uneven += max(counts) - min(counts)
        assert store.lanes.nbytes <= sum(n + 2 * SLACK for n in counts) * (2 * 8 * 4 + 4)
    assert uneven > 0


# ---- refusals ----


def test_errors_say_what_to_do():
    model, prompt = tiny("llama"), ids(1, 8)
    with applied(model, "h2o(budget=0.5)"):
        cache = model(prompt)[CACHE]
    filled = DynamicCache()
    with torch.no_grad():
        model(prompt, **{CACHE: filled})
    torch.manual_seed(0)
    two_layers = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
        )
    )
    with torch.no_grad(), pytest.raises(RecipeError, match=r"inside tokenmill.applied"):
        model(prompt, **{CACHE: cache})

    def under(recipe=None, of=model, **asked):
        with applied(of, recipe), torch.no_grad():
            of(**{"input_ids": prompt, **asked})

    padded = torch.ones(2, 8, dtype=torch.long)
    padded[1] = 0
    bert = BertForMaskedLM(
        BertConfig(vocab_size=97, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    )
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=97, d_model=24, d_kv=12, d_ff=24, num_layers=1, num_heads=2))
    cases = [
        (lambda: under(input_ids=prompt[:, :0]), InputError, "at least one token"),
        (lambda: under(input_ids=ids(2, 8), attention_mask=padded), InputError, "padding"),
        (lambda: under(attention_mask=torch.ones(1, 1, 8, 8)), RecipeError, "2D attention_mask"),
        (lambda: under(output_attentions=True), RecipeError, "outside of applied"),
        (lambda: under(output_hidden_states=True), RecipeError, "outside of applied"),
        (lambda: under(position_ids=torch.arange(8)[None].flip(-1)), RecipeError, "position_ids"),
        (lambda: under(**{CACHE: filled}), RecipeError, "start from the whole prompt"),
        (lambda: under("token_recycling"), RecipeError, "tokenmill.generate"),
        (lambda: under(of=two_layers, **{CACHE: cache}), InputError, "new cache"),
        (lambda: under(input_ids=ids(3, 1), **{CACHE: cache}), InputError, "1 rows and the input has 3"),
        (lambda: under(of=bert), ModelError, "bert"),
        (lambda: under(of=t5), ModelError, "encoder-decoder"),
        (lambda: under("streaming_llm(slots=8)", tiny("gpt2")), RecipeError, "rotary"),
        (lambda: under("snapkv"), RecipeError, "budget"),
        (lambda: under(inputs_embeds=torch.zeros(1, 8, 48)), InputError, "either"),
    ]
    for ask, kind, words in cases:
        with pytest.raises(kind, match=words) as error:
            ask()
        assert isinstance(error.value, TokenmillError)
        assert "\n" not in str(error.value)
    assert catalog.methods("draft")


# ---- modes ----


def logits_and_gradients(model, text, context):
    model.zero_grad()
    with context:
        out = model(text, labels=text)
    out.loss.backward()
    return out.logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_the_models_own(name, training):
    model = copy.deepcopy(tiny(name)).train(training and name != "gpt2")  # which drops out
    logits, gradients = logits_and_gradients(model, ids(2, 20), nullcontext())
    got, found = logits_and_gradients(model, ids(2, 20), applied(model))
    torch.testing.assert_close(got, logits, atol=1e-4, rtol=0)
    assert found.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-4 * float(gradient.std() + 1e-3), rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_that_drops_out_is_refused(name):
    model = copy.deepcopy(tiny(name))
    if name == "llama":
        model.model.layers[2].self_attn.attention_dropout = 0.2
    uses = (
        lambda: logits_and_gradients(model, ids(1, 9), applied(model)),
        lambda: Session(model).read(ids(1, 9)),
        lambda: generate(model, None, [[5, 6, 7]], max_new_tokens=2),
    )
    with applied(model):
        model.train()
        with pytest.raises(ModelError, match=r"train mode .* call model.eval"):
            model(ids(1, 9))
    for use in uses:
        with pytest.raises(ModelError, match=r"train mode .* call model.eval"):
            use()
    model.eval()
    for use in uses:
        use()


def test_checkpointed_gradients_are_refused_and_passes_without_are_not():
    model = copy.deepcopy(tiny("llama")).train()
    model.gradient_checkpointing_enable()
    with torch.no_grad():
        wanted = model(ids(1, 20)).logits
    with applied(model):
        with torch.no_grad():
            torch.testing.assert_close(model(ids(1, 20)).logits, wanted, atol=1e-4, rtol=0)
        with pytest.raises(ModelError, match="checkpoints gradients"):
            model(ids(1, 20))
    model.eval()
    logits_and_gradients(model, ids(1, 9), applied(model))


@pytest.mark.parametrize("spec", [None, "h2o(budget=0.5)", "snapkv(budget=0.5) + zip_cache", "lazy_llm(budget=0.6)"])
def test_a_text_goes_on_outside_of_inference_mode(spec):
    model, prompt, rest = tiny("llama"), ids(2, 40), (ids(2, 1, 1), ids(2, 3, 2), ids(2, 1, 3))
    with applied(model, spec), torch.no_grad():
        wanted = [model(prompt, use_cache=True)]
        for new in rest:
            wanted.append(model(new, past_key_values=wanted[-1].past_key_values))
    for modes in ((True, False, False, False), (False, True, False, True), (True, True, False, True)):
        past = None
        with applied(model, spec):
            for mode, new, want in zip(modes, (prompt, *rest), wanted, strict=True):
                with torch.inference_mode(mode), torch.no_grad():
                    out = model(new, past_key_values=past, use_cache=True)
                    past = out.past_key_values
                    torch.testing.assert_close(out.logits[:, -1], want.logits[:, -1], atol=1e-4, rtol=0)


def test_memory_and_beams_in_inference_mode():
    model, prompt = tiny("llama"), ids(1, 40)
    memory: dict = {}
    with torch.inference_mode():
        first = generate(model, None, prompt.tolist(), "token_recycling", memory=memory, max_new_tokens=10)[0].ids
        with applied(model, "h2o(budget=0.5)"):
            beams = model.generate(prompt, num_beams=3, max_new_tokens=6, **GREEDY)
    assert generate(model, None, prompt.tolist(), "token_recycling", memory=memory, max_new_tokens=10)[0].ids == first
    with applied(model, "h2o(budget=0.5)"):
        assert torch.equal(model.generate(prompt, num_beams=3, max_new_tokens=6, **GREEDY), beams)


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_weights_that_are_fetched_for_each_call(name, where, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    prompt, specs = ids(1, 30), (None, "h2o(budget=0.4)", "prompt_lookup", "contrastive", "lazy_llm(budget=0.5)")
    asked = {"max_new_tokens": 8, "ignore_eos": True}
    wanted = [generate(tiny(name), None, prompt.tolist(), spec, **asked)[0].ids for spec in specs]
    model, here = copy.deepcopy(tiny(name)), torch.device("cpu")
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device=here)
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device=here)
    assert model.device.type == "meta"
    forwards = {key: module.__dict__.get("forward") for key, module in model.named_modules()}
    assert [generate(model, None, prompt.tolist(), spec, **asked)[0].ids for spec in specs] == wanted
    with applied(model):
        assert model.generate(prompt, max_new_tokens=8, **GREEDY)[0, 30:].tolist() == wanted[0]
    assert {key: module.__dict__.get("forward") for key, module in model.named_modules()} == forwards
    with pytest.raises(ModelError, match="no weights"):
        Session(copy.deepcopy(tiny(name)).to("meta")).read(prompt)


class Addition(torch.nn.Module):
    """A low-rank addition to a linear layer."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.down = torch.nn.Parameter(torch.randn(2, base_layer.in_features) * 0.3)
        self.up = torch.nn.Parameter(torch.randn(base_layer.out_features, 2) * 0.3)

    def forward(self, x):
        return self.base_layer(x) + x @ self.down.T @ self.up.T


class Wrapper(torch.nn.Module):
    """What adapter libraries put around a model: what it does not have itself it takes from the model inside."""

    def __init__(self, model):
        super().__init__()
        self.base_model = torch.nn.Module()
        self.base_model.model = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model.model, name)

    def get_base_model(self):
        return self.base_model.model

    def forward(self, *args, **kwargs):
        return self.base_model.model(*args, **kwargs)


def test_a_wrapper_with_adapters_around_the_model():
    torch.manual_seed(0)
    inside = copy.deepcopy(tiny("llama"))
    for layer in inside.model.layers:
        layer.self_attn.q_proj = Addition(layer.self_attn.q_proj)
    model = Wrapper(inside).eval()
    prompt = ids(1, 30)
    wanted = model.generate(prompt, max_new_tokens=8, **GREEDY)
    assert not torch.equal(wanted, tiny("llama").generate(prompt, max_new_tokens=8, **GREEDY))
    with applied(model):
        assert torch.equal(model.generate(prompt, max_new_tokens=8, **GREEDY), wanted)
    with applied(model, "h2o(budget=0.4)"), applied(inside, "h2o(budget=0.4)") as engine:
        both = [m.generate(prompt, max_new_tokens=8, **GREEDY) for m in (model, inside)]
        assert torch.equal(*both)
        assert engine.cache is not None
    for spec in (None, "prompt_lookup"):
        out = generate(model, None, prompt.tolist(), spec, max_new_tokens=8, ignore_eos=True)[0]
        assert out.ids == wanted[0, 30:].tolist()
    logits, gradients = logits_and_gradients(model, prompt, nullcontext())
    got, found = logits_and_gradients(model, prompt, applied(model))
    torch.testing.assert_close(got, logits, atol=1e-4, rtol=0)
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-4 * float(gradient.std() + 1e-3), rtol=1e-3)


# ---- what a config says, and the caller's own cache ----


def test_what_the_config_leaves_open_or_says():
    model = copy.deepcopy(tiny("llama"))
    for name in ("output_hidden_states", "output_attentions"):
        model.set_attn_implementation("eager")
        setattr(model.config, name, True)
        with pytest.raises(RecipeError, match="outside of applied"), applied(model):
            model(ids(1, 9))
        with applied(model):
            assert model(ids(1, 9), **{name: False}).logits.isfinite().all()
        assert generate(model, None, [[5, 6, 7]], max_new_tokens=2)[0].ids
        setattr(model.config, name, False)
    model.config.use_cache = False
    with applied(model):
        assert model(ids(1, 9)).past_key_values is None
        assert model(ids(1, 9), use_cache=True).past_key_values is not None
    with applied(model):
        assert isinstance(model(ids(1, 9), return_dict=False), tuple)
        assert isinstance(model.model(ids(1, 9), return_dict=False), tuple)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("with_config", [False, True])
def test_the_callers_own_cache_is_filled(name, with_config):
    """The loop of the library's documentation: one cache, made first and never taken back from the output."""
    model, prompt = tiny(name), ids(2, 40)

    def loop(context):
        cache, new, out = DynamicCache(config=model.config) if with_config else DynamicCache(), prompt, []
        with torch.no_grad(), context:
            for step in range(6):
                new = model(new, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
                out.append(new)
                assert cache.get_seq_length() == 40 + step
        return torch.cat(out, 1)

    assert torch.equal(loop(applied(model)), loop(nullcontext()))
    session = Session(model, "h2o(budget=0.3)")
    new, wanted = session.read(prompt).argmax(-1, keepdim=True), []
    for _ in range(6):
        wanted.append(new)
        new = session.read(new).argmax(-1, keepdim=True)
    assert torch.equal(loop(applied(model, "h2o(budget=0.3)")), torch.cat(wanted, 1))


def test_caches_that_are_not_filled_are_refused():
    model = tiny("llama")
    for cache in (StaticCache(config=model.config, max_cache_len=64), DynamicCache(offloading=True), object()):
        with pytest.raises(RecipeError, match=r"static|DynamicCache"), applied(model):
            model(ids(1, 9), past_key_values=cache)
