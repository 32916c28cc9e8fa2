"""Packed weights: what a format holds, that every row is alike, and that everything else stays correct under it."""

import copy
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import AutoModelForCausalLM, Cache

import tokenmill as tm
from tiny import ARCHITECTURES, VOCAB, ids, tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill.errors import InputError, ModelError
from tokenmill.method import method
from tokenmill.models import weights
from tokenmill.models.apply import Engine
from tokenmill.models.default import default_model
from tokenmill.models.lean import KNOWN
from tokenmill.models.weights import Blocks, Half, Product, blocks_of_4, blocks_of_8, held, pack
from tokenmill.run.session import Session
from tokenmill.types import Depth

COMPILED = weights.compiled()
PACKED = ("float16", "int8", "int4")
needs_numba = pytest.mark.skipif(not COMPILED, reason="numba is not installed")
_made: dict = {}


def packed(name="llama", how="int4"):
    """A tiny model in a format; shared, so leave it as it was."""
    if (name, how) not in _made:
        _made[name, how] = pack(copy.deepcopy(tiny(name)), how)
    return _made[name, how]


def matrix(outputs, inputs, seed=0):
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)) * 0.05


class Plain(Blocks):
    """Blocks as they are where numba is missing."""

    rows, unpacked = Blocks._plain_rows, Blocks._plain_unpacked


KINDS = {"float16": Half, "int8 torch": partial(Plain, bits=8), "int4 torch": partial(Plain, bits=4)}
if COMPILED:
    KINDS |= {"int8": partial(Blocks, bits=8), "int4": partial(Blocks, bits=4)}
