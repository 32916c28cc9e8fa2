"""Defaults that are not the authors' are told: `Differs:` names their value."""

import ast
import inspect
import re

import pytest

from tokenmill.method import get

# What the papers or the authors' code and scripts use. Looked up there; a default of ours that is another is a choice.
AUTHORS = {
    "h2o": {"recent": 0.5},
    "snapkv": {"window": 32, "kernel": 7},
    "vatp": {"sinks": 20},
    "keyformer": {"recent": 0.3, "temperature": 1.0, "rise": 0.01},
    "expected_attention": {"sinks": 4, "future": 512},
    "adaptive": {"safeguard": 0.2},
    "pyramid": {"steepness": 20.0},
    "streaming_llm": {"sinks": 4},
    "token_select": {"sinks": 128, "window": 512, "similarity": 0.9},
    "mini_cache": {"t": 0.6, "retention": 0.05, "start": 0.5},
    "zip_cache": {"bits": 4, "low": 2, "share": 0.6, "probes": 0.1},
    "lookahead": {"window": 7, "ngram": 5, "width": 7},
    "medusa": {"heads": 5},
    "token_recycling": {"width": 8, "nodes": 80},
    "aded": {"nodes": 24, "steps": 150, "depth": 4},
    "typical_acceptance": {"epsilon": 0.09, "delta": 0.3, "temperature": 0.7},
    "jacobi": {"nodes": 16},
    "cntp": {"trials": 10, "calm": 0.01, "unsure": 1.5},
    "contrastive": {"top": 8, "penalty": 0.6},
    "latent_seek": {"rate": 0.03, "steps": 10},
    "min_p": {"share": 0.05},
    "top_p": {"share": 0.95},
    "typical": {"share": 0.2},
    "token_lora": {"rank": 64, "stride": 2},
    "rho1": {"share": 0.7},
    "omp_transplant": {"anchors": 64},
    "reagent": {"share": 0.3, "rationale": 8, "top": 3, "runs": 5, "steps": 3000},
    "mor": {"recursions": 3, "scale": 0.1},
}
WORDS = {"five": "5", "six": "6", "eight": "8", "ten": "10"}


@pytest.mark.parametrize("name", AUTHORS)
def test_a_default_that_is_not_the_authors_is_told(name):
    method = get(name)
    doc = ast.get_docstring(ast.parse(inspect.getsource(inspect.getmodule(method.fn)))) or ""
    told = doc.partition("Differs:")[2].replace(",", "")
    for word, digit in WORDS.items():
        told = (
            told.replace(f" {word} ", f" {digit} ")
            .replace(f" {word},", f" {digit},")
            .replace(f" {word};", f" {digit};")
        )
    numbers = {float(found) for found in re.findall(r"\d+(?:\.\d+)?", told)}
    for knob, theirs in AUTHORS[name].items():
        if method.knobs[knob] != theirs:
            assert float(theirs) in numbers, f"{name}: {knob} is {method.knobs[knob]}, the authors' {theirs}"
