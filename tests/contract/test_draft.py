"""What every draft method promises, and what each of them computes."""

import math
from dataclasses import replace

import pytest
import torch

from tiny import ids, tiny
from tokenmill import catalog
from tokenmill.errors import RecipeError, SpecError
from tokenmill.method import get, grown, parse, recipe
from tokenmill.methods.draft import (
    dyspec,
    jacobi,
    lookahead,
    prompt_lookup,
    rsd,
    token_recycling,
    trigram,
    typical_acceptance,
)
from tokenmill.ops.sampling import as_rows, without_replacement
from tokenmill.ops.trees import accept_greedy, depths, likeliest_paths
from tokenmill.run.generate import generate
from tokenmill.run.speculate import Proposer
from tokenmill.types import Draft, Growth, Guess, Said, Verified

ROLES = {name: parse(name).card.role for name in catalog.methods("draft")}
ALONE = [name for name in ROLES if not parse(name).card.trains and "drafter" not in parse(name).card.needs]
DRAFTS = [name for name in ALONE if ROLES[name] != "rule"]
RULES = [name for name, role in ROLES.items() if role == "rule"]
V = 23


def _model(ids: torch.Tensor, dtype=torch.float32) -> torch.Tensor:
    """Logits after each token: a fixed random bigram table, so that what comes next depends on the token alone."""
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(3))
    return table[ids.long()].to(dtype)


def _read(ids, dtype=torch.float32):
    return Verified(ids, ids, _model(ids, dtype), torch.ones(len(ids), dtype=torch.bool))


def _prompt(length, seed=0):
    return torch.randint(0, V, (length,), generator=torch.Generator().manual_seed(seed))


def _propose(m, generator=None):
    return Proposer(m, lambda logits: logits.float().softmax(-1), generator, [], lambda width: 1.0)


def _draft(m, seen, room=math.inf):
    return _propose(m)(seen, room)


def _decode(m, prompt, new):
    """Generate with drafts. Returns the text and how many passes it took."""
    text, passes, propose = prompt, 0, _propose(m)
    seen = _read(prompt)
    text = torch.cat([text, seen.logits[-1].argmax()[None]])
    seen = Verified(text, seen.tokens, seen.logits, seen.accepted)
    while len(text) < len(prompt) + new:
        draft = propose(seen, math.inf)
        checked = torch.cat([text[-1:], draft.tokens])
        logits = _model(checked)
        path, following = accept_greedy(draft.tokens.tolist(), draft.parents.tolist(), logits.argmax(-1).tolist())
        text = torch.cat([text, draft.tokens[path], torch.tensor([following])])
        accepted = torch.zeros(len(checked), dtype=torch.bool)
        accepted[[0, *(node + 1 for node in path)]] = True
        levels = torch.cat([torch.zeros(1, dtype=torch.long), depths(draft.parents)])
        seen, passes = Verified(text, checked, logits, accepted, levels), passes + 1
    return text[: len(prompt) + new], passes


