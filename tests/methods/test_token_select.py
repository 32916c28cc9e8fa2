from dataclasses import replace

import pytest
import torch

from tiny_trace import batch, copied, row, same
from tokenmill.method import parse
from tokenmill.methods.keep import token_select


def _step(held=(24, 24), seed=0, dtype=torch.float32, **more):
    """One token being generated: it is the newest slot and asks the only query."""
    return row(held, queries=1, seed=seed, dtype=dtype, **more)


def _then(trace, turn, seed=9):
    """The next pass: one more token; its query leans towards a random one by `turn`."""
    g = torch.Generator().manual_seed(seed)
    new = torch.randn(2, 1, trace.keys.shape[1], 1, trace.keys.shape[3], generator=g).to(trace.keys.dtype)
    at = trace.query_positions[:, -1:] + 1
    return replace(
        trace,
        keys=torch.cat([trace.keys, new[0].expand(len(at), -1, -1, -1)], 2),
        values=torch.cat([trace.values, new[1].expand(len(at), -1, -1, -1)], 2),
        positions=torch.cat([trace.positions, at[:, None].expand(-1, trace.keys.shape[1], -1)], 2),
        queries=trace.queries[:, :, -1:] * (1 - turn) + turn * torch.randn(trace.queries[:, :, -1:].shape, generator=g),
        query_positions=at,
        seen=trace.seen + 1,
    )


SMALL = token_select(slots=10, sinks=2, window=3)


def test_repr_is_a_spec():
    assert parse(repr(SMALL)) == SMALL
    assert parse("token_select") == token_select


def _by_hand(trace, sinks=2, window=3, slots=10):
    """Slots chosen by votes, one head and one token at a time."""
    t = trace.keys.shape[2]
    free = [*range(sinks, t - window)]
    votes = dict.fromkeys(free, 0.0)
    for h in range(trace.queries.shape[1]):
        query = trace.queries[0, h].double().mean(0)
        logits = torch.stack([query @ trace.keys[0, h // trace.groups, i].double() for i in free]) * trace.scale
        for i, share in zip(free, logits.softmax(0), strict=True):
            votes[i] += float(share)
    best = sorted(free, key=lambda i: -votes[i])[: slots - sinks - window]
    return sorted([*range(sinks), *best, *range(t - window, t)])


@pytest.mark.parametrize("seed", range(3))
def test_sinks_recent_tokens_and_the_most_voted(seed):
    trace = _step(seed=seed)
    kept = copied(trace)
    keep, _ = SMALL(trace, None)
    for head in range(2):
        assert keep.mask[0, head].nonzero().flatten().tolist() == _by_hand(trace)
    assert same(trace, kept)
    assert not keep.renumber


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("held", [1, 2, 5, 24])
@pytest.mark.parametrize("budget", [0.1, 0.5, 1.0])
def test_budgets_are_met_exactly_at_every_length(budget, held, dtype):
    keep, state = token_select(budget=budget)(_step((held, held), dtype=dtype), None)
    assert keep.mask.sum(-1).tolist() == [[max(1, int(budget * held + 1e-9))] * 2]
    assert keep.mask[0, :, held - 1].all()  # the pass's own token
    keep, _ = token_select(budget=budget)(_then(_step((held, held), dtype=dtype), 0.0), state)
    assert keep.mask.sum(-1).tolist() == [[max(1, int(budget * (held + 1) + 1e-9))] * 2]


def test_a_larger_budget_attends_to_a_superset():
    trace = _step()
    small, large = (token_select(slots=n, sinks=2, window=3)(trace, None)[0].mask for n in (8, 13))
    assert (small <= large).all()
    assert small.sum() < large.sum()


def test_a_prompt_attends_to_all_of_itself_and_the_next_token_votes():
    prompt = row((24, 24), queries=24)
    keep, state = SMALL(prompt, None)
    assert keep.mask.all()
    step = _then(replace(prompt, queries=prompt.queries.mean(2, keepdim=True)), 0.0)  # a query like the prompt's mean
    keep, _ = SMALL(step, state)
    assert keep.mask[0, 0].nonzero().flatten().tolist() == _by_hand(step)


def test_a_second_chunk_sees_itself_and_what_it_votes_for():
    trace = row((24, 24), queries=5)
    keep, _ = SMALL(trace, None)
    assert keep.mask[0, :, -5:].all()
    assert keep.mask[0, :, :2].all()
    assert keep.mask.sum(-1).tolist() == [[10, 10]]


def test_a_vote_is_used_again_while_the_query_stays():
    first = _step()
    _keep, state = SMALL(first, None)
    near, far = _then(first, 0.02), _then(first, 0.9)
    again, state_near = SMALL(near, state)
    elected = {*_by_hand(first)} - {0, 1, 21, 22, 23}
    assert {*again.mask[0, 0].nonzero().flatten().tolist()} == {0, 1, 22, 23, 24} | elected
    assert torch.equal(state_near[0], state[0])  # compared with the query that voted, not with the last one
    fresh, _ = SMALL(far, state)
    assert fresh.mask[0, 0].nonzero().flatten().tolist() == _by_hand(far)
    never, _ = token_select(slots=10, sinks=2, window=3, similarity=1.1)(near, state)
    assert never.mask[0, 0].nonzero().flatten().tolist() == _by_hand(near)


def test_state_is_not_written_and_may_be_longer_than_the_text():
    first = _step()
    _, state = SMALL(_then(first, 0.0), None)  # a draft that was taken back
    kept = [x.clone() for x in state]
    keep, _ = SMALL(first, state)
    assert keep.mask.sum(-1).tolist() == [[10, 10]]
    assert all(map(torch.equal, kept, state))


def test_rows_decide_alone():
    rows = [_step(seed=1), _step((13, 13), seed=2), _step((1, 1), seed=3)]
    turns = [0.0, 0.9, 0.5]
    together, state = SMALL(batch(*rows), None)
    following = [_then(r, t, seed=i) for i, (r, t) in enumerate(zip(rows, turns, strict=True))]
    after, _ = SMALL(batch(*following), state)
    for i, (one, two) in enumerate(zip(rows, following, strict=True)):
        alone, own = SMALL(one, None)
        assert torch.equal(together.mask[i, :, : one.keys.shape[2]], alone.mask[0])
        alone, _ = SMALL(two, own)
        assert torch.equal(after.mask[i, :, : two.keys.shape[2]], alone.mask[0])
        assert not after.mask[i, :, two.keys.shape[2] :].any()
