"""Draft heads: trained on a tiny model, found again, and lossless under every tree and number format."""

import copy

import pytest
import torch

from tiny import ids, tiny
from tokenmill.errors import ModelError, SpecError
from tokenmill.method import get, parse
from tokenmill.method import method as method_of
from tokenmill.methods.draft import judge, lud, token_recycling
from tokenmill.methods.draft.chimera import Fusing
from tokenmill.methods.draft.chimera import _states as chimera_states
from tokenmill.methods.draft.clover import Regressive
from tokenmill.methods.draft.judge import Verdict
from tokenmill.methods.draft.medusa import Heads
from tokenmill.models import weights
from tokenmill.models.trained import learned
from tokenmill.ops.trees import Sapling
from tokenmill.run.corpus import Corpus
from tokenmill.run.drafter import Ladder
from tokenmill.run.fit import fit
from tokenmill.run.frozen import read
from tokenmill.run.generate import generate
from tokenmill.run.session import Session
from tokenmill.run.speculate import _behind as behind_last
from tokenmill.types import Draft, Guess, Learned, Said, Verified

SPECS = (
    "medusa",
    "medusa(matrices=40)",
    "clover(heads=4)",
    "hidden_transfer(layers=2)",
    "chimera(heads=4)",
    "s2d(exits=(1, 2, 3))",
    "placeholders(threshold=0.0)",
)


@pytest.fixture
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    draw = torch.Generator().manual_seed(0)
    return Corpus(torch.randint(3, 97, (3000,), generator=draw), torch.randint(3, 97, (800,), generator=draw))


@pytest.fixture
def walk(data):
    """Text that a head can learn: each token is the one before plus one, mostly."""
    draw = torch.Generator().manual_seed(0)
    text = 3 + torch.where(torch.rand(4000, generator=draw) < 0.9, 1, 7).cumsum(0) % 12
    return Corpus(text[:3000], text[3000:])


@pytest.mark.parametrize("spec", SPECS)
def test_training_leaves_the_model_as_it_was(spec, data):
    model = copy.deepcopy(tiny("llama"))
    for p in model.parameters():
        p.grad = None
    frozen = next(model.parameters()).requires_grad_(False)
    fit(spec, model, text=data, steps=1, rows=2, length=32)
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [p is not frozen for p in model.parameters()]


@pytest.mark.parametrize("spec", SPECS)
def test_trained_heads_draft_and_change_no_text(spec, data):
    model, prompt = tiny("llama"), ids(1, 12)[0].tolist() * 3
    with pytest.raises(ModelError, match=f"run: tokenmill train {spec.partition('(')[0]}"):
        generate(model, None, [prompt], spec, max_new_tokens=4)
    made = fit(spec, model, text=data, steps=12, rows=4, length=32)
    assert all(0 <= share <= 1 for share in made.held_out.values())
    for beside in ("full", "snapkv(budget=0.6, window=4)"):
        plain = generate(model, None, [prompt], beside, max_new_tokens=24, ignore_eos=True)[0]
        for draft in (spec, f"dyspec(source={spec})", f"chain(source={spec}, nodes=3)"):
            out = generate(model, None, [prompt], f"{beside} + {draft}", max_new_tokens=24, ignore_eos=True)[0]
            assert out.ids == plain.ids
            assert out.stats.drafted > 0 or draft == spec, "auto drafts nothing where nothing pays"
    with pytest.raises(ModelError, match=r"untrained|trained for|trained on|no trained weights"):
        generate(tiny("qwen3"), None, [prompt], spec, max_new_tokens=4)


@pytest.mark.parametrize("spec", SPECS)
def test_trained_heads_draft_up_to_the_last_learned_position(spec, data):
    model, prompt = tiny("gpt2"), ids(1, 6)[0].tolist() * 80
    fit(spec, model, text=data, steps=1, rows=2, length=32)
    plain = generate(model, None, [prompt], max_new_tokens=32, ignore_eos=True)[0]
    out = generate(model, None, [prompt], f"chain(source={spec}, nodes=4)", max_new_tokens=32, ignore_eos=True)[0]
    assert out.ids == plain.ids
    assert out.stats.drafted > 0


