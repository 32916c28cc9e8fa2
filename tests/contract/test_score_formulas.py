"""Each score's formula, worked out the slow way: one number at a time, by loops over rows, heads and tokens."""

import math
from dataclasses import replace

import pytest
import torch

from contract.traces import SHAPES, trace
from tokenmill.method import get
from tokenmill.ops.noise import gumbel

every_shape = pytest.mark.parametrize("shape", SHAPES)


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def length(a):
    return math.sqrt(dot(a, a))


def held(seen, b, k):
    return [t for t, p in enumerate(seen.positions[b, k].tolist()) if p >= 0]


def looks(seen, b, h, q, temperature=1.0, noise=None):
    """slot -> attention of query q of head h; {} for a query that is padding or sees nothing."""
    k = h // seen.groups
    at = int(seen.query_positions[b, q])
    logits = {}
    for t in held(seen, b, k):
        p = int(seen.positions[b, k, t])
        if at >= 0 and p <= at and (seen.window is None or at - p < seen.window):
            extra = 0.0 if noise is None else float(noise[b, k, q, t])
            logits[t] = (seen.scale * dot(seen.queries[b, h, q], seen.keys[b, k, t]) + extra) / temperature
    total = sum(math.exp(x) for x in logits.values())
    return {t: math.exp(x) / total for t, x in logits.items()}


def heads_of(seen, k):
    return range(k * seen.groups, (k + 1) * seen.groups)


def slowly(seen, one):
    """(B, K, T) from one(b, k) -> {slot: score}."""
    out = torch.zeros(seen.positions.shape, dtype=torch.float64)
    for b in range(out.shape[0]):
        for k in range(out.shape[1]):
            for t, value in one(b, k).items():
                out[b, k, t] = value
    return out


def same(got, want, seen, tolerance=1e-9):
    assert torch.allclose(got[seen.filled].double(), want[seen.filled], rtol=tolerance, atol=tolerance)


@every_shape
def test_knorm(shape):
    seen = SHAPES[shape]()
    same(
        get("knorm")(seen), slowly(seen, lambda b, k: {t: -length(seen.keys[b, k, t]) for t in held(seen, b, k)}), seen
    )


@every_shape
def test_keydiff(shape):
    seen = SHAPES[shape]()

    def one(b, k):
        slots, keys = held(seen, b, k), seen.keys[b, k]
        anchor = sum(keys[t] / length(keys[t]) for t in slots) / len(slots)
        return {t: -dot(keys[t], anchor) / length(keys[t]) / length(anchor) for t in slots}

    same(get("keydiff")(seen), slowly(seen, one), seen)


