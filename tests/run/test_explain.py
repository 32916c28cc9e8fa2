"""explain() on tiny models of every architecture."""

import pytest
import torch
from rich.console import Console

from tiny import ARCHITECTURES, ids, tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill.errors import InputError, SpecError
from tokenmill.run.explain import asking, explain

TEXT = "w10 w20 w30 w40"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_answers_the_same_by_ids_and_by_embeddings(name):
    model, prompt = tiny(name), ids(3, 7)
    ask = asking(model)
    with torch.no_grad():
        expected = model(prompt).logits[:, -1].softmax(-1)
    assert torch.allclose(ask.probabilities(prompt), expected, atol=1e-5)
    assert torch.allclose(ask.logits_from_embeddings(ask.embed(prompt)).softmax(-1), expected, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", ["reagent(steps=2)", "occlusion", "gradient_norm", "random_attribution"])
def test_every_method_on_every_architecture(name, method):
    told = explain(tiny(name), tiny_tokenizer(), TEXT, method)
    assert told.tokens == TEXT.split()
    assert told.attribution.scores.shape == (4,)
    assert torch.isfinite(told.attribution.scores).all()
    assert told.predicted == f"w{told.attribution.target}"


def test_questions_in_batches_are_the_same_questions(monkeypatch):
    model, prompt = tiny(), ids(5, 8)
    whole, e = asking(model).probabilities(prompt), asking(model).embed(prompt)
    logits = asking(model).logits_from_embeddings(e)
    monkeypatch.setattr("tokenmill.run.explain.TOKENS", 16)  # two rows at a time
    assert torch.allclose(asking(model).probabilities(prompt), whole, atol=1e-6)
    assert torch.allclose(asking(model).logits_from_embeddings(e), logits, atol=1e-5)


def test_replacements_are_other_tokens_likely_there(monkeypatch):
    model, tokenizer, prompt = tiny(), tiny_tokenizer(), ids(1, 12)[0]
    ask = asking(model, tokenizer)
    drawn = torch.stack([ask.replacements(prompt, torch.Generator().manual_seed(s)) for s in range(30)])
    assert (drawn != prompt).all()
    assert not torch.isin(drawn, torch.tensor(tokenizer.all_special_ids)).any()
    assert all(len(column.unique()) > 1 for column in drawn.T)
    assert torch.equal(ask.replacements(prompt, torch.Generator().manual_seed(7)), drawn[7])

    monkeypatch.setattr("tokenmill.run.explain.PLAUSIBLE", 1)  # now only the likeliest other token is left to draw
    with torch.no_grad():
        after = model(prompt[None]).logits[0].softmax(-1)  # (T, V)
    at = torch.cat([after.mean(0, keepdim=True), after[:-1]])
    at[:, tokenizer.all_special_ids] = 0
    at.scatter_(1, prompt[:, None], 0)
    assert torch.equal(asking(model, tokenizer).replacements(prompt, torch.Generator()), at.argmax(-1))


def test_target_by_id_by_text_and_the_models_own():
    model, tokenizer = tiny(), tiny_tokenizer()
    by_id = explain(model, tokenizer, TEXT, "occlusion", 33)
    assert by_id.predicted == "w33"
    assert torch.equal(by_id.attribution.scores, explain(model, tokenizer, TEXT, "occlusion", "w33").attribution.scores)
    with torch.no_grad():
        p = model(torch.tensor([[10, 20, 30, 40]])).logits[0, -1].softmax(-1)
    own = explain(model, tokenizer, TEXT, "occlusion")
    assert own.attribution.target == int(p.argmax())
    assert own.probability == pytest.approx(float(p.max()), rel=1e-4)
    assert by_id.probability == pytest.approx(float(p[33]), rel=1e-4)


def test_ids_without_a_tokenizer():
    for prompt in ([10, 20, 30], torch.tensor([10, 20, 30]), torch.tensor([[10, 20, 30]])):
        assert explain(tiny(), None, prompt, "occlusion").tokens == ["10 ", "20 ", "30 "]


def test_the_seed_counts_and_a_given_one_wins():
    def scores(method, seed):
        return explain(tiny(), None, [10, 20, 30, 5, 6], method, seed=seed).attribution.scores

    assert not torch.equal(scores("reagent(steps=2)", 0), scores("reagent(steps=2)", 1))
    assert torch.equal(scores("reagent(steps=2)", 3), scores("reagent(steps=2)", 3))
    assert torch.equal(scores("reagent(steps=2, seed=5)", 1), scores("reagent(steps=2, seed=5)", 2))


def test_the_model_is_left_as_it_was():
    model = tiny("gpt2")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    part = model.transformer.h[1]
    model.train()
    part.eval()
    try:
        first = explain(model, None, [10, 20, 30], "gradient_norm")  # GPT-2 has dropout: it must be off inside
        second = explain(model, None, [10, 20, 30], "gradient_norm")
        with pytest.raises(InputError):
            explain(model, None, [], "gradient_norm")
        assert model.training
        assert not part.training
    finally:
        model.eval()
    assert torch.equal(first.attribution.scores, second.attribution.scores)
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("prompt", "target", "says"),
    [
        ("", None, "empty"),
        ([], None, "no prompt"),
        ([5] * 600, None, "600 tokens and the model reads at most 512"),
        ([5, 200], None, "token id 200 is outside"),
        ([-1, 5], None, "token id -1 is outside"),
        (torch.ones(2, 3, dtype=torch.long), None, "one prompt at a time"),
        (TEXT, "nothing-like-it", "cannot be written in this tokenizer's tokens"),
        (TEXT, "", "cannot be written"),
        ([5] * 512, "w7 w8", "513 tokens and the model reads at most 512"),
        (TEXT, 97, "target 97"),
        (TEXT, -1, "target -1"),
    ],
)
def test_clear_errors(prompt, target, says):
    with pytest.raises(InputError, match=says):
        explain(tiny(), tiny_tokenizer(), prompt, "occlusion", target)


