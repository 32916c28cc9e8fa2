"""What every draft method promises, and what each of them computes."""

import pytest
import torch

from tokenmill import catalog
from tokenmill.method import get, parse
from tokenmill.methods.draft import prompt_lookup, token_recycling
from tokenmill.methods.draft.token_recycling import _paths
from tokenmill.ops.trees import accept_greedy, depths
from tokenmill.types import Verified

METHODS = catalog.methods("draft")
V = 23


def _model(ids: torch.Tensor, dtype=torch.float32) -> torch.Tensor:
    """Logits after each token: a fixed random bigram table, so that what comes next depends on the token alone."""
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(3))
    return table[ids.long()].to(dtype)


def _read(ids, dtype=torch.float32):
    return Verified(ids, ids, _model(ids, dtype), torch.ones(len(ids), dtype=torch.bool))


def _prompt(length, seed=0):
    return torch.randint(0, V, (length,), generator=torch.Generator().manual_seed(seed))


def _decode(m, prompt, new):
    """Generate with drafts. Returns the text and how many passes it took."""
    text, passes = prompt, 0
    seen, state = _read(prompt), None
    text = torch.cat([text, seen.logits[-1].argmax()[None]])
    seen = Verified(text, seen.tokens, seen.logits, seen.accepted)
    while len(text) < len(prompt) + new:
        draft, state = m(seen, state)
        checked = torch.cat([text[-1:], draft.tokens])
        logits = _model(checked)
        path, following = accept_greedy(draft, logits)
        text = torch.cat([text, draft.tokens[path], following[None]])
        accepted = torch.zeros(len(checked), dtype=torch.bool)
        accepted[0] = accepted[path + 1] = True
        seen, passes = Verified(text, checked, logits, accepted), passes + 1
    return text[: len(prompt) + new], passes


@pytest.mark.parametrize("name", METHODS)
class TestEvery:
    def test_repr_is_a_spec(self, name):
        assert parse(repr(get(name))) == get(name)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("length", [1, 2, 3, 30])
    @pytest.mark.parametrize("nodes", [1, 5, 12])
    def test_a_tree_of_at_most_so_many_nodes_and_nothing_written(self, name, nodes, length, dtype):
        seen = _read(_prompt(length), dtype)
        kept = [x.clone() for x in vars(seen).values()]
        draft, _ = get(name)(nodes=nodes)(seen, None)
        n = len(draft.tokens)
        assert n <= nodes
        assert draft.parents.shape == (n,)
        assert ((draft.tokens >= 0) & (draft.tokens < V)).all()
        assert ((draft.parents >= -1) & (draft.parents < torch.arange(n))).all()
        assert draft.tokens.dtype == seen.context.dtype
        assert all(map(torch.equal, kept, vars(seen).values()))

    def test_siblings_are_different_guesses(self, name):
        draft, _ = get(name)(_read(_prompt(60)), None)
        pairs = {*zip(draft.parents.tolist(), draft.tokens.tolist(), strict=True)}
        assert len(pairs) == len(draft.tokens)

    def test_decoding_gives_greedy_text_in_fewer_passes(self, name):
        greedy = _prompt(8)
        for _ in range(60):
            greedy = torch.cat([greedy, _model(greedy[-1:]).argmax(-1)])
        text, passes = _decode(get(name), _prompt(8), 60)
        assert torch.equal(text, greedy)
        assert passes < 30