CLOSE = {"float16": 1e-5, "int8 torch": 5e-4, "int4 torch": 5e-4, "int8": 5e-4, "int4": 5e-4}  # of the product's spread


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(64, 96), (97, 48), (33, 200), (1, 32), (130, 31)])
def test_a_product_is_that_of_the_weights_it_holds(kind, shape):
    made, x = KINDS[kind](matrix(*shape), torch.linspace(-1, 1, shape[0])), matrix(7, shape[1], 1) * 20
    want = F.linear(x, made.weight, made.bias)
    assert made.weight.shape == shape
    assert float((made(x) - want).abs().max()) <= CLOSE[kind] * float(F.linear(x, made.weight).std().nan_to_num(1) + 1)
    assert torch.equal(made(x[None, :, None])[0, :, 0], made(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_rows_beside_it(kind):
    made, x = KINDS[kind](matrix(160, 224)), matrix(70, 224, 1)
    x[5] *= 1000  # a scale shared between rows would show
    whole = made(x)
    for rows in ([0], [5], [1, 2], [3, 4, 9], list(range(11)), list(range(40))):
        if kind == "float16":  # fbgemm sums one row in another order than several, as float32 products do
            assert torch.allclose(made(x[rows]), whole[rows], rtol=1e-4, atol=1e-4 * float(whole[rows].abs().max()))
        else:
            assert torch.equal(made(x[rows]), whole[rows]), rows


def test_zeros_and_outliers():
    for kind in KINDS.values():
        w = matrix(32, 64)
        w[3], w[7, 5] = 0, 30
        made = kind(w)
        assert torch.equal(made(torch.zeros(2, 64)), torch.zeros(2, 32))
        assert torch.isfinite(made(torch.full((1, 64), 1e4))).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_and_in_its_row(kind, broken):
    made, x = KINDS[kind](matrix(40, 70)), matrix(5, 70, 1)
    whole, x[2, 69] = made(x), broken
    found = made(x)
    assert not torch.isfinite(found[2]).any()
    assert torch.allclose(found[[0, 1, 3, 4]], whole[[0, 1, 3, 4]], atol=1e-5)


def test_blocks_find_the_blocks_weights_were_unpacked_from():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (50, 6, 32), generator=generator)
    codes[..., 0], codes[..., 1] = 0, 15  # a block that was packed has both ends
    scale, least = (torch.rand(50, 6, generator=generator) * 0.02 + 1e-3).half(), (torch.rand(50, 6) - 1).half()
    unpacked = (codes * scale[..., None].float() + least[..., None].float()).flatten(1)
    found, found_scale, found_least = blocks_of_4(unpacked)
    assert torch.equal(found.view_as(codes).long(), codes)
    assert torch.equal(found_scale, scale.float())
    assert torch.equal(found_least, least.float())
    codes = torch.randint(-127, 128, (50, 6, 32), generator=generator)
    codes[..., 0] = 127
    found, found_scale = blocks_of_8((codes * scale[..., None].float()).flatten(1))
    assert torch.equal(found.view_as(codes).long(), codes)
    assert torch.equal(found_scale, scale)


def test_the_default_model_loses_nothing_in_int4():
    pytest.importorskip("gguf")
    try:
        folder = default_model()
    except ModelError:
        pytest.skip("the default model is not installed")
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in ("layers.0.self_attn.k_proj", "layers.13.mlp.down_proj", "layers.29.mlp.up_proj"):
            weight = file.get_tensor(f"model.{name}.weight")
            codes, scale, least = blocks_of_4(weight)
            assert torch.equal((codes.unflatten(1, (-1, 32)) * scale[..., None] + least[..., None]).flatten(1), weight)
        table = file.get_slice("lm_head.weight")[:2000]  # the table too: tied, stored once
        codes, scale = blocks_of_8(table)
        assert torch.equal((codes.unflatten(1, (-1, 32)) * scale.float()[..., None]).flatten(1), table)


@pytest.mark.parametrize("how", PACKED)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_packed_model_is_the_model_with_the_weights_it_holds(name, how):
    model, plain = packed(name, how), copy.deepcopy(tiny(name))
    own = dict(model.named_modules())
    for path, layer in plain.named_modules():
        if isinstance(own.get(path), Product):
            weight = own[path].weight
            # A parameter of its own: head and table may have been one.
            layer.weight = torch.nn.Parameter(weight if isinstance(layer, torch.nn.Linear) else weight.T.contiguous())
    plain.get_input_embeddings().weight.data = model.get_input_embeddings().packed.weight
    assert sum(isinstance(m, Product) for m in own.values()) >= 4 * 4 + 1
    with torch.no_grad():
        a, b = model(ids(2, 30)).logits, plain(ids(2, 30)).logits
    assert float((a - b).abs().max()) < 2e-2 * float(b.std())
    assert held(model) < held(tiny(name))


@pytest.mark.parametrize("how", PACKED)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_our_loop_says_what_the_library_says(name, how):
    model, prompt = packed(name, how), ids(1, 30)
    before = {key: value.clone() for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    want = model.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)[0, 30:]
    out = tm.generate(model, None, prompt.tolist(), max_new_tokens=24, ignore_eos=True)[0]
    assert out.ids == want.tolist()
    with tm.applied(model, "h2o(budget=0.3)"):
        model.generate(prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@needs_numba
def test_a_hook_of_the_users_is_called_and_those_of_the_library_cost_nothing():
    model = copy.deepcopy(packed("llama"))
    model(ids(1, 5), output_hidden_states=True)  # leaves hooks on every layer, for good
    assert any(layer._forward_hooks for layer in model.get_decoder().layers)
    assert Engine(model, tm.recipe("full")).lean is not None
    calls = []
    model.get_decoder().layers[2].register_forward_hook(lambda *_: calls.append(1))
    assert Engine(model, tm.recipe("full")).lean is None
    Session(model).read(ids(1, 5))
    assert calls == [1]


@needs_numba
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "gpt2"])
def test_the_lean_walk_is_the_plain_walk(name, monkeypatch):
    model = packed(name, "int4")
    lean = Engine(model, tm.recipe("full")).lean
    assert (lean is not None) == (type(model.get_decoder().layers[0]).__name__ in KNOWN)
    rows, batch = [[5, 6, 7], list(range(10, 50))], ids(3, 45)
    found = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr("tokenmill.models.apply.lean_of", lambda decoder: None)
        for recipe in (
            "full",
            "adaptive(budget=0.4)",
            "snapkv(budget=0.5) + zip_cache",
            "streaming_llm(budget=0.5)",
        ):
            session = Session(model, recipe)
            logits = [session.read(rows)]
            logits += [session.read(torch.tensor([[t], [t + 1]])) for t in range(3, 12)]
            again = Session(model, recipe)
            logits += [again.read(batch, all_logits=True).flatten(0, 1), again.read(batch[:, :5])]
            found.append((torch.cat(logits), session.kept(), again.kept()))
    half = len(found) // 2
    for (a, kept_a, more_a), (b, kept_b, more_b) in zip(found[:half], found[half:], strict=True):
        # 16-bit activations round differently after a different rounding; packed keys and values fall into other codes.
        assert float((a - b).abs().max()) < 2e-2 * float(b.std())
        assert float((a - b).abs().mean()) < 5e-4 * float(b.std())
        assert (kept_a, more_a) == (kept_b, more_b)