@pytest.mark.parametrize("name", DRAFTS)
class TestEvery:
    def test_repr_is_a_spec(self, name):
        assert parse(repr(get(name))) == get(name)
        assert grown(get(name)).card.role in ("tree", "")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("length", [1, 2, 3, 30])
    @pytest.mark.parametrize("nodes", [1, 5, 12])
    def test_a_tree_of_at_most_so_many_nodes_and_nothing_written(self, name, nodes, length, dtype):
        seen = _read(_prompt(length), dtype)
        kept = [x.clone() for x in vars(seen).values() if isinstance(x, torch.Tensor)]
        sized = "nodes" in grown(get(name)).knobs
        draft = _draft(get(name)(nodes=nodes) if sized else get(name), seen)
        n = len(draft.tokens)
        assert n <= nodes or not sized
        assert draft.parents.shape == (n,)
        assert ((draft.tokens >= 0) & (draft.tokens < V)).all()
        assert ((draft.parents >= -1) & (draft.parents < torch.arange(n))).all()
        assert draft.tokens.dtype == seen.context.dtype
        assert all(map(torch.equal, kept, [x for x in vars(seen).values() if isinstance(x, torch.Tensor)]))

    def test_siblings_are_different_guesses(self, name):
        draft = _draft(get(name), _read(_prompt(60)))
        pairs = {*zip(draft.parents.tolist(), draft.tokens.tolist(), strict=True)}
        assert len(pairs) == len(draft.tokens)

    @pytest.mark.parametrize("room", [0, 1, 2])
    def test_no_deeper_than_the_context_has_room(self, name, room):
        draft = _draft(get(name), _read(_prompt(60)), room)
        assert int(depths(draft.parents).max()) <= room if len(draft.tokens) else True

    def test_decoding_gives_greedy_text_in_fewer_passes(self, name):
        greedy = _prompt(8)
        for _ in range(60):
            greedy = torch.cat([greedy, _model(greedy[-1:]).argmax(-1)])
        text, passes = _decode(get(name), _prompt(8), 60)
        assert torch.equal(text, greedy)
        # A guess made before its neighbour was known is seldom right where each word depends on the one before.
        assert passes < (60 if name == "jacobi" else 30)

    def test_draws_differ_with_the_generator_and_only_with_it(self, name):
        def drawn(seed):
            propose, seen = _propose(get(name), torch.Generator().manual_seed(seed)), _read(_prompt(60))
            return propose(seen, math.inf).tokens.tolist()

        assert drawn(5) == drawn(5)


class TestRoles:
    def test_a_source_takes_the_size_of_its_tree(self):
        assert grown(token_recycling(nodes=5, width=3)) == parse("fixed(source=token_recycling(width=3), nodes=5)")
        with pytest.raises(SpecError, match="chain has no knob 'depth'"):
            parse("prompt_lookup(depth=3) + h2o(budget=0.5)")

    def test_a_tree_takes_sources_only(self):
        with pytest.raises(SpecError, match="takes a source of drafts such as token_recycling, not h2o"):
            parse("dyspec(source=h2o)")
        with pytest.raises(SpecError, match="whole numbers"):
            parse("rsd(branches=(2, 0))")

    def test_a_rule_needs_a_draft_in_any_order(self):
        with pytest.raises(RecipeError, match="nothing drafts any"):
            recipe("typical_acceptance")
        made = recipe("typical_acceptance + token_recycling")
        assert made.get("draft").name == "token_recycling"
        assert made.get("rule").name == "typical_acceptance"
        with pytest.raises(RecipeError, match="both decide which drafted tokens are accepted"):
            recipe("token_recycling + exact + typical_acceptance")


def _table_growth(generator=None, seed=2):
    """A source that knows q(. | newest token) for every text, and nothing else."""
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(seed)) * 2

    def look(tree, at):
        logits = table[[tree.tokens[node] if node >= 0 else 0 for node in at]]
        values, tokens = logits.softmax(-1).topk(8)
        return Guess(as_rows(tokens, values), logits)

    return table.softmax(-1), Growth(look, generator, lambda x: x.softmax(-1), math.inf, lambda n: 1.0)


