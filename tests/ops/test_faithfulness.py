"""Faithfulness measures tell good explanations from bad ones."""

import pytest
import torch

from tiny import ids, tiny
from tokenmill.errors import TokenmillError
from tokenmill.ops.faithfulness import hard, hellinger, ranks, soft
from tokenmill.run.explain import asking
from tokenmill.types import Ask


def listener(place, size=4, vocabulary=11):
    """A model that hears one place only: its logits are that place's embedding, through a fixed matrix."""
    generator = torch.Generator().manual_seed(0)
    table, head = torch.randn(vocabulary, size, generator=generator), torch.randn(size, vocabulary, generator=generator)

    def logits(e):
        return 2 * e[:, place] @ head

    def replacements(prompt, die):
        return (prompt + torch.randint(1, vocabulary, prompt.shape, generator=die)) % vocabulary

    return Ask(lambda rows: logits(table[rows]).softmax(-1), replacements, lambda rows: table[rows], logits)


def test_the_right_place_beats_the_wrong_one():
    ask, prompt = listener(place=2), torch.tensor([1, 2, 3, 4, 5, 6])
    right, wrong = torch.zeros(6), torch.ones(6)
    right[2], wrong[2] = 1, 0
    target = int(ask.probabilities(prompt[None])[0].argmax())
    for good, bad in (
        (soft(ask, prompt, right, samples=32), soft(ask, prompt, wrong, samples=32)),
        (hard(ask, prompt, right, target, share=0.17), hard(ask, prompt, wrong, target, share=0.17)),
    ):
        assert good.sufficiency > bad.sufficiency
        assert good.comprehensiveness > bad.comprehensiveness
    assert hard(ask, prompt, right, target, share=0.17).sufficiency == pytest.approx(1)


def test_only_the_order_of_scores_counts():
    ask, prompt = asking(tiny()), ids(1, 6)[0]
    scores = torch.tensor([0.1, 0.5, -2.0, 0.3, 0.9, 0.0])
    assert soft(ask, prompt, scores) == soft(ask, prompt, 100 * scores + 7)
    assert soft(ask, prompt, scores) != soft(ask, prompt, -scores)


def test_ranks():
    assert torch.allclose(ranks(torch.tensor([3.0, 1.0, 2.0, 2.0])), torch.tensor([3.5, 0.5, 2.0, 2.0]) / 4)
    assert ranks(torch.tensor([5.0])).tolist() == [0.5]
    assert ranks(torch.rand(20)).mean() == pytest.approx(0.5)  # every method keeps half


def test_hellinger_distance():
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert float(hellinger(p, q)) == pytest.approx(1)
    assert float(hellinger(p, p)) == 0


def test_ranges_calls_and_black_boxes():
    ask, prompt = asking(tiny()), ids(1, 1)[0]
    found = soft(ask, prompt, torch.ones(1), samples=3)
    assert 0 <= found.sufficiency <= 1
    assert found.comprehensiveness >= 0
    assert found.calls == 2 + 2 * 3
    with pytest.raises(TokenmillError, match="black box"):
        soft(Ask(ask.probabilities, ask.replacements), prompt, torch.ones(1))
