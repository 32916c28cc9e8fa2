"""Claims about a method with a trained part: the weights that the user has, or some that are trained here."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenmill.claims.lab import Lab
from tokenmill.errors import ModelError
from tokenmill.method import Method
from tokenmill.models.trained import about, place, trained
from tokenmill.run.corpus import Corpus, Tasks
from tokenmill.run.fit import fit


def taught(
    lab: Lab, method: Method, text: Corpus | Tasks, folder: Path, *, part: str, steps: int, **training: Any
) -> tuple[Method, int]:
    """The method with its `part` for this model, and the steps it was trained: the user's own, or made in `folder`."""
    with suppress(ModelError):
        trained(method, lab.model)
        return method, int(about(place(method, lab.model))["steps"])
    made = fit(
        method, lab.model, lab.tokenizer, text=text, out=folder, steps=steps, seed=lab.seeds[0],
        on_step=lambda step: lab.tick(f"training the {part}: step {step + 1} of {steps}"), **training,
    )  # fmt: skip
    return method(weights=str(made.path)), steps