@pytest.mark.parametrize(
    "spec", ["medusa", "hidden_transfer(layers=2)", "s2d(exits=(1, 2))", "placeholders(threshold=0.0)"]
)
def test_packed_weights_use_what_was_trained_for_the_model(spec, data):
    model = tiny("llama")
    fit(spec, model, text=data, steps=2, rows=2, length=32)
    packed = weights.pack(copy.deepcopy(model), "int8")
    prompt = ids(1, 12)[0].tolist() * 3
    plain = generate(packed, None, [prompt], max_new_tokens=16, ignore_eos=True)[0]
    out = generate(packed, None, [prompt], f"chain(source={spec}, nodes=2)", max_new_tokens=16, ignore_eos=True)[0]
    assert out.ids == plain.ids
    assert out.stats.drafted > 0


@pytest.mark.parametrize(
    "spec",
    ["medusa(words=40)", "medusa(words=40, matrices=30)", "clover(heads=4, words=40)", "s2d(exits=(1, 2), words=40)"],
)
def test_guesses_are_among_the_first_words(spec, data):
    model, prompt = tiny("llama"), ids(1, 12)[0].tolist() * 3
    fit(spec, model, text=data, steps=2, rows=2, length=32)
    whole = model.get_output_embeddings()
    hidden = torch.randn(3, whole.in_features)
    for network in (model, *(weights.pack(copy.deepcopy(model), kind) for kind in ("int8", "float16"))):
        few = learned(parse(spec), network).head(hidden)
        torch.testing.assert_close(few[:, :40], network.get_output_embeddings()(hidden)[:, :40])
        assert few.shape == (3, 40)
    for temperature in (None, 1.0):  # drawn guesses know no chance of the words beyond
        options = {"max_new_tokens": 24, "ignore_eos": True, "temperature": temperature}
        plain = generate(model, None, [prompt], **options)[0]
        out = generate(model, None, [prompt], f"chain(source={spec}, nodes=3)", **options)[0]
        assert out.ids == plain.ids or temperature
        assert out.stats.drafted > 0


@pytest.mark.parametrize("threshold", [1.0, 0.3])
@pytest.mark.parametrize("source", ["medusa", "clover(heads=4)", "s2d(exits=(1, 2))", "first_layers(layers=2)"])
def test_two_sources_of_which_one_has_a_model_or_a_trained_part(source, threshold, data):
    model, prompt = tiny("llama"), ids(1, 12)[0].tolist() * 3
    if "first" not in source:
        fit(source, model, text=data, steps=2, rows=2, length=32)
    plain = generate(model, None, [prompt], max_new_tokens=24, ignore_eos=True)[0]
    both = f"both(source={source}, other=prompt_lookup, threshold={threshold})"
    for recipe in (f"chain(source={both}, nodes=3)", f"dyspec(source={both})", f"auto(source=both(source={both}))"):
        out = generate(model, None, [prompt], recipe, max_new_tokens=24, ignore_eos=True)[0]
        assert out.ids == plain.ids
        assert out.stats.drafted > 0 or "auto" in recipe
    with pytest.raises(SpecError, match="goes first, as source="):
        parse(f"both(other={source})")


def test_a_part_is_read_once_and_again_when_it_was_trained_anew(data, tmp_path):
    model, method = copy.deepcopy(tiny("llama")), get("medusa")
    fit(method, model, text=data, steps=2, rows=2, length=32)
    first = learned(method, model)
    assert learned(method(width=3), model).parts is not first.parts, "another spec is not taken for it"
    first = learned(method, model)
    assert learned(method, model) is first
    made = fit(method, model, text=data, steps=3, rows=2, length=32)
    again = learned(method, model)
    assert again is not first
    assert torch.equal(again.parts.state_dict()["blocks.0.weight"], made.parts.state_dict()["blocks.0.weight"])
    other = fit(method, model, text=data, steps=4, rows=2, length=32, out=tmp_path / "own")
    named = method(weights=str(other.path))
    assert torch.equal(
        learned(named, model).parts.state_dict()["blocks.0.weight"], other.parts.state_dict()["blocks.0.weight"]
    )
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(ModelError, match="whose weights are not this model's"):
        learned(named, model)
    with pytest.raises(ModelError, match="no trained weights"):
        learned(method, model)


