"""Models trained from scratch: skipping equals masking, no token sees the future, formulas."""

from itertools import pairwise, product

import pytest
import torch

from tokenmill import catalog
from tokenmill.method import get
from tokenmill.methods.skip import duo_llm, mixture_of_tokens, mor, skip_middle
from tokenmill.methods.skip.duo_llm import BYPASS, LARGE, SMALL, by_lot, fixed, oracle, prefixes
from tokenmill.models.small import Block, Small, flops, next_byte
from tokenmill.models.trained import build, source, trained
from tokenmill.ops.active import gather, put
from tokenmill.run.fit import fit
from tokenmill.types import Batch

MODELS = [name for name in catalog.methods() if catalog.find(name).card.get("trains") == "model"]
IDS = torch.randint(0, 256, (3, 24), generator=torch.Generator().manual_seed(0))


def alive(name):
    """A small model whose routers and gates say different things about different tokens."""
    torch.manual_seed(0)
    model = build(get(name)(hidden=64))
    with torch.no_grad():
        for part in model.parameters():
            if part.ndim > 1:
                part.mul_(6)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
class TestEvery:
    def test_it_learns_is_stored_and_is_found(self, name, tmp_path, monkeypatch):
        monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
        (tmp_path / "text").write_text("the cat sat on the mat and the dog sat on the log. " * 60)
        spec = get(name)(hidden=32)
        made = fit(spec, text=tmp_path / "text", steps=15, rows=2, length=24)
        assert made.history[-1]["loss"] < made.history[0]["loss"] - 0.5
        found = trained(spec)
        assert torch.allclose(found(IDS), made.parts(IDS), atol=1e-5)
        assert all(torch.equal(found.state_dict()[k], v) for k, v in made.parts.state_dict().items())
        assert all(v == v for v in made.held_out.values())

    def test_no_token_sees_the_future_in_use(self, name):
        model = alive(name)
        later = IDS.clone()
        later[:, 15:] = (later[:, 15:] + 7) % 256
        use = {"by_rank": False} if name == "mor" else {}
        with torch.no_grad():
            one, other = model(IDS, **use), model(later, **use)
        assert torch.allclose(one[:, :15], other[:, :15], atol=1e-4)
        assert not torch.allclose(one[:, 15:], other[:, 15:], atol=1e-2)

    def test_rows_do_not_depend_on_each_other(self, name):
        model = alive(name)
        use = {"by_rank": False} if name == "mor" else {}
        with torch.no_grad():
            assert torch.allclose(model(IDS, **use)[1:2], model(IDS[1:2], **use), atol=1e-4)

    def test_everything_is_trained(self, name):
        model = alive(name).train()
        source(get(name)).objective(model, Batch(IDS)).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_gathered_tokens_go_back_where_they_were():
    x = torch.randn(3, 6, 2)
    mask = torch.tensor([[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0], [0] * 6]).bool()
    places, real, some = gather(mask, x)
    assert places[0].tolist() == [1, 2, 5]
    assert real.sum(-1).tolist() == [3, 1, 0]
    assert torch.equal(some[0], x[0, [1, 2, 5]])
    assert torch.equal(put(x, places, real, some + 1), torch.where(mask[..., None], x + 1, x))


