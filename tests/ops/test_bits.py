import pytest
import torch

from tokenmill.ops.bits import WIDTHS, dequantize, pack, quantize, unpack


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("size", [1, 3, 8, 13, 64])
def test_packed_codes_come_back_and_take_the_bytes_they_should(bits, size):
    codes = torch.randint(0, 2**bits, (2, 3, size), generator=torch.Generator().manual_seed(size), dtype=torch.uint8)
    before = codes.clone()
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 3, -(-size * bits // 8))
    assert torch.equal(unpack(packed, bits, size), codes)
    assert torch.equal(codes, before)


@pytest.mark.parametrize("bits", WIDTHS)
def test_packing_is_what_the_slow_way_says(bits):
    codes = torch.randint(0, 2**bits, (13,), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    number = sum(int(c) << (i * bits) for i, c in enumerate(codes))
    assert bytes(pack(codes, bits).tolist()) == number.to_bytes(-(-13 * bits // 8), "little")


def test_packing_shares_no_memory_with_its_input():
    codes = torch.zeros(4, dtype=torch.uint8)
    packed = pack(codes, 8)
    codes += 1
    assert packed.sum() == 0


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_error_is_at_most_half_a_step(bits, dim, dtype):
    x = (_random(2, 5, 16) * 3 + 1).to(dtype)
    codes, scale, minimum = quantize(x, bits, dim)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) < 2**bits
    assert scale.dtype == minimum.dtype == dtype
    assert scale.shape[dim] == minimum.shape[dim] == 1
    exact = codes.double() * scale.double() + minimum.double()
    assert ((exact - x.double()).abs() <= scale.double() / 2 * (1 + 1e-5)).all()
    back = dequantize(codes, scale, minimum)
    assert back.dtype == dtype
    rounding = torch.finfo(dtype).eps * x.double().abs().amax() * 2
    assert ((back.double() - x.double()).abs() <= scale.double() / 2 + rounding).all()


def test_every_level_is_used_and_the_ends_are_met():
    codes, scale, minimum = quantize(torch.linspace(-1, 2, 16)[None], 4)
    assert codes[0].tolist() == list(range(16))
    assert dequantize(codes, scale, minimum)[0, [0, -1]].tolist() == pytest.approx([-1, 2], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_constant_rows_come_back_exactly(dtype):
    x = torch.tensor([[0.0] * 8, [-3.5] * 8, [1e4] * 8], dtype=dtype)
    codes, scale, minimum = quantize(x, 2)
    assert torch.isfinite(scale).all()
    assert torch.equal(dequantize(codes, scale, minimum), x)


def test_one_token_and_no_token():
    codes, scale, minimum = quantize(_random(1, 8), 4, dim=-2)
    assert codes.sum() == 0
    assert torch.equal(dequantize(codes, scale, minimum), _random(1, 8))
    codes, scale, minimum = quantize(torch.zeros(3, 0, 8), 4, dim=-2)
    assert codes.shape == (3, 0, 8)
    assert scale.shape == minimum.shape == (3, 1, 8)
    assert unpack(pack(codes, 4), 4, 8).shape == (3, 0, 8)


def test_what_cannot_be_packed_is_said():
    with pytest.raises(ValueError, match="3 bits cannot be packed; there is 1, 2, 4, 8"):
        pack(torch.zeros(4, dtype=torch.uint8), 3)
