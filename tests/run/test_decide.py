"""The decision alone is the one a session acts on."""

from __future__ import annotations

import pytest
import torch

from models.test_engine import evicting, runs_on, there
from tiny import ids, tiny
from tokenmill.errors import InputError, RecipeError
from tokenmill.run.decide import decide
from tokenmill.run.session import Session


@pytest.mark.parametrize("spec", [*evicting(0.4), "lazy_llm(budget=0.5)", "streaming_llm(slots=9)"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_a_decision_is_what_a_session_keeps(name, spec):
    model, text = tiny(name), ids(1, 45)
    if not there(spec) or not runs_on(spec, model):
        pytest.skip("needs what this model lacks")
    session = Session(model, spec)
    session.read(text)
    for asked in (text, text[0], text[0].tolist()):
        found = decide(model, asked, spec)
        assert found.positions == [layer[0] for layer in session.kept()]
    counts = [len(head) for layer in found.positions for head in layer]
    assert found.share == pytest.approx(sum(counts) / len(counts) / 45)
    assert found.length == 45


@pytest.mark.skipif(not there("token_select(budget=0.4)"), reason="not written yet")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_choosing_anew_at_every_step(name):
    found = decide(tiny(name), ids(1, 45), "token_select(budget=0.4, window=8)")
    assert all(len(head) == 18 for layer in found.positions for head in layer)
    assert all(
        head == sorted(head) and set(head) >= {0, 1, 2, 3, *range(37, 45)}
        for layer in found.positions
        for head in layer
    )


def test_everything_and_refusals():
    model, text = tiny("llama"), ids(1, 12)
    assert decide(model, text, "full").positions == [[list(range(12))] * 2] * 4
    for ask, kind, words in (
        (lambda: decide(model, ids(2, 5), "full"), InputError, "one prompt"),
        (lambda: decide(model, torch.empty(0, dtype=torch.long), "full"), InputError, "empty"),
        (lambda: decide(model, text, "zip_cache"), RecipeError, "does not choose"),
    ):
        with pytest.raises(kind, match=words) as error:
            ask()
        assert "\n" not in str(error.value)