def test_what_asking_takes_is_known_to_a_tree_that_knows_what_a_pass_takes(data):
    model, prompt, told = tiny("llama"), ids(1, 12)[0].tolist() * 3, []

    @method_of(verb="draft", title="", role="tree", needs=("cost",))
    def telling(seen, grow, *, source=token_recycling):
        grow.look(Sapling(), [-1])
        told.append(grow.asking)
        return Sapling().draft(seen.context)

    generate(model, None, [prompt], telling, max_new_tokens=6, ignore_eos=True)
    assert told[0] == 0, "nobody was asked yet"
    assert all(0 < asking < 50 for asking in told[1:])


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


def _verdict(size, bias):
    parts = Verdict(size)
    torch.nn.init.constant_(parts.linear.bias, bias)
    return Learned(parts, None, None)


def _offered(seed, nodes=9, vocabulary=7):
    """A random tree of different siblings, what a model might say about it, and its states."""
    draw = torch.Generator().manual_seed(seed)
    tokens, parents = [], []
    while len(tokens) < nodes:
        token, parent = (
            int(torch.randint(low, high, (1,), generator=draw))
            for low, high in ((0, vocabulary), (-1, len(tokens) or 0))
        )
        if (token, parent) not in zip(tokens, parents, strict=True):
            tokens.append(token)
            parents.append(parent)
    logits = torch.randn(nodes + 1, vocabulary, generator=draw)
    hidden = torch.randn(nodes + 1, 5, generator=draw)

    def said(generator):
        return Said(lambda row: logits[row].softmax(-1), logits.argmax(-1).tolist(), generator, logits, hidden)

    return Draft(torch.tensor(tokens), torch.tensor(parents)), said


@pytest.mark.parametrize("seed", range(12))
def test_a_judge_that_passes_nothing_is_the_exact_rule(seed):
    draft, said = _offered(seed)
    never = _verdict(5, -99.0)
    assert judge(draft, said(None), never) == get("exact")(draft, said(None))
    one, other = (torch.Generator().manual_seed(seed) for _ in range(2))
    assert judge(draft, said(one), never) == get("exact")(draft, said(other))


def test_a_judge_passes_what_it_is_surest_of_where_the_model_says_something_else():
    draft = Draft(torch.tensor([1, 2, 3, 4]), torch.tensor([-1, -1, 1, 2]))
    logits = torch.eye(6)[[0, 5, 5, 4, 0]]  # after the root 0, after node 2 its child, else nothing that was drafted
    said = Said(
        lambda row: logits[row], logits.argmax(-1).tolist(), None, logits, torch.tensor([[0.0], [1], [2], [3], [-9]])
    )
    parts = Verdict(1)
    torch.nn.init.ones_(parts.linear.weight)
    assert judge(draft, said, Learned(parts, None, None)) == ([1, 2, 3], 0)  # the last is the model's own
    assert judge(threshold=0.9)(draft, said, Learned(parts, None, None)) == ([], 0)
    assert judge(threshold=0.85)(draft, said, Learned(parts, None, None)) == ([1, 2, 3], 0)
    nothing = Draft(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
    assert judge(nothing, said, Learned(parts, None, None)) == ([], 0)


def test_a_judge_is_trained_and_accepts_more_than_the_exact_rule(walk):
    source = "first_layers(layers=1, nodes=4)"
    model, prompts = tiny("llama"), [ids(1, 12)[0].tolist() * 3, ids(1, 7, 1)[0].tolist()]
    with pytest.raises(ModelError, match="run: tokenmill train judge"):
        generate(model, None, prompts, f"{source} + judge", max_new_tokens=4)
    made = fit("judge", model, text=walk, steps=20, rows=4, length=32, lr=3e-2)
    losses = [step["loss"] for step in made.history]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # it knows nothing yet
    assert max(losses[-2:]) < losses[0] - 0.02
    assert made.held_out["right tokens passed"] > made.held_out["mistakes passed"] + 0.2
    assert not judge.card.lossless
    plain = generate(model, None, prompts, max_new_tokens=24, ignore_eos=True)
    same = generate(model, None, prompts, f"{source} + judge(threshold=1.0)", max_new_tokens=24, ignore_eos=True)
    lax = generate(model, None, prompts, f"{source} + judge(threshold=0.0)", max_new_tokens=24, ignore_eos=True)
    for own, strict, all_of_it in zip(plain, same, lax, strict=True):
        assert strict.ids == own.ids
        assert len(all_of_it.ids) == 24
        assert all_of_it.stats.forward_calls < strict.stats.forward_calls
    drawn = generate(model, None, prompts, f"{source} + judge", max_new_tokens=24, temperature=1.0, ignore_eos=True)
    assert [len(out.ids) for out in drawn] == [24, 24]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "mistral", "gpt2"])