def test_a_block_is_the_library_s_llama_layer():
    """The second source of truth: transformers' own layer with the same weights."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=64, intermediate_size=8 * 64 // 3, num_attention_heads=2, num_key_value_heads=2, head_dim=32,
        rms_norm_eps=1e-5, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    theirs, mine = LlamaDecoderLayer(config, 0).eval(), Block(64)
    with torch.no_grad():
        q, k, v = mine.qkv.weight.chunk(3)
        for name, weight in {"q_proj": q, "k_proj": k, "v_proj": v, "o_proj": mine.out.weight}.items():
            getattr(theirs.self_attn, name).weight.copy_(weight)
        gate, up = mine.feed_forward.up.weight.chunk(2)
        for name, weight in {"gate_proj": gate, "up_proj": up, "down_proj": mine.feed_forward.down.weight}.items():
            getattr(theirs.mlp, name).weight.copy_(weight)
        x, positions = torch.randn(2, 9, 64), torch.tensor([0, 1, 4, 5, 6, 9, 11, 12, 20]).expand(2, -1)
        told = theirs(x, position_embeddings=LlamaRotaryEmbedding(config)(x, positions), position_ids=positions)
        told = told[0] if isinstance(told, tuple) else told
        assert torch.allclose(mine(x, positions), told, atol=1e-5)


class TestMor:
    def test_skipping_is_masking(self):
        model = alive("mor")
        for by_rank in (True, False):
            with torch.no_grad():
                fast, ran, _ = model.run(IDS, by_rank)
                slow, _, _ = model.run(IDS, by_rank, skipping=False)
            assert torch.allclose(fast, slow, atol=1e-4)
            assert 0 < float(ran[-1].float().mean()) < 1

    def test_skipped_tokens_are_not_computed(self, monkeypatch):
        model, seen = alive("mor"), []
        real = Block.forward
        monkeypatch.setattr(
            Block, "forward", lambda self, x, *a, **k: seen.append(x.shape[1]) or real(self, x, *a, **k)
        )
        model(IDS)
        assert seen == [24, 24, 24, 16, 16, 8, 8, 24]

    def test_who_goes_on_went_on_before(self):
        for by_rank in (True, False):
            ran = alive("mor").run(IDS, by_rank)[1]
            assert all(bool((later <= earlier).all()) for earlier, later in pairwise(ran))
        assert [r.sum(-1).tolist() for r in alive("mor").run(IDS)[1]] == [[24] * 3, [16] * 3, [8] * 3]

    def test_weights_and_choice(self):
        scores = torch.tensor([[2.0, -1.0, 0.5, -torch.inf]])
        chosen, weights = mor(scores, 2)
        assert chosen.tolist() == [[True, False, True, False]]
        assert torch.allclose(weights, 0.1 * scores.sigmoid())
        assert mor(scores, 1)[0].tolist() == [[True, False, False, False]]
        assert mor(scores, None)[0].tolist() == [[True, False, True, False]]

    def test_ranking_looks_ahead(self):
        """Why the figure is by the threshold."""
        model = alive("mor")
        later = IDS.clone()
        later[:, 15:] = (later[:, 15:] + 7) % 256
        with torch.no_grad():
            assert not torch.allclose(model(IDS)[:, :15], model(later)[:, :15], atol=1e-3)


class TestSkipMiddle:
    def test_skipping_is_masking(self):
        model = alive("skip_middle")
        with torch.no_grad():
            fast, gates = model.run(IDS, skipping=True)
            slow, _ = model.run(IDS)
        assert 0.1 < float((gates == 0).float().mean()) < 0.9
        assert torch.allclose(fast, slow, atol=1e-4)

    def test_gates_only_close_and_mirror(self):
        gates = alive("skip_middle").run(IDS)[1]
        half = len(gates) // 2
        assert bool((gates[1:half] <= gates[: half - 1]).all())
        assert torch.equal(gates[:half], gates[half:].flip(0))

    def test_the_gate_formula(self):
        closing = torch.tensor([0.3, -2.0, 0.5])[:, None, None]
        assert skip_middle(closing).item() == pytest.approx(0.2)
        assert skip_middle(closing[:2]).item() == pytest.approx(0.7)
        assert skip_middle(4 * closing).item() == 0

    def test_nobody_attends_to_who_skipped(self):
        block, x, at = Block(64), torch.randn(1, 5, 64), torch.arange(5)[None]
        gate = torch.tensor([[1.0, 0.0, 1.0, 0.4, 1.0]])
        other = x.clone()
        other[:, 1] += 1
        one, two = block(x, at, gate=gate), block(other, at, gate=gate)
        assert torch.allclose(one[:, 2:], two[:, 2:], atol=1e-5)
        assert torch.equal(one[:, 1], x[:, 1])

    def test_a_gate_multiplies_attention(self):
        """softmax(score + log g) = g exp(score) / sum of the same, the slow way."""
        block, x, at = Block(32), torch.randn(1, 4, 32), torch.arange(4)[None]
        gate = torch.tensor([[0.5, 1.0, 0.25, 0.75]])
        from tokenmill.models.small import turned

        q, k, v = (t[:, None] for t in block.qkv(x).chunk(3, -1))
        weight = (turned(q, at) @ turned(k, at).mT / 32**0.5).exp() * gate[:, None, None, :]
        weight = weight.tril()
        slow = block.out((weight / weight.sum(-1, keepdim=True) @ v)[:, 0])
        assert torch.allclose(block.attention(x, at, None, gate), slow, atol=1e-5)

    def test_the_controller_moves_towards_its_targets(self):
        model = build(get("skip_middle")(hidden=32, rate=0.1)).train()
        gates = torch.ones(6, 2, 8)
        assert model.targets.tolist() == [1.0, 0.75, 0.5, 0.5, 0.75, 1.0]
        assert float(model.regularise(gates)) == 0
        assert torch.allclose(model.coefficients[0], 0.1 * (1 - model.targets))
        assert torch.allclose(model.coefficients[1], -0.1 * model.targets * (1 - model.targets))
        assert float(model.regularise(gates)) == pytest.approx(0.1 * 1.5 / 6)


class TestMixtureOfTokens:
    def test_the_formula(self):
        """One group, one layer, the slow way."""
        block = alive("mixture_of_tokens").blocks[0].feed_forward
        x, temperature = torch.randn(8, 3, 64), 0.7
        slow = torch.zeros_like(x)
        with torch.no_grad():
            for t in range(3):
                for e in range(8):
                    score = x[:, t] @ block.controller.weight[e] / temperature
                    weight = score.exp() / score.exp().sum()
                    made = block.experts.one(e, (weight[:, None] * x[:, t]).sum(0)[None])
                    slow[:, t] += weight[:, None] * made
            assert torch.allclose(block(x, 8, temperature), slow, atol=1e-4)

    def test_weights_of_a_cold_group_are_one_texts(self):
        scores = torch.randn(2, 4, 3, 5)
        cold = mixture_of_tokens(temperature=0)(scores)
        assert torch.equal(cold.sum(1), torch.ones(2, 3, 5))
        assert set(cold.unique().tolist()) == {0.0, 1.0}
        assert torch.allclose(mixture_of_tokens(temperature=1e-4)(scores), cold, atol=1e-3)
        assert torch.allclose(mixture_of_tokens(temperature=1e9)(scores), torch.full_like(scores, 0.25))

    def test_no_token_sees_the_future_of_its_own_or_another_text(self):
        model = alive("mixture_of_tokens")
        ids = IDS[:1].repeat(8, 1).roll(3, 1) * torch.arange(1, 9)[:, None] % 256
        later = ids.clone()
        later[:, 15:] = (later[:, 15:] + 7) % 256
        with torch.no_grad():
            one, other = model(ids, together=8), model(later, together=8)
        assert torch.allclose(one[:, :15], other[:, :15], atol=1e-4)
        assert not torch.allclose(one[:, 15:], other[:, 15:], atol=1e-2)

    @pytest.mark.parametrize("cool", [0.0, 0.5])
    def test_texts_in_a_group_depend_on_each_other_and_alone_they_do_not(self, cool):
        """Also where experts read one token alone: the neighbours say whose."""
        torch.manual_seed(0)
        model = build(get("mixture_of_tokens")(hidden=64, group=3, cool=cool)).eval()
        with torch.no_grad():
            for part in model.parameters():
                part.mul_(6 if part.ndim > 1 else 1)
            other = IDS.clone()
            other[1:] = (other[1:] + 7) % 256
            assert not torch.allclose(model(IDS, together=3)[0], model(other, together=3)[0], atol=1e-2)
            assert torch.allclose(model(IDS)[0], model(other)[0], atol=1e-5)

    def test_alone_the_temperature_says_nothing(self):
        mixer = alive("mixture_of_tokens").blocks[0].feed_forward
        x = torch.randn(2, 3, 64)
        with torch.no_grad():
            hot, cold = mixer(x, 1, 1.0), mixer(x, 1, 0.0)
            every = sum(mixer.experts.one(e, x.flatten(0, 1)) for e in range(8)).view_as(x) / 8
        assert torch.allclose(hot, cold, atol=1e-5)
        assert torch.allclose(hot, every, atol=1e-4)

    def test_a_small_group_is_a_full_one_of_repeated_texts(self):
        model = alive("mixture_of_tokens")
        with torch.no_grad():
            two = model(IDS[:2], together=8)
            full = model(IDS[:2].repeat(4, 1), together=8)[:2]
            alone = model(IDS[:1])
            copies = model(IDS[:1].repeat(8, 1), together=8)[:1]
        assert torch.allclose(two, full, atol=1e-3)
        assert torch.allclose(alone, copies, atol=1e-3)

    def test_the_last_group_may_be_smaller(self):
        model = alive("mixture_of_tokens")
        with torch.no_grad():
            whole = model(IDS, together=2)
            assert torch.allclose(whole[:2], model(IDS[:2], together=2), atol=1e-4)
            assert torch.allclose(whole[2:], model(IDS[2:], together=2), atol=1e-4)

    def test_the_temperature_falls_at_the_end(self):
        model = build(get("mixture_of_tokens")(hidden=32, temperature=2.0, cool=0.5))
        assert [model.heat(p) for p in (0.0, 0.5, 0.75, 1.0)] == [2.0, 2.0, 1.0, 0.0]
        assert build(get("mixture_of_tokens")(hidden=32)).heat(1.0) == 1.0

    def test_a_full_group_costs_a_dense_feed_forward_and_the_mixing(self):
        from torch.utils.flop_counter import FlopCounterMode

        model = alive("mixture_of_tokens")
        mixer, x = model.blocks[0].feed_forward, torch.randn(8, 10, 64)
        counts = {}
        for together in (8, 1):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                mixer(x, together, 1.0)
            counts[together] = counter.get_total_flops() / 80
        ahead, mixing = flops(64, 1.0, 0) - 8 * 64 * 64, 6 * 64 * 8
        assert counts[8] == ahead + mixing
        assert 8 * ahead <= counts[1] <= 8 * ahead + mixing  # the mean of one is a product of numbers


class TestDuoLLM:
    def test_who_takes_a_module_is_computed_and_nobody_else(self):
        model, seen = alive("duo_llm"), []
        twins = model.blocks[0].feed_forward
        for module in (twins.small, twins.large):
            module.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
        x, route = torch.randn(2, 5, 64), torch.tensor([[0, 1, 2, 2, 1], [2, 2, 0, 0, 2]])
        with torch.no_grad():
            out = twins(x, route)
            assert seen == [2, 5]
            assert torch.allclose(out, twins(x, torch.nn.functional.one_hot(route, 3).float()), atol=1e-5)
            assert bool((out[route == BYPASS] == 0).all())
            assert torch.allclose(out[0, 1], twins.small(x[0, 1]), atol=1e-5)
            assert torch.allclose(out[0, 2], twins.large(x[0, 2]), atol=1e-5)

    def test_the_oracle_knows_every_route(self):
        tree = prefixes(3, 1)
        level = [()]
        for parent, choice in tree:
            level = [(*level[p], c) for p, c in zip(parent.tolist(), choice.tolist(), strict=True)]
        want = [r for r in product(range(3), repeat=3) if r.count(LARGE) <= 1]
        assert sorted(level) == want
        assert len(prefixes(6, 6)[-1][0]) == 3**6

    @pytest.mark.parametrize("big", [0, 1, 3])
    def test_the_oracle_finds_what_trying_every_route_finds(self, big):
        """The slow way: for each token the whole model with each route, earlier tokens on the routes they took."""
        torch.manual_seed(0)
        model = build(get("duo_llm")(hidden=32, layers=3)).eval()
        with torch.no_grad():
            for part in model.parameters():
                part.mul_(8 if part.ndim > 1 else 1)
        ids = IDS[:2, :5]
        nats, routes = oracle(model, ids, big)
        every = [r for r in product(range(3), repeat=3) if r.count(LARGE) <= big]
        for row in range(2):
            taken = torch.full((3, 1, 5), SMALL)
            for t in range(4):
                lost = []
                for route in every:
                    taken[:, 0, t] = torch.tensor(route)
                    with torch.no_grad():
                        logits = model(ids[row : row + 1], taken)
                    lost.append(-float(logits.log_softmax(-1)[0, t, ids[row, t + 1]]))
                best = min(range(len(every)), key=lost.__getitem__)
                assert float(nats[row, t]) == pytest.approx(lost[best], abs=1e-4)
                assert routes[row, t].tolist() == list(every[best])
                taken[:, 0, t] = torch.tensor(every[best])

    def test_more_large_modules_are_never_worse_for_the_first_byte(self):
        model = alive("duo_llm")
        first = torch.stack([oracle(model, IDS[:, :2], big)[0][:, 0] for big in (0, 1, 6)])
        assert bool((first[1:] <= first[:-1] + 1e-5).all())
        assert bool((first[0] > first[2] + 1e-4).any())

    def test_routers_learn_from_their_own_rows_and_the_model_does_not(self):
        model = alive("duo_llm").train()
        objective = source(get("duo_llm")).objective
        grads = []
        for progress in (0.0, 1.0):
            model.zero_grad()
            torch.manual_seed(1)
            objective(model, Batch(IDS, progress)).backward()
            grads.append({n: p.grad for n, p in model.named_parameters()})
        assert all(g is None for n, g in grads[0].items() if n.startswith("routers."))
        assert all(bool(g.abs().sum() > 0) for n, g in grads[1].items() if n.startswith("routers."))
        assert all(torch.allclose(g, 2 * grads[1][n], atol=1e-5) for n, g in grads[0].items() if g is not None)

    def test_fixed_routes_and_routes_by_lot(self):
        assert fixed(3, IDS, (1,)).flatten(1).unique(dim=1).tolist() == [[SMALL], [LARGE], [SMALL]]
        assert by_lot(6, IDS).flatten().bincount().div(6 * 72).tolist() == pytest.approx([1 / 3] * 3, abs=0.1)

    def test_the_router_takes_its_best(self):
        assert duo_llm(torch.tensor([[3.0, 1, 2], [0, 5, 1], [0, 1, 2]])).tolist() == [BYPASS, SMALL, LARGE]


def test_operations_are_what_the_matrices_cost():
    from torch.utils.flop_counter import FlopCounterMode

    block = Block(96)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block.feed_forward(torch.randn(1, 10, 96))
        block.qkv(torch.randn(1, 10, 96))
        block.out(torch.randn(1, 10, 96))
    assert counter.get_total_flops() == 10 * flops(96, 1.0, 0)
    assert flops(96, 1.0, 10) - flops(96, 1.0, 0) == 4 * 10 * 96  # q.k and p.v, two operations each


def test_the_loss_is_of_the_next_byte():
    model = Small(32, 1)
    with torch.no_grad():
        logits = model(IDS)
        slow = -logits.log_softmax(-1)[:, :-1].gather(-1, IDS[:, 1:, None]).mean()
    assert float(next_byte(logits, IDS)) == pytest.approx(float(slow), rel=1e-5)
