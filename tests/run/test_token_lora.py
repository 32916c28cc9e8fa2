"""Token-level LoRA: adapters trained on tiny models and mixed row by row, against weights that are merged by hand."""

import copy

import pytest
import torch
from torch import nn

from tiny import ARCHITECTURES, ids, tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill.claims.lab import Lab
from tokenmill.claims.papers import token_lora as claim
from tokenmill.errors import InputError, ModelError, RecipeError, SpecError, UntrainedError
from tokenmill.method import get, parse
from tokenmill.methods.choose.token_lora import Adapters, mixture
from tokenmill.models import weights as formats
from tokenmill.models.adapters import adapted, attached
from tokenmill.models.apply import applied
from tokenmill.models.architectures import decoder_of
from tokenmill.models.processors import processors
from tokenmill.models.trained import about, trained
from tokenmill.run.corpus import Corpus, Tasks, tasks
from tokenmill.run.fit import fit, judge
from tokenmill.run.frozen import read
from tokenmill.run.generate import generate
from tokenmill.types import Coming, Learned

PROMPTS = [ids(1, n, n)[0].tolist() for n in (40, 1, 23)]
ASKED = {"max_new_tokens": 12, "ignore_eos": True}


def hooks_of_adapters(model) -> list:
    """Hooks that adapters hung on a model; the library leaves some of its own for good."""
    return [
        h for m in model.modules() for h in m._forward_hooks.values() if h.__module__ == "tokenmill.models.adapters"
    ]


def stepping(by, seed):
    """Each token is the one before plus `by`, mostly, within a third of the vocabulary that is the task's own."""
    draw = torch.Generator().manual_seed(seed)
    steps = torch.where(torch.rand(2400, generator=draw) < 0.9, by, 7)
    ids = 3 + 30 * (by - 1) + steps.cumsum(0) % 29
    return Corpus(ids[:2000], ids[2000:])


TEXT = Tasks(("one", "two", "three"), tuple(stepping(by, by) for by in (1, 2, 3)))


def random_parts(model, adapters=3, rank=4, seed=0):
    """Adapters that do something, and centroids that are apart."""
    torch.manual_seed(seed)
    parts = Adapters(model.config.get_text_config(), adapters, rank)
    for up in parts.up.values():
        nn.init.normal_(up, std=0.2)
    nn.init.normal_(parts.centroids)
    return parts.to(next(model.parameters()).dtype).requires_grad_(False)


@pytest.fixture
def made(monkeypatch):
    """generate() with random adapters instead of trained ones."""

    def use(**shape):
        def found(method, model):
            return Learned(random_parts(model, **shape), None, model.get_input_embeddings())

        monkeypatch.setattr("tokenmill.run.adapt.learned", found)

    use()
    return use


def merged(model, parts, weights):
    """The model with the mixed additions in its weights, as a reader of the formula would put them there."""
    out = copy.deepcopy(model)
    decoder = decoder_of(out)
    for index, layer in enumerate(decoder.layers):
        attention = getattr(layer, decoder.attention)
        deltas = []
        for name in ("query", "value"):
            down, up = parts.down[name][index], parts.up[name][index]
            deltas.append(sum(w * 16 / down.shape[1] * up[a] @ down[a] for a, w in enumerate(weights)))
        with torch.no_grad():
            if hasattr(attention, "c_attn"):
                attention.c_attn.weight[:, : len(deltas[0])] += deltas[0].T
                attention.c_attn.weight[:, -len(deltas[1]) :] += deltas[1].T
            elif hasattr(attention, "qkv_proj"):
                attention.qkv_proj.weight[: len(deltas[0])] += deltas[0]
                attention.qkv_proj.weight[-len(deltas[1]) :] += deltas[1]
            else:
                attention.q_proj.weight += deltas[0]
                attention.v_proj.weight += deltas[1]
    return out


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_added_is_the_product_of_the_matrices(name):
    model, parts, text = tiny(name), random_parts(tiny(name)), ids(2, 20)
    mixes = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    with torch.no_grad():
        found = adapted(model, text, parts, mixes)
        own = model.base_model(text, use_cache=False).last_hidden_state
        for row, mix in enumerate(mixes):
            want = merged(model, parts, mix.tolist()).base_model(text[row : row + 1], use_cache=False)
            torch.testing.assert_close(found[row : row + 1], want.last_hidden_state, atol=1e-4, rtol=1e-4)
        each = mixes[:, None].expand(-1, 20, -1)
        torch.testing.assert_close(adapted(model, text, parts, each), found, atol=1e-5, rtol=1e-5)
        assert torch.equal(adapted(model, text, parts, torch.zeros(2, 3)), own)
        assert torch.equal(adapted(model, text, Adapters(model.config.get_text_config(), 3, 4), mixes), own)
        assert (found - own).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2", "phi3"])