class TestTrees:
    @pytest.mark.parametrize("nodes", [1, 4, 9, 25])
    def test_dyspec_takes_the_likeliest_nodes_of_all(self, nodes):
        q, grow = _table_growth()
        values = {}  # the slow way: every line to depth 4

        def walk(last, value, line):
            if len(line) == 4:
                return
            for token in q[last].topk(8).indices.tolist():
                values[*line, token] = value * float(q[last, token])
                walk(token, values[*line, token], (*line, token))

        walk(0, 1.0, ())
        best = sorted(values.values(), reverse=True)[:nodes]
        draft = dyspec(nodes=nodes, depth=4)(_read(torch.tensor([0])), grow)
        worth = [1.0]
        for parent, chance in zip(draft.parents.tolist(), draft.chances.tolist(), strict=True):
            worth.append(worth[parent + 1] * chance)
        assert sorted(worth[1:], reverse=True) == pytest.approx(best)

    def test_dyspec_draws_where_the_next_draw_is_worth_most(self):
        q, grow = _table_growth(torch.Generator().manual_seed(0))
        draft = dyspec(nodes=15, width=V, depth=9)(_read(torch.tensor([0])), grow)
        value, left, places = {-1: 1.0}, {}, []
        for node, (token, parent) in enumerate(zip(draft.tokens.tolist(), draft.parents.tolist(), strict=True)):
            worth = {n: value[n] * left.get(n, 1.0) for n in value}
            assert worth[parent] == pytest.approx(max(worth.values())), "another place was worth more"
            places.append(worth[parent])
            last = int(draft.tokens[parent]) if parent >= 0 else 0
            value[node] = value[parent] * float(q[last, token])
            left[parent] = left.get(parent, 1.0) - float(q[last, token])
        assert places == sorted(places, reverse=True)

    def test_rsd_lines_are_drawn_without_replacement(self):
        """Stochastic beam search: the set of lines is that of Gumbel top-k over all lines at once."""
        q, _ = _table_growth()
        two = {(a, b): float(q[0, a] * q[a, b]) for a in range(V) for b in range(V)}
        lines, p = list(two), torch.tensor(list(two.values()))
        g, counts, expected = torch.Generator().manual_seed(1), {}, {}
        for _ in range(3000):
            _, grow = _table_growth(g)
            draft = rsd(width=2, depth=2)(_read(torch.tensor([0])), grow)
            ends = [i for i, d in enumerate(depths(draft.parents).tolist()) if d == 2]
            for end in ends:
                line = (int(draft.tokens[draft.parents[end]]), int(draft.tokens[end]))
                counts[line] = counts.get(line, 0) + 1
            for i in without_replacement(p[None], 2, g)[0].tolist():
                expected[lines[i]] = expected.get(lines[i], 0) + 1
        for line in sorted(two, key=two.get)[-6:]:
            spread = math.sqrt(counts[line] + expected[line])
            assert abs(counts[line] - expected[line]) < 4 * spread

    def test_rsd_c_has_its_branches(self):
        _, grow = _table_growth(torch.Generator().manual_seed(1))
        draft = rsd(branches=(3, 2, 1))(_read(torch.tensor([0])), grow)
        assert torch.bincount(depths(draft.parents)).tolist() == [0, 3, 6, 6]


class TestSources:
    def test_trigram_counts_what_followed(self):
        text = torch.tensor([1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2])
        look, state = trigram(_read(text[:6]), None)
        look, _ = trigram(_read(text), state)
        guess = look(parse_tree(), [-1])
        assert list(guess.rows[0]) == [3, 4]
        assert guess.rows[0] == pytest.approx({3: 2 / 3, 4: 1 / 3})
        whole, _ = trigram(_read(text), None)  # counted at once or as the text grew
        assert whole(parse_tree(), [-1]).rows == guess.rows

    def test_jacobi_guesses_what_was_predicted_at_its_place(self):
        context = torch.tensor([7, 5, 1, 4])  # 5 was the root, 1 accepted, 4 the model's own
        tokens, levels = torch.tensor([5, 1, 9, 8]), torch.tensor([0, 1, 2, 3])
        logits = torch.nn.functional.one_hot(torch.tensor([1, 4, 11, 12]), V).float() * 5
        seen = Verified(context, tokens, logits, torch.tensor([True, True, False, False]), levels)
        draft = _draft(jacobi(nodes=3), seen)
        assert draft.tokens[:2].tolist() == [11, 12]
        assert int(draft.tokens[2]) in context.tolist()

    def test_lookahead_drafts_runs_its_window_went_through(self):
        text, _ = _decode(lookahead, _prompt(8), 40)
        propose = _propose(lookahead)
        propose(_read(text), math.inf)
        _, _, pool = propose.state
        assert pool == {}  # nothing was verified yet
        assert all(len(run) == 2 for runs in pool.values() for run in runs)


