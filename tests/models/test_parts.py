"""Tokens in other forms: what is read back, what moves when tokens and rows leave, what it costs."""

from __future__ import annotations

import pytest
import torch

from tiny import ids, tiny
from tokenmill.method import parse, recipe
from tokenmill.models.cache import MillCache, Store
from tokenmill.models.lanes import Lanes, compact
from tokenmill.models.parts import Packed, Shared
from tokenmill.run.session import Session
from tokenmill.types import Bits, Merge

B, K, T, D = 3, 2, 21, 16


def view(seed=0, dtype=torch.float32, ragged=True):
    g = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, B, K, T, D, generator=g).to(dtype)
    keys = keys * (torch.arange(D) + 1) + 50 * (torch.arange(D) % 3 == 0)  # channels far from zero, as keys have
    counts = torch.randint(1, T + 1, (B, K), generator=g) if ragged else torch.full((B, K), T)
    positions = torch.arange(T, dtype=torch.int32).expand(B, K, T).clone()
    empty = torch.arange(T) >= counts[..., None]
    positions[empty] = -1
    return keys.masked_fill(empty[..., None], 0).to(dtype), values.masked_fill(empty[..., None], 0), positions


def bits(seed=0, by_channel=False, channels=False, widths=(1, 2, 4, 8, 16), values=None):
    g = torch.Generator().manual_seed(seed + 50)
    keys, vals = torch.tensor(widths)[torch.randint(len(widths), (2, B, K, T), generator=g)]
    scale = torch.rand(2, B, K, 1, D, generator=g) + 0.5
    return Bits(keys, vals, scale[0] if channels else None, scale[1] if channels else None, by_channel)


def step(x, positions, width, bits, channels, by_channel):
    """Half a step of the grid each number lies on: from the extremes of the tokens of its width."""
    scaled = x if channels is None else x / channels
    out = torch.zeros_like(x)
    for w in (1, 2, 4, 8):
        mine = ((bits == w) & (positions >= 0))[..., None]
        if by_channel:
            most = scaled.masked_fill(~mine, float("-inf")).amax(2, keepdim=True)
            least = scaled.masked_fill(~mine, float("inf")).amin(2, keepdim=True)
        else:
            most, least = scaled.amax(-1, keepdim=True), scaled.amin(-1, keepdim=True)
        half = (most - least) / (2**w - 1) / 2
        out = torch.where(mine, half if channels is None else half * channels, out)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("by_channel", [False, True])
def test_what_is_read_back_is_within_half_a_step(by_channel, channels, dtype):
    held = view(dtype=dtype)
    wanted = bits(by_channel=by_channel, channels=channels)
    part = Packed.of(held, wanted)
    keys, values, positions = part.view()
    assert torch.equal(positions, held[2])
    assert keys.dtype == held[0].dtype
    for got, x, width, scale, along in (
        (keys, held[0], wanted.keys, wanted.key_channels, by_channel),
        (values, held[1], wanted.values, wanted.value_channels, False),
    ):
        most = step(x.double(), positions, None, width, None if scale is None else scale.double(), along)
        slack = torch.finfo(dtype).eps * 4 * (x.abs().amax().double() + 1)
        assert ((got.double() - x.double()).abs() <= most * 1.01 + slack).all()
        kept = (width == 16) & (positions >= 0)
        assert torch.equal(got[kept], x[kept]), "16 bits: as it is"
    assert (keys[positions < 0] == 0).all()


