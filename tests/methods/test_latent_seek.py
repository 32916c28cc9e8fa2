"""LatentSeek against its formula on whole passes, with rewards of the caller's and its own."""

import math

import pytest
import torch

from tiny import ids, tiny
from tokenmill.errors import InputError, RecipeError, SpecError
from tokenmill.method import parse
from tokenmill.models import weights
from tokenmill.run.generate import generate

PROMPTS = [ids(1, n, n)[0].tolist() for n in (40, 1, 23)]
ASKED = {"max_new_tokens": 16, "ignore_eos": True}
SPEC = "latent_seek(share=0.4, rate=2.0, steps=4)"  # a random model's states are far apart: small steps change no token


def few(row, new):
    """Even tokens are worth more."""
    return -sum(token % 2 for token in new) / len(new)


def _slowly(model, prompt, share, rate, steps, enough, new, reward):
    """The formula, with every text read anew and the gradient of log softmax written out under Adam."""
    head = model.get_output_embeddings().weight.detach()

    @torch.no_grad()
    def answer(first):
        text, states, nats = list(first), [], []
        while len(text) < new:
            out = model(torch.tensor([prompt + text]), output_hidden_states=True)
            states.append(out.hidden_states[-1][0, -1])
            text.append(int(out.logits[0, -1].argmax()))
        if reward is not None:
            return text, reward(text), states
        logits = model(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1]
        nats = torch.nn.functional.cross_entropy(logits, torch.tensor(text))
        return text, -float(nats), states

    text, worth, states = answer([])
    count = int(share * len(text))
    z = torch.stack(states[:count]) if count else torch.empty(0)
    mean, square, rounds = torch.zeros_like(z), torch.zeros_like(z), 0
    while count and rounds < steps and worth <= enough:
        rounds += 1
        p = (z @ head.T).softmax(-1)
        x = p.argmax(-1)
        slope = -worth * (head[x] - p @ head)  # of -worth * log p(x), which is made smaller
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        z = z - rate * (mean / (1 - 0.9**rounds)) / ((square / (1 - 0.999**rounds)).sqrt() + 1e-8)
        text, worth, _ = answer((z @ head.T).argmax(-1).tolist())
    return text


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("reward", [few, None])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_formula_on_whole_passes(name, reward, steps):
    model, changed = tiny(name), 0
    spec = f"latent_seek(share=0.4, rate=2.0, steps={steps}, enough=-0.01)"
    out = generate(model, None, PROMPTS, spec, reward=reward, **ASKED)
    plain = generate(model, None, PROMPTS, **ASKED)
    for row, (prompt, one) in enumerate(zip(PROMPTS, out, strict=True)):
        slow = None if reward is None else lambda new, row=row: few(row, new)
        assert one.ids == _slowly(model, prompt, 0.4, 2.0, steps, -0.01, 16, slow)
        changed += one.ids != plain[row].ids
    assert changed > 0


@pytest.mark.parametrize("beside", ["", " + h2o(budget=0.5)", " + zip_cache", " + streaming_llm(slots=20)", " + d3"])
def test_rows_come_out_as_they_would_alone(beside):
    model = tiny()
    before = {name: p.clone() for name, p in model.named_parameters()}
    together = generate(model, None, PROMPTS, SPEC + beside, reward=few, **ASKED)
    for prompt, one in zip(PROMPTS, together, strict=True):
        assert generate(model, None, [prompt], SPEC + beside, reward=few, **ASKED)[0].ids == one.ids
        assert len(one.ids) == 16
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert "forward" not in model.base_model.__dict__


def test_the_models_weights_take_no_gradient_and_surroundings_do_not_matter():
    model = tiny("qwen2")
    model.zero_grad(set_to_none=True)
    want = [o.ids for o in generate(model, None, PROMPTS, SPEC, reward=few, **ASKED)]
    assert all(p.grad is None for p in model.parameters())
    for around in (torch.no_grad(), torch.inference_mode()):
        with around:
            assert [o.ids for o in generate(model, None, PROMPTS, SPEC, reward=few, **ASKED)] == want


def test_an_answer_that_is_good_enough_or_short_is_the_greedy_one():
    plain = [o.ids for o in generate(tiny(), None, PROMPTS, **ASKED)]
    for spec in ("latent_seek(share=0.4, enough=-99.0)", "latent_seek(share=0.05)"):
        out = generate(tiny(), None, PROMPTS, spec, **ASKED)
        assert [o.ids for o in out] == plain
        assert all(o.stats.forward_calls == 16 for o in out)


def test_an_end_among_the_first_tokens_ends_the_answer():
    model = tiny()
    found = generate(model, None, PROMPTS, SPEC, reward=few, **ASKED)
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = found[0].ids[2]
    try:
        ended = generate(model, None, PROMPTS[:1], SPEC, reward=few, max_new_tokens=16)[0].ids
        plain = generate(model, None, PROMPTS[:1], max_new_tokens=16)[0].ids
    finally:
        model.generation_config.eos_token_id = before
    assert len(ended) <= 16
    assert found[0].ids[2] not in ended[:-1]
    assert plain != ended or found[0].ids[2] in plain


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_packed_and_half_weights(kind):
    import copy

    model = copy.deepcopy(tiny())
    model = weights.pack(model, kind) if kind == "int8" else model.to(torch.bfloat16)
    out = generate(model, None, PROMPTS, SPEC, reward=few, **ASKED)
    for prompt, one in zip(PROMPTS, out, strict=True):
        assert generate(model, None, [prompt], SPEC, reward=few, **ASKED)[0].ids == one.ids


def test_what_cannot_work_is_refused():
    for spec, words in (
        ("latent_seek + prompt_lookup", "checked against the one token"),
        ("latent_seek + beam", "both decide which token"),
        ("min_p + latent_seek", "no choice to warp"),
    ):
        with pytest.raises(RecipeError, match=words) as error:
            parse(spec)
        assert "\n" not in str(error.value)
    with pytest.raises(RecipeError, match="temperature and top_p mean nothing"):
        generate(tiny(), None, PROMPTS, "latent_seek", temperature=0.5)
    with pytest.raises(InputError, match="reward gave nan for row 1"):
        generate(tiny(), None, PROMPTS, SPEC, reward=lambda row, new: math.nan if row else -1.0, **ASKED)
    with pytest.raises(InputError, match="reward is for a recipe that seeks"):
        generate(tiny(), None, PROMPTS, "beam", reward=few)
    with pytest.raises(SpecError, match=r"share must be in \(0, 1\]"):
        parse("latent_seek(share=0)")
