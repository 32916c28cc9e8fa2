"""Model folders that are damaged, half-downloaded or hostile: one line each, before anything large is built."""

import json
import pickle
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny import tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill.errors import ModelError
from tokenmill.models.checkpoint import Contents, bounds, contents
from tokenmill.models.load import load


@pytest.fixture
def folder(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def refused(folder) -> str:
    began = time.monotonic()
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert time.monotonic() - began < 10
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def _config(folder, **change):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def _header(folder, **change):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header[next(key for key in header if key != "__metadata__")].update(change)
    written = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(written)) + written + data[8 + size :])


def _cut(folder, at):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:at])


WEIGHTS = {
    "empty": lambda f: _cut(f, 0),
    "seven bytes": lambda f: _cut(f, 7),
    "half": lambda f: _cut(f, (f / "model.safetensors").stat().st_size // 2),
    "a byte short": lambda f: _cut(f, -1),
    "a byte more": lambda f: (f / "model.safetensors").open("ab").write(b"\0"),
    "a header of 2^63 bytes": lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}"),
    "offsets beyond the file": lambda f: _header(f, data_offsets=[0, 10**12]),
    "a shape that overflows": lambda f: _header(f, shape=[2**62, 2**62]),
    "a negative shape": lambda f: _header(f, shape=[-1, 4]),
    "another number format": lambda f: _header(f, dtype="F64"),
    "an unknown number format": lambda f: _header(f, dtype="EVIL"),
    "a pickle": lambda f: (f / "model.safetensors").write_bytes(pickle.dumps({"a": 1})),
}


@pytest.mark.parametrize("damage", WEIGHTS)
def test_a_damaged_weights_file_is_named(folder, damage):
    WEIGHTS[damage](folder)
    assert "model.safetensors is damaged or cut short" in refused(folder)


CONFIGS = {
    "wider": ({"hidden_size": 48 * 10**7, "head_dim": 8}, "larger model than its weights files hold"),
    "more tokens": ({"vocab_size": 10**12}, "larger model than its weights files hold"),
    "more layers": ({"num_hidden_layers": 90_000}, "larger model than its weights files hold"),
    "far more layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers=1e+09, which no model has"),
    "fewer layers": ({"num_hidden_layers": 3}, "weights more than config.json describes, such as model.layers.3"),
    "a little wider": ({"intermediate_size": 65}, r"mlp.down_proj.weight has the shape (48, 64)"),
    "more heads": ({"num_key_value_heads": 3}, "self_attn.k_proj.weight has the shape (16, 48)"),
    "heads that do not divide": ({"num_attention_heads": 7}, "not a multiple of the number of attention heads"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers=0; a model has at least 1"),
    "negative": ({"hidden_size": -48}, "hidden_size=-48"),
    "no context": ({"max_position_embeddings": 0}, "max_position_embeddings=0"),
    "a word": ({"vocab_size": "many"}, "expected int, got str"),
    "a list": ({"rope_parameters": [1]}, "rope_parameters"),
    "beyond any integer": ({"pad_token_id": 10**400}, "pad_token_id with 3"),
    "not a number": ({"rms_norm_eps": float("nan")}, "rms_norm_eps=NaN"),
    "positions that are infinite": ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_parameters"),
    "an unknown kind": ({"model_type": "nope"}, "nope"),
    "a kind that is a list": ({"model_type": ["llama"]}, "unhashable"),
    "an unknown activation": ({"hidden_act": "__import__('os')"}, "KeyError"),
}


