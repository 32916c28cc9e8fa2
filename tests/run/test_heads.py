"""Draft heads: trained on a tiny model, found again, and lossless under every tree and number format."""

import pytest
import torch

from tiny import ids, tiny
from tokenmill.errors import ModelError
from tokenmill.methods.draft.clover import Regressive
from tokenmill.methods.draft.medusa import Heads
from tokenmill.models import weights
from tokenmill.run.corpus import Corpus
from tokenmill.run.fit import fit
from tokenmill.run.generate import generate

SPECS = ("medusa", "clover(heads=4)")


@pytest.fixture
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    draw = torch.Generator().manual_seed(0)
    return Corpus(torch.randint(3, 97, (3000,), generator=draw), torch.randint(3, 97, (800,), generator=draw))


@pytest.mark.parametrize("spec", SPECS)
def test_trained_heads_draft_and_change_no_text(spec, data):
    model, prompt = tiny("llama"), ids(1, 12)[0].tolist() * 3
    with pytest.raises(ModelError, match=f"run: tokenmill train {spec.partition('(')[0]}"):
        generate(model, None, [prompt], spec, max_new_tokens=4)
    made = fit(spec, model, text=data, steps=12, rows=4, length=32)
    assert all(0 <= share <= 1 for share in made.held_out.values())
    plain = generate(model, None, [prompt], max_new_tokens=24, ignore_eos=True)[0]
    for recipe in (spec, f"dyspec(source={spec})", f"chain(source={spec}, nodes=3)", f"h2o(budget=0.9) + {spec}"):
        out = generate(model, None, [prompt], recipe, max_new_tokens=24, ignore_eos=True)[0]
        if "h2o" not in recipe:
            assert out.ids == plain.ids
        assert out.stats.drafted > 0 or recipe.endswith(spec), "auto drafts nothing where nothing pays"
    with pytest.raises(ModelError, match=r"untrained|trained for|trained on|no trained weights"):
        generate(tiny("qwen3"), None, [prompt], spec, max_new_tokens=4)


def test_packed_weights_use_what_was_trained_for_the_model(data, tmp_path):
    model = tiny("llama")
    fit("medusa", model, text=data, steps=2, rows=2, length=32)
    import copy

    packed = weights.pack(copy.deepcopy(model), "int8")
    prompt = ids(1, 12)[0].tolist() * 3
    plain = generate(packed, None, [prompt], max_new_tokens=16, ignore_eos=True)[0]
    out = generate(packed, None, [prompt], "chain(source=medusa, nodes=2)", max_new_tokens=16, ignore_eos=True)[0]
    assert out.ids == plain.ids


def test_untrained_medusa_is_the_models_own_head():
    hidden = torch.randn(5, 16)
    torch.testing.assert_close(Heads(16, 3)(hidden), hidden[:, None].expand(5, 3, 16))


def test_clover_goes_on_as_its_formula_says():
    torch.manual_seed(0)
    net = Regressive(12, 3)
    state, embedding = torch.randn(4, 12), torch.randn(4, 12)
    q, k, v = net.q(net.norm(state)), net.k(embedding), net.v(embedding)
    want = state.clone()
    for row in range(4):
        for head in range(3):
            at = slice(4 * head, 4 * head + 4)
            cosine = q[row, at] @ k[row, at] / q[row, at].norm() / k[row, at].norm()
            want[row, at] += v[row, at] * cosine
    torch.testing.assert_close(net.go_on(state, embedding), want)
