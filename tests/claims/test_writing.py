"""What claims about drawn text and about smaller models count, on tiny examples."""

import pytest
import torch

from tiny import tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill.claims.lab import Lab
from tokenmill.claims.papers.draft_model import _agree, _smaller
from tokenmill.claims.papers.fs_gen import behind
from tokenmill.claims.papers.min_p import _chances
from tokenmill.claims.reproduce import run_claim
from tokenmill.claims.writing import PEOPLE, away, diversity, loops, nats, openings, rep
from tokenmill.run.probe import inquiry


@pytest.fixture
def lab():
    return Lab(tiny(), tiny_tokenizer(), seeds=[0, 1, 2], quick=True)


def test_a_loop_is_a_phrase_three_times_at_the_end():
    assert loops([9, 1, 2, 3, 1, 2, 3, 1, 2, 3])
    assert loops([5, 5, 5, 5, 5, 5])
    assert not loops([1, 2, 3, 1, 2, 3, 1, 2, 3, 9])
    assert not loops([7, 8, 5, 5, 5])  # one token is no phrase
    assert not loops([1, 2, 1, 2])


def test_rep_looks_back_over_three_windows():
    ids = [5, *range(10, 28), 5]  # seen again after 18 others
    assert rep(ids) == pytest.approx((0 + 1 + 1) / 3 / len(ids))
    assert rep([4, 4]) == pytest.approx(0.5)
    assert rep([1, 2, 3]) == 0


def test_diversity_is_one_without_repetition():
    assert diversity([1, 2, 3, 4, 5]) == 1
    assert diversity([1, 1, 1, 1, 1]) == pytest.approx(1 / 4 * 1 / 3 * 1 / 2)


def test_the_distance_of_two_means_has_no_sign():
    column = {PEOPLE: [3.0, 2.0, 1.0], "low": [1.0, 2.0, 0.0], "high": [4.0, 2.0, 2.0]}
    for spec, distance in (("low", 1.0), ("high", 2 / 3)):
        name, values = away(column, spec)
        assert name == spec
        assert sum(values) / 3 == pytest.approx(distance)


def test_openings_go_on_as_the_text_does(lab):
    found = openings(lab, 20, 2)
    assert len(found) == 6
    assert all((len(prompt), len(tail)) == (32, 20) for prompt, tail in found)
    assert found == openings(lab, 20, 2)


def test_the_chance_of_an_answer_is_that_of_drawing_it(lab):
    prompt, answer = [5, 6, 7, 8], [9, 10]
    plain, cut = "temperature(temperature=1.0)", "temperature(temperature=2.0) + min_p(share=0.9)"
    chances, _ = _chances(lab, "", [(prompt, answer)], [plain, cut])
    assert chances[plain][0] == pytest.approx(torch.tensor(-2 * nats(lab, prompt, answer)).exp().item(), rel=1e-4)
    with torch.no_grad():
        p = (lab.model(torch.tensor([prompt + answer])).logits[0, 3:5].float() / 2).softmax(-1)
    kept = p.where(p >= 0.9 * p.amax(-1, keepdim=True), 0)
    slow = (kept / kept.sum(-1, keepdim=True))[[0, 1], answer].prod()
    assert chances[cut][0] == pytest.approx(float(slow), rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_smaller_model_is_the_model_without_some_layers(kind):
    model = tiny(kind)
    ids = torch.arange(5, 15)
    front, middle = _smaller(model).values()
    lens = list(inquiry(model).lens(ids))
    left_out = inquiry(model).logits(ids, (0, 2, 3))
    with torch.no_grad():
        torch.testing.assert_close(front(ids[None]).logits[0], lens[2], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(middle(ids[None]).logits[0], left_out, atol=1e-4, rtol=1e-4)
    assert len(list(inquiry(model).lens(ids))) == 4  # the model itself is as it was
    same = _agree(model, model, [5, 6], [7, 8, 9], 1.0)
    torch.testing.assert_close(same, torch.ones(3))


@torch.no_grad()
def test_both_models_are_asked_about_the_answer_alone():
    ask = inquiry(tiny(), tiny("llama"))
    prompt, ids = [5, 6, 7], torch.arange(8, 14)
    found = behind(ask, prompt)
    whole = torch.cat([torch.tensor(prompt), ids])
    torch.testing.assert_close(found.logits(ids, (0, 1, 2, 3)), ask.logits(whole, (0, 1, 2, 3))[2:-1])
    torch.testing.assert_close(found.second(ids), ask.second(whole)[2:-1])
    assert list(found.lens(ids)) == []


@pytest.mark.parametrize("name", ["draft_model", "latent_seek", "min_p"])
def test_the_claim_runs(name, lab):
    made = run_claim(name, lab)
    assert made.measured.checks
    assert all(c.samples >= 3 for c in made.measured.checks)
