import math

import pytest
import torch

from tokenmill.ops.trees import accept_greedy, ancestors, best_first, chain, depths
from tokenmill.types import Draft, Growth, Guess

V = 13


def _tree(n, seed):
    g = torch.Generator().manual_seed(seed)
    parents = torch.tensor([int(torch.randint(-1, i, (1,), generator=g)) for i in range(n)], dtype=torch.long)
    return Draft(torch.randint(0, V, (n,), generator=g), parents)


def _line(parents, i):
    line = []
    while i >= 0:
        line.append(i)
        i = int(parents[i])
    return line[::-1]


@pytest.mark.parametrize("n", [1, 2, 3, 9, 33])
def test_ancestors_and_depths_are_what_walking_up_finds(n):
    parents = _tree(n, n).parents
    seen = ancestors(parents)
    assert seen.dtype == torch.bool
    assert seen.shape == (n, n)
    for i in range(n):
        assert seen[i].nonzero().flatten().tolist() == _line(parents, i)
    assert depths(parents).tolist() == [len(_line(parents, i)) for i in range(n)]


def test_a_long_chain():
    draft = chain(torch.arange(40))
    assert torch.equal(ancestors(draft.parents), torch.ones(40, 40).tril().bool())


def _accepted(draft, logits):
    return accept_greedy(draft.tokens.tolist(), draft.parents.tolist(), logits.argmax(-1).tolist())


def _walk(draft, logits):
    said, path, at = logits.argmax(-1).tolist(), [], -1
    while True:
        children = [i for i, p in enumerate(draft.parents.tolist()) if p == at and int(draft.tokens[i]) == said[at + 1]]
        if not children:
            return path, said[at + 1]
        at = children[0]
        path.append(at)


@pytest.mark.parametrize("seed", range(30))
def test_acceptance_is_what_walking_down_finds(seed):
    g = torch.Generator().manual_seed(seed)
    # Siblings with one token are one guess; here all tokens differ, so that the walk has one answer.
    draft = Draft(torch.randperm(12, generator=g), _tree(12, seed).parents)
    logits = torch.randn(13, V, generator=g)
    for i, parent in enumerate(draft.parents.tolist()):  # most nodes guess right
        if i % 4:
            logits[parent + 1, draft.tokens[i]] = 9 + i
    before = logits.clone(), draft.tokens.clone(), draft.parents.clone()
    path, after = _accepted(draft, logits)
    assert (path, after) == _walk(draft, logits)
    assert all(map(torch.equal, before, (logits, draft.tokens, draft.parents)))


def test_equal_siblings_take_the_deeper_line():
    draft = Draft(torch.tensor([5, 5, 7]), torch.tensor([-1, -1, 1]))
    logits = torch.nn.functional.one_hot(torch.tensor([5, 7, 7, 3]), V).float()
    path, after = _accepted(draft, logits)
    assert path == [1, 2]
    assert after == 3


def test_nothing_drafted_still_gives_the_next_token():
    path, after = _accepted(chain(torch.zeros(0, dtype=torch.long)), torch.eye(V)[4:5])
    assert path == []
    assert after == 4


def test_half_precision_and_int32():
    draft = Draft(torch.tensor([4, 2], dtype=torch.int32), torch.tensor([-1, 0]))
    path, after = _accepted(draft, torch.eye(V)[[4, 2, 9]].bfloat16())
    assert path == [0, 1]
    assert after == 9


@pytest.mark.parametrize(("asking", "wanted"), [(0.0, 4), (0.25, 4), (0.3, 3), (0.35, 2), (0.45, 1), (9.0, 1)])
def test_a_source_is_asked_only_where_there_is_more_to_win_than_asking_takes(asking, wanted):
    """Two guesses of 0.4 below each node: a level is worth 0.8 of the one above, half of which may be won below it."""
    levels = []

    def look(tree, at):
        levels.append(len(at))
        return Guess([{1: 0.4, 2: 0.4} for _ in at])

    tree = best_first(Growth(look, None, lambda x: x, math.inf, lambda n: 1.0, asking), 30, 2, 4)
    assert levels == [1, 2, 4, 8][:wanted]
    assert len(tree.tokens) == sum([2, 4, 8, 16][:wanted])
