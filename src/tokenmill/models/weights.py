"""Number formats for a model's weights: fewer bytes to read for every token, and what each format gives up.

Matrix products at batch 1 wait for weights, so bytes are time. `pack` replaces the linear layers of a decoder (and
its embedding and head) by modules that hold codes instead of floats. Activations stay as they are.

    float16   11 bits of mantissa; products in float32
    bfloat16  8 bits of mantissa, activations and cache too: the model cast, as dtype= does
    int8      w = scale * code, one scale for every output
    int4      w = scale * code + least, one scale and one least weight for 32 neighbours; the table of tokens in int8

In int8 and int4 a row's result does not depend on the rows beside it, not even in its last bit, so a draft that is
checked in one pass says what one token at a time would have said. The others are as float32: alike to rounding.

The products of int8 and int4 are compiled by numba (`models.kernels`). Without it torch computes them from the same
weights, to rounding, and slowly.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import platform
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tokenmill.errors import ModelError, did_you_mean
from tokenmill.models.trained import digest

log = logging.getLogger(__name__)

FORMATS = ("float32", "bfloat16", "float16", "int8", "int4")
AUTO = "auto"
BLOCK = 32  # weights that share a scale in int4
EIGHT = 8  # outputs that are stored together
BESIDE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # layers of one input
MANY = 64  # rows from which weights are unpacked once for all of them
TOP = 32767  # of a row of activations in whole numbers
PIECE = 256  # eights of outputs that torch unpacks at a time
LEAST = 1e-30  # a row of zeros has no scale


def known(weights: str) -> str:
    """The format's name, or a ModelError that says what exists."""
    if weights not in (*FORMATS, AUTO):
        raise ModelError(f"no weights format '{weights}'; {did_you_mean(weights, (*FORMATS, AUTO))}")
    return weights