@every_shape
@pytest.mark.parametrize("queries", [1, None])
def test_tova(shape, queries):
    """However many queries are shown, the newest is the one that counts, and all heads decide as one."""
    seen = SHAPES[shape](queries=queries)
    heads, last = seen.queries.shape[1], seen.queries.shape[2] - 1

    def one(b, k):
        total = dict.fromkeys(seen.positions[b].unique().tolist(), 0.0)  # by position: heads may hold different tokens
        for h in range(heads):
            for t, a in looks(seen, b, h, last).items():
                total[int(seen.positions[b, h // seen.groups, t])] += a / heads
        return {t: total[int(seen.positions[b, k, t])] for t in held(seen, b, k)}

    same(get("tova")(seen), slowly(seen, one), seen)


@every_shape
@pytest.mark.parametrize(("window", "kernel"), [(4, 5), (3, 4), (1, 1)])
def test_snapkv(shape, window, kernel):
    seen = SHAPES[shape]()

    def one(b, k):
        slots = held(seen, b, k)
        newest, before = slots[-window:], slots[:-window]
        out = dict.fromkeys(newest, math.inf) | dict.fromkeys(before, 0.0)
        last = max(seen.query_positions[b].tolist())
        voters = [q for q, at in enumerate(seen.query_positions[b].tolist()) if at > last - window and at >= 0]
        for h in heads_of(seen, k):
            summed = dict.fromkeys(before, 0.0)
            for q in voters:
                for t, a in looks(seen, b, h, q).items():
                    if t in summed:
                        summed[t] += a
            for t in before:
                around = range(t - kernel // 2, t + (kernel - 1) // 2 + 1)
                out[t] += max(summed.get(u, 0.0) for u in around) / seen.groups
        return out

    same(get("snapkv")(window=window, kernel=kernel)(seen), slowly(seen, one), seen)


@every_shape
def test_snapkv_is_the_same_when_only_the_window_is_shown(shape):
    all_queries, few = SHAPES[shape](), SHAPES[shape](queries=4)
    m = get("snapkv")(window=4)
    same(m(few), m(all_queries), few)


def accumulated(seen, temperature=1.0, noise=None):
    def one(b, k):
        out = dict.fromkeys(held(seen, b, k), 0.0)
        for h in heads_of(seen, k):
            for q in range(seen.queries.shape[2]):
                for t, a in looks(seen, b, h, q, temperature, noise).items():
                    out[t] += a / seen.groups
        return out

    return slowly(seen, one)


@every_shape
def test_h2o(shape):
    seen = SHAPES[shape]()
    scores, state = get("h2o")(seen, None)
    want = accumulated(seen)
    same(scores, want, seen, 1e-5)
    before = torch.rand(state.shape)
    same(get("h2o")(seen, before)[0], want + before, seen, 1e-5)


@every_shape
def test_vatp(shape):
    seen = SHAPES[shape]()
    want = accumulated(seen) * seen.values.abs().sum(-1).double()
    want[seen.positions < 2] = math.inf
    same(get("vatp")(sinks=2)(seen, None)[0], want, seen, 1e-5)


@every_shape
def test_keyformer(shape):
    seen = SHAPES[shape](generated=30)
    noise = gumbel(seen, 3)
    want = accumulated(seen, 0.8 + 30 * 0.02, noise)
    same(get("keyformer")(temperature=0.8, rise=0.02, seed=3)(seen, None)[0], want, seen, 1e-5)


def test_keyformer_without_noise_and_heat_is_h2o():
    """The paper's own limit: the noise's place and the temperature's place are right."""
    seen = trace((24, 17), kv=3, groups=1)
    quiet = replace(seen, scale=seen.scale * 1e4)  # logits so far apart that noise does not matter
    loud, calm = get("keyformer")(quiet, None)[0], get("h2o")(quiet, None)[0]
    assert torch.allclose(loud, calm, atol=1e-3)


@every_shape
@pytest.mark.parametrize("sinks", [0, 3])
def test_expected_attention(shape, sinks):
    """exp(k m + k S k / 2) by averaging the rotation of every query over every future place."""
    seen, future = SHAPES[shape](), 5

    def turned(x, by):
        return seen.rotary.rotate(x[None], torch.tensor([float(by)], dtype=torch.float64))[0]

    def one(b, k):
        slots = held(seen, b, k)
        out = {t: math.inf for t in slots if seen.positions[b, k, t] < sinks}
        rest = [t for t in slots if t not in out]
        out |= dict.fromkeys(rest, 0.0)
        end = int(seen.positions[b].max()) + 1
        for h in heads_of(seen, k):
            plain = [
                turned(seen.queries[b, h, q], -at)
                for q, at in enumerate(seen.query_positions[b].tolist())
                if at >= max(sinks, 0)
            ] or [torch.zeros(8, dtype=torch.float64)]
            mean = sum(plain) / len(plain)
            spread = sum(torch.outer(q - mean, q - mean) for q in plain) / len(plain)
            rotation = sum(
                torch.stack([turned(e, end + f) for e in torch.eye(8, dtype=torch.float64)]).T for f in range(future)
            ) / float(future)
            mean, spread = rotation @ mean, rotation @ spread @ rotation.T
            keys = {t: seen.keys[b, k, t] * seen.scale for t in rest}
            weight = {t: math.exp(dot(key, mean) + dot(key, spread @ key) / 2) for t, key in keys.items()}
            for t in rest:
                out[t] += weight[t] / sum(weight.values()) * length(seen.values[b, k, t]) / seen.groups
        return out

    same(get("expected_attention")(sinks=sinks, future=future)(seen), slowly(seen, one), seen, 1e-7)


def test_random_tokens_are_spread_evenly_and_differ_by_seed_layer_and_head():
    seen = trace((400,), kv=3, groups=1, queries=1)
    m = get("random_tokens")
    s = m(seen)
    assert abs(float(s.mean()) - 0.5) < 0.03
    assert abs(float(s.std()) - 12**-0.5) < 0.02
    for other in (m(seed=1)(seen), m(replace(seen, layer=2)), s.roll(1, 1), s.roll(1, 2)):
        assert abs(float(torch.corrcoef(torch.stack([s.flatten(), other.flatten()]))[0, 1])) < 0.1
