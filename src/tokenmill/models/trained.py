"""Learned parts on disk: where they lie, which model they belong to, and how they are found again.

    parts = trained(method, model)      # the nn.Module that `tokenmill train NAME` made, in eval mode

A part is looked for at the knob `weights=PATH`, then in the user's cache, then among those shipped in the package.
It is one safetensors file whose metadata says what it is: method and knobs, base model and a digest of its weights,
vocabulary, seed, steps, the figure on held-out text, and a digest of the tensors themselves.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import inspect
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import Tensor, nn
from torch.nn.functional import linear

from tokenmill.errors import ModelError, SpecError, StoreError, TokenmillError, UntrainedError
from tokenmill.method import Method
from tokenmill.models.architectures import decoder_of
from tokenmill.models.checkpoint import bounded
from tokenmill.models.default import cache_folder
from tokenmill.paths import expanded
from tokenmill.types import Learned

SHIPPED = Path(__file__).parents[1] / "weights"
TRAINING = 16  # bytes a number: weight, gradient and two moments
PARTS = 20_000  # tensors of a learned part at most
DIGEST = hashlib.sha256().digest_size
SAMPLE = 4096  # numbers a tensor that a model's digest looks at
_learned: WeakKeyDictionary[Any, dict[str, tuple[Any, Learned]]] = WeakKeyDictionary()  # model -> method -> its part


def source(method: Method) -> ModuleType:
    """The method's file, which holds its learned part; SpecError if it has none."""
    if not method.card.trains:
        raise SpecError(f"{method.name} has nothing to train; `tokenmill show {method.name}` says how it works")
    return sys.modules[method.fn.__module__]


def shaping(method: Method) -> dict[str, Any]:
    """The knobs that the learned part depends on: those that the file's `parts` names."""
    named = inspect.signature(source(method).parts).parameters
    return {name: value for name, value in method.knobs.items() if name in named}


def build(method: Method, model: Any = None) -> nn.Module:
    """The part before training. `parts(config, **knobs)` on a frozen model, `parts(**knobs)` for one from scratch."""
    made, config = source(method).parts, () if model is None else (_config(model),)

    def part() -> nn.Module:
        return made(*config, **shaping(method))

    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // TRAINING
    large = SpecError(f"the learned part of {method!r} is too large to train in this machine's memory")
    try:
        with torch.device("meta"), bounded(large, weights=most, tables=most, tensors=PARTS):
            part()
        return part()
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError, OverflowError, MemoryError) as error:
        if isinstance(error, TokenmillError):
            raise
        raise SpecError(f"cannot build the learned part of {method!r}: {' '.join(str(error).split())[:200]}") from error


def watched(method: Method, model: Any) -> tuple[int, ...]:
    """The layers after which the method wants states: those that the file's `layers` names; none without one."""
    asked = getattr(source(method), "layers", None)
    config = _config(model)
    wanted = () if asked is None else tuple(asked(config, **shaping(method)))
    last = config.num_hidden_layers - 1
    if wrong := [layer for layer in wanted if not 0 <= layer < last]:
        raise SpecError(f"{method.name} asks for the state after layer {wrong[0]}; there is 0 to {last - 1}")
    return wanted


def digest(model: Any) -> str:
    """Names a model by its weights, the same in float32 and bfloat16, in a fraction of a second. None: "scratch"."""
    if model is None:
        return "scratch"
    if isinstance(known := getattr(model, "base_digest", None), str):  # of the weights before they were packed
        return known
    told = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLE)].to(torch.bfloat16).view(torch.int16).cpu()
        told.update(f"{name}{tuple(weight.shape)}".encode() + some.numpy().tobytes())
    return told.hexdigest()[:16]


def place(method: Method, model: Any = None, folder: Path | None = None) -> Path:
    """The file of this method's part for this model: in `folder`, or in the user's cache."""
    told = json.dumps([sorted((k, repr(v)) for k, v in shaping(method).items()), digest(model)])
    key = hashlib.sha256(told.encode()).hexdigest()[:12]
    return (folder or cache_folder() / "trained") / f"{method.name}-{key}.safetensors"


