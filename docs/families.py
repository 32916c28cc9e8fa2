"""Writes docs/families.md: every causal language model class of transformers, run at a tiny size under the engine.

    python docs/families.py

The checks are those of tests/models/test_families.py.
"""

import sys
import warnings
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "models")]

import test_families  # noqa: E402

import families  # noqa: E402

HEAD = """# Model families

Tokenmill runs the models below on their own weights. Before a recipe is applied, Tokenmill proves on the model itself
what the methods rely on. It reads a prompt and some more tokens, and compares the logits with the model's own and the
library's own cache. It checks that each layer stored its keys and values, and that moving a key from one position to
another gives the key the model computes there. A model that fails is refused in one line.

The table covers every causal language model class of transformers {version}, as a tiny model with random weights.
*right*: the same logits as the library over a prompt and 16 more tokens, without a recipe and with budgets of 1; a
padded row of a batch equals the row alone under three evicting methods; afterwards the model is what it was.
*refused*: one line, which the table shows. *not constructible*: no tiny model of the class can be made or run here.
`python docs/families.py` writes this page.

| | |
| --- | --- |
{counts}

| class | status | positions, or the reason |
| --- | --- | --- |
{rows}
"""
POSITIONS = {
    "RotaryEmbedding": "rotary",
    "RotaryEmbedding and Unrotated": "rotary, some layers without positions",
    "learned positions": "learned; kept tokens cannot be renumbered",
}


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    found = {}
    for name in families.CLASSES:
        with torch.no_grad():
            status, why = test_families.outcome(name)
        found[name] = status, POSITIONS.get(why, " ".join(why.split()).replace("|", "\\|")[:160])
        print(name, status, flush=True)
    statuses = [status for status, _ in found.values()]
    counts = "\n".join(f"| {s} | {statuses.count(s)} |" for s in ("right", "refused", "not constructible"))
    rows = "\n".join(f"| `{name}` | {status} | {why} |" for name, (status, why) in found.items())
    page = HEAD.format(version=transformers.__version__, counts=counts, rows=rows)
    (ROOT / "docs" / "families.md").write_text(page)


if __name__ == "__main__":
    main()
