"""A cache method beside a lossless draft writes the text of the cache method alone, and holds the same tokens."""

from __future__ import annotations

import pytest
import torch

from models.test_engine import evicting, runs_on
from run.test_speculate import DRAFTS as EVERY_DRAFT
from run.test_speculate import llama
from tiny import ids, tiny
from tokenmill import catalog
from tokenmill.errors import RecipeError
from tokenmill.method import method, parse
from tokenmill.models.architectures import decoder_of
from tokenmill.ops.attention import accumulated
from tokenmill.run.generate import Output, generate
from tokenmill.run.session import Session
from tokenmill.types import Draft

NEW = 150  # past two decisions, and one of a method that packs every 100 tokens
CACHES = [
    *evicting(0.4),
    *(name for verb in ("merge", "quantize") for name in catalog.methods(verb)),
    "streaming_llm(slots=20)",
    "snapkv(budget=0.4, window=8) + zip_cache",
]


def works(spec: str) -> bool:
    try:
        parse(spec)
    except RecipeError:
        return False
    return True


BESIDE = [spec for spec in CACHES if works(f"{spec} + prompt_lookup")]
DRAFTS = ("prompt_lookup", "token_recycling(nodes=8)")
# Turning a key does not change its length, so in the first layer equal tokens score alike and rounding decides.
TIES = [("knorm(budget=0.4)", "gemma3")]


def prompt(seed: int) -> list[int]:
    return ids(1, 12, seed)[0].tolist() * 4


def visible(out: Output, model) -> list[list[list[int]]]:
    """[layer][head] -> positions held that a query may still see: what lies behind a window is freed now and then."""
    windows, end = decoder_of(model).windows, len(out.prompt_ids) + len(out.ids) - 1
    return [
        [[p for p in head if window is None or p >= end - window] for head in layer]
        for layer, window in zip(out.kept, windows, strict=True)
    ]


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("spec", BESIDE)
def test_the_text_is_that_of_the_cache_method(spec, windows):
    name = "gemma3" if windows else "gpt2" if runs_on(spec, tiny("gpt2")) else "llama"
    model, accepted = tiny(name), 0
    if not runs_on(spec, model) or (spec, name) in TIES:
        pytest.skip("does not run on this architecture, or decides between equal scores")
    for seed in range(2):
        settings = {"max_new_tokens": NEW, "ignore_eos": True}
        alone = generate(model, None, [prompt(seed)], spec, **settings)[0]
        for draft in DRAFTS if seed else (*DRAFTS, "lookahead"):
            other = generate(model, None, [prompt(seed)], f"{spec} + {draft}", **settings)[0]
            assert other.ids == alone.ids, draft
            assert visible(other, model) == visible(alone, model), draft
            accepted += other.stats.accepted
    assert accepted > NEW


@pytest.mark.parametrize("draft", EVERY_DRAFT)
@pytest.mark.parametrize("spec", ["adaptive(budget=0.4)", "streaming_llm(slots=20)", "zip_cache"])
def test_every_draft_leaves_the_text(spec, draft):
    model, settings = tiny("llama"), {"max_new_tokens": 140, "ignore_eos": True}
    alone = generate(model, None, [prompt(0)], spec, **settings)[0]
    other = generate(model, None, [prompt(0)], f"{spec} + {draft}", **settings)[0]
    assert (other.ids, other.kept) == (alone.ids, alone.kept)


@pytest.mark.parametrize("draft", ["prompt_lookup", "token_recycling(nodes=8)", "lookahead", "auto"])
def test_a_seed_draws_the_text_of_the_cache_method(draft):
    model, settings = tiny("llama"), {"max_new_tokens": 140, "ignore_eos": True, "temperature": 0.4, "seed": 5}
    alone = generate(model, None, [prompt(0)], "adaptive(budget=0.4)", **settings)[0]
    other = generate(model, None, [prompt(0)], f"adaptive(budget=0.4) + {draft}", **settings)[0]
    assert (other.ids, other.kept) == (alone.ids, alone.kept)


def test_every_cache_method_works_beside_a_draft_or_is_refused_in_one_line():
    assert len(BESIDE) >= 10
    for spec in {*CACHES} - {*BESIDE}:
        with pytest.raises(RecipeError, match=r"decides after every token.*use a method that decides less often") as e:
            parse(f"{spec} + token_recycling")
        assert "\n" not in str(e.value)


