"""Every explain method, over the catalogue."""

import pytest
import torch

from tiny import VOCAB, ids, tiny
from tokenmill import catalog
from tokenmill.errors import TokenmillError
from tokenmill.method import get, parse
from tokenmill.run.explain import asking
from tokenmill.types import Ask

METHODS = catalog.methods("explain")
DRAWS = [name for name in METHODS if "seed" in get(name).defaults]


def small(name):
    """The method with few rounds: contracts do not need many."""
    return get(name)(steps=3, runs=2) if "steps" in get(name).defaults else get(name)


@pytest.fixture(scope="module")
def ask():
    return asking(tiny())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("target", [None, 5])
def test_one_finite_score_a_token(ask, name, length, target):
    prompt = ids(1, length)[0]
    before = prompt.clone()
    told = small(name)(ask, prompt, target)
    assert told.scores.shape == (length,)
    assert told.scores.dtype == torch.float32
    assert torch.isfinite(told.scores).all()
    assert not told.scores.requires_grad
    assert torch.equal(prompt, before)
    best = int(ask.probabilities(prompt[None])[0].argmax())
    assert told.target == (best if target is None else target)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_every_time_and_no_global_state(ask, name):
    prompt = ids(1, 7)[0]
    state = torch.get_rng_state()
    first, second = (small(name)(ask, prompt, 9) for _ in range(2))
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in tiny().parameters())


@pytest.mark.parametrize("name", DRAWS)
def test_another_seed_draws_anew(ask, name):
    prompt = ids(1, 7)[0]
    assert not torch.equal(small(name)(ask, prompt, 9).scores, small(name)(seed=1)(ask, prompt, 9).scores)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("target", [None, 9])
def test_calls_are_the_rows_asked(name, target):
    asked = []
    real = asking(tiny())

    def counted(question):
        return lambda rows: asked.append(len(rows)) or question(rows)

    spy = Ask(counted(real.probabilities), real.replacements, real.embed, counted(real.logits_from_embeddings))
    assert small(name)(spy, ids(1, 7)[0], target).calls == sum(asked)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_model(name):
    told = small(name)(asking(tiny(dtype=torch.bfloat16)), ids(1, 5)[0], 5)
    assert torch.isfinite(told.scores).all()


@pytest.mark.parametrize("name", METHODS)
def test_spec(name):
    for m in (get(name), small(name)):
        assert parse(repr(m)) == m


@pytest.mark.parametrize("spec", ["occlusion", "reagent(rationale=1, top=1)"])
def test_finds_the_one_token_that_matters(spec):
    """A model that predicts 7 when there is a 3 in the text, and else anything but 7."""

    def probabilities(rows):
        p = torch.full((len(rows), 10), 0.11)
        p[:, 7] = torch.where((rows == 3).any(-1), 0.9, 0.01)
        return p

    def replacements(prompt, generator):
        return torch.randint(4, 10, prompt.shape, generator=generator)

    told = parse(spec)(Ask(probabilities, replacements), torch.tensor([4, 5, 3, 6, 4, 5, 6]), 7)
    assert int(told.scores.argmax()) == 2
    assert told.extra.get("runs_stopped", 5) == 5


def test_gradient_norm_is_input_times_gradient():
    model, prompt = tiny(), ids(1, 6)[0]
    told = get("gradient_norm")(asking(model), prompt, 11)
    e = model.get_input_embeddings()(prompt[None]).detach().requires_grad_()
    logit = model(inputs_embeds=e).logits[0, -1, 11]
    (slope,) = torch.autograd.grad(logit, e)
    assert torch.allclose(told.scores, (e * slope).detach().norm(dim=-1)[0], rtol=1e-4, atol=1e-5)


def test_gradient_norm_says_why_it_cannot():
    black_box = Ask(lambda rows: torch.full((len(rows), VOCAB), 1 / VOCAB), lambda prompt, generator: prompt)
    with pytest.raises(TokenmillError, match="occlusion"):
        get("gradient_norm")(black_box, ids(1, 4)[0], 5)


def test_occlusion_the_slow_way(ask):
    prompt = ids(1, 6)[0]
    told = get("occlusion")(ask, prompt, 8)
    for t in range(6):
        without = torch.cat([prompt[:t], prompt[t + 1 :]])
        drop = ask.probabilities(prompt[None])[0, 8] - ask.probabilities(without[None])[0, 8]
        assert torch.allclose(told.scores[t], drop, atol=1e-6)


def test_reagent_stops_when_the_prediction_stands_on_its_rationale(ask):
    told = get("reagent")(steps=50, rationale=20, runs=3)(ask, ids(1, 6)[0], None)  # nothing is replaced in the test
    assert told.extra["runs_stopped"] == 3
    assert told.calls == 1 + 2 * 3
    least = int(ask.probabilities(ids(1, 6))[0].argmin())  # never the first choice: all rounds are run
    never = get("reagent")(steps=2, top=1, runs=3)(ask, ids(1, 6)[0], least)
    assert never.extra["runs_stopped"] == 0
    assert never.calls == 1 + 2 * 2 * 3
