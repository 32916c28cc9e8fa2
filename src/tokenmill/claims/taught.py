"""Claims about a method with a trained part: the weights that the user has, or some that are trained here."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenmill.claims.lab import Lab
from tokenmill.errors import ModelError
from tokenmill.method import Method
from tokenmill.models.trained import SHIPPED, about, place, trained
from tokenmill.run.corpus import Corpus, Tasks
from tokenmill.run.fit import fit


def taught(
    lab: Lab, method: Method, text: Corpus | Tasks, folder: Path, *, part: str, steps: int, **training: Any
) -> tuple[Method, int]:
    """The method with its `part` for this model, and the steps it was trained: the user's own, or made in `folder`."""
    with suppress(ModelError):
        trained(method, lab.model)
        if (plan := training_plan(lab, method)) is not None:
            return method, int(plan["steps"])
    made = fit(
        method, lab.model, lab.tokenizer, text=text, out=folder, steps=steps, seed=lab.seeds[0],
        on_step=lambda step: lab.tick(f"training the {part}: step {step + 1} of {steps}"), **training,
    )  # fmt: skip
    return method(weights=str(made.path)), steps


def training_plan(lab: Lab, method: Method) -> dict[str, Any] | None:
    """How the method's part for this model was trained (`steps`, `rows`, `text` ...); None if nobody trained one."""
    here = place(method, lab.model)
    found = next((path for path in (here, SHIPPED / here.name) if path.is_file()), None)
    return None if found is None else dict(about(found)["plan"])
