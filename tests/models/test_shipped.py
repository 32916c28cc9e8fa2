"""The weights that come with the package: whole, small, with their log, and of the default model."""

import json

import pytest

from default_model import needs_the_default_model
from tokenmill.method import get
from tokenmill.models.load import load
from tokenmill.models.trained import SHIPPED, about, place, shipped, trained

MOST = 20e6  # bytes of all of them


def test_all_of_them_are_small():
    assert sum(file.stat().st_size for file in SHIPPED.glob("*")) < MOST


@pytest.mark.parametrize("name", shipped())
def test_each_says_how_it_was_trained(name):
    path = shipped()[name]
    told, log = about(path), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert told["method"] == name
    assert told["plan"] == log["plan"]
    assert told["held_out"] == log["held_out"]
    assert 0.99 * told["steps"] <= log["history"][-1]["step"] < told["steps"], "a log holds some hundred of them"
    assert log["history"][-1]["loss"] < log["history"][0]["loss"]


@needs_the_default_model
@pytest.mark.parametrize("name", shipped())
def test_each_fits_the_default_model(name):
    model, _ = load()
    assert place(get(name), model, SHIPPED) == shipped()[name]
    assert sum(p.numel() for p in trained(get(name), model).parameters()) > 0
