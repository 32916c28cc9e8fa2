"""What claims compare models trained from scratch with: the rivals are what they say they are."""

import torch

from tokenmill.claims.papers import duo_llm, mixture_of_tokens
from tokenmill.claims.papers.mixture_of_tokens import MODELS, Routed, TopOne, operations
from tokenmill.claims.scratch import ROWS
from tokenmill.methods.skip.duo_llm import Duo, fixed
from tokenmill.models.small import next_byte
from tokenmill.run.corpus import Corpus
from tokenmill.types import Batch


def test_a_router_sends_each_token_to_its_first_choice():
    torch.manual_seed(0)
    layer, x = TopOne(32), torch.randn(2, 5, 32)
    with torch.no_grad():
        layer.router.weight.mul_(20)
        out, balance, load = layer(x)
        likely = (x @ layer.router.weight.T).softmax(-1)
        for row in range(2):
            for t in range(5):
                expert = int(likely[row, t].argmax())
                slow = likely[row, t, expert] * layer.experts.one(expert, x[row, t])
                assert torch.allclose(out[row, t], slow, atol=1e-5)
    chosen = likely.argmax(-1).flatten()
    assert load.tolist() == [float((chosen == e).float().mean()) for e in range(8)]
    assert torch.allclose(balance, 8 * (load * likely.mean((0, 1))).sum())
    assert layer(torch.zeros(1, 4, 32))[1].item() == 1  # all experts equally likely


def test_rivals_cost_what_is_said():
    """Counted by torch, without the products of attention."""
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.randint(0, 256, (ROWS, 16), generator=torch.Generator().manual_seed(0))
    context = mixture_of_tokens.LAYERS * 4 * mixture_of_tokens.SIZE * (mixture_of_tokens.LENGTH + 1) / 2
    for name, (make, _, _) in MODELS.items():
        model = make().eval()
        told = {"together": ROWS} if name.startswith("mixture") else {}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(ids, **told)
        here = counter.flop_counts["Global"]
        counted = sum(n for op, n in here.items() if "attention" not in str(op)) / ids.numel()
        assert counted == (operations("dense" if name == "dense" else name) - context), name


def test_every_model_learns_from_its_loss():
    ids = torch.randint(0, 256, (ROWS, 12), generator=torch.Generator().manual_seed(0))
    for make, loss, figures in MODELS.values():
        model = make()
        loss(model, Batch(ids, 0.9)).backward()
        assert all(p.grad is not None for p in model.parameters())
        with torch.no_grad():
            assert all(v == v for v in figures(model.eval(), Batch(ids)).values())
    assert Routed().run(ids)[2].shape == (mixture_of_tokens.LAYERS,)


def test_duo_figures_are_of_the_routes_they_name(monkeypatch):
    torch.manual_seed(0)
    text = Corpus(torch.randint(0, 256, (400,)), torch.randint(0, 256, (100,)))
    for name, value in {"ROWS": 1, "LENGTH": 16, "text": lambda: text, "LAYERS": 3}.items():
        monkeypatch.setattr(duo_llm, name, value)
    model, ids = Duo(1, 3, 32).eval(), torch.randint(0, 256, (2, 8))
    with torch.no_grad():
        for part in model.parameters():
            part.mul_(8 if part.ndim > 1 else 1)
        told = duo_llm.figures(model, ids, 0)
        nats = {name: found[duo_llm.NATS] for name, found in told.items()}
        assert nats["all large"] == float(next_byte(model(ids, fixed(3, ids, (0, 1, 2))), ids))
        assert nats["all small"] == float(next_byte(model(ids, fixed(3, ids, ())), ids))
    assert nats["duo_llm oracle, 3 large"] < nats["duo_llm oracle, 0 large"] < nats["routes by lot"]
    assert told["duo_llm oracle, 0 large"]["large modules a byte"] == 0
    assert told["duo_llm oracle, 1 large"]["large modules a byte"] <= 1
