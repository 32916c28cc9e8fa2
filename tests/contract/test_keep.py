"""Every keep method, over the catalogue, and every score with every keep that spends on one."""

import hashlib
import json
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contract.traces import SHAPES, kept, last_query, row, small, tensors, trace, with_empty_slots
from tokenmill import catalog
from tokenmill.errors import SpecError
from tokenmill.method import get, parse

METHODS = catalog.methods("keep")
SCORES = catalog.methods("score")
EVICTING = [name for name in METHODS if get(name).card.acts == "cache" and "budget" in get(name).defaults]
SPENDING = [name for name in EVICTING if "score" in get(name).defaults]
OTHER = [name for name in METHODS if name not in EVICTING]
# Every budgeted decision there is: each keep that chooses by itself, and each score under each keep that spends.
DECISIONS = [name for name in EVICTING if name not in SPENDING] + [
    f"{keep}(score={small(get(score))!r})" for keep in SPENDING for score in SCORES
]
BUDGETS = (0.01, 0.1, 0.25, 0.5, 0.77, 1.0)
GOLDEN = Path(__file__).parents[1] / "golden" / "keep.json"

every_decision = pytest.mark.parametrize("spec", DECISIONS)
every_shape = pytest.mark.parametrize("shape", SHAPES)


def decide(m, seen):
    """What the engine does when a decision is due, without a model."""
    if m.card.acts == "attend":  # while generating: the prompt attends to all of itself
        return m(last_query(seen), None)[0]
    if m.card.acts == "walk":
        return m(last_query(seen))
    if "score" not in m.knobs:
        return m(seen)
    inner = m.score
    return m(seen, inner(seen, None)[0] if inner.stateful else inner(seen))


def budget_of(seen, budget):
    """The promise, the slow way: a share of what was seen, at least one, at most what the fullest head holds."""
    share = [max(1, int(budget * n + 1e-9)) for n in seen.seen.tolist()]
    return [min(s, int(row.sum(-1).max())) for s, row in zip(share, seen.filled, strict=True)]


@every_decision
@every_shape
@pytest.mark.parametrize("budget", BUDGETS)
def test_budget_is_met_exactly(spec, shape, budget):
    seen, m = SHAPES[shape](), parse(spec)(budget=budget)
    mask = decide(m, seen).mask
    assert mask.shape == seen.positions.shape
    assert mask.dtype == torch.bool
    assert not (mask & ~seen.filled).any()
    held, counts = seen.filled.sum(-1), mask.sum(-1)  # (B, K)
    for i, n in enumerate(budget_of(seen, budget)):
        if m.name == "adaptive":
            assert counts[i].sum() == min(n * len(held[i]), held[i].sum())
        elif m.name != "pyramid":
            assert counts[i].tolist() == [min(n, h) for h in held[i].tolist()]
    assert counts.sum(-1).min() >= 1


@every_decision
@pytest.mark.parametrize("slots", [1, 3, 24, 1000])
def test_slots_are_met_exactly(spec, slots):
    seen = SHAPES["padded"]()
    m = parse(spec)(slots=slots)
    counts, held = decide(m, seen).mask.sum(-1), seen.filled.sum(-1)
    if m.name == "adaptive":
        assert torch.equal(counts.sum(-1), held.clamp(max=slots).sum(-1))
    elif m.name != "pyramid":
        assert torch.equal(counts, held.clamp(max=slots))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("layers", [1, 2, 7])
@pytest.mark.parametrize("budget", BUDGETS)
def test_pyramid_spends_its_mean_over_layers(score, layers, budget):
    m = parse(f"pyramid(score={score})")(budget=budget)
    counts = torch.stack([decide(m, trace((24, 17, 1), layer=i, layers=layers)).mask.sum(-1) for i in range(layers)])
    total = torch.tensor(budget_of(trace((24, 17, 1)), budget))[:, None] * layers
    assert (counts >= 1).all()
    assert (counts.diff(dim=0) <= 0).all()  # fewer with depth
    assert (counts.sum(0) <= total).all()  # never more than the total
    assert (counts.sum(0) > total - layers).all()  # and less than one token a layer under it


@every_decision
@every_shape
def test_a_larger_budget_keeps_a_superset(spec, shape):
    m, seen = parse(spec), SHAPES[shape]()
    if m.card.nested:
        pytest.skip(m.card.nested)
    smaller = torch.zeros_like(seen.filled)
    for budget in (i / 24 for i in range(1, 25)):
        mask = decide(m(budget=budget), seen).mask
        assert not (smaller & ~mask).any(), f"what {budget:.3f} drops and a smaller budget kept"
        smaller = mask
    if shape != "sliding":  # there a share of 1 is the window, and older tokens are still held
        assert torch.equal(smaller, seen.filled)