@needs_numba
@pytest.mark.parametrize("how", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
def test_one_call_for_all_or_for_all_layers_says_what_layer_by_layer_says(name, how, monkeypatch):
    """To the last bit: batches, of unequal prompts too, a tree of which some is accepted, windows that tokens leave."""
    model, seen = packed(name, how), torch.ones(3, 3, dtype=torch.bool).tril()
    seen[2, 1] = False
    found, calls = [], []
    lean = Engine(model, tm.recipe("full")).lean
    assert lean.answers
    monkeypatch.setattr(lean.kernels, "answer", _counted(lean.kernels.answer, "answer", calls))
    for way in ("answer", "walk", "layers"):
        if way == "walk":
            monkeypatch.setattr("tokenmill.models.lean._ends", lambda decoder: None)
            monkeypatch.setattr(lean.kernels, "walk", _counted(lean.kernels.walk, "walk", calls))
        if way == "layers":
            monkeypatch.setattr("tokenmill.models.engine.Pass._undecided", False)
        several, uneven, one = Session(model), Session(model), Session(model)
        out = [several.read(ids(3, 45), all_logits=True)[:, -1]]
        out += [several.read(torch.tensor([[t], [t + 1], [t + 2]])) for t in range(40)]
        out += [several.read(ids(3, 5)), uneven.read([[5, 6, 7], list(range(10, 50))]), one.read(ids(1, 45))]
        out += [uneven.read(torch.tensor([[t], [t + 1]])) for t in range(40)]
        out.append(one.verify(torch.tensor([5, 6, 7]), torch.tensor([0, 1, 1]), seen))
        one.accept([0, 2])
        out += [one.read(torch.tensor([[t]])) for t in range(40)]
        kept = [s.kept() for s in (several, uneven, one)]
        found.append((out, kept, several.stats.token_layers, uneven.stats.cache_bytes, one.stats.cache_bytes))
    # 40 tokens and five at once, 40 tokens, a tree and 40 tokens; the prompts go layer by layer
    assert Counter(calls) == {"answer": 122, "walk": 122}
    (a, *kept_a), *others = found
    for b, *kept_b in others:
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert kept_a == kept_b


@method(verb="skip", title="")
def some_layers(step, *, layers=(0, 2, 3), fill="missing"):
    return Depth(tuple(range(step.layers)) if not step.generated else tuple(layers), fill=fill)


@needs_numba
@pytest.mark.parametrize("fill", ["missing", "carry"])
@pytest.mark.parametrize("layers", [(0, 2, 3), (0, 3), (3,), (0, 2, 1, 3)])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
def test_layers_between_those_that_are_left_out_are_one_call(name, layers, fill, monkeypatch):
    model, seen = packed(name, "int4"), torch.ones(3, 3, dtype=torch.bool).tril()
    seen[2, 1] = False
    found, calls, recipe = [], [], some_layers(layers=layers, fill=fill)
    kernels = Engine(model, tm.recipe("full")).lean.kernels
    monkeypatch.setattr(kernels, "walk", _counted(kernels.walk, "walk", calls))
    for way in ("walk", "layers"):
        if way == "layers":
            monkeypatch.setattr("tokenmill.models.engine.Pass._undecided", False)
        several, one = Session(model, recipe), Session(model, recipe)
        out = [several.read([[5, 6, 7], list(range(10, 50))]), one.read(ids(1, 45))]
        out += [several.read(torch.tensor([[t], [t + 1]])) for t in range(30)]
        out += [one.verify(torch.tensor([5, 6, 7]), torch.tensor([0, 1, 1]), seen)]
        one.accept([0, 2])
        out += [one.read(torch.tensor([[t]])) for t in range(30)]
        found.append((out, [(s.kept(), s.stats.token_layers, s.stats.cache_bytes) for s in (several, one)]))
    pieces = (
        2 if fill == "carry" and layers in ((0, 2, 3), (0, 3)) else 1
    )  # what is stored for a layer comes in between
    assert len(calls) == 61 * pieces
    (a, kept_a), (b, kept_b) = found
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert kept_a == kept_b


def _counted(call, name, calls):
    def counted(*given):
        calls.append(name)
        return call(*given)

    return counted


@needs_numba
@pytest.mark.parametrize("id", [-1, 10_000])
def test_an_id_the_table_does_not_have_is_an_error_not_a_read_elsewhere(id):
    for count in (1, 80):  # one compiled call, and layer by layer
        with pytest.raises(InputError, match="outside the model's vocabulary"):
            Session(packed("llama")).read(torch.full((1, count), id))


@pytest.mark.parametrize("how", PACKED)
@pytest.mark.parametrize("draft", ["prompt_lookup", "token_recycling"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_drafts_change_nothing(name, draft, how):
    model, prompt = packed(name, how), ([7, 8, 9, 10, 11, 12] * 6)[:30]
    plain = tm.generate(model, None, [prompt], max_new_tokens=40, ignore_eos=True)[0]
    drafted = tm.generate(model, None, [prompt], draft, max_new_tokens=40, ignore_eos=True)[0]
    assert drafted.ids == plain.ids


@needs_numba
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
def test_a_checked_draft_has_the_very_numbers_of_one_token_at_a_time(name, apart, monkeypatch):
    """Not only the same text: the same bits, so that a tie cannot fall differently. Also layer by layer."""
    if apart:
        monkeypatch.setattr("tokenmill.models.engine.Pass._undecided", False)
    model, prompt, chain = packed(name, "int4"), ids(1, 40), [5, 9, 60, 33]
    alone = Session(model)
    alone.read(prompt)
    want = torch.cat([alone.read(torch.tensor([[t]])) for t in chain])
    # A tree in which two other tokens stand between those of the chain.
    tokens, depths = torch.tensor([5, 70, 9, 71, 60, 33]), torch.tensor([0, 1, 1, 2, 2, 3])
    seen = torch.eye(6, dtype=torch.bool)
    for node, above in {1: [0], 2: [0], 3: [0, 2], 4: [0, 2], 5: [0, 2, 4]}.items():
        seen[node, above] = True
    tree = Session(model)
    tree.read(prompt)
    assert torch.equal(tree.verify(tokens, depths, seen)[[0, 2, 4, 5]], want)
    levels = Session(model)  # as a drafter reads its own: nodes over those of the passes before
    levels.read(prompt)
    ends = [(0, 1), (1, 3), (3, 5), (5, 6)]
    read = torch.cat([levels.verify(tokens[a:b], depths[a:b], seen[a:b, :b]) for a, b in ends])
    assert torch.equal(read[[0, 2, 4, 5]], want)
    tree.accept([0, 2, 4, 5])
    assert torch.equal(tree.read(torch.tensor([[8]])), alone.read(torch.tensor([[8]])))


@needs_numba
@pytest.mark.parametrize("how", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_text_in_pieces_has_the_very_numbers_of_the_whole(name, how):
    model, text = packed(name, how), ids(2, 90)
    whole = Session(model).read(text, all_logits=True)
    for chunk in (1, 7, 30):
        assert torch.equal(Session(model).read(text, all_logits=True, chunk=chunk), whole)


def test_bfloat16_keeps_its_cache_in_bfloat16():
    model = pack(copy.deepcopy(tiny("llama")), "bfloat16")
    session = Session(model)
    session.read(ids(1, 20))
    assert session.cache.stores[0].lanes.keys.dtype == torch.bfloat16
    assert isinstance(session.cache, Cache)
    mixed = pack(copy.deepcopy(tiny("llama")).bfloat16(), "int8")
    with torch.no_grad():
        logits = mixed(ids(1, 20)).logits
    assert logits.dtype == torch.bfloat16
    assert Engine(mixed, tm.recipe("full")).lean is None
    out = tm.generate(mixed, None, ids(1, 20).tolist(), max_new_tokens=5, ignore_eos=True)[0]
    assert len(out.ids) == 5


def test_formats_that_are_not(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no weights format 'int9'; did you mean int8"):
        tm.load(tmp_path, weights="int9")
    with pytest.raises(
        ModelError, match="no weights format 'q'; there is auto, bfloat16, float16, float32, int4, int8"
    ):
        tm.load(tmp_path, weights="q")
    model, _ = tm.load(tmp_path, weights="int8")
    assert isinstance(model.lm_head, Product)
    assert model.get_input_embeddings().num_embeddings == VOCAB


def test_auto_takes_four_bits_only_where_they_lose_nothing(monkeypatch):
    assert weights.fastest(tiny()) == ("int8" if COMPILED else "float32")
    rounded = copy.deepcopy(tiny())
    for layer in rounded.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not rounded.lm_head:
            layer.weight.data = KINDS["int4"](layer.weight.data).weight if COMPILED else layer.weight.data
    if COMPILED:
        assert weights.fastest(rounded) == "int4"
        assert isinstance(pack(copy.deepcopy(rounded), "auto").lm_head, Product)
    monkeypatch.setattr(weights, "compiled", lambda: False)
    assert weights.fastest(rounded) == "float32"  # torch's products of packed weights are slower than that
    assert weights.fastest(copy.deepcopy(tiny()).to("meta")) == "float32"


def test_a_device_without_these_products():
    with torch.device("meta"):
        model = copy.deepcopy(tiny("llama")).to("meta")
    with pytest.raises(ModelError, match="weights='int8' has products for a CPU and the model is on meta"):
        pack(model, "int8")


def test_gradients_are_refused_in_words():
    model = packed("llama", "int8")
    embeds = torch.randn(1, 4, 48, requires_grad=True)
    with pytest.raises(ModelError, match="no gradients; load the model with weights='float32'"):
        model(inputs_embeds=embeds)


@pytest.mark.parametrize("how", PACKED)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "phi3", "gpt2"])
def test_a_packed_model_saves_a_checkpoint_that_loads(name, how, tmp_path):
    model = packed(name, how)
    with torch.no_grad():
        wanted = model(ids(2, 20)).logits
    model.save_pretrained(tmp_path / "as it is")
    tiny_tokenizer().save_pretrained(tmp_path / "as it is")
    loaded, missing = AutoModelForCausalLM.from_pretrained(tmp_path / "as it is", output_loading_info=True)
    assert not any(missing.values())
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(ids(2, 20)).logits, wanted, atol=2e-3 * float(wanted.std()), rtol=0)
    again, _ = tm.load(str(tmp_path / "as it is"))
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in tiny(name).state_dict().items()
    }
    with torch.no_grad():
        assert torch.equal(model(ids(2, 20)).logits, wanted)
    copied = copy.deepcopy(model)
    copied.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").stat().st_size > 0


def test_a_packed_model_without_numba_saves_too(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "compiled", lambda: False)
    for how in ("int8", "int4"):
        model = pack(copy.deepcopy(tiny("llama")), how)
        model.save_pretrained(tmp_path / how)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / how)
        with torch.no_grad():
            wanted = model(ids(1, 20)).logits
            off = (loaded(ids(1, 20)).logits - wanted).abs().max() / wanted.std()
        assert float(off) < 2e-3


