"""Tokenmill: which tokens to make, keep, merge, quantize, run deeper, draft ahead, choose, learn from and blame.

Importing this package imports neither torch nor transformers; the first use of a name that needs them does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> where it lives; resolved on first use, so that `tokenmill ls` stays light.
_EXPORTS = {
    "parse": "tokenmill.method",
    "recipe": "tokenmill.method",
    "load_recipe": "tokenmill.recipe_file",
    "method": "tokenmill.method",
    "Method": "tokenmill.method",
    "Recipe": "tokenmill.method",
    "methods": "tokenmill.catalog",
    "load": "tokenmill.models.load",
    "applied": "tokenmill.models.apply",
    "processors": "tokenmill.models.processors",
    "decide": "tokenmill.run.decide",
    "generate": "tokenmill.run.generate",
    "explain": "tokenmill.run.explain",
    "compare": "tokenmill.bench.comparison",
    "probe": "tokenmill.run.probe",
    "transplant": "tokenmill.run.transplant",
    "train": "tokenmill.run.train",
    "TokenmillError": "tokenmill.errors",
}

__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from tokenmill.bench.comparison import compare as compare
    from tokenmill.catalog import methods as methods
    from tokenmill.errors import TokenmillError as TokenmillError
    from tokenmill.method import Method as Method
    from tokenmill.method import Recipe as Recipe
    from tokenmill.method import method as method
    from tokenmill.method import parse as parse
    from tokenmill.method import recipe as recipe
    from tokenmill.models.apply import applied as applied
    from tokenmill.models.load import load as load
    from tokenmill.models.processors import processors as processors
    from tokenmill.recipe_file import load_recipe as load_recipe
    from tokenmill.run.decide import decide as decide
    from tokenmill.run.explain import explain as explain
    from tokenmill.run.generate import generate as generate
    from tokenmill.run.probe import probe as probe
    from tokenmill.run.train import train as train
    from tokenmill.run.transplant import transplant as transplant


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'tokenmill' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