def test_text_without_a_tokenizer_and_methods_that_do_not_explain():
    with pytest.raises(InputError, match="tokenizer"):
        explain(tiny(), None, TEXT, "occlusion")
    with pytest.raises(InputError, match="tokenizer"):
        explain(tiny(), None, [5], "occlusion", "w9")
    with pytest.raises(SpecError, match="does not explain"):
        explain(tiny(), None, [5], "omp_transplant")
    with pytest.raises(SpecError, match="occlusion"):
        explain(tiny(), None, [5], "oclusion")


def test_shown_as_text_html_and_colours():
    told = explain(tiny(), tiny_tokenizer(), TEXT, "occlusion", progress=True)
    assert str(told).count("\n") == 4
    assert "'w30'" in str(told)
    assert "occlusion: why" in told._repr_html_()
    console = Console(record=True, width=80)
    console.print(told)
    assert "w10w20w30w40" in console.export_text()
    assert [score for *_, score in told.top(4)] == sorted(told.attribution.scores.tolist(), reverse=True)
    assert len(told.top(2)) == 2
    assert len(repr(told)) < 100
    assert told.to_html().count("<div") == told._repr_html_().count("<div")


def test_repeated_tokens_are_told_apart_by_their_places():
    told = explain(tiny(), None, [10, 20, 10, 10], "occlusion")
    assert [told.tokens[t] for t, *_ in told.top(None)] == [token for _, token, _ in told.top(None)]
    assert sorted(t for t, *_ in told.top(None)) == [0, 1, 2, 3]
    assert [float(told.attribution.scores[t]) for t, *_ in told.top(None)] == [score for *_, score in told.top(None)]
    assert [line.split()[0] for line in str(told).splitlines()[1:]] == ["0", "1", "2", "3"]


def test_the_ranking_is_the_same_whatever_the_seed():
    model, tokenizer = tiny(), tiny_tokenizer()
    rankings = [explain(model, tokenizer, TEXT, seed=seed).ranking() for seed in range(4)]
    assert all(ranking == rankings[0] for ranking in rankings)
    assert not explain(model, tokenizer, TEXT).draws
    assert explain(model, tokenizer, TEXT, "reagent(steps=2)").draws


def test_an_answer_is_explained_token_by_token():
    model, tokenizer = tiny(), tiny_tokenizer()
    whole = explain(model, tokenizer, TEXT, "occlusion", tokens=3)
    wanted = model.generate(torch.tensor([[10, 20, 30, 40]]), max_new_tokens=3, do_sample=False, pad_token_id=0)[0, 4:]
    answer = [step.attribution.target for step in whole.answer]
    assert answer == wanted.tolist()
    for i, step in enumerate(whole.answer):
        alone = explain(model, None, [10, 20, 30, 40, *answer[:i]], "occlusion", answer[i])
        assert torch.allclose(step.attribution.scores, alone.attribution.scores, atol=1e-6)
        assert step.probability == pytest.approx(alone.probability, rel=1e-4)
    mean = torch.stack([step.attribution.scores[:4] for step in whole.answer]).mean(0)
    assert torch.allclose(whole.attribution.scores, mean)
    assert whole.attribution.calls == sum(step.attribution.calls for step in whole.answer)
    given = explain(model, tokenizer, TEXT, "occlusion", target=" ".join(f"w{i}" for i in answer))
    assert torch.allclose(given.attribution.scores, mean, atol=1e-6)
    for wrong in ({"tokens": 0}, {"tokens": 2, "target": 5}):
        with pytest.raises(InputError):
            explain(model, tokenizer, TEXT, "occlusion", **wrong)
