"""Probes on tiny models: what they report is what the library's own layers give, and the model is left as it was."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from tiny import ARCHITECTURES, ids, tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill import catalog
from tokenmill.cli import app
from tokenmill.errors import InputError, SpecError
from tokenmill.method import get, parse
from tokenmill.models.architectures import decoder_of
from tokenmill.run.probe import inquiry, probe

TEXTS = [ids(1, 20, seed)[0] for seed in range(2)]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", catalog.methods("probe"))
def test_every_probe_on_every_architecture(method, name):
    model = tiny(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    attention = model.config._attn_implementation
    one, again = (probe(model, None, TEXTS, method) for _ in range(2))
    assert one == again
    assert len(one.texts) == 2
    assert all(len(row) == len(one.columns) for row in one.rows)
    json.dumps(one.as_dict(), allow_nan=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert (model.config._attn_implementation, "forward" in decoder_of(model).base.__dict__) == (attention, False)
    assert parse(repr(get(method))) == get(method)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_layer_drop_against_a_model_built_without_the_layer(name):
    model = tiny(name)
    found = {(row[0], row[1]): row[2:] for row in probe(model, None, TEXTS[:1], "layer_drop").rows}
    holder, attribute = (model.model, "layers") if name == "llama" else (model.transformer, "h")
    layers, text = getattr(holder, attribute), TEXTS[0]

    def rebuilt(order):
        setattr(holder, attribute, torch.nn.ModuleList(layers[i] for i in order))
        count, model.config.num_hidden_layers = model.config.num_hidden_layers, len(order)
        try:
            with torch.no_grad():
                return model(text[None], use_cache=False).logits[0].log_softmax(-1)
        finally:
            setattr(holder, attribute, layers)
            model.config.num_hidden_layers = count

    p = rebuilt((0, 1, 2, 3))
    orders = {
        **{("delete", i): tuple(j for j in range(4) if j != i) for i in range(4)},
        ("swap", 0): (1, 0, 2, 3), ("swap", 1): (0, 2, 1, 3), ("swap", 2): (0, 1, 3, 2),
        **{("lens", i): tuple(range(i + 1)) for i in range(4)},
    }  # fmt: skip
    assert {*orders} | {("untouched", -1)} == {*found}
    for what, order in orders.items():
        q = rebuilt(order)
        agreement = (p.argmax(-1) == q.argmax(-1)).float().mean()
        kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
        nats = torch.nn.functional.nll_loss(q[:-1], text[1:])
        torch.testing.assert_close(torch.tensor(found[what]), torch.stack([agreement, kl, nats]), atol=1e-4, rtol=1e-4)


def test_fs_gen_counts_where_the_two_differ():
    model = tiny("llama")
    found = probe(model, None, TEXTS[:1], "fs_gen", second=tiny("llama"))
    rows = {row[0]: row for row in found.rows}
    assert rows["second model"][1] == 0  # it is the same model
    lens = list(inquiry(model).lens(TEXTS[0]))
    with torch.no_grad():
        large = model(TEXTS[0][None]).logits[0].argmax(-1)
    differs = lens[1].argmax(-1) != large
    entropy = torch.distributions.Categorical(logits=lens[1]).entropy()
    pairs = [float(a > b) for a in entropy[differs] for b in entropy[~differs]]
    assert rows["2 of 4 layers"][1] == pytest.approx(float(differs.float().mean()))
    assert rows["2 of 4 layers"][2] == pytest.approx(sum(pairs) / len(pairs) if pairs else 0.5)


def test_what_cannot_be_probed_is_told():
    with pytest.raises(SpecError, match="is no probe"):
        probe(tiny(), None, TEXTS, "h2o")
    with pytest.raises(InputError, match="at least two tokens"):
        probe(tiny(), None, [[3]])
    with pytest.raises(InputError, match="at least one"):
        probe(tiny(), None, [])


def test_the_command_writes_what_it_found(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(" ".join(f"w{i}" for i in range(5, 65)))
    made = tmp_path / "found.json"
    line = ["probe", "layer_drop", "--model", str(tmp_path / "model"), "--input", str(tmp_path / "text.txt")]
    out = CliRunner().invoke(app, [*line, "--tokens", "20", "--texts", "2", "--out", str(made)])
    assert out.exit_code == 0, out.output
    found = json.loads(made.read_text())
    assert [row[:2] for row in found["rows"]][:2] == [["untouched", -1], ["delete", 0]]
    assert (found["tokens"], len(found["texts"])) == (40, 2)
    assert "agreement, delete, middle" in found["figures"]
    assert "delete" in out.output


def test_the_command_refuses_what_is_no_probe():
    out = CliRunner().invoke(app, ["probe", "h2o"])
    assert out.exit_code == 2