def test_chunks_are_read_as_without_a_draft():
    for chunk in (1, 5, 16, 47, 48):
        settings = {"max_new_tokens": 40, "ignore_eos": True, "chunk": chunk}
        alone = generate(tiny("llama"), None, [prompt(0)], "snapkv(budget=0.3, window=4)", **settings)[0]
        drafted = generate(
            tiny("llama"), None, [prompt(0)], "snapkv(budget=0.3, window=4) + prompt_lookup", **settings
        )[0]
        assert (drafted.ids, drafted.kept) == (alone.ids, alone.kept)


@pytest.mark.parametrize("draft", ["prompt_lookup", "token_recycling(nodes=8)", "lookahead", "first_layers(layers=3)"])
def test_drafts_go_on_where_a_renumbered_text_outgrows_the_context(draft):
    model, settings = llama(max_position_embeddings=128), {"max_new_tokens": 240, "ignore_eos": True}
    alone = generate(model, None, [prompt(0)], "streaming_llm(slots=20)", **settings)[0]
    other = generate(model, None, [prompt(0)], f"streaming_llm(slots=20) + {draft}", **settings)[0]
    assert (other.ids, other.kept) == (alone.ids, alone.kept)
    assert other.stats.accepted > 40 or draft.startswith("first_layers"), "more than up to the context's end"


@pytest.mark.parametrize("draft", ["prompt_lookup", "token_recycling(nodes=8)", "lookahead"])
def test_nothing_is_held_behind_the_end(draft):
    model, before = tiny("llama"), tiny("llama").generation_config.eos_token_id
    for end in generate(model, None, [prompt(0)], max_new_tokens=30, ignore_eos=True)[0].ids[3:20]:
        model.generation_config.eos_token_id = end
        try:
            alone = generate(model, None, [prompt(0)], "recent_window(slots=20)", max_new_tokens=30)[0]
            other = generate(model, None, [prompt(0)], f"recent_window(slots=20) + {draft}", max_new_tokens=30)[0]
        finally:
            model.generation_config.eos_token_id = before
        assert (other.ids, other.kept) == (alone.ids, alone.kept)


@method(title="", verb="score", needs=("all_queries",), every=7)
def looked_at(trace, state, *, rise: float = 0.1):
    """A score with a state that decides seldom, and counts each query by when it came."""
    total = accumulated(trace, state, 1 + rise * trace.generated)
    return total, total


def test_a_score_with_a_state_counts_every_accepted_token_by_itself():
    model, spec = tiny("llama"), looked_at(budget=0.5)
    for seed in range(3):
        alone = generate(model, None, [prompt(seed)], spec, max_new_tokens=80, ignore_eos=True)[0]
        right = tree_of(tuple(alone.ids))
        out = generate(model, None, [prompt(seed)], spec + right, max_new_tokens=80, ignore_eos=True)[0]
        assert (out.ids, out.kept) == (alone.ids, alone.kept)
        assert out.stats.accepted > 40


def test_the_state_after_a_group_is_that_after_its_tokens():
    model, spec = tiny("llama"), looked_at(budget=0.5)
    one, other = Session(model, spec), Session(model, spec)
    for session in (one, other):
        session.read([prompt(0)])
    group, size = ids(1, 4, 9)[0], 4
    with one.engaged(), other.engaged():
        assert one.before_decision() == 7
        one.verify(group, torch.arange(size), torch.ones(size, size, dtype=torch.bool).tril())
        one.accept(range(size))
        for token in group:
            other.read(token[None, None])
        assert one.before_decision() == other.before_decision() == 3
    for a, b in zip(one.cache.stores, other.cache.stores, strict=True):
        torch.testing.assert_close(a.state, b.state, atol=1e-5, rtol=1e-4)
        for x, y in zip(a.view(), b.view(), strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-3)


def tree_of(text: tuple[int, ...]):
    """A drafter that knows the text, and hangs a wrong token beside every right one."""

    @method(title="", verb="draft", lossless=True)
    def right(seen, state: None) -> tuple[Draft, None]:
        come = text[len(seen.context) - 48 :][:5]
        tokens = [t for token in come for t in (token + 1, token)]
        parents = [-1 if i < 2 else i // 2 * 2 - 1 for i in range(len(tokens))]
        return Draft(torch.tensor(tokens, dtype=torch.long), torch.tensor(parents, dtype=torch.long)), None

    return right
