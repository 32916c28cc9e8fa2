"""compare decode on prompts of one token and two, and on a model whose context is short; costs are measured."""

import io
import json

import pytest
from rich.console import Console

from run.test_speculate import DRAFTS, llama
from tiny_tokenizer import tiny_tokenizer
from tokenmill.bench import compare as bench
from tokenmill.bench.compare import compare


@pytest.mark.parametrize("context", [64, 512])
def test_every_draft_has_a_row(context, tmp_path, monkeypatch):
    model, path = llama(max_position_embeddings=context), tmp_path / "mine.jsonl"
    words = ["w5 w6 w7 " * 20, "w9", "w8 w8"]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in words))
    monkeypatch.setattr(bench, "_load", lambda *_: (model, tiny_tokenizer()))
    console = Console(file=io.StringIO(), width=200)
    for order in (words, words[1:]):  # the longest prompt sets how the cost is measured
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in order))
        folder = compare(
            "decode", out=tmp_path / str(len(order)), input=path, methods=DRAFTS, quick=True, console=console
        )
        rows = json.loads((folder / "results.json").read_text())["rows"]
        assert {row["spec"] for row in rows} >= {*DRAFTS}
        assert all(row["metrics"]["identical"] == 1 for row in rows)
