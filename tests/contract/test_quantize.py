"""What every quantize method promises, and what each of them computes."""

import pytest
import torch

from tiny_trace import batch, copied, row, same
from tokenmill import catalog
from tokenmill.errors import SpecError
from tokenmill.method import get, parse
from tokenmill.methods.quantize import zip_cache
from tokenmill.methods.quantize.zip_cache import _probing
from tokenmill.types import Bits

METHODS = catalog.methods("quantize")


def _shares_a_prefix(bits: Bits, other: Bits, at: int, slots: int) -> bool:
    return (
        torch.equal(bits.keys[at, :, :slots], other.keys[0, :, :slots])
        and torch.equal(bits.values[at, :, :slots], other.values[0, :, :slots])
        and (bits.value_channels is None or torch.allclose(bits.value_channels[at], other.value_channels[0]))
    )


@pytest.mark.parametrize("name", METHODS)
class TestEvery:
    def test_repr_is_a_spec(self, name):
        assert parse(repr(get(name))) == get(name)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("held", [(1, 1), (2, 2), (2, 1), (20, 13)])
    def test_widths_of_every_token_and_nothing_written(self, name, held, dtype):
        trace = row(held, queries=min(held), dtype=dtype)
        kept = copied(trace)
        bits = get(name)(trace)
        assert bits.keys.shape == bits.values.shape == trace.positions.shape
        for widths in (bits.keys, bits.values):
            assert {*widths.unique().tolist()} <= {1, 2, 4, 8, 16}
        for channels in (bits.key_channels, bits.value_channels):
            if channels is not None:
                assert channels.shape == (1, 2, 1, 8)
                assert (channels > 0).all()
                assert torch.isfinite(channels).all()
        assert same(trace, kept)
        assert torch.equal(get(name)(trace).keys, bits.keys)

    def test_a_row_does_not_depend_on_its_batch_or_padding(self, name):
        rows = row((20, 13), queries=12, seed=1), row((7, 9), queries=5, seed=2), row((1, 1), queries=1, seed=3)
        together = get(name)(batch(*rows))
        for i, alone in enumerate(rows):
            assert _shares_a_prefix(together, get(name)(alone), i, alone.keys.shape[2])


def _salience(trace, probes):
    """Attention each token receives from these queries over how many of them see it; query by query, token by token."""
    b, k, t, _ = trace.keys.shape
    out = torch.zeros(b, k, t, dtype=torch.float64)
    for head in range(k):
        total, seeing = torch.zeros(t, dtype=torch.float64), torch.zeros(t)
        for q in probes:
            at = int(trace.query_positions[0, q])
            sees = [i for i in range(t) if 0 <= int(trace.positions[0, head, i]) <= at]
            for h in range(head * trace.groups, (head + 1) * trace.groups):
                logits = (trace.keys[0, head, sees] @ trace.queries[0, h, q]) * trace.scale
                total[sees] += logits.double().softmax(0)
            seeing[sees] += 1
        out[0, head] = total / seeing.clamp(min=1)
    return out


class TestZipCache:
    def test_the_most_looked_at_tokens_get_the_bits(self):
        trace = row((20, 20), queries=20, seed=4)
        bits = zip_cache(bits=8, low=2, share=0.25, probes=1.0)(trace)  # all queries probe
        expected = _salience(trace, range(20)).topk(5, dim=-1).indices
        for head in range(2):
            assert {*(bits.keys[0, head] == 8).nonzero().flatten().tolist()} == {*expected[0, head].tolist()}
        assert torch.equal(bits.keys, bits.values)
        assert bits.per_channel_keys

    def test_a_token_that_few_could_look_at_yet_is_not_held_back(self):
        trace = row((20, 20), queries=20)
        trace.keys.zero_()
        trace.queries.zero_()
        trace.keys[:, :, 19, 0] = trace.queries[:, :, 19, 0] = 9.0
        # The first token is sent 1 + 1/2 + ... + 1/19 = 3.5 in all and 0.18 by a query; the newest token 1 by its own.
        assert (zip_cache(share=0.05, probes=1.0)(trace).keys[0] == 4).nonzero()[:, 1].tolist() == [19, 19]

    @pytest.mark.parametrize(
        ("share", "held", "high"), [(0.6, 10, 6), (0.6, 11, 7), (0.1, 10, 1), (1.0, 9, 9), (0.6, 1, 1)]
    )
    def test_share_is_met_exactly(self, share, held, high):
        bits = zip_cache(share=share)(row((held, held), queries=1))
        assert (bits.keys == 4).sum(-1).tolist() == [[high, high]]

    def test_half_of_the_probes_are_the_newest_and_half_are_drawn(self):
        trace = row((40, 40), queries=40, seed=5)
        drawn = set()
        for seed in range(20):
            at = _probing(trace, 0.2, seed).query_positions[0].tolist()
            assert len(at) == len({*at}) == 8
            assert {36, 37, 38, 39} <= {*at}
            drawn |= {*at}
        assert len(drawn) > 30

    def test_rows_with_fewer_queries_probe_with_fewer(self):
        rows = row((20, 20), queries=20, seed=1), row((9, 9), queries=5, seed=2), row((1, 1), queries=1, seed=3)
        for seed in range(10):
            m = zip_cache(probes=0.8, seed=seed)
            together = m(batch(*rows))
            for i, alone in enumerate(rows):
                assert _shares_a_prefix(together, m(alone), i, alone.keys.shape[2])

    def test_values_are_divided_by_the_root_of_their_channel(self):
        trace = row((9, 9), queries=2)
        trace.values[0, 0, :, 3] = 0
        channels = zip_cache(trace).value_channels
        assert channels[0, 0, 0, 3] == 1
        assert torch.allclose(channels[0, 1, 0], trace.values[0, 1].abs().max(0).values ** 0.5)

    def test_a_width_that_cannot_be_stored_is_refused(self):
        with pytest.raises(SpecError, match="zip_cache: 3 bits cannot be stored"):
            zip_cache(low=3)(row())
