"""What every choose method promises: warpers against the library's own, searches against theirs."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    MinPLogitsWarper,
    PreTrainedTokenizerFast,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tiny import ids, tiny
from tokenmill import catalog
from tokenmill.errors import InputError, ModelError, RecipeError, SpecError
from tokenmill.method import get, parse, recipe
from tokenmill.models.apply import applied
from tokenmill.models.processors import processors
from tokenmill.ops.spelling import spelling
from tokenmill.run.choose import Chooser
from tokenmill.run.generate import generate
from tokenmill.run.session import Session
from tokenmill.run.writing import Text

ROLES = {name: parse(name).card.role for name in catalog.methods("choose")}
WARPS = [name for name, role in ROLES.items() if role in ("warp", "final")]
V = 23
PROMPTS = [ids(1, n, n)[0].tolist() for n in (40, 1, 23)]


def _logits(rows=64, seed=0, dtype=torch.float32, width=V):
    return (torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def test_roles_are_those_of_the_contract():
    assert set(ROLES.values()) <= {"warp", "final", "heal", "search", "adapt"}


@pytest.mark.parametrize("name", WARPS)
class TestEveryWarper:
    def test_repr_is_a_spec(self, name):
        assert parse(repr(get(name))) == get(name)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_shape_kind_and_nothing_written(self, name, dtype):
        logits = _logits(dtype=dtype)
        before = logits.clone()
        out = get(name)(logits)
        assert out.shape == logits.shape
        assert out.dtype == dtype
        assert torch.equal(logits, before)
        assert torch.equal(out, get(name)(logits))

    def test_rows_do_not_see_each_other(self, name):
        logits = _logits()
        assert torch.equal(get(name)(logits)[5:6], get(name)(logits[5:6]))

    def test_one_token_and_impossible_tokens(self, name):
        assert torch.isfinite(get(name)(torch.tensor([[0.3]])))
        logits = _logits()
        logits[:, ::2] = -math.inf
        out = get(name)(logits)
        assert not torch.isnan(out).any()
        assert (out[:, ::2] == -math.inf).all()
        assert (out > -math.inf).any(-1).all()

    def test_the_likeliest_stays_unless_typical(self, name):
        if name == "typical":
            pytest.skip("it may leave out the likeliest: that is its point")
        logits = _logits()
        assert torch.equal(get(name)(logits).argmax(-1), logits.argmax(-1))


@pytest.mark.parametrize(
    ("spec", "theirs"),
    [
        ("temperature(temperature=0.7)", TemperatureLogitsWarper(0.7)),
        ("top_k(top=5)", TopKLogitsWarper(5)),
        ("top_k(top=500)", TopKLogitsWarper(500)),
        ("top_p(share=0.9)", TopPLogitsWarper(0.9)),
        ("top_p(share=0.3)", TopPLogitsWarper(0.3)),
        ("min_p(share=0.1)", MinPLogitsWarper(0.1)),
        ("min_p(share=1.0)", MinPLogitsWarper(1.0)),
        ("typical(share=0.2)", TypicalLogitsWarper(0.2)),
        ("typical(share=0.95)", TypicalLogitsWarper(0.95)),
    ],
)
def test_equal_to_the_librarys(spec, theirs):
    for width in (V, 997):
        logits = _logits(200, seed=1, width=width)
        torch.testing.assert_close(parse(spec)(logits), theirs(None, logits))


@pytest.mark.parametrize(
    "spec",
    ["top_k(top=4)", "temperature(temperature=0.6) + top_p(share=0.8)", "min_p(share=0.2)", "typical(share=0.7)"],
)
def test_draws_have_the_distribution(spec):
    """Chi-square over 4000 draws at the 0.1 % level: it notices a shift of 5 % of the mass with power above 0.99."""
    logits = _logits(1, seed=4)
    chooser = Chooser.of(recipe(spec), None, 1.0, 5, 1)
    assert not chooser.greedy
    wanted = chooser.probabilities(logits)[0].double()
    drawn = chooser(logits.expand(4000, -1), row=0).bincount(minlength=V).double()
    possible = wanted > 0
    assert drawn[~possible].sum() == 0
    expected = wanted[possible] * 4000
    keep = expected >= 5
    observed = torch.cat([drawn[possible][keep], drawn[possible][~keep].sum()[None]])
    expected = torch.cat([expected[keep], expected[~keep].sum()[None]])
    statistic = ((observed - expected).square() / expected.clamp(min=1e-9)).sum()
    free = len(expected) - 1
    assert statistic < free + 3.1 * math.sqrt(2 * free) + 6  # Wilson-Hilferty, 0.1 %


def test_warpers_compose_in_order():
    logits = _logits()
    hot_last = Chooser.of(recipe("top_p(share=0.5) + temperature(temperature=3.0)"), None, 1.0, 0, 1)
    hot_first = Chooser.of(recipe("temperature(temperature=3.0) + top_p(share=0.5)"), None, 1.0, 0, 1)
    wanted = get("top_p")(share=0.5)(get("temperature")(temperature=3.0)(logits)).softmax(-1)
    torch.testing.assert_close(hot_first.probabilities(logits), wanted)
    assert (hot_last.probabilities(logits) > 0).sum() < (hot_first.probabilities(logits) > 0).sum()
    asked = Chooser(0.8, 0.9, 0, 1)
    same = Chooser.of(recipe("temperature(temperature=0.8) + top_p(share=0.9)"), None, 1.0, 0, 1)
    assert torch.equal(asked.probabilities(logits), same.probabilities(logits))


def test_greedy_is_one_hot_of_the_warped_argmax():
    logits = _logits()
    for chooser in (
        Chooser(),
        Chooser(0.0),
        Chooser.of(recipe("greedy"), None, 1.0, 0, 1),
        Chooser.of(recipe("temperature(temperature=0)"), None, 1.0, 0, 1),
        Chooser.of(recipe("top_k(top=3) + greedy"), None, 1.0, 0, 1),
    ):
        assert chooser.greedy
        assert torch.equal(chooser(logits), logits.argmax(-1))
        assert torch.equal(chooser.probabilities(logits).argmax(-1), logits.argmax(-1))
        assert chooser.probabilities(logits).sum() == len(logits)
    typical = Chooser.of(recipe("typical(share=0.1)"), 0.0, 1.0, 0, 1)
    assert typical.greedy
    assert torch.equal(typical(logits), get("typical")(share=0.1)(logits).argmax(-1))
    assert not torch.equal(typical(logits), logits.argmax(-1))


class TestRecipes:
    def test_two_final_choices_are_refused(self):
        with pytest.raises(RecipeError, match="both decide which token is emitted"):
            parse("greedy + greedy")

    def test_a_choice_said_twice_is_refused(self):
        model = tiny()
        with pytest.raises(RecipeError, match="temperature is given twice"):
            generate(model, None, [[5]], "temperature(temperature=0.5)", temperature=0.7)
        with pytest.raises(RecipeError, match="top_p is given twice"):
            generate(model, None, [[5]], "top_p(share=0.5)", top_p=0.7)
        with pytest.raises(RecipeError, match="greedy takes the likeliest"):
            generate(model, None, [[5]], "greedy", temperature=0.7)

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ("min_p(share=0)", r"share must be in \(0, 1\]"),
            ("top_p(share=1.2)", r"share must be in \(0, 1\]"),
            ("temperature(temperature=-1)", r"temperature must be in \[0"),
            ("top_k(top=0)", "top must be in"),
        ],
    )
    def test_knobs_out_of_range(self, spec, words):
        with pytest.raises(SpecError, match=words) as error:
            parse(spec)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("temperature", [0.0, 1e-310, 1e-45, 1e-40, 1e-30, 1e-9, 1e30, math.inf])
    def test_every_temperature_draws(self, temperature):
        logits = _logits()
        chooser = Chooser.of(
            recipe(f"top_k(top=4) + temperature(temperature={min(temperature, 1e308)})"), None, 1, 0, V
        )
        assert torch.isfinite(chooser.probabilities(logits)).all()
        if temperature < 1e-8:
            assert torch.equal(Chooser(temperature, rows=len(logits))(logits), logits.argmax(-1))
        assert Chooser(temperature, rows=len(logits))(logits).shape == (len(logits),)

    @pytest.mark.parametrize("temperature", [0.0, 1e-310, 1e-45, 1e-20, 1e300])
    @pytest.mark.parametrize(
        "spec",
        [
            "keyformer(budget=0.5, rise=0.0, temperature={})",
            "prompt_lookup + typical_acceptance(temperature={})",
        ],
    )
    def test_methods_with_a_temperature_take_any(self, spec, temperature):
        prompt = ids(1, 12)[0].tolist() * 3
        out = generate(tiny(), None, [prompt], spec.format(temperature), max_new_tokens=20, ignore_eos=True)[0]
        assert len(out.ids) == 20
        if "keyformer" in spec:
            assert {len(head) for layer in out.kept for head in layer} == {27}, "half of 55 tokens"
            positions = [tuple(head) for layer in out.kept for head in layer]
            assert temperature > 1 or len({*positions}) > 1, "heads that score NaN would all keep the same"

    def test_seeds_are_whole_numbers_of_any_kind(self):
        logits = _logits(1).expand(3, -1)
        for seed in (3, np.int64(3), np.uint8(3), torch.tensor(3), [3, 3, 3], np.array([3, 3, 3]), (3, np.int32(3), 3)):
            assert torch.equal(Chooser(1.0, seed=seed, rows=3)(logits), Chooser(1.0, seed=3, rows=3)(logits))
        for seed in (2**63, np.uint64(2**63), 2**64 - 1):
            Chooser(1.0, seed=seed, rows=3)(logits)
        for seed in (2**64, -1, 10**400, 1.5, "3", [1, None, 2], np.array([0.5] * 3), None):
            with pytest.raises(SpecError, match=r"seed must be (a whole number|in \[0, 2\^64\))") as error:
                Chooser(1.0, seed=seed, rows=3)
            assert "\n" not in str(error.value)

    def test_logits_that_are_not_numbers(self):
        for chooser in (Chooser(), Chooser(1.0)):
            with pytest.raises(ModelError, match="NaN"):
                chooser(torch.full((1, V), math.nan))

    @pytest.mark.parametrize("spec", ["min_p(share=0.3)", "typical + h2o(budget=0.5)", "top_k(top=3) + prompt_lookup"])
    def test_rows_draw_as_they_would_alone(self, spec):
        asked = {"max_new_tokens": 12, "seed": 3, "ignore_eos": True}
        together = generate(tiny(), None, PROMPTS, spec, **asked)
        for prompt, one in zip(PROMPTS, together, strict=True):
            assert generate(tiny(), None, [prompt], spec, **asked)[0].ids == one.ids
        assert [o.ids for o in generate(tiny(), None, PROMPTS, spec, **{**asked, "seed": 4})] != [
            o.ids for o in together
        ]


class TestInsideTheLibrary:
    def test_processors_give_the_librarys_own_draws(self):
        prompt = torch.tensor(PROMPTS[:1])
        asked = {"max_new_tokens": 12, "do_sample": True, "pad_token_id": 0}
        torch.manual_seed(1)
        ours = tiny().generate(prompt, logits_processor=processors("min_p(share=0.2)"), top_k=0, **asked)
        torch.manual_seed(1)
        assert torch.equal(ours, tiny().generate(prompt, min_p=0.2, top_k=0, **asked))
        with applied(tiny(), "h2o(budget=0.5)"):
            tiny().generate(prompt, logits_processor=processors("h2o(budget=0.5) + top_p(share=0.5)"), **asked)

    def test_applied_says_where_to_put_them(self):
        with (
            pytest.raises(RecipeError, match=r'processors\("min_p\(share=0.2\)"\)'),
            applied(tiny(), "min_p(share=0.2)"),
        ):
            pass
        with pytest.raises(RecipeError, match="warps no logits"):
            processors("h2o(budget=0.5)")
        with pytest.raises(RecipeError, match=r"tokenmill\.generate"):
            processors("prompt_lookup + min_p")


# What is learned has a test of its own in tests/run.
SEARCHES = [name for name, role in ROLES.items() if role == "search" and not get(name).card.trains]
ASKED = {"max_new_tokens": 8, "seed": 3, "ignore_eos": True}


@cache
def _bpe():
    """Byte-level tokens in the tiny models' vocabulary: parts of words, and of characters of two bytes."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=V_TINY, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=[])
    made.train_from_iterator([TEXT.replace("\n", " \n") * 3, '0123456789."Answer:'], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


V_TINY = 97
TEXT = "the theatre opened at ten, and then the café's  thé was théirs\n    return another\n    returned"

# Enough of the tiny vocabulary that a random model's answers end at different places.
ICN_ENDS, ICN_CLOSING = frozenset(range(3, 97, 4)), frozenset(range(40, 97, 2))


class _Closing(Text):
    """A text in which the tokens of ICN_CLOSING hold a quotation mark."""

    def text(self, ids):
        return super().text(ids) + '"' * bool(ICN_CLOSING & set(ids) and len(ids) == 1)


def _icn_on_a_text(model, prompt, spec, new=200):
    """The answers of an ICN spec, without the tokens between them."""
    session = Session(model)
    with session.engaged():
        writing = _Closing(session, prompt, Chooser(), 0, _bpe(), ICN_ENDS, new)
        newline = list(writing.spelled(("\n",)))
        out = list(parse(spec)(writing))
    assert newline
    assert all(tokens[:1] == newline for tokens in out[1:])
    return [tokens if n == 0 else tokens[1:] for n, tokens in enumerate(out)]


def _icn_on_whole_passes(model, prompt, lead, answers, each, length, shown=False, again=False):
    """The same, the whole text read anew for every token. `shown`, `again`: what ICN does not do."""

    def read(text):
        return _bpe()(text, add_special_tokens=False)["input_ids"]

    def order(ids_):
        return model(torch.tensor([ids_])).logits[0, -1].argsort(descending=True).tolist()

    closing = {n for n in range(V_TINY) if {'"', "\n"} & set(_bpe().decode([n]))} | ICN_CLOSING | ICN_ENDS
    alone = [*prompt, *read(lead + '1. "')]
    listed, found, begun = list(alone), [], set(ICN_ENDS)
    while len(found) < answers:
        first = [token for token in order(listed) if token not in begun][: min(each, answers - len(found))]
        begun |= set() if again else set(first)
        added = []
        for token in first:
            answer = []
            while token not in closing and len(answer) < length:
                answer.append(token)
                token = order([*(listed if shown else alone), *answer])[0]
            added.append(answer)
        listed += read("".join(f'{_bpe().decode(a)}"\n{n}. "' for n, a in enumerate(added, len(found) + 2)))
        found += added
    return found


class TestSearches:
    @pytest.mark.parametrize("name", SEARCHES)
    @pytest.mark.parametrize("keep", ["", " + h2o(budget=0.5)", " + zip_cache"])
    def test_rows_come_out_as_they_would_alone(self, name, keep):
        spec = name + keep
        together = generate(tiny(), _bpe(), PROMPTS, spec, **ASKED)
        for prompt, one in zip(PROMPTS, together, strict=True):
            assert generate(tiny(), _bpe(), [prompt], spec, **ASKED)[0].ids == one.ids
            assert len(one.ids) <= 8

    @pytest.mark.parametrize("name", SEARCHES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_one_token_streaming_and_stop_strings(self, name, dtype):
        model, found = tiny("llama", dtype), []
        one = generate(model, _bpe(), PROMPTS, name, **{**ASKED, "max_new_tokens": 1})
        assert all(len(o.ids) == 1 for o in one)
        whole = generate(model, _bpe(), PROMPTS[:1], name, on_text=lambda _, t: found.append(t), **ASKED)[0]
        assert "".join(found) == whole.text
        stop = whole.text[2:4]
        stopped = generate(model, _bpe(), PROMPTS[:1], name, stop=[stop], **ASKED)[0]
        assert stopped.text == whole.text[: whole.text.index(stop)]

    @pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
    @pytest.mark.parametrize(("beams", "power", "early"), [(4, 1.0, False), (3, 0.0, True), (2, 2.0, "never")])
    def test_beam_is_the_librarys(self, name, beams, power, early):
        model, ends = tiny(name), [2, 5, 25, 48, 72, 77, 81]
        before = model.generation_config.eos_token_id
        model.generation_config.eos_token_id = ends
        asked = {"num_beams": beams, "length_penalty": power, "early_stopping": early, "do_sample": False}
        try:
            out = generate(
                model, None, PROMPTS, f"beam(beams={beams}, length_penalty={power}, early={early!r})", max_new_tokens=14
            )
            for prompt, one in zip(PROMPTS, out, strict=True):
                theirs = model.generate(torch.tensor([prompt]), max_new_tokens=14, pad_token_id=0, **asked)
                assert one.ids == theirs[0, len(prompt) :].tolist()
        finally:
            model.generation_config.eos_token_id = before

    @pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
    def test_contrastive_is_the_formula_on_whole_passes(self, name):
        model = tiny(name)
        for prompt in PROMPTS:
            ids_ = list(prompt)
            for _ in range(8):
                out = model(torch.tensor([ids_]), output_hidden_states=True)
                chance, tokens = out.logits[0, -1].softmax(-1).topk(5)
                scores = []
                for p, token in zip(chance.tolist(), tokens.tolist(), strict=True):
                    states = model(torch.tensor([[*ids_, token]]), output_hidden_states=True).hidden_states[-1][0]
                    likeness = torch.cosine_similarity(states[-1:], states[:-1], dim=-1).max()
                    scores.append(0.4 * p - 0.6 * float(likeness.detach()))
                ids_.append(int(tokens[max(range(5), key=scores.__getitem__)]))
            ours = generate(model, None, [prompt], "contrastive", max_new_tokens=8, ignore_eos=True)[0]
            assert ours.ids == ids_[len(prompt) :]
            assert ours.stats.forward_calls == 1 + 8

    def test_contrastive_without_penalty_is_greedy_and_holds_no_more_cache(self):
        greedy = generate(tiny(), None, PROMPTS, max_new_tokens=9, ignore_eos=True)
        ours = generate(tiny(), None, PROMPTS, "contrastive(penalty=0.0)", max_new_tokens=9, ignore_eos=True)
        assert [o.ids for o in ours] == [o.ids for o in greedy]
        assert (
            ours[0].stats.cache_bytes
            <= generate(tiny(), None, PROMPTS[:1], max_new_tokens=10, ignore_eos=True)[0].stats.cache_bytes * 1.5
        )

    def test_cntp_is_the_formula_on_whole_passes(self):
        model, tokenizer, trials, new = tiny(), _bpe(), 4, 12
        marks = {tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in (",", "\n")} | set(range(40, 60))
        generator = torch.Generator().manual_seed(3)

        def after(ids_):
            return (model(torch.tensor([ids_])).logits[0, -1] / 0.7).softmax(-1)

        ids_ = list(PROMPTS[0])
        while len(ids_) < len(PROMPTS[0]) + new:
            p = after(ids_)
            made = int(1 + (trials - 1) * min(max((-(p * p.log()).sum().item() - 0.01) / 2.99, 0), 1))
            texts = [([], []) for _ in range(made)]
            going = list(range(made))
            while going:
                for n in list(going):
                    text, nats = texts[n]
                    p = after(ids_ + text)
                    text.append(int(torch.multinomial(p, 1, generator=generator)))
                    nats.append(-float(p[text[-1]].log()))
                    if made == 1 or text[-1] in marks or len(ids_ + text) == len(PROMPTS[0]) + new:
                        going.remove(n)
            ids_ += min(texts, key=lambda one: sum(one[1]) / len(one[1]))[0]

        class Marks(Text):
            def spelled(self, texts):
                return frozenset(marks)

        session = Session(model)
        with session.engaged():
            writing = Marks(session, PROMPTS[0], Chooser(0.7, 1.0, 3, 1), 0, tokenizer, frozenset(), new)
            ours = [t for taken in parse("cntp(trials=4, unsure=3.0)")(writing) for t in taken]
        assert ours == ids_[len(PROMPTS[0]) :]

    @pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
    @pytest.mark.parametrize("before", ["the theatre opened at", "the theatre opened\n"])
    def test_icn_is_the_formula_on_whole_passes(self, name, before):
        prompt = _bpe()(before)["input_ids"]
        lead = "" if before.endswith("\n") else "\n\nAnswer:\n"
        ours = _icn_on_a_text(tiny(name), prompt, "icn(answers=8, each=3, length=5)")
        assert ours == _icn_on_whole_passes(tiny(name), prompt, lead, 8, 3, 5)
        assert len({len(answer) for answer in ours}) > 1  # rows left the batch at different times

    @pytest.mark.parametrize(
        "change",
        [
            {"each": 8},  # what was found is never in view
            {"shown": True},  # it is still in view when an answer goes on
            {"again": True},  # an answer may begin as another did
            {"lead": ""},  # the list begins in the middle of the prompt's line
        ],
        ids=str,
    )
    def test_icn_is_not_another_formula(self, change):
        prompt, asked = _bpe()("the theatre opened at")["input_ids"], {"lead": "\n\nAnswer:\n", "each": 3}
        ours = _icn_on_a_text(tiny("gemma3"), prompt, "icn(answers=8, each=3, length=5)")
        other = _icn_on_whole_passes(tiny("gemma3"), prompt, answers=8, length=5, **{**asked, **change})
        assert ours != other

    def test_icn_in_one_round_takes_the_ranks_of_the_plain_distribution(self):
        prompt = _bpe()('the theatre opened\n1. "')["input_ids"]
        ranks = tiny()(torch.tensor([prompt])).logits[0, -1].argsort(descending=True).tolist()
        ranks = [token for token in ranks if token not in ICN_ENDS][:6]
        ours = _icn_on_a_text(tiny(), _bpe()("the theatre opened\n")["input_ids"], "icn(answers=6, each=6, length=1)")
        assert [answer[:1] for answer in ours] == [[] if token in ICN_CLOSING else [token] for token in ranks]

    def test_icn_pools_one_answer_a_line(self):
        asked = {"max_new_tokens": 60, "ignore_eos": True}
        out = generate(tiny(), _bpe(), "the theatre", "icn(answers=7, each=2, length=4)", **asked)[0]
        lines = [_bpe()(line)["input_ids"] for line in out.text.split("\n")]
        assert len(lines) == 7
        assert all(len(line) <= 4 for line in lines)
        first = [line[0] for line in lines if line]
        assert len(set(first)) == len(first)

    def test_icn_ends_where_tokens_or_the_context_do(self):
        spec = "icn(answers=100, each=60, length=1)"
        ours = _icn_on_a_text(tiny(), PROMPTS[1], spec, new=8)
        assert len(ours) == V_TINY - len(ICN_ENDS)
        limit = tiny().config.max_position_embeddings
        room = ids(1, limit - 60, 3)[0].tolist()
        assert len(_icn_on_a_text(tiny(), room, spec, new=8)) == 60  # the list of so many does not fit
        assert _icn_on_a_text(tiny(), ids(1, limit - 9, 3)[0].tolist(), spec, new=8) == []

    def test_icn_draws_what_the_recipe_says(self):
        asked = {"max_new_tokens": 40, "ignore_eos": True}
        greedy, hot, again, other = (
            generate(tiny(), _bpe(), "the theatre", f"icn(each=3, length=4){warp}", seed=seed, **asked)[0].ids
            for warp, seed in [("", 0), (" + temperature(temperature=2.0)", 0)] * 2
        )
        assert greedy == again
        assert hot == other
        assert greedy != hot

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ("beam + prompt_lookup", "checked against the one token"),
            ("contrastive + beam", "both decide which token"),
            ("greedy + cntp", "both decide which token"),
            ("min_p + beam", "no choice to warp"),
            ("lazy_llm(budget=0.5) + contrastive", "several next tokens in one pass"),
            ("d3 + contrastive", "a depth of its own"),
            ("token_alignment + prompt_lookup", "drafts are checked without knowing"),
        ],
    )
    def test_what_cannot_work_is_refused(self, spec, words):
        with pytest.raises(RecipeError, match=words) as error:
            parse(spec)
        assert "\n" not in str(error.value)

    def test_more_refusals(self):
        with pytest.raises(RecipeError, match="temperature and top_p mean nothing"):
            generate(tiny(), None, PROMPTS, "beam", temperature=0.5)
        with pytest.raises(InputError, match="no tokenizer"):
            generate(tiny(), None, PROMPTS, "cntp")
        with pytest.raises(InputError, match="no tokenizer"):
            generate(tiny(), None, PROMPTS, "token_alignment")
        with pytest.raises(SpecError, match="early must be"):
            generate(tiny(), None, PROMPTS, "beam(early='soon')")


