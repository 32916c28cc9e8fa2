"""A recipe that `tokenmill compare` wrote into a file, with the model and number format that it was chosen for."""

from __future__ import annotations

import json
import os
import tomllib
from typing import Any

from tokenmill.errors import InputError
from tokenmill.method import REGISTERED, Recipe, recipe
from tokenmill.method_files import file_of, registered
from tokenmill.paths import expanded

LARGEST = 1 << 20  # bytes; what compare writes has a thousand
SETTINGS = ("model", "weights")


class RecordedRecipe(Recipe):
    """A recipe and what was recorded beside it; it can be used wherever a recipe can."""

    def __init__(self, made: Recipe, settings: dict[str, str], measured: dict[str, Any]):
        super().__init__(made.methods)
        self.settings = settings  # of SETTINGS, those that the file names
        self.measured = measured  # the figures that it was chosen by, as the file has them

    @property
    def model(self) -> str | None:
        """The model that it was chosen for, as `tm.load` takes it; None if the file names none."""
        return self.settings.get("model")


def load_recipe(path: str | os.PathLike[str]) -> RecordedRecipe:
    """The recipe in a recipe.toml, with the model and settings that it was chosen for.

    No code is run: a recipe with a method of the user's own needs that method's module imported first. Raises
    InputError for a file that cannot be read or has no recipe, SpecError or RecipeError for a recipe that is none.
    """
    path = expanded(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise InputError(f"{path} is larger than {LARGEST >> 20} MB; compare writes a recipe as recipe.toml")
        found = tomllib.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    except (RecursionError, ValueError):  # nested without end; a number of too many digits
        raise InputError(f"{path} is not the TOML that compare writes") from None
    spec = found.get("recipe")
    if not isinstance(spec, str):
        raise InputError(f'{path} has no line recipe = "…"; compare writes such a file as recipe.toml')
    settings = {name: found[name] for name in SETTINGS if name in found}
    for name, value in settings.items():
        if not isinstance(value, str):
            raise InputError(f"{path}: {name} must be text, not {value!r:.60}")
    files, measured = found.get("files"), found.get("measured")
    for name, file in files.items() if isinstance(files, dict) else ():
        if name not in REGISTERED:
            raise InputError(
                f"{path}: the recipe has {name} of {file}, and no code is run because a recipe file names it; use "
                f"--recipe with the file before the name, '{file}:{name}', or in Python import it first"
            )
    return RecordedRecipe(recipe(spec), settings, measured if isinstance(measured, dict) else {})


def head(spec: str, model: str, weights: str, why: str) -> list[str]:
    """The lines with which a recipe file begins. `why` says how the recipe was chosen."""
    folder = expanded(model)
    lines = [
        f"# Chosen by computation: {why}.",
        '# Use it: tokenmill run --recipe-file recipe.toml "..."',
        f"recipe = {toml_text(spec)}",
        f"model = {toml_text(str(folder.resolve()) if folder.is_dir() else model)}",
        f"weights = {toml_text(weights)}",
    ]
    files = {name: file_of(m) for name, m in registered(recipe(spec)).items()}
    if files:
        lines += ["", "[files]", *(f"{name} = {toml_text(file)}" for name, file in files.items())]
    return lines


def toml_text(value: Any) -> str:
    """A string, a truth value or a list of strings as TOML writes it."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