@pytest.mark.parametrize("by_channel", [False, True])
def test_slots_and_rows_move_with_their_codes(by_channel):
    held = view()
    part = Packed.of(held, bits(by_channel=by_channel, channels=True))
    mask = torch.rand(B, K, T, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[0, 1] = False  # a head may lose all
    whole, filled = part.view(), held[2] >= 0
    left = part.keep(mask)
    for got, x, fill in zip(left.view(), whole, (0, 0, -1), strict=True):
        assert torch.equal(got, compact(x, mask & filled, fill))
    index = torch.tensor([2, 0, 0, 1])
    for got, x in zip(left.select_rows(index).view(), left.view(), strict=True):
        assert torch.equal(got, x[index])
    for got, x in zip(left.select_rows(index).keep(left.view()[2][index] % 2 == 0).view(), left.view(), strict=True):
        assert got.shape[2] <= x.shape[2]


def real_bytes(*objects) -> int:
    """Bytes of the distinct storages that objects hold on to, whatever they say."""
    found, todo, done = {}, list(objects), set()
    while todo:
        x = todo.pop()
        if id(x) in done:
            continue
        done.add(id(x))
        if isinstance(x, torch.Tensor):
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        elif isinstance(x, dict):
            todo += x.values()
        elif isinstance(x, list | tuple):
            todo += x
        elif isinstance(x, MillCache | Store | Lanes | Packed | Shared) or type(x).__name__ == "Coded":
            todo += vars(x).values()
    return sum(found.values())


@pytest.mark.parametrize(("widths", "share"), [((2,), 0.17), ((4,), 0.24), ((2, 4), 0.24), ((8,), 0.36)])
def test_packing_frees_memory(widths, share):
    keys, values = torch.randn(2, 1, 2, 400, 64)
    held = keys, values, torch.arange(400, dtype=torch.int32).expand(1, 2, 400)
    g = torch.Generator().manual_seed(0)
    width = torch.tensor(widths)[torch.randint(len(widths), (1, 2, 400), generator=g)]
    part = Packed.of(held, Bits(width, width, per_channel_keys=True, value_channels=torch.ones(1, 2, 1, 64)))
    assert part.nbytes == real_bytes(part)
    assert part.nbytes <= share * (keys.nbytes + values.nbytes)


def pair():
    lower, upper = view(0), view(1)
    upper = upper[0], upper[1], lower[2]
    g = torch.Generator().manual_seed(2)
    key, value = torch.nn.functional.normalize(torch.randn(2, B, K, T, D, generator=g), dim=-1)
    norms = torch.rand(2, 2, B, K, T, generator=g)
    apart = torch.rand(B, K, T, generator=g) < 0.3
    return lower, upper, Merge(key, value, norms[0], norms[1], apart)


def test_a_shared_pair():
    lower, upper, merge = pair()
    parts = Shared.pair(lower, upper, merge)
    filled = lower[2] >= 0
    for i, (part, own) in enumerate(zip(parts, (lower, upper), strict=True)):
        keys, values, positions = part.view()
        assert torch.equal(positions, lower[2])
        apart = merge.apart & filled
        assert torch.equal(keys[apart], own[0][apart])
        assert torch.equal(values[apart], own[1][apart])
        joined = ~merge.apart & filled
        assert torch.equal(keys[joined], (merge.key_direction * merge.key_norms[i][..., None])[joined])
        assert torch.equal(values[joined], (merge.value_direction * merge.value_norms[i][..., None])[joined])
        assert (keys[~filled] == 0).all()
        index = torch.tensor([2, 0, 0])
        for got, x in zip(part.select_rows(index).view(), part.view(), strict=True):
            assert torch.equal(got, x[index])
    assert sum(part.nbytes for part in parts) == real_bytes(parts)


def test_a_pair_is_still_shared_after_reordering():
    session = Session(tiny("llama"), "mini_cache")
    session.read(ids(3, 40))
    session.cache.reorder_cache(torch.tensor([1, 1, 2]))
    assert real_bytes(session.cache.stores) <= session.cache.nbytes + 2048


SPECS = [
    "zip_cache",
    "h2o(budget=0.4) + zip_cache",
    "adaptive(score=snapkv(window=8), budget=0.4) + zip_cache",
    "mini_cache",
]


@pytest.mark.parametrize("spec", SPECS)
def test_new_tokens_attend_to_what_is_read_back(spec):
    """After packing, the next logits are those of an untouched cache that holds what the parts read back."""
    model = tiny("llama")
    session = Session(model, spec)
    session.read(ids(2, 50))
    plain = session.fork()
    plain.recipe = session.recipe
    for store in plain.cache.stores:
        keys, values, positions = store.view()
        store.parts, store.lanes, store.state = [], Lanes(), store.state
        lanes = store.lanes
        # One lane at a time is not offered; all tokens first, then those that are not there leave.
        lanes.append(keys, values, torch.zeros(keys.shape[0], keys.shape[2], dtype=torch.long))
        lanes.positions.view(lanes.rows, lanes.heads, lanes.room)[:, :, : lanes.n] = positions
        lanes.keep(positions >= 0)
    packed = [session.read(ids(2, 3, 7)[:, i : i + 1]) for i in range(3)]
    read_back = [plain.read(ids(2, 3, 7)[:, i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.stack(packed), torch.stack(read_back), atol=1e-4, rtol=0)
    assert session.kept() == plain.kept()


@pytest.mark.parametrize("spec", SPECS[1:3])
def test_the_state_of_a_score_stays_with_its_tokens(spec):
    """Eviction with packing keeps what eviction without packing keeps, when 16 bits lose nothing."""
    spec = spec.replace("zip_cache", "zip_cache(bits=16, low=16)")
    model, sizes = tiny("llama"), (40, *[1] * 104, 5, 1)
    alone, packed = Session(model, recipe(spec).methods[0]), Session(model, spec)
    text = ids(2, sum(sizes), 3)
    for piece in text.split(list(sizes), 1):
        torch.testing.assert_close(alone.read(piece), packed.read(piece), atol=1e-4, rtol=0)
        assert alone.kept() == packed.kept()
    assert any(store.parts for store in packed.cache.stores)


def test_everything_evicted_before_it_is_packed():
    """A score that keeps none of the newest tokens leaves nothing to pack."""
    session = Session(tiny("llama"), "knorm(slots=4) + zip_cache")
    for piece in ids(1, 60 + 40 + 140).split([60, 40, *[1] * 140], 1):
        session.read(piece)
    assert all(len(head) <= 4 + 64 for layer in session.kept() for head in layer[0])
    assert parse("zip_cache").card.every == 100