@pytest.mark.parametrize("odd", CONFIGS)
def test_an_odd_config(folder, odd):
    change, says = CONFIGS[odd]
    _config(folder, **change)
    assert says in refused(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"a":' * 50_000, '{"vocab_size":' + "9" * 5000 + "}"])
def test_a_config_that_is_no_json_object(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json is not" in refused(folder)


BESIDE = {
    "tokenizer cut short": ("tokenizer.json", "{"),
    "tokenizer without its parts": ("tokenizer.json", "{}"),
    "tokenizer settings are a list": ("tokenizer_config.json", "[]"),
    "a token that is a dict": ("tokenizer_config.json", '{"bos_token": {"evil": 1}}'),
    "generation settings are a list": ("generation_config.json", "[1]"),
    "an end that is no number": ("generation_config.json", '{"eos_token_id": {"a": 1}}'),
    "an end that is a word": ("generation_config.json", '{"eos_token_id": "x"}'),
    "an adapter": ("adapter_config.json", '{"base_model_name_or_path": "/etc"}'),
}


@pytest.mark.parametrize("what", BESIDE)
def test_other_files_that_are_broken(folder, what):
    file, text = BESIDE[what]
    (folder / file).write_text(text)
    refused(folder)


def _shards(folder, place):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))


def test_missing_shards_are_counted_and_named(folder):
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    save_file({k: weights[k] for k in names[:5]}, folder / "a.safetensors", metadata={"format": "pt"})
    rest = dict.fromkeys(names[5:], "b.safetensors")
    _shards(folder, dict.fromkeys(names[:5], "a.safetensors") | rest)
    assert "lacks 1 of its 2 weights files, such as b.safetensors" in refused(folder)
    save_file({k: weights[k] for k in names[5:-1]}, folder / "b.safetensors", metadata={"format": "pt"})
    assert f"b.safetensors lacks {names[-1]}" in refused(folder)
    save_file({k: weights[k] for k in names[5:]}, folder / "b.safetensors", metadata={"format": "pt"})
    assert torch.equal(load(folder)[0].state_dict()[names[0]], weights[names[0]])


@pytest.mark.parametrize("shard", ["../m/model.safetensors", "/etc/passwd", "w.bin", ""])
def test_shards_are_safetensors_files_of_the_folder(folder, shard):
    _shards(folder, dict.fromkeys(tiny("llama").state_dict(), shard))
    assert "weights are safetensors files in the folder" in refused(folder)


@pytest.mark.parametrize("index", ["[1]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": 1}}', "{"])
def test_an_index_that_is_none(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refused(folder)


def test_a_folder_with_a_pickle_alone_is_refused_whether_it_is_good_or_not(folder):
    (folder / "model.safetensors").unlink()
    torch.save(tiny("llama").state_dict(), folder / "pytorch_model.bin")
    assert "pytorch_model.bin, a format that runs code when it is read" in refused(folder)


def test_contents_are_counted_without_reading_tensors(folder):
    weights = load_file(folder / "model.safetensors")
    assert contents("m", folder) == Contents(len(weights), sum(w.numel() for w in weights.values()))


def test_only_what_is_built_inside_is_bounded_and_the_watch_ends(tmp_path):
    few = Contents(1, 4)
    with torch.device("meta"):
        torch.nn.Linear(10_000, 10_000)
        with pytest.raises(ModelError, match="larger model"), bounds("m", few):
            torch.nn.Linear(10_000, 10_000)
        with pytest.raises(ModelError, match="larger model"), bounds("m", few):
            torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(2000))
        torch.nn.Linear(10_000, 10_000)


def test_a_config_that_names_kernels_has_none_fetched(folder, monkeypatch):
    from transformers.integrations import hub_kernels

    def fetch(*args, **kwargs):
        raise AssertionError("fetched")

    monkeypatch.setattr(hub_kernels, "get_kernel", fetch, raising=False)
    for field in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        _config(folder, **{field: "someone/kernel"})
    model, _ = load(folder)
    assert "/" not in str(model.config._attn_implementation)


def test_every_loading_call_of_the_library_refuses_code():
    """What a new loading call would forget."""
    import ast

    import tokenmill

    root = Path(tokenmill.__file__).parent
    calls = 0
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            where = f"{file.relative_to(root)}:{node.lineno}"
            if node.func.attr in ("from_pretrained", "from_config"):
                calls += 1
                assert given.get("trust_remote_code") == "False", where
                if "Model" in ast.unparse(node.func.value) and node.func.attr == "from_pretrained":
                    assert given.get("use_safetensors") == "True" or "gguf_file" in given, where
            if ast.unparse(node.func) == "torch.load":
                assert given.get("weights_only") == "True", where
            assert ast.unparse(node.func) not in ("pickle.load", "pickle.loads"), where
    assert calls >= 4