def save(path: Path, parts: nn.Module, method: Method, model: Any, told: dict[str, Any]) -> None:
    """Whole or not at all. `told` goes into the metadata."""
    kind = stored_as(method)
    tensors = {
        name: t.detach().to("cpu", kind if t.is_floating_point() else None).contiguous().clone()
        for name, t in parts.state_dict().items()
    }
    about = {
        "method": method.name,
        "knobs": {k: repr(v) for k, v in shaping(method).items()},
        "base": {"name": told.pop("model", ""), "digest": digest(model), "vocabulary": _vocabulary(model)},
        "tensors": _fingerprint(tensors),
        **told,
    }
    write(path, serialized(tensors, metadata={"tokenmill": json.dumps(about)}))


def stored_as(method: Method) -> torch.dtype:
    """16 bits for what stands beside a model, so that several can be shipped; a model of its own in 32."""
    return torch.float16 if method.card.trains == "part" else torch.float32


def store(path: Path, what: dict[str, Any]) -> None:
    """Tensors and plain values with a digest before them, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(what, buffer)
    data = buffer.getvalue()
    write(path, hashlib.sha256(data).digest() + data)


def restore(path: Path) -> dict[str, Any]:
    """What `store` wrote; ValueError for a file that does not match its digest, OSError for one that is not there."""
    raw = path.read_bytes()
    data = raw[DIGEST:]
    if hashlib.sha256(data).digest() != raw[:DIGEST]:
        raise ValueError(f"{path} does not match its digest")
    return dict(torch.load(io.BytesIO(data), weights_only=True))


def write(path: Path, data: bytes) -> None:
    """A file with the usual rights, whole or not at all; StoreError where it cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # a full disk shows here at the latest
        part.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside, no other process writes `path`; what a killed one left half-written beside it is swept up.

    Raises StoreError, before anything is computed, where `path` cannot be written or another process is at it.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(f"another training writes {path}; wait for it, or choose another --out") from None
        for left in path.parent.glob(f".{glob.escape(path.stem)}.*.part"):
            left.unlink(missing_ok=True)
        try:
            writable(path.parent)
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.unlink(missing_ok=True)
    finally:
        os.close(handle)


def writable(folder: Path | None) -> None:
    """StoreError unless files can be written into the folder (None: the user's cache), which is made."""
    where = expanded(folder or cache_folder() / "trained")
    try:
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=where) as trial:
            trial.write(b"0")
            trial.flush()
            os.fsync(trial.fileno())
    except OSError as error:
        raise _unwritable(where / "weights", error) from None


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot write into {path.parent}: {error.strerror or error}; choose another --out")


def about(path: Path) -> dict[str, Any]:
    """The metadata of a file that `save` wrote; ModelError for anything else."""
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads(file.metadata()["tokenmill"]))
    except FileNotFoundError:
        raise ModelError(f"no file {path} with trained weights; train them, or leave out weights=") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        raise ModelError(f"{path} is damaged or not trained weights of Tokenmill; train again") from None


def trained(method: Method, model: Any = None, *, name: str = "MODEL") -> nn.Module:
    """The trained part of a method for this model (None: a model from scratch), in eval mode, where the model is."""
    path = _found(method, model, name)
    told = about(path)
    again = f"run: tokenmill train {method.name}" + ("" if model is None else f" --model {name}")
    if told["method"] != method.name:
        raise ModelError(f"{path} holds weights of {told['method']}, not of {method.name}")
    base = told["base"]
    if base["vocabulary"] != _vocabulary(model):
        raise ModelError(
            f"{path} was trained for a vocabulary of {base['vocabulary']} tokens, this model has {_vocabulary(model)}; "
            + again
        )
    if base["digest"] != digest(model):
        raise ModelError(f"{path} was trained on '{base['name']}', whose weights are not this model's; {again}")
    tensors = whole(path, again)
    parts = build(method, model)
    try:
        parts.load_state_dict(tensors)
    except RuntimeError:
        raise ModelError(
            f"{path} has other shapes than {method!r} needs: it was trained with {_knobs(told)}; {again}"
        ) from None
    if model is not None:
        weight = next(model.parameters())
        parts = parts.to(weight.device, weight.dtype)
    return parts.eval().requires_grad_(False)