@needs_numba
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(64, 96), (97, 48), (33, 200), (1, 32), (4100, 31)])
def test_torch_unpacks_and_multiplies_what_the_kernels_do(bits, shape):
    w, x = matrix(*shape), matrix(9, shape[1], 1) * 20
    fast, plain = Blocks(w, bits=bits), Plain(w, bits=bits)
    assert torch.equal(plain.weight, fast.weight)
    some = torch.tensor([0, shape[0] - 1, 0])
    assert torch.equal(plain.unpacked(some), fast.unpacked(some))
    assert torch.allclose(plain(x), fast(x), rtol=0, atol=1e-6 * float(F.linear(x, w).abs().max()))
    for made in (fast, plain):
        with pytest.raises(IndexError, match="outside the model's vocabulary"):
            made.unpacked(torch.tensor([len(made.codes) * 8]))


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None  # its import fails, and it cannot be found
import torch, tokenmill as tm
model, tokenizer = tm.load(sys.argv[1], weights=sys.argv[2])
ids = torch.arange(5, 35)[None]
with torch.no_grad():
    logits = model(ids).logits
texts = [tm.generate(model, None, ids.tolist(), r, max_new_tokens=24, ignore_eos=True)[0].ids
         for r in ("full", "token_recycling", "snapkv(budget=0.5)")]
torch.save((logits, texts), sys.argv[3])
"""


@needs_numba
@pytest.mark.parametrize("how", ["int8", "int4"])
def test_without_numba_the_same_weights_give_the_same_text(how, tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = tmp_path / "found.pt"
    done = subprocess.run([sys.executable, "-c", WITHOUT_NUMBA, tmp_path, how, found], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert "pip install 'tokenmill[fast]'" in done.stderr
    logits, (alone, drafted, evicted) = torch.load(found)
    model, _ = tm.load(tmp_path, weights=how)
    prompt = torch.arange(5, 35)[None]
    with torch.no_grad():
        want = model(prompt).logits
    # Activations are whole numbers of 16 bits: where one is rounded the other way, a step of that shows.
    assert float((logits - want).abs().max()) < 1e-3 * float(want.std())
    assert alone == drafted == tm.generate(model, None, prompt.tolist(), max_new_tokens=24, ignore_eos=True)[0].ids
    snap = tm.generate(model, None, prompt.tolist(), "snapkv(budget=0.5)", max_new_tokens=24, ignore_eos=True)[0]
    assert evicted == snap.ids
