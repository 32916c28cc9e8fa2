"""Code that lies in a model's folder never runs, whatever names the folder and whatever stands on stdin.

Commands and methods that can name a model are found in the command line and the catalogue, not in a list.
"""

import json
import os
import pickle
import shutil

import pytest
import typer
from typer.testing import CliRunner

from tiny import tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill import catalog
from tokenmill.cli import app

CODE = """
open({mark!r}, "w").write("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class EvilConfig(LlamaConfig):
    model_type = {kind!r}
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
def generate(model, *args, **kwargs):
    open({mark!r}, "w").write("ran")
"""


class Runs:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def _map(folder, file, **entries):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def _own_kind(folder, mark):
    code = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    _map(folder, "config.json", model_type="evil", auto_map=code)


def _known_kind(folder, mark):
    _map(folder, "config.json", auto_map={"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"})


def _tokenizer(folder, mark):
    code = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
    _map(folder, "tokenizer_config.json", auto_map=code, tokenizer_class="EvilTokenizer")


def _generate(folder, mark):
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "evil.py", folder / "custom_generate" / "generate.py")


def _pickle(folder, mark):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Runs(mark)}))


def _pickle_in_an_index(folder, mark):
    (folder / "model.safetensors").unlink()
    (folder / "w.bin").write_bytes(pickle.dumps({"a": Runs(mark)}))
    place = {"metadata": {}, "weight_map": dict.fromkeys(tiny("llama").state_dict(), "w.bin")}
    for index in ("pytorch_model.bin.index.json", "model.safetensors.index.json"):
        (folder / index).write_text(json.dumps(place))


def _pickle_by_name(folder, mark):
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"a": Runs(mark)}))
    _map(folder, "config.json", transformers_weights="adapter_model.bin")


PLANTS = (_own_kind, _known_kind, _tokenizer, _generate, _pickle, _pickle_in_an_index, _pickle_by_name)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    tiny("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(params=PLANTS, ids=lambda plant: plant.__name__.strip("_"))
def planted(request, good, tmp_path, monkeypatch):
    """(folder, the file that appears once its code runs)"""
    folder, mark = tmp_path / "evil", tmp_path / "mark"
    shutil.copytree(good, folder)
    kind = "llama" if request.param is _known_kind else "evil"
    (folder / "evil.py").write_text(CODE.format(mark=str(mark), kind=kind))
    request.param(folder, mark)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    return folder, mark


def _commands():
    """(command, option) of every option that names a model."""
    for name, command in typer.main.get_command(app).commands.items():
        for option in command.params:
            if option.param_type_name == "option" and option.name.startswith("model"):
                yield name, option.opts[0]


ARGUMENTS = {  # what a command needs besides, so that it comes as far as loading
    "run": ["w5", "--max-new-tokens", "1"],
    "explain": ["w5"],
    "probe": ["layer_drop", "--texts", "1", "--tokens", "16"],
    "compare": ["cache", "--quick", "--methods", "snapkv", "--out", "out"],
    "reproduce": ["knorm", "--quick", "--seeds", "1", "--out", "out"],
    "train": ["medusa", "--steps", "1", "--out", "out"],
}


def test_every_command_that_names_a_model_is_tried():
    assert {name for name, _ in _commands()} <= set(ARGUMENTS)


def _call(*args):
    return CliRunner().invoke(app, [str(a) for a in args], input="yes\n" * 1000)


@pytest.mark.parametrize(("name", "option"), list(_commands()), ids=lambda x: x.strip("-"))
def test_commands(name, option, planted, good):
    folder, mark = planted
    arguments = list(ARGUMENTS[name])
    if option != "--model":
        arguments += ["--model", good]
        if name == "probe":
            arguments[0] = "fs_gen"
    if folder.joinpath("model.safetensors").exists() and name != "run":
        # A folder that loads would go on for long; a recipe that cannot run ends it once it is loaded.
        arguments = _short(name, arguments)
    result = _call(name, *arguments, option, folder)
    assert not mark.exists()
    assert result.exit_code in (0, 2), (result.output, result.exception)
    assert "[y/N]" not in result.output


def _short(name, arguments):
    return {"explain": ["--method", "icn", *arguments], "train": [*arguments, "--text", __file__]}.get(name, arguments)


def _naming():
    """Methods with a knob that names a model."""
    return [name for name in catalog.methods() if "model" in catalog.find(name).knobs]


def test_methods_that_name_a_model_are_found():
    assert {"draft_model", "r2r"} <= set(_naming())


@pytest.mark.parametrize("name", _naming())
def test_recipes_that_name_a_model(name, planted, good, tmp_path):
    folder, mark = planted
    spec = f"{name}(model={str(folder)!r})"
    result = _call("run", "w5", "--model", good, "--max-new-tokens", "1", "--recipe", spec)
    assert result.exit_code in (0, 2), (result.output, result.exception)
    file = tmp_path / "recipe.toml"
    file.write_text(f"recipe = {json.dumps(spec)}\n")
    result = _call("run", "w5", "--model", good, "--max-new-tokens", "1", "--recipe-file", file)
    assert result.exit_code in (0, 2), (result.output, result.exception)
    if catalog.find(name).verb == "draft":
        result = _call("compare", "decode", "--quick", "--methods", spec, "--model", good, "--out", "out")
        assert result.exit_code in (0, 2), (result.output, result.exception)
    assert not mark.exists()


def test_the_trap_is_real(good, tmp_path, monkeypatch):
    """With trust the planted code does run: the tests above would notice."""
    from transformers import AutoConfig

    folder, mark = tmp_path / "evil", tmp_path / "mark"
    shutil.copytree(good, folder)
    (folder / "evil.py").write_text(CODE.format(mark=str(mark), kind="evil"))
    _own_kind(folder, mark)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert mark.exists()
    mark.unlink()
    pickle.loads(pickle.dumps(Runs(mark)))
    assert mark.exists()