@every_decision
@pytest.mark.parametrize("shape", ["padded", "ragged", "sliding"])
def test_a_row_does_not_see_the_batch(spec, shape):
    m, seen = parse(spec)(budget=0.4), SHAPES[shape]()
    together = kept(decide(m, seen), seen)
    for i in range(len(together)):
        alone = row(seen, i)
        assert kept(decide(m, alone), alone)[0] == together[i]


@every_decision
def test_empty_slots_change_nothing(spec):
    m, seen = parse(spec)(budget=0.4), SHAPES["ragged"]()
    wider = with_empty_slots(seen, 5)
    assert kept(decide(m, wider), wider) == kept(decide(m, seen), seen)


@pytest.mark.parametrize(
    "spec", [f"{d}(budget=0.4)" if "(" not in d else f"{d[:-1]}, budget=0.4)" for d in DECISIONS] + OTHER
)
@every_shape
def test_pure_and_repeatable(spec, shape):
    m, seen = parse(spec), SHAPES[shape]()
    m = m(budget=0.4) if "budget" in m.defaults else m
    before, first = tensors(seen), decide(m, seen).mask
    torch.manual_seed(5)
    assert torch.equal(first, decide(m, seen).mask)
    assert all(torch.equal(x, getattr(seen, field)) for field, x in before.items())


@every_decision
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(spec, dtype):
    seen = trace((24, 17), dtype=dtype)
    counts = decide(parse(spec)(slots=5), seen).mask.sum((-1, -2))
    if parse(spec).name != "pyramid":
        assert counts.tolist() == [10, 10]


@pytest.mark.parametrize("name", EVICTING)
def test_spec_round_trip(name):
    m = get(name)
    for changed in (m, m(budget=0.25), m(slots=7), *(m(score=s, budget=0.5) for s in SCORES if name in SPENDING)):
        assert parse(repr(changed)) == changed
    inner = m(score="snapkv(window=3)", budget=0.5) if name in SPENDING else m(budget=1)
    assert parse(repr(inner)) == inner


@pytest.mark.parametrize("name", METHODS)
def test_mistakes_are_answered_with_what_exists(name):
    with pytest.raises(SpecError, match=f"did you mean {name}"):
        parse(name + "x")
    with pytest.raises(SpecError, match=r"has no knob 'zzz'; (there is|did you mean)"):
        parse(f"{name}(zzz=1)")


@pytest.mark.parametrize("name", EVICTING)
def test_a_budget_must_be_said(name):
    with pytest.raises(SpecError, match=r"budget=0\.25 or slots=512"):
        decide(get(name), trace((8,)))
    for wrong in ("budget=0", "budget=2", "slots=0", "budget='half'", "budget=0.5, slots=3"):
        with pytest.raises(SpecError):
            parse(f"{name}({wrong})")


@pytest.mark.parametrize("name", SPENDING)
def test_a_score_that_is_no_method_is_refused(name):
    with pytest.raises(SpecError, match="did you mean snapkv"):
        parse(f"{name}(score=snapk, budget=0.5)")
    with pytest.raises(SpecError, match="takes a method"):
        parse(f"{name}(score=3, budget=0.5)")


# ---- fingerprints: what each method keeps on one trace, read as a diff when it changes ----


def fingerprints():
    """spec -> [row][head] -> positions kept, on two rows of one seeded float64 trace in the second of four layers."""
    seen = trace((40, 29), held=((40, 31), (29, 29)), seed=7, generated=3)
    specs = {name: small(get(name)) for name in METHODS}
    specs = {name: m(budget=0.3) if "budget" in m.defaults else m for name, m in specs.items()}
    specs |= {f"top(score={name})": get("top")(score=small(get(name)), budget=0.3) for name in SCORES}
    specs |= {name: m(score=small(m.score)) for name, m in specs.items() if name in SPENDING and name != "top"}
    del specs["top"]  # top(score=...) says it for every score
    return {spec: kept(decide(m, seen), seen) for spec, m in specs.items()}


@pytest.fixture(scope="module")
def found():
    return fingerprints()