def test_one_adapter_is_the_model_with_its_weights_changed(name, made):
    made(adapters=1)
    model = tiny(name)
    out = generate(model, None, PROMPTS, "token_lora(adapters=1)", **ASKED)
    changed = generate(merged(model, random_parts(model, adapters=1), [1.0]), None, PROMPTS, **ASKED)
    assert [o.ids for o in out] == [o.ids for o in changed]
    assert [o.ids for o in out] != [o.ids for o in generate(model, None, PROMPTS, **ASKED)]


def slowly(model, parts, prompt, stride, new, scale=4.0):
    """Weights of every token by the formula, and one pass over the whole text: no cache."""
    embed, text, told = model.get_input_embeddings(), list(prompt), []
    for step in range(new):
        if step % stride == 0:
            told.append(mixture(parts.centroids, embed(torch.tensor(text)).mean(0), scale))
        first = [told[0]] * len(prompt)
        each = torch.stack([*first, *(told[i // stride] for i in range(1, step + 1))])
        hidden = adapted(model, torch.tensor([text]), parts, each[None])
        text.append(int(model.get_output_embeddings()(hidden[0, -1]).argmax()))
    return text[len(prompt) :], torch.stack(told)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_the_formula_without_a_cache(name, stride, made):
    model = tiny(name)
    out = generate(model, None, PROMPTS, f"token_lora(stride={stride})", **ASKED)
    for prompt, one in zip(PROMPTS, out, strict=True):
        want, told = slowly(model, random_parts(model), prompt, stride, 12)
        assert one.ids == want
        assert len(told) == -(-12 // stride)
        assert (told[1:] != told[:1]).any(-1).all()  # the text moved, and with it the weights


def test_the_weights_are_the_authors():
    """Their loop over plain numbers: the largest similarity times four, then a softmax."""
    centroids, text = torch.randn(3, 8), torch.randn(8)
    scores = [float(torch.nn.CosineSimilarity(dim=0, eps=1e-6)(text, c)) for c in centroids]
    scores[scores.index(max(scores))] *= 4.0
    torch.testing.assert_close(mixture(centroids, text, 4.0), torch.tensor(scores).softmax(-1))
    assert mixture(centroids, torch.randn(2, 5, 8), 4.0).shape == (2, 5, 3)
    torch.testing.assert_close(mixture(centroids[:1], text, 4.0), torch.ones(1))


def test_the_method_is_pure_and_padding_counts_for_nothing():
    parts, embedded = random_parts(tiny()), torch.randn(2, 5, 48)
    real = torch.tensor([[False, False, True, True, True], [True] * 5])
    learned, method = Learned(parts, None, None), get("token_lora")(stride=2)
    first, state = method(Coming(embedded, real), None, learned)
    alone, _ = method(Coming(embedded[:1, 2:], real[:1, 2:]), None, learned)
    torch.testing.assert_close(first[:1], alone)
    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in state]
    one = Coming(torch.randn(2, 1, 48), torch.ones(2, 1, dtype=torch.bool))
    second, later = method(one, state, learned)
    assert torch.equal(second, first)  # every second token
    third, _ = method(one, later, learned)
    assert not torch.equal(third, first)
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(state, before, strict=True))


@pytest.mark.parametrize(
    "beside", ["", " + h2o(budget=0.5)", " + zip_cache", " + d3", " + min_p", " + token_select(budget=0.5)"]
)
def test_rows_come_out_as_they_would_alone(beside, made):
    model = tiny()
    before = {name: p.clone() for name, p in model.named_parameters()}
    together = generate(model, None, PROMPTS, "token_lora" + beside, seed=3, **ASKED)
    for prompt, one in zip(PROMPTS, together, strict=True):
        assert generate(model, None, [prompt], "token_lora" + beside, seed=3, **ASKED)[0].ids == one.ids
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not hooks_of_adapters(model)


def test_half_precision(made):
    """Ids of a batch and of a row alone may differ there, also without adapters; what is added may not be lost."""
    model, text = copy.deepcopy(tiny()).to(torch.bfloat16), ids(2, 20)
    parts, mixes = random_parts(model), torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    with torch.no_grad():
        found, own = adapted(model, text, parts, mixes), adapted(model, text, parts, torch.zeros(2, 3))
        want = adapted(tiny(), text, random_parts(tiny()), mixes)
    assert found.dtype == torch.bfloat16
    assert (found - want).abs().mean() < 0.2 * (own - want).abs().mean()
    assert all(len(o.ids) == 12 for o in generate(model, None, PROMPTS, "token_lora", **ASKED))


def test_a_chunked_prompt_is_adapted_to_as_a_whole(made):
    whole = generate(tiny(), None, PROMPTS[:1], "token_lora", **ASKED)[0].ids
    assert generate(tiny(), None, PROMPTS[:1], "token_lora", chunk=7, **ASKED)[0].ids == whole


def test_packed_weights_are_adapted_too(made):
    packed = formats.pack(copy.deepcopy(tiny()), "int8")
    plain = generate(packed, None, PROMPTS, **ASKED)
    out = generate(packed, None, PROMPTS, "token_lora", **ASKED)
    assert [o.ids for o in out] != [o.ids for o in plain]
    assert [o.ids for o in generate(packed, None, PROMPTS, **ASKED)] == [o.ids for o in plain]


def test_an_exception_leaves_no_hook(made):
    model = tiny()
    before = model(ids()).logits

    def fail(row, text):
        raise KeyError("stop")

    with pytest.raises(KeyError):
        generate(model, tiny_tokenizer(), PROMPTS, "token_lora", on_text=fail, **ASKED)
    assert not hooks_of_adapters(model)
    assert "forward" not in model.base_model.__dict__
    assert torch.equal(model(ids()).logits, before)


class TestTraining:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "cache"))

    @pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
    def test_adapters_learn_are_found_and_help(self, name):
        model, spec = copy.deepcopy(tiny(name)), parse("token_lora(rank=4)")
        for p in model.parameters():
            p.grad = None
        with pytest.raises(UntrainedError, match="run: tokenmill train token_lora"):
            generate(model, None, PROMPTS, spec, **ASKED)
        made = fit(spec, model, text=TEXT, steps=30, rows=6, length=24, lr=1e-2)
        assert made.history[-1]["loss"] < made.history[0]["loss"] - 0.1
        told = made.held_out
        own, without = (told[f"nats a token {w}"] for w in ("with the task's own adapter", "without adapters"))
        assert own < without - 0.1
        assert told["nats a token with adapters mixed for each token"] < without
        assert told["of the tokens, nearest to their own task"] > 0.9
        assert about(made.path)["tasks"] == ["one", "two", "three"]
        assert all(p.grad is None for p in model.parameters())
        assert not hooks_of_adapters(model)
        found = trained(spec, model)
        for key, value in made.parts.state_dict().items():
            assert torch.equal(found.state_dict()[key], value), key
        plain = generate(model, None, PROMPTS, **ASKED)
        assert [o.ids for o in generate(model, None, PROMPTS, spec, **ASKED)] != [o.ids for o in plain]

    def test_rows_teach_the_adapter_of_their_own_task(self):
        model, method = copy.deepcopy(tiny()), get("token_lora")(rank=4)
        parts = Adapters(model.config, 3, 4)
        batch = read(model, method, TEXT.batch(4, 16, 0, 0), tasks=torch.tensor([0, 2, 0, 2]))
        from tokenmill.methods.choose.token_lora import objective

        objective(parts, batch).backward()
        for p in parts.up.values():
            assert p.grad[:, 1].abs().max() == 0
            assert (p.grad[:, [0, 2]].abs().amax((0, 2, 3)) > 0).all()
        embedded = model.get_input_embeddings()(batch.ids).mean(1)
        torch.testing.assert_close(parts.centroids[0], embedded[[0, 2]].mean(0))
        objective(parts, read(model, method, TEXT.batch(2, 16, 0, 1), tasks=torch.tensor([0, 1])))
        newer = model.get_input_embeddings()(TEXT.batch(2, 16, 0, 1)).mean(1)
        torch.testing.assert_close(parts.centroids[0], torch.stack([*embedded[[0, 2]], newer[0]]).mean(0))
        assert parts.seen.tolist() == [3, 1, 2]

    def test_a_folder_is_a_task_for_each_file_or_folder(self, tmp_path):
        root = tmp_path / "text"
        (root / "b").mkdir(parents=True)
        (root / "a.txt").write_text("aaaa " * 100)
        for i in range(3):
            (root / "b" / f"{i}.txt").write_text(f"bb{i} " * 100)
        (root / ".hidden").write_text("no")
        found = tasks(root, None, 16)
        assert found.names == ("a.txt", "b")
        rows = found.batch(3, 16, 0, 0)
        assert ["b" in bytes(row.tolist()).decode() for row in rows] == [False, True, False]
        assert found.labels(3).tolist() == [0, 1, 0]
        judged = found.judged(8, 16)
        assert ["b" in bytes(row.tolist()).decode() for row in judged] == found.labels(len(judged)).bool().tolist()
        assert torch.equal(found.batch(4, 16, 0, 0)[:3], rows)
        assert not torch.equal(found.batch(3, 16, 0, 1), rows)
        with pytest.raises(InputError, match="no folder; texts of several tasks"):
            tasks(root / "a.txt", None, 16)
        (root / "c").write_text("short")
        with pytest.raises(InputError, match="'c' has"):
            tasks(root, None, 16)

    def test_the_default_texts_need_nothing(self):
        found = tasks(None, None, 64)
        assert found.names == ("code", "prose", "tables")
        assert found.judged(6, 64).shape == (6, 64)
        assert all(len(text.train) > 100_000 for text in found.texts)

    def test_what_cannot_be_trained_is_told(self):
        two = Tasks(TEXT.names[:2], TEXT.texts[:2])
        with pytest.raises(InputError, match=r"has 2 tasks \(one, two\).*train 'token_lora\(adapters=2\)'"):
            fit("token_lora", tiny(), text=two, steps=1)
        with pytest.raises(InputError, match="2 rows for 3 tasks"):
            fit("token_lora", tiny(), text=TEXT, steps=1, rows=2, length=16)
        with pytest.raises(InputError, match="leave out --own"):
            fit("token_lora", tiny(), text=TEXT, steps=1, own=100)

    def test_a_figure_of_few_rows(self):
        short = Tasks(("a", "b"), tuple(Corpus(t.train, t.held_out[:40]) for t in TEXT.texts[:2]))
        told = judge(get("token_lora")(adapters=2), Adapters(tiny().config, 2, 4), tiny(), short, 24)
        assert told["nats a token without adapters"] == told["nats a token with the task's own adapter"]


def test_a_model_without_such_projections_is_refused():
    model = tiny()
    with (
        pytest.raises(ModelError, match="'llama' has no query and value projections of the shapes") as error,
        attached(decoder_of(model), random_parts(tiny("qwen3"))),
    ):
        pass
    assert "\n" not in str(error.value)
    assert not hooks_of_adapters(model)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("token_lora + prompt_lookup", "checks several tokens in one pass"),
        ("token_lora + beam", "follows several beginnings"),
        ("token_lora + lazy_llm(budget=0.5)", "reads the rows of a batch one by one"),
        ("token_lora + early_exit", "leave in the middle of a pass"),
        ("token_lora + token_lora", "both decide how the model is adapted"),
    ],
)
def test_what_cannot_work_is_refused(spec, words):
    with pytest.raises(RecipeError, match=words) as error:
        parse(spec)
    assert "\n" not in str(error.value)


