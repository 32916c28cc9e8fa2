"""transplant() on tiny models: copied rows are exact, rebuilt rows are the method's sums, the base is untouched."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tiny import ARCHITECTURES, VOCAB, ids, tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill.errors import InputError, ModelError, SpecError
from tokenmill.method import parse
from tokenmill.run.transplant import transplant

NAMES = {f"w{i}": i for i in range(VOCAB)}
SHUFFLED = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(1))


def donor_model(rows=VOCAB, tied=False, seed=3):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows, hidden_size=20, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_words_in_another_order_are_the_same_model(name):
    """Every token is shared: all rows are copied and the new model says what the old one said."""
    base = tiny(name)
    before = copy.deepcopy(base.state_dict())
    new = {word: int(SHUFFLED[i]) for word, i in NAMES.items()}
    made, report = transplant(base, NAMES, base, new)
    prompt = ids(2, 9)
    with torch.no_grad():
        expected, got = base(prompt).logits, made(SHUFFLED[prompt]).logits
    assert torch.equal(got[..., SHUFFLED], expected)
    assert (report.copied, report.rebuilt, report.averaged, report.shared_share) == (VOCAB, 0, 0, 1.0)
    assert all(torch.equal(before[key], value) for key, value in base.state_dict().items())
    assert made.config.tie_word_embeddings == base.config.tie_word_embeddings


@pytest.mark.parametrize("name", ["llama", "gemma3"])  # untied, tied
def test_a_donor_equal_to_the_base_rebuilds_rows_up_to_the_residual(name):
    base = tiny(name)
    known = {word: i for word, i in NAMES.items() if i < 90}  # the base knows no names for 90 to 96
    made, report = transplant(base, known, base, NAMES, "omp_transplant(anchors=48)")  # 48 = the rows' size: they span
    assert (report.copied, report.rebuilt) == (90, 7)
    assert report.residual < 1e-2
    for side in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(base, side)().weight, getattr(made, side)().weight
        assert torch.equal(new[:90], old[:90])
        assert torch.allclose(new[90:], old[90:], atol=0.05 * float(old.detach().abs().max()))
    few = transplant(base, known, base, NAMES, "omp_transplant(anchors=4)")[1]
    assert few.residual > 10 * report.residual


@pytest.mark.parametrize("method", ["omp_transplant(anchors=5)", "knn_transplant", "mean_transplant"])
def test_rebuilt_rows_are_the_methods_sums_each_side_in_its_own_space(method):
    base, donor = tiny("llama"), donor_model(110)
    new = {f"w{i}": i - 10 for i in range(10, 120)}  # w10 to w96 are shared, w97 to w119 are new
    made, report = transplant(base, NAMES, donor, new, method)
    assert (report.tokens, report.copied, report.rebuilt) == (110, 87, 23)
    for side in ("get_input_embeddings", "get_output_embeddings"):
        rows, out = getattr(donor, side)().weight.detach(), getattr(made, side)().weight
        shared = getattr(base, side)().weight.detach()[10:97]
        decision = parse(method)(rows[87:], rows[:87])
        expected = torch.einsum("na,nae->ne", decision.coefficients, shared[decision.anchors])
        assert torch.equal(out[:87], shared)
        assert torch.allclose(out[87:], expected, atol=1e-5)
    assert made.config.vocab_size == 110
    assert made(torch.tensor([[0, 109]])).logits.shape[-1] == 110
    assert 0 < report.residual < 1.5
    assert report.output_residual is not None
    assert "23 rebuilt" in str(report)


def test_tied_models_stay_tied_and_a_matrix_will_do_as_donor():
    base = tiny("gpt2")
    new = {**NAMES, "new": VOCAB}
    rows = torch.randn(VOCAB + 1, 8, generator=torch.Generator().manual_seed(0))
    made, report = transplant(base, NAMES, rows, new, "omp_transplant(anchors=3)")
    assert made.get_output_embeddings().weight is made.get_input_embeddings().weight
    assert report.output_residual is None
    assert "output tied" in str(report)
    untied, _ = transplant(tiny("llama"), NAMES, rows, new, "omp_transplant(anchors=3)")
    decision = parse("omp_transplant(anchors=3)")(rows[VOCAB:], rows[:VOCAB])
    for side in ("get_input_embeddings", "get_output_embeddings"):  # one matrix stands for both sides
        shared = getattr(tiny("llama"), side)().weight.detach()
        expected = decision.coefficients[0] @ shared[decision.anchors[0]]
        assert torch.allclose(getattr(untied, side)().weight[VOCAB], expected, atol=1e-5)


def test_a_bias_on_the_output_goes_along():
    base = copy.deepcopy(tiny("llama"))
    base.lm_head = torch.nn.Linear(48, VOCAB, bias=True)
    new = {word: int(SHUFFLED[i]) for word, i in NAMES.items()}
    made, _ = transplant(base, NAMES, base, {**new, "new": VOCAB}, "omp_transplant(anchors=2)")
    assert torch.equal(made.get_output_embeddings().bias[SHUFFLED], base.lm_head.bias)


def test_ids_nobody_has_a_row_for_become_the_mean():
    base = tiny("llama")
    new = {"w5": 0, "w6": 1, "beyond": 9, "w7": 8}  # 2 to 7 name nothing; the donor has rows for 0 to 7
    made, report = transplant(base, NAMES, donor_model(8), new)
    assert (report.tokens, report.copied, report.rebuilt, report.averaged) == (10, 3, 0, 7)
    rows, old = made.get_input_embeddings().weight, base.get_input_embeddings().weight
    assert torch.equal(rows[[0, 1, 8]], old[[5, 6, 7]])
    assert torch.allclose(rows[9], old[5:8].mean(0))
    assert torch.allclose(made.get_output_embeddings().weight[3], base.lm_head.weight[5:8].mean(0))


def test_real_tokenizers_and_their_special_tokens():
    base_tokenizer = tiny_tokenizer()
    donor_tokenizer = tiny_tokenizer([f"w{i}" for i in range(60, 130)])
    donor = donor_model(len(donor_tokenizer))
    made, report = transplant(tiny("llama"), base_tokenizer, donor, donor_tokenizer)
    assert report.copied == 4 + 37
    assert report.rebuilt == 33
    assert made.config.eos_token_id == made.generation_config.eos_token_id == donor_tokenizer.eos_token_id == 2
    prompt = donor_tokenizer("w60 w129", return_tensors="pt")["input_ids"]
    assert made.generate(prompt, max_new_tokens=2, do_sample=False, min_new_tokens=2).shape == (1, 4)


def test_half_precision_is_kept():
    made, report = transplant(tiny("llama", torch.bfloat16), NAMES, donor_model(98), {**NAMES, "new": 97})
    assert made.get_input_embeddings().weight.dtype == torch.bfloat16
    assert torch.isfinite(made(torch.tensor([[97]])).logits).all()
    assert report.rebuilt == 1


def test_clear_errors():
    base = tiny("llama")
    with pytest.raises(InputError, match="share no token"):
        transplant(base, NAMES, base, {"other": 0})
    with pytest.raises(InputError, match="empty"):
        transplant(base, NAMES, base, {})
    with pytest.raises(SpecError, match="does not make tokens"):
        transplant(base, NAMES, base, NAMES, "occlusion")
    with pytest.raises(ModelError, match="finite"):
        transplant(base, NAMES, torch.full((98, 4), torch.nan), {**NAMES, "new": 97})
