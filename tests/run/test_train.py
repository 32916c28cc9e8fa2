"""Weighted training: weights of one are the library's own loss, and a few steps teach a tiny model."""

import copy

import pytest
import torch

from tiny import ARCHITECTURES, ids, tiny
from tokenmill.errors import InputError, ModelError, SpecError
from tokenmill.method import get
from tokenmill.run.train import token_losses, train, weighted_loss


def fresh(name="llama"):
    return copy.deepcopy(tiny(name))


def padded(rows=3, length=10):
    """Right-padded ids, mask and the labels a collator would make."""
    tokens, mask = ids(rows, length), torch.ones(rows, length, dtype=torch.long)
    mask[1, 6:] = 0
    return tokens * mask, mask, (tokens * mask).masked_fill(mask == 0, -100)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("spec", ["full_loss", "rho1", "random_share"])
def test_weights_of_one_are_the_stock_loss(name, spec):
    model = fresh(name)
    tokens, mask, labels = padded()
    stock = model(tokens, attention_mask=mask, labels=labels).loss
    expected = torch.autograd.grad(stock, model.get_input_embeddings().weight)[0]
    losses = token_losses(model, tokens, mask)
    method = get(spec)(share=1.0) if spec != "full_loss" else get(spec)
    loss = weighted_loss(losses, method(losses.detach(), losses.detach() / 2))
    slope = torch.autograd.grad(loss, model.get_input_embeddings().weight)[0]
    assert loss.item() == pytest.approx(stock.item(), rel=1e-6)
    assert torch.allclose(slope, expected, rtol=1e-4, atol=1e-6)


def test_losses_where_there_is_one():
    tokens, mask, labels = padded()
    losses = token_losses(tiny(), tokens, mask)
    assert losses.shape == tokens.shape
    assert torch.equal(losses.isfinite(), (mask == 1) & (torch.arange(10) > 0))
    with torch.no_grad():
        p = tiny()(tokens[:1]).logits.log_softmax(-1)
    assert losses[0, 4].item() == pytest.approx(-float(p[0, 3, tokens[0, 4]]), rel=1e-4)
    labels[0, :5] = -100
    assert torch.equal(token_losses(tiny(), tokens, mask, labels).isfinite()[0], torch.arange(10) >= 5)
    left = torch.ones(1, 6, dtype=torch.long)
    left[0, :2] = 0  # the first real token follows padding: nothing predicts it
    assert token_losses(tiny(), ids(1, 6), left).isfinite()[0].tolist() == [False, False, False, True, True, True]


def test_only_weighted_tokens_have_a_gradient():
    model, tokens = fresh(), ids(1, 8)
    losses = token_losses(model, tokens)
    w = torch.zeros(1, 8)
    w[0, 3] = 2.0
    loss = weighted_loss(losses, type(get("full_loss")(losses, None))(w))
    assert loss.item() == pytest.approx(losses[0, 3].item())
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.get_input_embeddings().weight.grad[tokens[0, 5]].abs().sum() == 0  # comes after the trained token
    nothing = weighted_loss(token_losses(model, tokens), type(get("full_loss")(losses, None))(torch.zeros(1, 8)))
    assert nothing.item() == 0


@pytest.mark.parametrize("spec", ["full_loss", "rho1(share=0.5)", "random_share(share=0.5)"])
def test_a_few_steps_teach(spec):
    model, reference = fresh(), tiny("qwen3")
    before = copy.deepcopy(reference.state_dict())
    history = train(model, [ids(4, 12)], spec, reference=reference, steps=12, lr=3e-3)
    assert [h.step for h in history] == list(range(12))
    assert history[-1].loss < 0.8 * history[0].loss
    assert all(h.tokens == 44 for h in history)
    assert all(h.share == pytest.approx(1.0 if spec == "full_loss" else 0.5) for h in history)
    assert all(torch.equal(before[k], v) for k, v in reference.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_rho1_with_all_tokens_is_plain_training():
    plain, selective = fresh(), fresh()
    one = train(plain, [ids(2, 9)], "full_loss", steps=3, lr=1e-3)
    other = train(selective, [ids(2, 9)], "rho1(share=1.0)", reference=tiny("qwen2"), steps=3, lr=1e-3)
    assert [h.loss for h in one] == [h.loss for h in other]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), selective.parameters(), strict=True))


def test_rho1_passes_by_what_the_reference_cannot_predict_either():
    """Noise that model and reference find equally hard has no excess; text that the reference knows has."""
    known, noise = ids(4, 16, seed=1), ids(4, 16, seed=2)
    reference = fresh()
    train(reference, [known], steps=25, lr=3e-3)
    batch = torch.cat([known, noise])
    w = get("rho1")(share=0.5)(token_losses(tiny(), batch).detach(), token_losses(reference, batch).detach()).values
    assert w[:4].sum() > 0.9 * w.sum()


