"""What must work with the oldest and the newest torch and transformers: `pytest -m smoke`, for .ci/run's environments.

A warning that a name is going away is an error here, whether Python or the library says so.
"""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch

import tokenmill as tm
from tiny import ids, tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill.models.architectures import CACHE
from tokenmill.models.weights import compiled

pytestmark = [
    pytest.mark.smoke,
    pytest.mark.filterwarnings("error::FutureWarning", "error::DeprecationWarning"),
]
MODELS = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "phi3", "gpt2")
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def no_library_warnings():
    """transformers tells of old names in its log, once in a process."""
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert not [line for line in said if "deprecated" in line or "removed" in line]


@pytest.fixture
def folder(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def library(model, prompt, new=16):
    return model.generate(prompt, max_new_tokens=new, **GREEDY)[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_our_text_is_the_librarys(name):
    model, prompt = tiny(name), ids(1, 30)
    wanted = library(model, prompt)
    for recipe in ("full", "token_recycling", "prompt_lookup"):
        out = tm.generate(model, None, prompt.tolist(), recipe, max_new_tokens=16, ignore_eos=True)[0]
        assert out.ids == wanted, recipe
    assert library(model, prompt) == wanted


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_is_freed_and_a_second_turn_goes_on(name):
    model, prompt = tiny(name), ids(1, 40)
    wanted = library(model, prompt)
    out = tm.generate(model, None, prompt.tolist(), "snapkv(budget=0.5)", max_new_tokens=8, ignore_eos=True)[0]
    assert 0 < max(len(head) for layer in out.kept for head in layer) < 40
    with tm.applied(model, "h2o(budget=0.5)"):
        evicted = model.generate(prompt, max_new_tokens=8, return_dict_in_generate=True, **GREEDY)
    assert evicted[CACHE].nbytes > 0
    with tm.applied(model):
        first = model.generate(prompt[:, :25], max_new_tokens=4, return_dict_in_generate=True, **GREEDY)
        text = torch.cat([first.sequences, prompt[:, 25:]], 1)
        second = model.generate(text, **{CACHE: first[CACHE]}, max_new_tokens=6, **GREEDY)[0, text.shape[1] :]
    assert second.tolist() == library(model, text, 6)
    assert library(model, prompt) == wanted


@pytest.mark.parametrize(
    "recipe",
    [
        "streaming_llm(budget=0.5)", "tova(budget=0.5)", "adaptive(score=snapkv, budget=0.5)", "zip_cache",
        "mini_cache", "lazy_llm(budget=0.5)", "token_select(budget=0.5)", "early_exit", "constant_skip(share=0.8)",
        "lookahead", "cntp", "beam", "top_p(share=0.9)",
    ],
)  # fmt: skip
def test_every_kind_of_recipe_runs(recipe):
    model, prompt = tiny("llama"), ids(2, 40)
    out = tm.generate(model, tiny_tokenizer(), prompt.tolist(), recipe, max_new_tokens=8, ignore_eos=True)
    assert [len(each.ids) for each in out] == [8, 8]


@pytest.mark.parametrize("how", ["float16", "bfloat16", "int8", "int4"])
def test_packed_weights(folder, how):
    model, tokenizer = tm.load(folder, weights=how)
    out = tm.generate(model, tokenizer, ["w5 w6 w7 w8"], "token_recycling", max_new_tokens=8, ignore_eos=True)[0]
    if how in ("int8", "int4"):
        assert out.ids == library(model, torch.tensor([[5, 6, 7, 8]]), 8)
    assert len(out.ids) == 8


def test_learning_explaining_and_deciding():
    model = tiny("llama")
    found = tm.explain(model, tiny_tokenizer(), "w5 w6 w7", tokens=2)
    assert len(found.answer) == 2
    assert tm.decide(model, ids(1, 20), "snapkv(budget=0.5)") is not None


def test_the_command_line_and_its_warnings(folder, tmp_path):
    def call(*args):
        done = subprocess.run(
            [sys.executable, "-W", "error::FutureWarning", "-m", "tokenmill", *map(str, args)],
            capture_output=True, text=True, timeout=300, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    assert "snapkv" in call("ls")[0]
    assert "Knobs" in call("show", "snapkv")[0]
    weights = "int8" if compiled() else "float32"
    text, notes = call(
        "run", "w5 w6 w7 w8 w9", "--model", folder, "--recipe", "snapkv(budget=0.5) + token_recycling",
        "--max-new-tokens", 8, "--weights", weights, "--threads", 2,
    )  # fmt: skip
    assert text.startswith("w")
    lines = [line for line in notes.splitlines() if not line.startswith("tokenmill: compiling")]
    assert len(lines) == 1  # what it cost
    assert "forward passes" in lines[0]
    found = json.loads(call("explain", "w5 w6 w7", "--model", folder, "--json")[0])
    assert len(found["prompt"]) == 3
    pytest.importorskip("pydantic")
    call("compare", "decode", "--model", folder, "--quick", "--methods", "token_recycling", "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