def test_the_layers_above_real_states_say_what_the_model_says(name):
    """In training and while drafting: states of the tokens that do come next must end where the model takes them."""
    model, text, known, ahead, layer = tiny(name), ids(2, 44), 40, 3, 1
    with torch.no_grad():
        told = model.base_model(text, output_hidden_states=True, use_cache=False)
        states, final = told.hidden_states[layer + 1], told.last_hidden_state
        batch = read(model, get("hidden_transfer")(layers=layer + 1), text)
        at = torch.tensor([2, 30, known - 1])
        behind = at[:, None] + 1 + torch.arange(ahead)
        found = batch.above(layer, states[:, behind], at)
    torch.testing.assert_close(found, final[:, behind], atol=1e-4, rtol=1e-4)
    for recipe in (None, "streaming_llm(slots=500, renumber=False)", "zip_cache"):
        session = Session(model, recipe)
        with session.engaged():
            session.read(text[:1, :known])
            kept, views = session.kept(), [x.clone() for s in session.cache.stores for x in s.view()]
            found = session.above(layer, states[0, known : known + ahead])
            if recipe != "zip_cache":
                torch.testing.assert_close(found, final[0, known : known + ahead], atol=1e-4, rtol=1e-4)
            assert session.kept() == kept
            assert all(map(torch.equal, views, [x for s in session.cache.stores for x in s.view()]))


def test_a_dear_source_is_asked_where_the_other_is_not_sure_and_above():
    asked, tree = [], Sapling()
    for token, parent in ((5, -1), (6, 0), (7, 1), (8, -1)):
        tree.add(token, parent)
    sure = {-1: {5: 0.9}, 0: {6: 0.2}, 1: {7: 0.95}, 2: {}, 3: {9: 0.5}}
    rows = lambda at: Guess([sure[n] for n in at])

    def dear(seen, state, *given):
        return lambda tree, at: asked.append(list(at)) or Guess([{6: 0.4, 30 + n: 0.3} for n in at]), None

    look = get("both").fn(
        None, None, source=dear, other=lambda seen, state: (lambda tree, at: rows(at), None), threshold=0.5
    )[0]
    assert look(tree, [-1]).rows == [{5: 0.9}]
    assert asked == []
    assert look(tree, [0, 1]).rows == [{6: 0.4, 30: 0.3}, {7: 0.95}]
    assert look(tree, [2, 3]).rows == [{6: 0.4, 32: 0.3}, {9: 0.5, 6: 0.4, 33: 0.3}]
    assert asked == [[-1, 0], [1, 2, 3]]  # parents first, each once
    look = get("both").fn(None, None, source=dear, other=lambda seen, state: (lambda tree, at: rows(at), None))[0]
    assert look(tree, [-1, 2]).rows == [{5: 0.9, 6: 0.4, 29: 0.3}, {6: 0.4, 32: 0.3}]


@pytest.mark.parametrize(
    "spec", ["hidden_transfer(layers=1)", "chimera(heads=4)", "s2d(exits=(1, 3))", "placeholders(threshold=0.02)"]
)
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2"])
def test_heads_learn_and_are_lossless_on_other_architectures(name, spec, walk):
    model, prompts = tiny(name), [ids(1, 12)[0].tolist() * 3, ids(1, 1, 1)[0].tolist()]
    made = fit(spec, model, text=walk, steps=20, rows=4, length=32, lr=1e-2)
    losses = [step["loss"] for step in made.history]
    assert sum(losses[-3:]) < sum(losses[:3])
    plain = generate(model, None, prompts, max_new_tokens=24, ignore_eos=True)
    for tree in ("chain(source={}, nodes=3)", "dyspec(source={}, nodes=6)"):
        drafted = generate(model, None, prompts, tree.format(spec), max_new_tokens=24, ignore_eos=True)
        assert [out.ids for out in drafted] == [out.ids for out in plain]
        assert sum(out.stats.drafted for out in drafted) > 0


def test_a_layer_that_is_not_there_is_told(data):
    with pytest.raises(SpecError, match="asks for the state after layer 19; there is 0 to 2"):
        fit("hidden_transfer", tiny("llama"), text=data, steps=1, rows=2, length=32)