def parse_tree():
    from tokenmill.ops.trees import Sapling

    return Sapling()


def _checked(ids):
    """As if a pass had checked these tokens, and accepted them."""
    return replace(_read(ids), depths=torch.arange(len(ids)))


class TestTokenRecycling:
    def test_of_the_prompt_only_the_last_token_fills_the_matrix(self):
        """As in the authors' code: there it is the root of the first tree, and logits before it are not looked at."""
        _, (matrix, _) = token_recycling(_read(torch.tensor([4, 9, 7, 11])), None)
        assert (matrix >= 0).all(-1).nonzero().flatten().tolist() == [11]
        _, (matrix, _) = token_recycling(_checked(torch.tensor([4, 9, 7])), (matrix, torch.zeros(V, 8)))
        assert (matrix >= 0).all(-1).nonzero().flatten().tolist() == [4, 7, 9, 11], "all that a pass checks does"

    def test_the_matrix_serves_the_next_text(self):
        texts, memory, accepted = [ids(1, 12, seed)[0].tolist() * 2 for seed in (0, 0)], {}, []
        for text in texts:
            out = generate(tiny("llama"), None, [text], "token_recycling", max_new_tokens=24, ignore_eos=True,
                           memory=memory)  # fmt: skip
            accepted.append(out[0].stats.accepted)
        assert accepted[1] > accepted[0]

    def test_nodes_are_the_ranked_successors_of_their_parents(self):
        seen = _checked(torch.arange(V))
        propose = _propose(token_recycling(nodes=20, width=4))
        draft = propose(seen, math.inf)
        assert draft.parents.tolist() == [parent for parent, _ in likeliest_paths(20, 4, 6)]
        for i, parent in enumerate(draft.parents.tolist()):
            above = int(draft.tokens[parent]) if parent >= 0 else V - 1
            rank = draft.parents[:i].tolist().count(parent)
            assert int(draft.tokens[i]) == seen.logits[above].argsort(descending=True)[rank]
        matrix, chances = propose.state
        assert torch.equal(matrix.long(), _model(torch.arange(V)).topk(4).indices)
        torch.testing.assert_close(
            chances.float(), _model(torch.arange(V)).softmax(-1).topk(4).values, atol=1e-3, rtol=0
        )

    def test_below_tokens_never_read_nothing_grows(self):
        text = torch.tensor([4, 9])
        propose = _propose(token_recycling)
        draft = propose(_checked(text), math.inf)
        assert (propose.state[0] >= 0).all(-1).nonzero().flatten().tolist() == [4, 9]
        successors = _model(text[-1:])[0].topk(8).indices.tolist()
        known = [i for i, t in enumerate(draft.tokens.tolist()) if t in (4, 9)]
        assert draft.tokens[draft.parents == -1].tolist() == successors[: int((draft.parents == -1).sum())]
        assert {*draft.parents[draft.parents >= 0].tolist()} <= {*known}
        unseen = Verified(torch.tensor([4, 9, 17]), text, _model(text), torch.ones(2, dtype=torch.bool))
        assert len(_draft(token_recycling, unseen).tokens) == 0

    def test_the_newest_use_of_a_token_counts(self):
        logits = torch.zeros(3, V)
        logits[0, 5] = logits[1, 6] = logits[2, 7] = 1
        tokens = torch.tensor([2, 3, 2])
        _, (matrix, _) = token_recycling(width=1)(
            Verified(tokens, tokens, logits, torch.ones(3, dtype=torch.bool), torch.arange(3)), None
        )
        assert matrix[[2, 3], 0].tolist() == [7, 6]

    def test_the_state_is_written_in_place_and_not_copied(self):
        _, state = token_recycling(_read(_prompt(5)), None)
        _, after = token_recycling(_read(_prompt(5, seed=1)), state)
        assert after is state


