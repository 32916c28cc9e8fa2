"""A model that costs nothing, for tests of what is around the measuring: same interface as tokenmill.run.session."""

import hashlib
import time
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import nn

from tokenmill.bench import tasks

VOCAB = 97
DELAY = 0.0


class Characters:
    """A tokenizer: one character a token."""

    def __call__(self, text, add_special_tokens=True):
        ids = [3 + (ord(c) - 32) % (VOCAB - 3) for c in text]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}

    def decode(self, ids):
        return "".join("<s>" if i < 3 else chr(32 + i - 3) for i in ids)


class Network(nn.Module):
    """Enough of a model to be asked for its context, weights and device."""

    def __init__(self, context=2048):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(8.0))
        text = SimpleNamespace(max_position_embeddings=context)
        self.config = SimpleNamespace(get_text_config=lambda: text)


class Reading:
    def __init__(self, model, ids, recipes):
        self.model, self.ids = model, ids
        self.decision_seconds = dict.fromkeys(recipes, 0.001)

    def session(self, recipe):
        session = Session(self.model, recipe)
        session.length = self.ids.shape[1]
        return session


class Session:
    """Predicts the truth with a probability that falls with what the recipe throws away."""

    LAYERS, HEADS = 3, 2

    def __init__(self, model, recipe=None):
        self.recipe, self.length = recipe, 0

    @property
    def share(self):
        budgets = [m.knobs["budget"] for m in self.recipe or () if m.knobs.get("budget")]
        return budgets[0] if budgets else 1.0

    @property
    def stats(self):
        held = int(1000 * self.length * self.share)
        return SimpleNamespace(
            cache_bytes=held, peak_cache_bytes=1000 * self.length, token_layers=self.LAYERS * self.length, exit_heads=0
        )

    def engaged(self):
        return nullcontext()

    def read(self, ids, *, all_logits=False):
        time.sleep(DELAY)
        self.length += ids.shape[1]
        new = torch.nn.functional.one_hot((ids.long() * 7 + 3) % VOCAB, VOCAB).float()
        digest = hashlib.sha256(repr(self.recipe).encode()).digest()[0] / 255
        logits = new * (4 * self.share + digest)
        return logits if all_logits else logits[:, -1]

    def kept(self):
        n = max(1, int(self.length * self.share))
        return [[[list(range(n)) for _ in range(self.HEADS)]] for _ in range(self.LAYERS)]


def read_once(model, ids, recipes):
    session = Session(model, None)
    session.read(ids)
    return Reading(model, ids, recipes)


ENGINE = SimpleNamespace(Session=Session, read_once=read_once)


def small_plan(quick=False, own_text=False):
    """A plan of a few hundred characters: three kinds of task, two samples each."""
    return tasks.Plan(
        tasks=(
            *tasks._needles({(160, 1): 2}),
            *tasks._text(96, continuation=(2, 24), drift=(2, 16), own=own_text),
        ),
        speed=tasks.Speed(decode_batch=2, decode_context=64, decode_steps=2, prefill_batch=1, prefill_context=48),
        budgets=(0.5, 0.25),
        picture_tokens=60,
    )


def install(setattr_):
    """Put the fake where compare finds a model: setattr_(object, name, value) is monkeypatch.setattr or setattr."""
    from tokenmill.bench import compare

    setattr_(compare, "_load", lambda model, weights, device: (Network(), Characters()))
    setattr_(compare, "_engine", lambda: ENGINE)
    setattr_(tasks, "plan", small_plan)