def test_more_refusals():
    with (
        pytest.raises(RecipeError, match=r"needs Tokenmill's own loop: tokenmill\.generate"),
        applied(tiny(), "token_lora"),
    ):
        pass
    with pytest.raises(RecipeError, match=r"needs Tokenmill's own loop"):
        processors("token_lora + min_p")
    for spec in ("token_lora(stride=0)", "token_lora(rank=0)", "token_lora(adapters=0)", "token_lora(scale=0)"):
        with pytest.raises(SpecError, match="must be in"):
            parse(spec)


def test_the_claim_reads_in_one_pass_what_is_generated_token_by_token(made):
    model, parts, new = tiny(), random_parts(tiny()), 12
    out = generate(model, None, PROMPTS[:1], "token_lora(stride=3)", **ASKED)[0]
    text, learned = torch.tensor([PROMPTS[0] + out.ids]), Learned(parts, None, model.get_input_embeddings())
    with torch.no_grad():
        each = claim._told(get("token_lora")(stride=3), learned, text, len(PROMPTS[0]))
        said = model.get_output_embeddings()(adapted(model, text, parts, each)).argmax(-1)
    assert said[0, -new - 1 : -1].tolist() == out.ids


def test_the_claim_takes_the_users_own_adapters(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    monkeypatch.setattr(claim, "tasks", lambda *asked: TEXT)
    monkeypatch.setattr(claim, "sentence_encoder", lambda: lambda texts: torch.ones(len(texts), 3))
    lab = Lab(tiny(), tiny_tokenizer(), [0], quick=True)
    fit("token_lora", tiny(), text=TEXT, steps=1, rows=6, length=16)
    assert all(c.samples == 9 and c.method == claim.MINE and c.value is not None for c in claim.measure(lab))
    assert lab.figures[claim.MINE]["steps of training"] == 1
