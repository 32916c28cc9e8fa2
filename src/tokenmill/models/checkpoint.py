"""What the weights files of a model folder contain, read from their headers, and a bound on what may be built.

A folder may be damaged, half-downloaded or hostile. Nothing here reads a tensor or allocates for one.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from tokenmill.errors import ModelError

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
LAYERS = 100_000  # most modules of a kind that a config.json may ask for: configurations write lists of that length
WHOLE = 2**63  # beyond it no number in a config.json is a size
TIED = 2  # a tied head is in the model twice and in the file once
PACKED = 16  # two bits a weight, in 32-bit words
SLACK = 1 << 20  # numbers of a model that no file needs to hold
TABLES = 1 << 28  # numbers in tables that a model computes for itself, such as sines of positions


@dataclass(frozen=True)
class Contents:
    """Tensors and numbers in the weights files of a folder."""

    tensors: int
    numbers: int


def refuse_bad_config(name: str, folder: Path) -> dict[str, Any]:
    """The folder's config.json, as far as it can be checked without transformers; {} where there is none.

    Raises ModelError for what is not a JSON object, and for counts that would fill the memory when they are read.
    """
    file = folder / CONFIG
    if not file.is_file():
        return {}
    found = _object(name, file)
    if wrong := next(_oversized(found), None):
        raise ModelError(f"'{name}': config.json says {wrong}, which no model has; get a complete copy of it")
    return found


def _oversized(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from _oversized(item, inner)
    elif isinstance(value, list):
        for item in value:
            yield from _oversized(item, key)
    elif isinstance(value, float) and math.isnan(value):
        yield f"{key}=NaN"
    elif isinstance(value, int):
        counts = any(word in key for word in ("layer", "expert", "block", "depth"))
        if abs(value) >= WHOLE or (counts and abs(value) > LAYERS):
            yield f"{key}={value:.3g}" if abs(value) < 10**300 else f"{key} with {len(hex(value))} hex digits"


def contents(name: str, folder: Path, file: str | None = None) -> Contents:
    """What the safetensors files in `folder` hold: of `file` where a config names one, else under the usual names.

    Raises ModelError for files that are missing, cut short, or whose header does not describe them.
    """
    chosen = file or (WEIGHTS if (folder / WEIGHTS).exists() else INDEX)
    if not (folder / chosen).is_file():
        other = next((f.name for f in sorted(folder.glob("*")) if f.suffix in (".bin", ".pt", ".pth", ".ckpt")), None)
        why = f"its weights are {other}, a format that runs code when it is read" if other else "it holds no weights"
        raise ModelError(f"'{name}' has no {WEIGHTS}: {why}; save it with save_pretrained, or get a complete copy")
    if chosen.endswith(".index.json"):
        place = _object(name, folder / chosen).get("weight_map")
        if not isinstance(place, dict) or not place or not all(isinstance(shard, str) for shard in place.values()):
            raise ModelError(f"'{name}': {chosen} has no map from weights to files; get a complete copy of it")
        shards = Counter(place.values())
    else:
        place, shards = {}, Counter([chosen])
    if odd := [s for s in sorted(shards) if Path(s).name != s or not s.endswith(".safetensors")]:
        raise ModelError(f"'{name}': {chosen} names the file {odd[0]!r}; weights are safetensors files in the folder")
    if missing := [s for s in sorted(shards) if not (folder / s).is_file()]:
        raise ModelError(
            f"'{name}' lacks {len(missing)} of its {len(shards)} weights files, such as {missing[0]}; "
            "get a complete copy of it"
        )
    sizes = {shard: _header(name, folder / shard) for shard in sorted(shards)}
    if lost := [key for key, shard in place.items() if key not in sizes[shard]]:
        raise ModelError(f"'{name}': {place[lost[0]]} lacks {lost[0]}, which {chosen} says it holds; get it again")
    return Contents(sum(map(len, sizes.values())), sum(sum(each.values()) for each in sizes.values()))


def _header(name: str, file: Path) -> dict[str, int]:
    """Tensor -> how many numbers. Opening checks that the header describes the file to its last byte."""
    try:
        with safe_open(file, "pt") as opened:
            sizes = {}
            for key in opened.keys():  # noqa: SIM118 - not a dict
                count = 1
                for length in opened.get_slice(key).get_shape():
                    count *= length
                sizes[key] = count
            return sizes
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise ModelError(f"'{name}': {file.name} is damaged or cut short ({reason}); get it again") from None


def _object(name: str, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"'{name}': cannot read {file.name}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8
        raise ModelError(f"'{name}': {file.name} is not JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise ModelError(f"'{name}': {file.name} is not a JSON object; get it again")
    return found


def bounds(name: str, held: Contents, *, quantized: bool = False) -> contextlib.AbstractContextManager[None]:
    """Inside, a model is built that is no larger than its weights files; ModelError once it is."""
    weights = (PACKED if quantized else TIED) * held.numbers + SLACK
    error = ModelError(
        f"'{name}': config.json describes a larger model than its weights files hold ({held.numbers:,} numbers "
        f"in {held.tensors:,} tensors); get a complete copy of it"
    )
    return bounded(error, weights=weights, tables=weights + TABLES, tensors=4 * held.tensors + 1024)


@contextlib.contextmanager
def bounded(error: Exception, *, weights: int, tables: int, tensors: int) -> Iterator[None]:
    """Raise `error` as soon as what this thread builds on the meta device exceeds a bound.

    Sizes cost nothing on the meta device, where transformers builds a model before it allocates. So whatever field of
    a configuration asks for too much, it is refused before memory is taken. `weights` and `tables` are numbers in
    parameters and in buffers, `tensors` is how many of both there may be.
    """
    thread, built = threading.get_ident(), Counter[str]()

    def check(kind: str, limit: int, tensor: Tensor | None) -> None:
        if tensor is None or threading.get_ident() != thread or tensor.device.type != "meta":
            return
        built[kind] += tensor.numel()
        built["tensors"] += 1
        if built[kind] > limit or built["tensors"] > tensors:
            raise error

    def parameter(module: nn.Module, key: str, tensor: Any) -> None:
        check("weights", weights, tensor)

    def buffer(module: nn.Module, key: str, tensor: Any) -> None:
        check("tables", tables, tensor)

    taken = [
        hooks.register_module_parameter_registration_hook(parameter),
        hooks.register_module_buffer_registration_hook(buffer),
    ]
    try:
        yield
    finally:
        for handle in taken:
            handle.remove()
