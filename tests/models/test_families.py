"""Every causal language model class of the installed transformers: right under the engine, or refused in one line."""

import re
from pathlib import Path

import pytest
import torch
import transformers

import families
import tokenmill as tm
from tokenmill.errors import ModelError, RecipeError

TABLE = Path(__file__).parents[2] / "docs" / "families.md"
PROMPT, FURTHER = 24, 16


def _ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, families.VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def _read(model, prompt, further, **given):
    """Logits of the last prompt token and of each further one: (B, 1 + further, V)."""
    mask = given.get("attention_mask")
    out = model(prompt, use_cache=True, **given)
    logits = [out.logits[:, -1:]]
    for token in further.split(1, 1):
        if mask is not None:
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            given = {"attention_mask": mask}
        out = model(token, past_key_values=out.past_key_values, use_cache=True, **given)
        logits.append(out.logits)
    return torch.cat(logits, 1)


def _apart(one, other):
    return float((one - other).abs().max() / other.std())


def _under(model, recipe, *read, **given):
    with tm.applied(model, recipe):
        return _read(model, *read, **given)


def outcome(name: str) -> tuple[str, str]:
    """("right" | "refused" | "not constructible", why); asserts what right means."""
    try:
        model = families.tiny(name)
        before = model(_ids(1, PROMPT)).logits
    except families.NotConstructible as error:
        return "not constructible", str(error)
    except Exception as error:
        return "not constructible", f"its own forward fails: {type(error).__name__}: {error}"
    state = _state(model)
    try:
        with tm.applied(model, None) as engine:
            decoder = engine.decoder
    except ModelError as error:
        _restored(model, before, state)
        return "refused", str(error)
    prompt, further = _ids(1, PROMPT), _ids(1, FURTHER, 1)
    library = _read(model, prompt, further)
    assert _apart(_under(model, None, prompt, further), library) < 1e-3, "differs from the library"
    movable = None not in decoder.rotaries
    streaming = "streaming_llm({})" if movable else "streaming_llm(renumber=False, {})"
    for spec in ("h2o(budget=1.0)", "snapkv(window=4, budget=1.0)", streaming.format("budget=1.0")):
        assert _apart(_under(model, spec, prompt, further), library) < 1e-3, f"{spec} differs from the library"
    if not movable:
        with pytest.raises(RecipeError, match="rotary"), tm.applied(model, "streaming_llm(budget=0.5)"):
            pass
    padding = torch.zeros(1, 10, dtype=torch.long)
    short, both = _ids(1, PROMPT - 10, 2), _ids(2, FURTHER, 3)
    batch = torch.cat([prompt, torch.cat([padding, short], 1)])
    mask = torch.ones_like(batch)
    mask[1, :10] = 0
    for spec in ("h2o(budget=0.3)", streaming.format("budget=0.3"), "adaptive(budget=0.3)"):
        together = _under(model, spec, batch, both, attention_mask=mask)
        alone = torch.cat([_under(model, spec, prompt, both[:1]), _under(model, spec, short, both[1:])])
        assert _apart(together, alone) < 1e-3, f"{spec} differs in a padded batch"
    _restored(model, before, state)
    kinds = {type(r).__name__ if r is not None else "None" for r in decoder.rotaries}
    return "right", "learned positions" if decoder.learned_positions else " and ".join(sorted(kinds))


def _state(model):
    return {
        name: (dict(vars(module)), getattr(getattr(module, "config", None), "_attn_implementation_internal", None))
        for name, module in model.named_modules()
    }


def _restored(model, before, state):
    """The model is what it was: its logits to the last bit, its modules' attributes, its configurations."""
    assert torch.equal(model(_ids(1, PROMPT)).logits, before)
    for name, (attributes, implementation) in _state(model).items():
        assert attributes.keys() == state[name][0].keys(), name
        assert implementation == state[name][1], name


def recorded() -> tuple[str, dict[str, str]]:
    """The version of transformers that the table is of, and the status of each class."""
    text = TABLE.read_text()
    version = re.search(r"transformers (\d+\.\d+\.\d+)", text)
    assert version is not None
    return version[1], dict(re.findall(r"^\| `(\w+)` \| (right|refused|not constructible) \|", text, re.M))


@torch.no_grad()
@pytest.mark.parametrize("name", families.CLASSES)
def test_every_class_is_right_or_refused_or_cannot_be_made(name):
    status, why = outcome(name)
    assert status != "refused" or "\n" not in why
    version, table = recorded()
    if version == transformers.__version__:
        assert table[name] == status, why
    elif table.get(name) == "right":
        assert status == "right", why  # a release of the library may not take a family away in silence


def test_the_table_lists_every_class_once():
    version, table = recorded()
    if version != transformers.__version__:
        pytest.skip(f"the table is of transformers {version}")
    assert sorted(table) == families.CLASSES