class TestTokenRecycling:
    def test_nodes_are_the_ranked_successors_of_their_parents(self):
        seen = _read(torch.arange(V))
        draft, matrix = token_recycling(nodes=20, width=4)(seen, None)
        parents, ranks, _ = _paths(20, 4, 6)
        assert draft.parents.tolist() == [*parents]
        for i, (parent, rank) in enumerate(zip(parents, ranks, strict=True)):
            above = int(draft.tokens[parent]) if parent >= 0 else V - 1
            assert int(draft.tokens[i]) == seen.logits[above].argsort(descending=True)[rank]
        assert torch.equal(matrix.long(), _model(torch.arange(V)).topk(4).indices)

    def test_below_tokens_never_read_nothing_grows(self):
        text = torch.tensor([4, 9])
        draft, matrix = token_recycling(_read(text), None)
        assert (matrix >= 0).all(-1).nonzero().flatten().tolist() == [4, 9]
        successors = _model(text[-1:])[0].topk(8).indices.tolist()
        known = [i for i, t in enumerate(draft.tokens.tolist()) if t in (4, 9)]
        assert draft.tokens[draft.parents == -1].tolist() == successors[: int((draft.parents == -1).sum())]
        assert {*draft.parents[draft.parents >= 0].tolist()} <= {*known}
        unseen = Verified(torch.tensor([4, 9, 17]), text, _model(text), torch.ones(2, dtype=torch.bool))
        assert len(token_recycling(unseen, None)[0].tokens) == 0

    def test_the_newest_use_of_a_token_counts(self):
        logits = torch.zeros(3, V)
        logits[0, 5] = logits[1, 6] = logits[2, 7] = 1
        tokens = torch.tensor([2, 3, 2])
        _, matrix = token_recycling(width=1)(Verified(tokens, tokens, logits, torch.ones(3, dtype=torch.bool)), None)
        assert matrix[[2, 3], 0].tolist() == [7, 6]

    def test_the_state_is_written_in_place_and_not_copied(self):
        _, state = token_recycling(_read(_prompt(5)), None)
        _, after = token_recycling(_read(_prompt(5, seed=1)), state)
        assert after is state

    def test_the_tree_takes_the_likeliest_paths(self):
        parents, ranks, levels = _paths(12, 8, 6)
        chance = []
        for parent, rank in zip(parents, ranks, strict=True):
            chance.append((chance[parent] if parent >= 0 else 1.0) / (2 * (rank + 1) ** 1.6))
        left_out = [c / (2 * (r + 1) ** 1.6) for i, c in enumerate([1.0, *chance]) for r in range(8)
                    if (i - 1, r) not in {*zip(parents, ranks, strict=True)}]  # fmt: skip
        assert min(chance) >= max(left_out) - 1e-12
        assert levels == (0, *[i for i in range(1, 12) if _depth(parents, i) > _depth(parents, i - 1)], 12)

    @pytest.mark.parametrize(("nodes", "width", "depth"), [(1, 8, 6), (12, 1, 3), (40, 2, 2), (7, 3, 1), (80, 8, 6)])
    def test_width_and_depth_bound_the_tree(self, nodes, width, depth):
        parents, ranks, levels = _paths(nodes, width, depth)
        assert len(parents) == min(nodes, sum(width**d for d in range(1, depth + 1)))
        assert max(ranks) < width
        assert int(depths(torch.tensor(parents)).max()) <= depth
        assert levels[-1] == len(parents)


def _depth(parents, i):
    return 0 if i < 0 else 1 + _depth(parents, parents[i])


class TestPromptLookup:
    def test_what_followed_the_longest_newest_match(self):
        text = torch.tensor([1, 2, 3, 7, 9, 2, 3, 8, 5, 4, 2, 3])
        draft, state = prompt_lookup(nodes=3)(_read(text), None)
        assert draft.tokens.tolist() == [8, 5, 4]
        assert draft.parents.tolist() == [-1, 0, 1]
        assert state is None
        text = torch.tensor([1, 2, 3, 7, 9, 2, 3, 8, 5, 1, 2, 3])  # three words match before two do
        assert prompt_lookup(nodes=3)(_read(text), None)[0].tokens.tolist() == [7, 9, 2]
        assert prompt_lookup(nodes=3, ngram=1)(_read(text), None)[0].tokens.tolist() == [8, 5, 1]

    def test_nothing_repeats_nothing_drafted(self):
        assert len(prompt_lookup(_read(torch.arange(9)), None)[0].tokens) == 0
        assert prompt_lookup(_read(torch.tensor([6, 6])), None)[0].tokens.tolist() == [6]