def test_chimera_drafts_with_what_it_was_trained_on(data):
    """The states that training makes of a whole text are those that drafting makes of it node by node."""
    model, text, place = tiny("llama"), ids(1, 24), 15
    method = get("chimera")(heads=4)
    torch.manual_seed(1)
    net = Fusing(48, 4)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    batch = read(model, method, text)
    wanted = chimera_states(net, batch, torch.tensor([place]))
    learned = Learned(net, batch.head, batch.embed)
    line = text[0, place + 2 : place + 5].tolist()
    for first in (place + 1, 9):  # the prompt at once, or a part of it and then the rest
        seen = Verified(
            text[0, : first + 1],
            text[0, :first],
            None,
            torch.ones(first, dtype=torch.bool),
            hidden=batch.hidden[0, :first],
        )
        look, state = method(seen, None, learned)
        if first <= place:
            nodes = torch.arange(place + 1 - first)  # the root and what was drafted below it, with a wrong sibling
            hidden = batch.hidden[0, first : place + 1]
            hidden, taken = (
                torch.cat([hidden[:1], hidden[:1] * 0, hidden[1:]]),
                torch.ones(len(nodes) + 1, dtype=torch.bool),
            )
            taken[1] = False
            depths = torch.cat([nodes[:1], nodes[1:2], nodes[1:]])
            seen = Verified(text[0, : place + 2], None, None, taken, depths, hidden)
            look, _ = method(seen, state, learned)
        tree, at = Sapling(), -1
        for deep, token in enumerate([*line, None]):
            found = look(tree, [at]).logits[0]
            torch.testing.assert_close(found, batch.head(wanted[deep][0, 0]), atol=1e-4, rtol=1e-4)
            at = tree.add(token, at) if token is not None else at


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_nodes_climb_as_the_nested_models_do(name):
    """States at each exit, asked about in any order, against the line's text read by the first layers alone."""
    model, text = tiny(name), ids(1, 40)
    exits, tree = (0, 2), Sapling()
    for token, parent in ((5, -1), (6, -1), (7, 0), (8, 1), (9, 2)):
        tree.add(token, parent)

    def nested(node, rung):
        line = torch.tensor([tree.ends(text[0].tolist(), [node], 99)[0]])
        with torch.no_grad():
            return model.base_model(line, output_hidden_states=True).hidden_states[exits[rung] + 1][0, -1]

    wanted = {(node, rung): nested(node, rung) for node in range(-1, 5) for rung in (0, 1)}
    for recipe in (None, "h2o(budget=0.5)"):
        session = Session(model, recipe)
        with session.engaged():
            session.read(text[:, :-1])
            kept, views = session.kept(), [x.clone() for s in session.cache.stores for x in s.view()]
            ladder = Ladder(session, exits)
            with ladder.below(int(text[0, -1])):
                for at, rung in (([-1], 0), ([0, 1], 0), ([2], 1), ([3], 0), ([3, -1], 1), ([4], 0), ([4], 1)):
                    found = ladder(tree, at, rung)
                    if recipe is None:
                        want = torch.stack([wanted[node, rung] for node in at])
                        torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)
                assert {*ladder.states[1]} == {-1, 0, 1, 2, 3, 4}
            assert session.kept() == kept
            assert all(map(torch.equal, views, [x for s in session.cache.stores for x in s.view()]))


def test_untrained_s2d_is_first_layers(data):
    model, prompt = tiny("llama"), ids(1, 12)[0].tolist() * 3
    fit("s2d(exits=(2,))", model, text=data, steps=1, rows=2, length=32, lr=1e-12)
    one, other = (
        generate(model, None, [prompt], f"chain(source={source}, nodes=4)", max_new_tokens=24, ignore_eos=True)[0]
        for source in ("s2d(exits=(2,))", "first_layers(layers=2)")
    )
    assert one.ids == other.ids
    assert (one.stats.drafted, one.stats.accepted) == (other.stats.drafted, other.stats.accepted)


