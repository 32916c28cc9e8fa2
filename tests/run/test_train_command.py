"""`tokenmill train`, as a user meets it."""

import json

import pytest
from typer.testing import CliRunner

from tokenmill.cli import app


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text").write_text("one two three four five six seven eight nine ten. " * 80)
    return str(tmp_path / "text")


def run(*words):
    return CliRunner().invoke(app, ["train", *map(str, words)])


def test_weights_log_and_figure(text, tmp_path):
    told = run("mor(hidden=32, layers=1)", "--text", text, "--steps", 2, "--out", tmp_path / "out")
    assert told.exit_code == 0, told.output
    assert "nats a byte, on held-out text" in told.stdout
    (log,) = (tmp_path / "out").glob("*.json")
    made = json.loads(log.read_text())
    assert made["plan"]["steps"] == 2
    assert len(made["history"]) == 2
    assert made["held_out"]["nats a byte"] > 0
    assert log.with_suffix(".safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["knorm"], "knorm has nothing to train"),
        (["mro"], "did you mean mor?"),
        (["knorm(budget=0.5) + zip_cache"], "is a recipe"),
        (["mor", "--text", "no/such/file"], "cannot read"),
        (["mor", "--own", "50"], "no text of its own"),
        (["mor", "--steps", "3", "--minutes", "1"], "contradict"),
    ],
)
def test_mistakes_are_one_line(words, message):
    told = run(*words)
    assert told.exit_code == 2
    assert message in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1
