"""Draws: without replacement as one after the other, and trees checked so that the target's distribution comes out."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from scipy.stats import chi2, chisquare, ncx2

from tokenmill.method import parse
from tokenmill.ops.sampling import as_rows, residual_walk, without_replacement
from tokenmill.ops.trees import children
from tokenmill.types import Growth, Guess, Said, Verified

V, DRAWS = 6, 2500


def _chain(seed: int, sharp: float = 1.0) -> torch.Tensor:
    """p(next | last): (V, V)."""
    return (torch.randn(V, V, generator=torch.Generator().manual_seed(seed)) * sharp).softmax(-1)


def test_what_the_test_below_would_see():
    """Its power: where one of the pairs of tokens loses two thirds of its draws to another, it fails 9 times in 10."""
    expected = torch.full((V * V,), DRAWS / V**2)
    moved = expected.clone()
    moved[0], moved[1] = expected[0] / 3, expected[1] * 5 / 3
    shift = float(((moved - expected) ** 2 / expected).sum())
    assert 1 - ncx2.cdf(chi2.isf(1e-3, V * V - 1), V * V - 1, shift) > 0.9


def test_without_replacement_is_drawing_one_after_the_other():
    p, g, found = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.Generator().manual_seed(0), Counter()
    for _ in range(DRAWS):
        found[tuple(without_replacement(p[None], 2, g)[0].tolist())] += 1
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    expected = torch.tensor([float(p[a] * p[b] / (1 - p[a])) for a, b in pairs]).double() * DRAWS
    assert chisquare([found[pair] for pair in pairs], expected, sum_check=False).pvalue > 1e-3
    short = without_replacement(torch.tensor([[0.0, 1.0, 0.0]]), 3, g)
    assert short.tolist() == [[1, -1, -1]]


@pytest.mark.parametrize("sure", [False, True])
@pytest.mark.parametrize(
    "tree",
    [
        "chain(nodes=3)",
        "fixed(nodes=6)",
        "dyspec(nodes=5)",
        "rsd(width=3, depth=2)",
        "rsd(branches=(2, 2))",
        "aded(nodes=5)",
    ],
)
def test_what_comes_out_is_the_targets(tree, sure):
    """Two tokens after a root, thousands of times: drafts from q (or, `sure`, its likeliest), target p."""
    p, q, g = _chain(1), _chain(2, 1.5), torch.Generator().manual_seed(3)
    build, found = parse(tree), Counter()
    seen = Verified(torch.tensor([0]), torch.tensor([0]), torch.zeros(1, V), torch.ones(1, dtype=torch.bool))

    def look(tree, at):
        rows = q[[tree.tokens[node] if node >= 0 else 0 for node in at]]
        chances, tokens = rows.topk(3)
        return Guess(as_rows(tokens, chances), None if sure else rows.log())

    grow = Growth(look, g, lambda logits: logits.softmax(-1), 9, lambda width: 1.0)
    for _ in range(DRAWS):
        draft = build(seen, grow)
        last = [0, *draft.tokens.tolist()]
        said = Said(lambda i, last=last: p[last[i]], [], g, torch.zeros(1, V))
        path, token = residual_walk(draft, children(draft.parents.tolist()), said)
        out = [*(int(draft.tokens[i]) for i in path), token]
        while len(out) < 2:
            out.append(int(torch.multinomial(p[out[-1]], 1, generator=g)))
        found[tuple(out[:2])] += 1
        assert all(draft.parents[b] == a for a, b in pairwise(path))
    expected = (p[0][:, None] * p).double() * DRAWS
    observed = torch.tensor([[found[a, b] for b in range(V)] for a in range(V)])
    assert chisquare(observed.flatten(), expected.flatten(), sum_check=False).pvalue > 1e-3