class TestShapes:
    def test_the_tree_takes_the_likeliest_paths(self):
        shape = likeliest_paths(12, 8, 6)
        chance = []
        for parent, rank in shape:
            chance.append((chance[parent] if parent >= 0 else 1.0) / (2 * (rank + 1) ** 1.6))
        left_out = [
            c / (2 * (r + 1) ** 1.6)
            for i, c in enumerate([1.0, *chance])
            for r in range(8)
            if (i - 1, r) not in {*shape}
        ]
        assert min(chance) >= max(left_out) - 1e-12

    @pytest.mark.parametrize(("nodes", "width", "depth"), [(1, 8, 6), (12, 1, 3), (40, 2, 2), (7, 3, 1), (80, 8, 6)])
    def test_width_and_depth_bound_the_tree(self, nodes, width, depth):
        parents, ranks = zip(*likeliest_paths(nodes, width, depth), strict=True)
        assert len(parents) == min(nodes, sum(width**d for d in range(1, depth + 1)))
        assert max(ranks) < width
        assert int(depths(torch.tensor(parents)).max()) <= depth


class TestTypicalAcceptance:
    def test_the_longest_plausible_line(self):
        p = torch.tensor([[0.7, 0.3, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.96, 0.04, 0, 0], [0.5, 0.5, 0, 0]]) + 1e-9
        said = Said(lambda i: p[i], p.argmax(-1).tolist(), None, p.log())
        draft = Draft(torch.tensor([1, 3, 1]), torch.tensor([-1, 0, 1]))
        # bar = min(0.09, 0.3 exp(-H)); 0.3 and 0.25 pass it; 0.04 after the second does not
        assert typical_acceptance(draft, said) == ([0, 1], 0)
        assert typical_acceptance(epsilon=0.3)(draft, said)[0] == [0, 1]
        assert typical_acceptance(epsilon=1.0, delta=1.0)(draft, said)[0] == []
        nothing = Draft(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
        assert typical_acceptance(nothing, said) == ([], 0)

    def test_of_lines_as_long_the_likeliest(self):
        p = torch.tensor([[0.3, 0.7], [0.9, 0.1], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
        said = Said(lambda i: p[i], p.argmax(-1).tolist(), None, p.log())
        one_each = Draft(torch.tensor([0, 1]), torch.tensor([-1, -1]))
        assert typical_acceptance(one_each, said)[0] == [1]  # 0.7 against 0.3
        lines = Draft(torch.tensor([0, 1, 0, 1]), torch.tensor([-1, -1, 0, 1]))
        assert typical_acceptance(lines, said)[0] == [1, 3]  # 0.7 * 0.5 against 0.3 * 0.9


class TestPromptLookup:
    def test_what_followed_the_longest_newest_match(self):
        text = torch.tensor([1, 2, 3, 7, 9, 2, 3, 8, 5, 4, 2, 3])
        draft = _draft(prompt_lookup(nodes=3), _read(text))
        assert draft.tokens.tolist() == [8, 5, 4]
        assert draft.parents.tolist() == [-1, 0, 1]
        text = torch.tensor([1, 2, 3, 7, 9, 2, 3, 8, 5, 1, 2, 3])  # three words match before two do
        assert _draft(prompt_lookup(nodes=3), _read(text)).tokens.tolist() == [7, 9, 2]
        assert _draft(prompt_lookup(nodes=3, ngram=1), _read(text)).tokens.tolist() == [8, 5, 1]

    def test_nothing_repeats_nothing_drafted(self):
        assert len(_draft(prompt_lookup, _read(torch.arange(9))).tokens) == 0
        assert _draft(prompt_lookup, _read(torch.tensor([6, 6]))).tokens.tolist() == [6]

    def test_the_index_grows_with_the_text(self):
        text = _prompt(80, seed=4) % 5
        propose = _propose(prompt_lookup)
        for end in range(1, 80, 3):
            grown_on = propose(_read(text[:end]), math.inf)
            assert torch.equal(grown_on.tokens, _draft(prompt_lookup, _read(text[:end])).tokens)