class TestTokenAlignment:
    def test_tokens_that_fit_are_those_of_a_walk_over_the_vocabulary(self):
        known = spelling(_bpe())
        assert known.text(_bpe()(TEXT)["input_ids"]) == TEXT.encode()
        whole = TEXT.encode()
        for begin in range(len(whole)):
            for end in (begin + 1, begin + 3, begin + 9):
                rest = whole[begin:end]
                fits = {
                    i for i, t in known.tokens.items()
                    if i not in known.special and t and (t.startswith(rest) or rest.startswith(t))
                }  # fmt: skip
                assert fits == {*known.within(rest), *known.beyond(rest)}

    @pytest.mark.parametrize("spec", ["token_alignment", "token_alignment(back=1) + top_p", "token_alignment + beam"])
    def test_cut_anywhere_what_is_written_begins_with_the_prompt(self, spec):
        tokenizer, known = _bpe(), spelling(_bpe())
        cuts = range(1, len(TEXT), 1 if "beam" not in spec else 9)
        prompts = [TEXT[:cut] for cut in cuts]
        out = generate(tiny(), tokenizer, prompts, spec, **ASKED)
        for prompt, one in zip(prompts, out, strict=True):
            written = known.text(one.prompt_ids + one.ids)
            assert written.startswith(prompt.encode())
            assert one.text == written[len(prompt.encode()) :].decode(errors="replace")
            at = [len(known.text(one.prompt_ids + one.ids[:n])) for n in range(len(one.ids) + 1)]
            long = len(prompt.encode())
            old = sum(before < long and after <= long for before, after in pairwise(at))
            assert len(one.ids) - old == 8

    def test_batch_streaming_stop_and_one_token(self):
        prompts, spec = [TEXT[:7], TEXT[:40], "t"], "token_alignment"
        together, found = generate(tiny(), _bpe(), prompts, spec, **ASKED), ["", "", ""]
        for prompt, one in zip(prompts, together, strict=True):
            assert generate(tiny(), _bpe(), prompt, spec, **ASKED)[0].ids == one.ids

        def on_text(row, piece):
            found[row] += piece

        stop = together[1].text[2:5]
        stopped = generate(tiny(), _bpe(), prompts, spec, stop=[stop], on_text=on_text, **ASKED)
        assert [o.text for o in stopped] == found
        assert stopped[1].text == together[1].text[: together[1].text.index(stop)]
        assert generate(tiny(), _bpe(), TEXT[:7], spec, **{**ASKED, "max_new_tokens": 1})[0].text

    def test_special_tokens_are_never_dropped(self):
        prompt = [*_bpe()("the then")["input_ids"], 1, 30]
        out = generate(tiny(), _bpe(), [prompt], "token_alignment", **ASKED)[0]
        assert out.prompt_ids == prompt[:-1]