def whole(path: Path, again: str) -> dict[str, Tensor]:
    """The tensors of a file that `save` wrote; ModelError, which ends in `again`, unless they match their digest."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError):
        tensors = {}
    if _fingerprint(tensors) != about(path)["tensors"]:
        raise ModelError(f"{path} is damaged: its numbers do not match their digest; {again}")
    return tensors


def learned(method: Method, model: Any) -> Learned:
    """The trained part of a method that runs, and what of the model it reads and writes by.

    Beside a packed model a part that only guesses is packed as well: a pass waits for what it reads. What was read and
    packed is kept as long as the model is, unless the file changes or the model moves.
    """
    weight, file = next(model.parameters()), _found(method, model, "MODEL")
    base = digest(model) if method.knobs.get("weights") else ""  # else the file's name says it
    stamp = file.stat().st_mtime_ns if file.is_file() else 0
    key = repr(method), file, base, stamp, weight.device, weight.dtype, type(model.get_output_embeddings())
    kept = _learned.setdefault(model, {})
    if method.name not in kept or kept[method.name][0] != key:
        kept[method.name] = key, _read(method, model)
    return kept[method.name][1]


def _read(method: Method, model: Any) -> Learned:
    parts = trained(method, model)
    if method.card.role == "source" and not isinstance(model.get_output_embeddings(), nn.Linear):
        from tokenmill.models.weights import pack_linear  # which needs a model's digest from here

        pack_linear(parts, "int8")  # as the head is; wrong guesses cost time alone
    head = first_words(model.get_output_embeddings(), method.knobs.get("words"))
    return Learned(parts, head, model.get_input_embeddings(), decoder_of(model).final_norm)


def first_words(head: Any, words: int | None) -> Callable[[Tensor], Tensor]:
    """The head of the first `words` of the vocabulary alone: (..., E) -> (..., words)."""
    if words is None or words >= head.out_features:
        return head
    if isinstance(head, nn.Linear):
        return partial(linear, weight=head.weight[:words], bias=None if head.bias is None else head.bias[:words])
    return head.first(words)


def shipped() -> dict[str, Path]:
    """The methods whose weights come with the package, for the default model."""
    return {path.name.partition("-")[0]: path for path in sorted(SHIPPED.glob("*.safetensors"))}


def _found(method: Method, model: Any, name: str) -> Path:
    if own := method.knobs.get("weights"):
        return expanded(own)
    here = place(method, model)
    for path in (here, SHIPPED / here.name):
        if path.is_file():
            return path
    whose = "" if model is None else " for this model"
    model_option = "" if model is None else f" --model {name}"
    raise UntrainedError(
        f"no trained weights of {method!r}{whose}; run: tokenmill train {method.name}{model_option}{_others(method)}"
    )


def _others(method: Method) -> str:
    """What else is there: the likeliest mistake is another model or other knobs."""
    files = [f for d in (cache_folder() / "trained", SHIPPED) for f in sorted(d.glob(f"{method.name}-*.safetensors"))]
    told = []
    for file in files[:3]:
        try:
            known = about(file)
        except ModelError:
            continue
        told.append(f"{_knobs(known)} on {known['base']['name'] or 'nothing'}")
    return f" (there are weights for {'; '.join(told)})" if told else ""


def _knobs(told: dict[str, Any]) -> str:
    return f"{told['method']}({', '.join(f'{k}={v}' for k, v in told['knobs'].items())})"


def _fingerprint(tensors: dict[str, Tensor]) -> str:
    told = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        told.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


def _config(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)


def _vocabulary(model: Any) -> int | None:
    return None if model is None else int(_config(model).vocab_size)