def test_fingerprints_are_those_reviewed(found):
    if os.environ.get("UPDATE_GOLDEN"):
        lines = ",\n".join(f"  {json.dumps(spec)}: {json.dumps(value)}" for spec, value in sorted(found.items()))
        GOLDEN.write_text(f"{{\n{lines}\n}}\n")
    reviewed = json.loads(GOLDEN.read_text())
    assert sorted(found) == sorted(reviewed), "new or missing methods: UPDATE_GOLDEN=1 pytest, then review the diff"
    changed = [spec for spec in found if found[spec] != reviewed[spec]]
    assert not changed, f"{changed} keep other tokens than reviewed: UPDATE_GOLDEN=1 pytest, then review the diff"


def test_no_two_methods_are_one(found):
    alike = defaultdict(list)
    for spec, value in found.items():
        alike[hashlib.sha256(json.dumps(value).encode()).hexdigest()].append(spec)
    for specs in alike.values():
        first, *others = (parse(spec) for spec in specs)
        first, *others = (m.knobs.get("score", m) if m.name == "top" else m for m in (first, *others))
        for m in others:
            assert first.name in (m.card.same_as, m.name) or m.name == first.card.same_as, f"{specs} keep the same"


# ---- what single methods promise beyond the contract ----


def test_streaming_llm_keeps_sinks_and_the_newest():
    seen = trace((24, 17))
    keep = get("streaming_llm")(sinks=2, slots=5)(seen)
    assert keep.renumber
    assert not get("streaming_llm")(renumber=False, slots=5)(seen).renumber
    assert kept(keep, seen) == [[[0, 1, 21, 22, 23]] * 2, [[0, 1, 14, 15, 16]] * 2]
    assert kept(get("streaming_llm")(sinks=4, slots=3)(seen), seen)[0][0] == [0, 1, 23]


def test_heavy_hitters_share_with_the_newest():
    seen = trace((24,), kv=1)
    scores = torch.arange(24.0).flip(0)[None, None]  # the older the heavier
    positions = lambda m: kept(m(seen, scores), seen)[0][0]
    assert positions(get("top")(score="h2o", slots=6)) == [0, 1, 2, 21, 22, 23]
    assert positions(get("top")(score="h2o(recent=0.2)", slots=5)) == [0, 1, 2, 3, 23]
    assert positions(get("top")(score="h2o(recent=0)", slots=3)) == [0, 1, 2]
    assert positions(get("top")(score="knorm", slots=3)) == [0, 1, 2]


def test_adaptive_gives_heads_what_their_scores_earn():
    seen = trace((20,), kv=2, groups=1)
    scores = torch.stack([torch.arange(20.0), torch.arange(20.0) + 100])[None]
    counts = lambda **knobs: get("adaptive")(score="knorm", slots=10, **knobs)(seen, scores).mask.sum(-1)[0].tolist()
    assert counts(safeguard=0.0) == [0, 20]
    assert counts() == [2, 18]
    assert counts(safeguard=1.0) == [10, 10]
    # What the score itself makes sure of comes first; the safeguard is a share of the rest.
    scores[..., -4:] = torch.inf
    assert counts() == [4 + 1, 15]


def test_adaptive_ties_go_to_the_newest_of_all_heads():
    seen = trace((6,), kv=2, groups=1)
    mask = get("adaptive")(score="knorm", slots=2, safeguard=0.0)(seen, torch.zeros(1, 2, 6)).mask
    assert mask.sum(-1).tolist() == [[2, 2]]


def test_pyramid_is_the_authors_line():
    """b = 10 - 1 of 100 tokens, 5 layers: highest 2b - b/20, lowest b/20, and one token besides."""
    seen = trace((100,), kv=1, groups=1, queries=1)
    scores, steep = -seen.keys.norm(dim=-1), get("pyramid")(score="knorm", slots=10)
    counts = [int(steep(replace(seen, layer=i, layers=5), scores).mask.sum()) for i in range(5)]
    assert counts == [1 + int(17.55 - (17.55 - 0.45) * i / 4) for i in range(5)]
    flat = get("pyramid")(score="knorm", steepness=1.0, slots=10)
    assert flat(replace(seen, layer=4, layers=5), scores).mask.sum() == 10


@pytest.mark.parametrize("keep", SPENDING)
def test_a_score_is_a_score(keep):
    for name in ("full", "recent_window", "token_recycling", "greedy", "zip_cache"):
        with pytest.raises(SpecError, match=f"{keep}: score takes a score such as snapkv, not {name}") as error:
            parse(f"{keep}(score={name}, budget=0.5)")
        assert "\n" not in str(error.value)