class Product(nn.Module):
    """A linear layer over packed weights: (..., K) to (..., N)."""

    bias: Tensor | None
    codes: Tensor
    transposed = False  # whether the layer it stands for stores its weights (K, N)

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise ModelError("packed weights give no gradients; load the model with weights='float32'")
        flat = x.reshape(-1, self.in_features).float()
        out = self.rows(flat)
        out = out if self.bias is None else out + self.bias
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def rows(self, x: Tensor) -> Tensor:
        """x (M, K) float32 to (M, N) float32."""
        raise NotImplementedError

    def first(self, count: int) -> Callable[[Tensor], Tensor]:
        """The first outputs alone: (..., K) to (..., count)."""
        return lambda x: self(x)[..., :count]

    @property
    def held(self) -> int:
        """Bytes of the packed weights."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The weights as the format holds them, (N, K) float32: unpacked anew at every call."""
        eye = torch.eye(self.in_features)
        return torch.cat([self.rows(part) for part in eye.split(MANY)]).T

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class Half(Product):
    """float16 weights, float32 products."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__(weight, bias)
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)

    def rows(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)

    @property
    def held(self) -> int:
        return 2 * self.in_features * self.out_features


class Blocks(Product):
    """int8 or int4 weights in blocks of 32, as `models.kernels` reads them: eight outputs a row of bytes.

    Without the compiled kernels torch multiplies the same weights, unpacked anew at every call: right, and slower than
    float32 weights are.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, bits: int):
        super().__init__(weight, bias)
        self.bits, self.blocks = bits, -(-self.in_features // BLOCK)
        self.register_buffer("codes", packed(weight, bits))  # (N / 8, bytes)
        self.beside: Tensor | None = None  # the codes of all layers that read the same input

    def rows(self, x: Tensor) -> Tensor:
        if not compiled():
            return self._plain_rows(x)
        from tokenmill.models import kernels

        out = x.new_empty(len(x), self.out_features)
        kernels.product(self.bits, self.codes, x.contiguous(), out, self.blocks)
        return out

    def _plain_rows(self, x: Tensor) -> Tensor:
        """What `kernels.product` computes, to rounding: activations as 16-bit whole numbers, with a scale a row.

        Sums are in float64, so that they hardly depend on the rows beside a row.
        """
        top = x.abs().amax(1, keepdim=True).clamp(min=LEAST)
        by = torch.tensor(float(TOP)) / top  # not a number / a tensor, which is rounded twice
        whole = F.pad((x * by).round(), (0, -self.in_features % BLOCK)).double()
        parts = [whole @ unpack(codes, self.bits, torch.float64).T for codes in self.codes.split(PIECE)]
        return torch.cat(parts, 1)[:, : self.out_features].mul(top.double() / TOP).float()

    def first(self, count: int) -> Callable[[Tensor], Tensor]:
        some = copy.copy(self)
        some._buffers = dict(self._buffers, codes=self.codes[: -(-count // EIGHT)])
        some.bias = None if self.bias is None else self.bias[:count]
        some.out_features, some.beside = count, None
        return some

    def unpacked(self, rows: Tensor) -> Tensor:
        """These rows of the weights (M,) in float32: (M, K). Raises IndexError for one that there is not."""
        if not compiled():
            return self._plain_unpacked(rows)
        from tokenmill.models import kernels

        out = torch.empty(len(rows), self.blocks * BLOCK)
        kernels.unpack(self.bits, self.codes.numpy(), rows.numpy(), out.numpy())
        return out[:, : self.in_features]

    def _plain_unpacked(self, rows: Tensor) -> Tensor:
        if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < EIGHT * len(self.codes)):
            raise IndexError("a token id is outside the model's vocabulary")
        tiles, at = torch.unique(rows // EIGHT, return_inverse=True)
        parts = [
            unpack(self.codes[tiles[first : first + PIECE]], self.bits)[:, : self.in_features]
            for first in range(0, len(tiles), PIECE)
        ]
        weights = torch.cat([*parts, torch.empty(0, self.in_features)])
        return weights[at * EIGHT + rows % EIGHT]

    @property
    def weight(self) -> Tensor:
        return self.unpacked(torch.arange(self.out_features))

    @property
    def held(self) -> int:
        return self.codes.nbytes


class Table(nn.Module):
    """The embedding of tokens, read from packed rows; they may be the head's."""

    def __init__(self, table: nn.Embedding, packed: Blocks):
        super().__init__()
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.padding_idx = table.padding_idx
        self.factor = float(getattr(table, "embed_scale", 1.0))  # Gemma
        self.packed, self.dtype = packed, table.weight.dtype

    def forward(self, ids: Tensor) -> Tensor:
        return self.packed.unpacked(ids.flatten()).view(*ids.shape, -1).mul(self.factor).to(self.dtype)

    @property
    def weight(self) -> Tensor:
        """The table in float32: unpacked anew at every call."""
        return self.packed.weight


def packed(weight: Tensor, bits: int) -> Tensor:
    """Weights (N, K) as `models.kernels` reads them: (N / 8, bytes), what is missing to a whole eight being zero.

    A row is eight outputs, block after block: their scales in float16, in 4 bits their least weights, and words of
    16 bits. A word is of one output, of every second one of a run of its codes: the first word of an output has the
    even ones, the second the odd ones, from the low bits up.
    """
    weight = F.pad(weight, (0, 0, 0, -len(weight) % EIGHT))
    codes, *columns = blocks_of_4(weight) if bits == 4 else blocks_of_8(weight)
    run = 16 // bits
    parts = codes.view(torch.uint8).view(len(weight) // EIGHT, EIGHT, -1, bits, run, 2)
    parts = parts.permute(0, 2, 3, 1, 5, 4)  # tile, block, i, output, 2, run
    if bits == 4:
        parts = parts[..., ::2] | parts[..., 1::2] << 4
    heads = [c.half().view(len(parts), EIGHT, -1).transpose(1, 2).contiguous().view(torch.uint8) for c in columns]
    return torch.cat([*heads, parts.flatten(2)], 2).flatten(1)


def unpack(codes: Tensor, bits: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights that were `packed`: (T, bytes) to (8 T, K'), K' being K rounded up to whole blocks."""
    columns = 2 if bits == 4 else 1  # of float16: a scale, and in 4 bits a least weight
    tiles = codes.unflatten(1, (-1, EIGHT * (2 * columns + BLOCK * bits // 8)))  # (T, blocks, bytes)
    heads = tiles[..., : 2 * EIGHT * columns].contiguous().view(torch.float16).to(dtype)
    heads = heads.unflatten(-1, (columns, EIGHT)).transpose(1, 3)[..., None]  # (T, output, column, block, 1)
    parts = tiles[..., 2 * EIGHT * columns :].unflatten(-1, (bits, EIGHT, 2, -1))  # i, output, 2, bytes of a run
    numbers = torch.stack([parts & 15, parts >> 4], -1).flatten(-2) if bits == 4 else parts.view(torch.int8)
    numbers = numbers.permute(0, 3, 1, 2, 5, 4).flatten(3).to(dtype)  # (T, output, block, 32)
    weights = numbers * heads[:, :, 0]
    return (weights + heads[:, :, 1] if bits == 4 else weights).flatten(2).flatten(0, 1)


def blocks_of_4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes 0 to 15 (N, K'), scale and least weight of each 32 (N, K' / 32); K' is K rounded up.

    Weights that were unpacked from such blocks get exactly the blocks they came from.
    """
    blocks = F.pad(weight.float(), (0, -weight.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    low, high = blocks.aminmax(dim=-1)
    least, scale = low.half().float(), ((high - low) / 15).half().float()
    codes = ((blocks - least[..., None]) / scale[..., None].clamp(min=LEAST)).round().clamp(0, 15)
    return codes.flatten(1).byte(), scale, least


def blocks_of_8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes -127 to 127 (N, K') and the scale of each 32 (N, K' / 32) in float16."""
    blocks = F.pad(weight.float(), (0, -weight.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    scale = (blocks.abs().amax(-1) / 127).half()
    codes = (blocks / scale.float()[..., None].clamp(min=LEAST)).round().clamp(-127, 127)
    return codes.flatten(1).char(), scale


@cache
def compiled() -> bool:
    """The products of `models.kernels` can be used: numba is installed and the processor has their instructions."""
    capable = platform.machine() in ("x86_64", "AMD64") and torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    return capable and importlib.util.find_spec("numba") is not None


def product(weights: str) -> Callable[[Tensor, Tensor | None], Product]:
    """The module for a format."""
    return Half if weights == "float16" else partial(Blocks, bits=8 if weights == "int8" else 4)


def pack(model: Any, weights: str) -> Any:
    """The model with its linear layers, head and embedding in this format. What it held before is freed."""
    if known(weights) == AUTO:
        weights = fastest(model)
    if weights == "float32":
        return model
    if weights == "bfloat16":
        return model.to(torch.bfloat16)
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise ModelError(
            f"weights='{weights}' has products for a CPU and the model is on {device}; "
            "use weights='bfloat16' there, or device='cpu'"
        )
    if weights == "float16" and "fbgemm" not in torch.backends.quantized.supported_engines:
        raise ModelError(f"weights='{weights}' needs a processor with AVX2; use weights='bfloat16'")
    if weights in ("int8", "int4") and not compiled():
        log.warning(
            "weights='%s' without numba is slower than float32; for fast products, on x86-64, run: "
            "pip install 'tokenmill[fast]'", weights,
        )  # fmt: skip
    model.base_digest = digest(model)  # what was trained for these weights is for the packed ones too
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is table.weight
    pack_linear(model, weights, head)
    if compiled():
        for module in model.modules():
            for names in BESIDE:
                side_by_side([getattr(module, name, None) for name in names])
    head = model.get_output_embeddings()
    packed = head if tied and isinstance(head, Blocks) else Blocks(table.weight.data, bits=8)
    model.set_input_embeddings(Table(table, packed))
    model.save_pretrained = partial(save_unpacked, model, type(model).save_pretrained)
    for left in model.parameters():  # norms: as they are they would hold the whole mapped file
        left.data = left.data.clone()
    return model.requires_grad_(False)


def save_unpacked(model: Any, save: Callable[..., Any], folder: Any, *more: Any, **settings: Any) -> Any:
    """`save_pretrained` of a packed model: what its weights stand for, in float32 and under their usual names."""
    if settings.get("state_dict") is None:
        state = dict(model.state_dict())
        unpacked: dict[Product, Tensor] = {}  # a head and a table that share their codes share the weights
        for name, module in model.named_modules(remove_duplicate=False):
            if not isinstance(module, Product | Table) or name.endswith(".packed"):
                continue
            state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
            codes = module.packed if isinstance(module, Table) else module
            if codes not in unpacked:
                unpacked[codes] = (codes.weight.T if codes.transposed else codes.weight).contiguous()
            state[f"{name}.weight"] = unpacked[codes]
            if isinstance(module, Product) and module.bias is not None:
                state[f"{name}.bias"] = module.bias
        settings["state_dict"] = state
    return save(model, folder, *more, **settings)


def pack_linear(module: nn.Module, weights: str, head: nn.Module | None = None) -> None:
    """A module's linear layers in this format. A head decides between thousands of tokens: four bits are too few."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear | Conv1D):
            weight = layer.weight.data if isinstance(layer, nn.Linear) else layer.weight.data.T
            made = product("int8" if weights == "int4" and layer is head else weights)(weight, layer.bias)
            made.transposed = isinstance(layer, Conv1D)
            _put(module, name, made)


def side_by_side(layers: list[Any]) -> None:
    """Layers that read the same input into one piece of memory, so that one product can run over all of them."""
    if all(isinstance(layer, Blocks) and layer.out_features % EIGHT == 0 for layer in layers):
        together = torch.cat([layer.codes for layer in layers])
        for layer, codes in zip(layers, together.split([len(layer.codes) for layer in layers]), strict=True):
            layer.codes, layer.beside = codes, together


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)


def fastest(model: Any) -> str:
    """What `auto` takes: the fewest bytes that lose next to nothing and have a fast product on this machine.

    int4 for a model whose weights were unpacked from 4-bit blocks, which it finds again; else int8. On other devices,
    and where the compiled products cannot be had, the model stays as it is.
    """
    if next(model.parameters()).device.type != "cpu" or not compiled():
        return "float32"
    return "int4" if _of_four_bits(model) else "int8"


def _of_four_bits(model: Any) -> bool:
    """Every linear layer but the head is made of 4-bit blocks, as far as its first rows show."""
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    for layer in layers:
        weight = (layer.weight.data if isinstance(layer, nn.Linear) else layer.weight.data.T)[:8].float()
        codes, scale, least = blocks_of_4(weight)
        again = codes.unflatten(1, (-1, BLOCK)) * scale[..., None] + least[..., None]
        if not torch.allclose(again.flatten(1)[:, : weight.shape[1]], weight, rtol=1e-5, atol=1e-7):
            return False
    return bool(layers)


def held(model: nn.Module) -> int:
    """Bytes of all weights, packed or not."""
    own = {id(p): p.nbytes for p in model.parameters()}
    return sum(own.values()) + sum(m.held for m in model.modules() if isinstance(m, Product))