def test_s2d_goes_deeper_only_where_it_is_unsure(walk):
    model, prompt = tiny("llama"), ids(1, 12)[0].tolist() * 3
    spec = "s2d(exits=(1, 2), threshold={}, nodes=4)"
    fit("s2d(exits=(1, 2))", model, text=walk, steps=5, rows=4, length=32)
    runs = [
        generate(model, None, [prompt], spec.format(t), max_new_tokens=24, ignore_eos=True)[0] for t in (0.0, 0.5, 1.0)
    ]
    plain = generate(model, None, [prompt], max_new_tokens=24, ignore_eos=True)[0]
    assert all(run.ids == plain.ids for run in runs)
    a_node = [run.stats.token_layers / run.stats.drafted for run in runs]
    assert a_node[0] < a_node[2]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_placeholders_predict_in_a_draft_what_they_predict_in_training(name):
    """Behind a draft of some nodes, and in a batch: real embeddings in their place say what the model says."""
    model, text = tiny(name), ids(1, 30)
    with torch.no_grad():
        real = model.get_input_embeddings()(text)
        logits = model(text).logits
        batch = read(model, get("placeholders"), text)
        at = torch.tensor([3, 22])
        behind = at[:, None] + 1 + torch.arange(2)
        torch.testing.assert_close(
            batch.head(batch.above(-1, real[:, behind], at)), logits[:, behind], atol=1e-4, rtol=1e-4
        )
    session = Session(model)
    with session.engaged():
        session.read(text[:, :25])
        line = torch.ones(4, 4, dtype=torch.bool).tril()
        line[2, 1] = line[3, 2] = False  # the root, a node, a wrong sibling, and a node below the first
        tokens = torch.tensor([*text[0, 25:27], 4, text[0, 27]])
        levels = torch.tensor([0, 1, 1, 2, 3, 4])
        found = session.verify(tokens, levels, behind_last(line, 2), real[0, 28:30])
        torch.testing.assert_close(found[[0, 1, 3, 4, 5]], logits[0, 25:], atol=1e-4, rtol=1e-4)
        session.accept([0, 1, 3])
        assert session.kept()[1] == [[[*range(28)]] * len(session.kept()[1][0])]


def test_a_lexical_unit_is_what_its_source_is_sure_of():
    draft = Draft(torch.tensor([1, 2, 3, 4]), torch.tensor([-1, -1, 1, 2]), torch.tensor([0.91, 0.95, 0.92, 0.5]))
    said = Said(lambda row: torch.eye(6)[row], [9, 8, 7, 6, 5], None, torch.zeros(5, 6))
    assert lud(draft, said) == ([1, 2], 6)
    assert lud(threshold=0.4)(draft, said) == ([1, 2, 3], 5)
    assert lud(threshold=0.96)(draft, said) == ([], 9)
    drawn = Said(said.probabilities, [], torch.Generator().manual_seed(0), said.logits)
    assert lud(draft, drawn) == ([1, 2], 3)


def test_units_are_taken_unchecked(data):
    model, prompts = tiny("llama"), [ids(1, 12)[0].tolist() * 3, ids(1, 1)[0].tolist()]
    fit("placeholders", model, text=data, steps=2, rows=2, length=32)
    units = generate(
        model, None, prompts, "placeholders(threshold=0.0) + lud(threshold=0.0)", max_new_tokens=24, ignore_eos=True
    )
    plain = generate(model, None, prompts, "placeholders(threshold=1.0) + lud", max_new_tokens=24, ignore_eos=True)
    greedy = generate(model, None, prompts, max_new_tokens=24, ignore_eos=True)
    assert [out.ids for out in plain] == [out.ids for out in greedy]
    for out in units:
        assert out.stats.accepted == out.stats.drafted > 0  # three guesses and the model's own token a pass
        assert out.stats.forward_calls <= 9
    assert not lud.card.lossless


def test_medusa_heads_with_matrices_of_their_own_begin_as_the_models_head(walk):
    """The paper's heads: an output matrix each, started from the model's."""
    from torch.nn.functional import linear

    hidden, rows = torch.randn(5, 16), torch.randn(7, 16)
    heads = Heads(16, 3, 7)
    shared = linear(heads(hidden), rows)
    torch.testing.assert_close(
        torch.stack([heads.corrected(a, s) for a, s in zip(shared, heads(hidden), strict=True)]), shared
    )
    torch.nn.init.normal_(heads.matrices[1].weight)
    states = heads(hidden)[0]
    expected = [linear(s, rows + (heads.matrices[1].weight if k == 1 else 0)) for k, s in enumerate(states)]
    torch.testing.assert_close(heads.corrected(shared[0], states), torch.stack(expected))
    made = fit("medusa(matrices=97)", tiny("llama"), text=walk, steps=3, rows=8, length=32).parts
    assert all(bool(matrix.weight.any()) for matrix in made.matrices), "they learn"
