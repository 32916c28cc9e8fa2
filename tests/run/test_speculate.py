"""Drafts change how fast text comes, never which text."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import tokenmill.run.generate as writing
from models.test_engine import there
from tiny import ARCHITECTURES, ids, tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill import catalog
from tokenmill.errors import InputError, ModelError, SpecError
from tokenmill.method import method, parse
from tokenmill.ops.trees import Sapling
from tokenmill.run.choose import Chooser
from tokenmill.run.corpus import Corpus
from tokenmill.run.drafter import Drafter
from tokenmill.run.fit import fit
from tokenmill.run.generate import generate
from tokenmill.run.session import Session
from tokenmill.run.speculate import Proposer, _within, speculate, taught
from tokenmill.types import Draft

GREEDY = Chooser(0.0, 1.0, 0, 1)
READY = [n for n in catalog.methods("draft") if not parse(n).card.trains]  # heads that are trained: test_heads.py
SOURCES = [n for n in READY if parse(n).card.role == "source" and "model" not in parse(n).knobs]
TREES = [n for n in catalog.methods("draft") if parse(n).card.role == "tree"]
ALONE = [n for n in catalog.methods("draft") if not parse(n).card.role]
SMALL = {"first_layers": "first_layers(layers=1)"}  # the tiny models have few layers
# Every source with its own tree, every tree with one source, and what drafts in one piece; the product is tested once.
DRAFTS = [SMALL.get(source, source) for source in SOURCES] + TREES + ALONE
PRODUCT = [f"{tree}(source={SMALL.get(source, source)})" for tree in TREES for source in SOURCES]


def drafter(fn):
    return method(title="", verb="draft", lossless=True)(fn)


@cache
def greedy(name: str, length: int, new: int, seed: int = 0) -> tuple[int, ...]:
    model, text = tiny(name), ids(1, length, seed)
    for _ in range(new):
        with torch.no_grad():
            text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], 1)
    return tuple(text[0, length:].tolist())


def adversary(truth: tuple[int, ...], length: int, seed: int, vocabulary: int = 97):
    """Random trees in any order of siblings, with copies of siblings, right lines, and nothing at times."""

    @drafter
    def guesses(seen, state: int | None) -> tuple[Draft, int]:
        call = 0 if state is None else state
        g = torch.Generator().manual_seed(seed * 1000 + call)
        n = int(torch.randint(0, 9, (1,), generator=g))
        tokens = torch.randint(3, vocabulary, (n,), generator=g)
        parents = torch.tensor(
            [int(torch.randint(-1, i, (1,), generator=g)) if i else -1 for i in range(n)], dtype=torch.long
        )
        come = truth[len(seen.context) - length :]
        deep = torch.zeros(n, dtype=torch.long)
        for i in range(n):
            deep[i] = deep[parents[i]] + 1 if parents[i] >= 0 else 0
            if call % 3 != 2 and deep[i] < len(come) and torch.rand(1, generator=g) < 0.7:
                tokens[i] = come[deep[i]]
        return Draft(tokens, parents), call + 1

    return guesses


def said(model, draft, prompt: list[int], new: int) -> list[int]:
    session, out = Session(model), []
    with session.engaged():
        for tokens in speculate(session, prompt, draft, GREEDY):
            out += tokens
            if len(out) >= new:
                return out[:new]
    raise AssertionError


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("length", [1, 40])
def test_greedy_text_is_the_models_own(name, length):
    truth, prompt = greedy(name, length, 40), ids(1, length)[0].tolist()
    for draft in [*map(parse, DRAFTS), adversary(truth, length, 0), adversary(truth, length, 1)]:
        assert tuple(said(tiny(name), draft, prompt, 36)) == truth[:36]


@pytest.mark.parametrize("draft", PRODUCT)
def test_every_source_with_every_tree(draft):
    truth, prompt = greedy("qwen3", 20, 30), ids(1, 20)[0].tolist()
    assert tuple(said(tiny("qwen3"), parse(draft), prompt, 28)) == truth[:28]


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_far_past_the_sliding_window(name):
    truth = greedy(name, 30, 130)
    assert tuple(said(tiny(name), adversary(truth, 30, 2), ids(1, 30)[0].tolist(), 126)) == truth[:126]


def test_something_is_accepted():
    truth = greedy("llama", 40, 40)
    session = Session(tiny("llama"))
    steps = speculate(session, ids(1, 40)[0].tolist(), adversary(truth, 40, 0), GREEDY)
    for _ in range(12):
        next(steps)
    assert session.stats.accepted > 8
    assert session.stats.drafted > session.stats.accepted


@pytest.mark.parametrize("draft", DRAFTS)
def test_generate_ends_where_greedy_ends(draft):
    """An end inside an accepted draft, a stop string, one token, a batch, the end of learned positions."""
    model, tokenizer = tiny("llama"), tiny_tokenizer()
    prompts = [ids(1, 12)[0].tolist() * 3, ids(1, 7, 1)[0].tolist()]
    plain = generate(model, tokenizer, prompts, max_new_tokens=30, ignore_eos=True)
    for asked in ({"max_new_tokens": 1}, {"max_new_tokens": 30}, {"max_new_tokens": 30, "ignore_eos": True}):
        one = generate(model, tokenizer, prompts, **asked)
        other = generate(model, tokenizer, prompts, draft, **asked)
        assert [o.ids for o in one] == [o.ids for o in other]
        assert [o.text for o in one] == [o.text for o in other]
    for place in (0, 7, 8, 9):
        stop = [tokenizer.decode([plain[0].ids[place]])]
        one = generate(model, tokenizer, prompts, stop=stop, ignore_eos=True)
        other = generate(model, tokenizer, prompts, draft, stop=stop, ignore_eos=True)
        assert [(o.ids, o.text) for o in one] == [(o.ids, o.text) for o in other]
        before = model.generation_config.eos_token_id
        model.generation_config.eos_token_id = plain[0].ids[place]
        try:
            one = generate(model, tokenizer, prompts, max_new_tokens=30)
            other = generate(model, tokenizer, prompts, draft, max_new_tokens=30)
        finally:
            model.generation_config.eos_token_id = before
        assert [o.ids for o in one] == [o.ids for o in other]


@pytest.mark.parametrize("draft", DRAFTS)
def test_up_to_the_last_learned_position(draft):
    model, prompt = tiny("gpt2"), ids(1, 6)[0].tolist() * 80
    one = generate(model, None, [prompt], max_new_tokens=32, ignore_eos=True)
    other = generate(model, None, [prompt], draft, max_new_tokens=32, ignore_eos=True)
    assert one[0].ids == other[0].ids


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "spec",
    [
        "snapkv(budget=0.5, window=8)",
        "adaptive(budget=0.4)",
        "streaming_llm(slots=20)",
        "keydiff(budget=0.4) + zip_cache",
        "recent_window(slots=9)",
    ],
)
def test_only_accepted_tokens_reach_the_cache(name, spec):
    """The cache is what it is when the accepted tokens are fed in the same groups without any draft around them."""
    if not there(spec):
        pytest.skip("not written yet")
    model, prompt = tiny(name), ids(1, 40)[0].tolist()
    session, alone = Session(model, spec), Session(model, spec)
    random, trees = adversary((), 40, 3), [Draft(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))]

    @drafter
    def guesses(seen, state: int | None) -> tuple[Draft, int]:
        guess, state = random(seen, state)
        trees.append(_within(guess, seen.room))
        return trees[-1], state

    class Agreeable(Chooser):
        """Says what the newest tree drafted, so that much is accepted."""

        def __call__(self, logits, row=None):
            out = logits.argmax(-1)
            for token, parent in zip(trees[-1].tokens.flip(0), trees[-1].parents.flip(0), strict=True):
                out[parent + 1] = token
            return out

    alone.read([prompt])
    steps = speculate(session, prompt, guesses, Agreeable(0.0, 1.0, 0, 1))
    pending, total = next(steps), 0
    for _ in range(28):
        tokens = next(steps)
        group = torch.tensor(pending[-1:] + tokens[:-1])  # what this pass accepted: its root and its path
        size = len(group)
        alone.verify(group, torch.arange(size), torch.ones(size, size, dtype=torch.bool).tril())
        alone.accept(range(size))
        assert session.kept() == alone.kept()
        assert session.cache.seen.tolist() == alone.cache.seen.tolist()
        pending, total = tokens, total + size
    for one, other in zip(session.cache.stores, alone.cache.stores, strict=True):
        for x, y in zip(one.view(), other.view(), strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-3)
        if isinstance(one.state, torch.Tensor):
            torch.testing.assert_close(one.state, other.state, atol=1e-4, rtol=1e-3)
    assert total > 64, "past the next decision"


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_seed_draws_one_text(draft, monkeypatch):
    """Alone, in a batch, beside its equal, after other texts; and where no guess is drawn, the text without a draft."""
    model, drawn, propose = tiny("llama"), [], Proposer.__call__
    first, second = ids(1, 40, 5)[0].tolist(), ids(1, 12, 6)[0].tolist() * 3

    def recorded(self, *given):
        guess = propose(self, *given)
        drawn.append(bool(guess.drawn))
        return guess

    monkeypatch.setattr(Proposer, "__call__", recorded)
    monkeypatch.setattr(writing, "cost_of", lambda model: lambda width: 1 + 0.01 * width)
    settings = {"max_new_tokens": 40, "ignore_eos": True, "temperature": 0.3, "top_p": 0.95, "seed": 3}
    alone = generate(model, None, [second], draft, **settings)[0]
    assert [out.ids for out in generate(model, None, [first, second, second], draft, **settings)[1:]] == [alone.ids] * 2
    memory: dict = {}
    generate(model, None, [first], draft, memory=memory, **settings)
    assert generate(model, None, [second], draft, memory=memory, **settings)[0].ids == alone.ids
    if not any(drawn):
        assert generate(model, None, [second], **settings)[0].ids == alone.ids
    assert alone.stats.drafted > 0


def test_rows_begin_alike_under_a_rule_that_is_not_lossless():
    """What was learned shows in the text there, so it goes from row to row only if the caller says so."""
    model, prompt = tiny("llama"), ids(1, 12, 6)[0].tolist() * 3
    settings = {"max_new_tokens": 30, "ignore_eos": True, "temperature": 1.0, "seed": 3}
    spec = "fixed(source=pair_recycling) + typical_acceptance(epsilon=0.01)"
    alone = generate(model, None, [prompt], spec, **settings)[0].ids
    assert [out.ids for out in generate(model, None, [prompt] * 3, spec, **settings)] == [alone] * 3
    shared = generate(model, None, [prompt] * 3, spec, memory={}, **settings)
    assert len({tuple(out.ids) for out in shared}) > 1, "the texts would differ"


def test_what_was_measured_changes_no_drawn_text(monkeypatch):
    model, prompt = tiny("llama"), ids(1, 12, 6)[0].tolist() * 3
    settings = {"max_new_tokens": 40, "ignore_eos": True, "temperature": 0.3, "seed": 3}
    plain, passes = generate(model, None, [prompt], **settings)[0].ids, set()
    for slope in (0.0, 0.1, 0.3, 9.0):
        monkeypatch.setattr(writing, "cost_of", lambda model, slope=slope: lambda width: 1 + slope * (width - 1))
        out = generate(model, None, [prompt], "auto", **settings)[0]
        assert out.ids == plain
        passes.add(out.stats.forward_calls)
    assert len(passes) > 2, "the trees differed"


DRAWN = ["prompt_lookup", "jacobi(nodes=3)", "dyspec(source=draft_model, nodes=4)", "rsd(source=draft_model, width=2)"]
TAUGHT = ["dyspec(source=medusa(words=3), nodes=4)", "rsd(source=clover(heads=4, words=3), width=2)"]


@pytest.mark.parametrize("shape", [*DRAWN, *TAUGHT, "right", "copies"])
def test_sampling_keeps_the_distribution(shape, monkeypatch, tmp_path):
    """The first two tokens that come out of a draft, drawn thousands of times with and without drafts."""
    torch.manual_seed(0)
    vocabulary, draws = 5, 700 if shape == "copies" else 300
    model, other = (
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
            )
        ).eval()
        for _ in range(2)
    )
    with torch.no_grad():
        for p in (*model.parameters(), *other.parameters()):
            if p.ndim > 1:
                p.mul_(3)
    prompt = [1, 2, 3, 1, 2]

    @drafter
    def guesses(seen, state: None) -> tuple[Draft, None]:
        if shape == "right":  # a chain of what is likely
            return Draft(torch.tensor([3, 1, 2]), torch.tensor([-1, 0, 1])), None
        # Equal siblings with different children: each must not get a draw of its own.
        tokens = torch.tensor([*range(5), *range(5), *range(5), 3, 4, 0, 1, 2])
        parents = torch.tensor([-1] * 10 + list(range(10)))
        return Draft(tokens, parents), None

    draft = parse(shape) if shape in (*DRAWN, *TAUGHT) else guesses
    if shape in TAUGHT:
        monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
        text = torch.randint(vocabulary, (600,))
        fit(taught(draft), model, text=Corpus(text, text[:200]), steps=2, rows=2, length=32)
    with torch.no_grad():
        paths = {}

        def after(text: tuple[int, ...]) -> torch.Tensor:
            if text not in paths:
                paths[text] = model(torch.tensor([[*prompt, *text]])).logits[0, -1].softmax(-1)
            return paths[text]

        first = after(())
        expected = sum(
            first[a] * torch.stack([after((a,))[b] * after((a, b)) for b in range(vocabulary)])
            for a in range(vocabulary)
        )
    chooser = Chooser(1.0, 1.0, 7, 1)
    found: Counter[tuple[int, ...]] = Counter()
    session = Session(model)
    with torch.no_grad(), session.engaged():
        for _ in range(draws):
            session.cache = None
            out: list[int] = []
            for tokens in speculate(session, prompt, draft, chooser, assistant=other):
                out += tokens
                if len(out) >= 3:
                    break
            found[tuple(out[1:3])] += 1
    observed = torch.tensor([found[(a, b)] for a in range(5) for b in range(5)], dtype=torch.double)
    assert chisquare(observed, expected.flatten().double() * draws, sum_check=False).pvalue > 1e-3


def test_a_draft_model_that_is_the_model_is_always_right():
    model, prompt = tiny("llama"), ids(1, 20)[0].tolist()
    plain = generate(model, None, [prompt], max_new_tokens=30, ignore_eos=True)[0]
    for spec in ("draft_model(nodes=4)", "dyspec(source=draft_model, nodes=4, width=1)"):
        out = generate(model, None, [prompt], spec, max_new_tokens=30, ignore_eos=True, assistant=tiny("llama"))[0]
        assert out.ids == plain.ids
        assert out.stats.accepted == out.stats.drafted
        assert out.stats.accepted_by_depth[3] == out.stats.drafted_by_depth[3] > 0


def test_a_draft_model_must_share_the_vocabulary(tmp_path):
    model, prompt = tiny("llama"), [3, 4, 5]
    config = LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(ModelError, match="a vocabulary of 50 tokens and the model has 97"):
        generate(model, None, [prompt], "draft_model", assistant=LlamaForCausalLM(config))
    with pytest.raises(SpecError, match="draft_model needs a model to draft with"):
        generate(model, None, [prompt], "draft_model")
    with pytest.raises(SpecError, match="layers must be fewer than the model's"):
        generate(model, None, [prompt], "first_layers(layers=60)")


def llama(**shape):
    """A tiny random llama that no test shares."""
    torch.manual_seed(1)
    config = {**tiny("llama").config.to_dict(), **shape}
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k != "dtype"})).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(4)
    return model


@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize("spec", ["draft_model(nodes=4)", "dyspec(source=draft_model)", "rsd(source=draft_model)",
                                  "dyspec(source=both(source=draft_model, other=prompt_lookup))"])  # fmt: skip
def test_a_draft_models_table_may_be_padded_to_another_size(spec, temperature):
    tokenizer, prompt = tiny_tokenizer(["a", "b", "c"]), [ids(1, 9)[0].tolist() * 2]
    settings = {"max_new_tokens": 24, "ignore_eos": True, "temperature": temperature}
    for rows, others in ((97, 40), (97, 120)):
        model, other = llama(vocab_size=rows), llama(vocab_size=others, num_hidden_layers=1)
        plain = generate(model, tokenizer, prompt, **settings)[0].ids
        out = generate(model, tokenizer, prompt, spec, assistant=other, **settings)[0]
        assert out.stats.drafted > 0
        assert out.ids == plain or temperature
        if others < rows:
            assert max(prompt[0] + plain) >= others, "the text has tokens that the drafter cannot read"


def test_a_draft_model_is_known_by_its_tokenizer(tmp_path):
    """Tables of one size with other words are refused, and words that only one of the two has are not."""
    model, words = llama(), [f"w{i}" for i in range(4, 97)]
    for name, theirs in (("same", words), ("fewer", words[:40]), ("other", [*words[:50], "x", *words[51:]])):
        llama(num_hidden_layers=1).save_pretrained(tmp_path / name)
        tiny_tokenizer(theirs).save_pretrained(tmp_path / name)
    settings = {"max_new_tokens": 8, "ignore_eos": True}
    plain = generate(model, tiny_tokenizer(), [[5, 6, 7]], **settings)[0].ids
    for name in ("same", "fewer"):
        spec = f"draft_model(model={str(tmp_path / name)!r})"
        assert generate(model, tiny_tokenizer(), [[5, 6, 7]], spec, **settings)[0].ids == plain
    with pytest.raises(ModelError, match=r"another tokenizer: 1 of its tokens mean other text, such as 'x'") as error:
        generate(model, tiny_tokenizer(), [[5, 6, 7]], f"draft_model(model={str(tmp_path / 'other')!r})", **settings)
    assert "\n" not in str(error.value)


def test_a_draft_model_may_have_a_shorter_context():
    model, prompt, other = tiny("gpt2"), ids(1, 6)[0].tolist() * 9, llama(max_position_embeddings=64)
    plain = generate(model, None, [prompt], max_new_tokens=40, ignore_eos=True)[0]
    out = generate(model, None, [prompt], "draft_model", assistant=other, max_new_tokens=40, ignore_eos=True)[0]
    assert out.ids == plain.ids
    assert 0 < out.stats.drafted < 60, "while the text still fits"


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("context", [2, 3, 9, 40])
def test_up_to_the_last_token_of_a_short_context(draft, context):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=16, n_layer=2, n_head=2, n_positions=context)).eval()
    for length in {1, context // 2, context - 1}:
        settings = {"max_new_tokens": context - length, "ignore_eos": True}
        plain = generate(model, None, [ids(1, length)[0].tolist()], **settings)[0]
        assert generate(model, None, [ids(1, length)[0].tolist()], draft, **settings)[0].ids == plain.ids
        with pytest.raises(InputError, match=f"the model's context is {context}"):
            generate(model, None, [ids(1, length)[0].tolist()], draft, max_new_tokens=context)


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("vocabulary", [1, 2])
def test_a_vocabulary_of_one(draft, vocabulary):
    model, prompt = llama(vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, pad_token_id=None), [[0] * 5]
    for temperature in (0.0, 1.0):
        settings = {"max_new_tokens": 12, "ignore_eos": True, "temperature": temperature}
        plain = generate(model, None, prompt, **settings)[0].ids
        out = generate(model, None, prompt, draft, **settings)[0].ids
        assert len(out) == 12
        assert out == plain or temperature


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_a_drafter_reads_a_tree_level_by_level_as_the_model_does(name):
    """Logits after every node of a tree that was read in three passes, against the text of its line read alone."""
    model, context = tiny(name), ids(1, 12)[0].tolist()
    session, tree = Session(model), Sapling()
    for token, parent in ((5, -1), (6, -1), (7, 0), (8, 1), (9, 0), (10, 2)):
        tree.add(token, parent)
    with session.engaged():
        asks = Drafter(session, 0)
        asks.follow(context)
        found = torch.cat([asks(tree, [-1]), asks(tree, [0, 1]), asks(tree, [4, 2, 3]), asks(tree, [5])])
        for row, node in enumerate((-1, 0, 1, 4, 2, 3, 5)):
            line = tree.ends(context, [node], 99)[0]
            with torch.no_grad():
                torch.testing.assert_close(found[row], model(torch.tensor([line])).logits[0, -1], atol=1e-4, rtol=1e-4)
        asks.follow([*context, 5, 7, 11])  # two nodes came true and a third did not
        again = asks(Sapling(), [-1])
        with torch.no_grad():
            alone = model(torch.tensor([[*context, 5, 7, 11]])).logits[:, -1]
        torch.testing.assert_close(again, alone, atol=1e-4, rtol=1e-4)
        assert session.cache.seen.tolist() == [15]


def test_lossy_acceptance_says_so_and_runs():
    model, prompt = tiny("llama"), ids(1, 12)[0].tolist() * 3
    out = generate(
        model, None, [prompt], "token_recycling + typical_acceptance(epsilon=0.001)", max_new_tokens=20, ignore_eos=True
    )[0]
    assert len(out.ids) == 20
    assert out.stats.accepted > 5  # nearly everything is plausible at that bar
    assert not parse("typical_acceptance").card.lossless