def test_the_seed_decides_and_the_global_one_is_left_alone():
    def trained(seed):
        model = fresh("gpt2")  # has dropout
        state = torch.get_rng_state()
        history = train(model, [ids(2, 8)], "random_share(share=0.5)", steps=3, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return [h.trained for h in history], model.get_input_embeddings().weight.detach()

    (one, weights), (again, same), (other, _) = trained(0), trained(0), trained(1)
    assert one == again
    assert torch.equal(weights, same)
    assert one != other


def test_random_share_draws_anew_every_step():
    model = fresh()
    history = train(model, [ids(2, 9)], "random_share(share=0.2)", steps=6, lr=1e-12)
    assert len({round(h.trained, 4) for h in history}) > 3  # the model hardly moves: the tokens are others
    assert max(h.loss for h in history) == pytest.approx(min(h.loss for h in history), rel=1e-4)


def test_batches_of_a_collator_and_how_often():
    tokens, mask, labels = padded()
    batch = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    assert [h.tokens for h in train(fresh(), [batch, tokens])] == [9 + 5 + 9, 27]
    assert len(train(fresh(), [tokens, tokens], steps=1)) == 1
    assert len(train(fresh(), [tokens], steps=3, progress=True)) == 3
    assert len(train(fresh(), (tokens for _ in range(3)), steps=3)) == 3


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_labels_are_honoured_as_given(name):
    """Other tokens than the ids, some left out, one of them behind padding: the library's own loss."""
    tokens, mask, _ = padded()
    labels = ids(3, 10, seed=5)
    labels[0, 2:7] = -100
    mask[2, :3] = 0
    stock = tiny(name)(tokens, attention_mask=mask, labels=labels).loss
    losses = token_losses(tiny(name), tokens, mask, labels)
    assert losses.nanmean().item() == pytest.approx(stock.item(), rel=1e-6)
    assert torch.equal(losses.isfinite()[:, 1:], labels[:, 1:] != -100)
    batch = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    (step,) = train(copy.deepcopy(tiny(name)).eval(), [batch], lr=1e-9) if name == "llama" else [None]
    assert step is None or step.loss == pytest.approx(stock.item(), rel=1e-6)


@pytest.mark.parametrize("spec", ["full_loss", "rho1(share=0.5)", "random_share(share=0.5)"])
@pytest.mark.parametrize("labels", [True, False])
def test_a_batch_without_targets_takes_no_step(spec, labels):
    model, tokens = fresh(), ids(2, 6)
    train(model, [tokens], spec, reference=tiny("qwen3"), lr=1e-3)
    before = copy.deepcopy(model.state_dict())
    empty = {"input_ids": tokens, "attention_mask": torch.zeros_like(tokens)}
    if labels:
        empty = {"input_ids": tokens, "labels": torch.full_like(tokens, -100)}
    with pytest.raises(InputError, match="no batch has a token to learn from"):
        train(model, [empty] * 3, spec, reference=tiny("qwen3"), lr=1e-3)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    one, other = fresh(), fresh()
    train(one, [tokens, tokens], "full_loss", lr=1e-3)
    history = train(other, [tokens, empty, tokens], "full_loss", lr=1e-3)  # between two others neither
    assert (history[1].tokens, history[1].loss) == (0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_where_nothing_can_be_trained():
    with pytest.raises(InputError, match="nothing to train"):
        train(fresh().requires_grad_(False), [ids(1, 4)])
    with pytest.raises(InputError, match="513 tokens and the model has learned 512"):
        train(fresh("gpt2"), [ids(1, 513)])


def test_batches_that_are_none():
    tokens = ids(1, 4)
    for batch, says in (
        ({"input_ids": tokens, "labels": tokens[:, 1:]}, "labels has the shape"),
        ({"input_ids": tokens, "attention_mask": tokens[:, 1:]}, "attention_mask has the shape"),
        ({"input_ids": tokens, "labels": tokens + 97}, "a label is outside"),
        ({"input_ids": tokens, "labels": tokens * 0 - 1}, "a label is outside"),
        (tokens + 97, "a token id is outside"),
    ):
        with pytest.raises(InputError, match=says):
            train(fresh(), [batch])


def test_clear_errors():
    with pytest.raises(InputError, match="ended after 2 of 5"):
        train(fresh(), iter([ids(1, 4), ids(1, 4)]), steps=5)
    with pytest.raises(InputError, match="ended after 0 of 1"):
        train(fresh(), [], steps=1)
    with pytest.raises(InputError, match="shape"):
        train(fresh(), [ids(1, 1)])
    with pytest.raises(InputError, match="reference"):
        train(fresh(), [ids(1, 4)], "rho1")
    with pytest.raises(SpecError, match="does not weigh"):
        train(fresh(), [ids(1, 4)], "occlusion")
    broken = fresh()
    with torch.no_grad():
        broken.get_output_embeddings().weight[:] = torch.inf
    with pytest.raises(ModelError, match="not a number"):
        train(broken, [ids(1, 4)])
