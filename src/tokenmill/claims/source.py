"""Which code a claim's figures come from: a digest of it that changes with what it does, not with its words."""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenmill import __version__, catalog

HOUSE = Path(__file__).parents[1]
PAPERS = HOUSE / "claims" / "papers"
WEIGHTS = HOUSE / "weights"
WORDS = ("CLAIM", "PAPER", "BEYOND", "MISSING_CONDITION")  # text of a claim's file that measures nothing
NOTHING = ("kind", "type_comment", "ctx")  # fields of a syntax tree that say nothing that others do not
TRAINERS = (("taught", "taught"), ("units", "tuned"))  # functions of `claims` that train what a claim needs
JUDGES = ("lab", "verdict")  # modules of `claims` that no claim owns


def digests(name: str) -> dict[str, str]:
    """File of the package -> digest, for what a claim rests on.

    These are the method's file, the claim's file, and of the modules that claims share the definitions it reaches.
    """
    method, claim = catalog.find(name).path, PAPERS / f"{name}.py"
    found = {path: file_digest(path.read_text(encoding="utf-8")) for path in (method, claim)}
    for module, names in _imported(ast.parse(claim.read_text(encoding="utf-8"))).items():
        path = HOUSE / "claims" / f"{module}.py"
        found[path] = _reached(ast.parse(path.read_text(encoding="utf-8")), names)
    return {path.relative_to(HOUSE).as_posix(): digest for path, digest in found.items()}


def changed(name: str, recorded: Mapping[str, str]) -> str:
    """What differs from a record's digests, in words; "" if nothing does."""
    now = digests(name)
    files = sorted(path for path in {*now, *recorded} if now.get(path) != recorded.get(path))
    return f"changed since it was measured: {', '.join(files)}" if files else ""


def words(name: str) -> dict[str, str]:
    """What a claim's file says in words, by the name of the constant."""
    tree = ast.parse((PAPERS / f"{name}.py").read_text(encoding="utf-8"))
    said = [n for n in tree.body if isinstance(n, ast.Assign) and set(_targets(n)) & set(WORDS)]
    return {_targets(n)[0]: str(ast.literal_eval(n.value)) for n in said}


def needs_training(name: str, specs: Iterable[str] = ()) -> str:
    """What a second run of a claim that measured these specs needs and the package does not ship; "" if nothing."""
    imported = _imported(ast.parse((PAPERS / f"{name}.py").read_text(encoding="utf-8")))
    if any(function in imported.get(module, ()) for module, function in TRAINERS):
        return ""  # the claim trains a part itself where the user has none
    named, known = {name, *(word for spec in specs for word in re.findall(r"\w+", spec))}, catalog.entries()
    lacking = [
        n for n in sorted(named & set(known))
        if known[n].card.get("trains") == "part" and not list(WEIGHTS.glob(f"{n}-*.safetensors"))
    ]  # fmt: skip
    if not lacking:
        return ""
    return f"weights are not shipped; `tokenmill train {lacking[0]}` makes others, which give other figures"


def commit() -> str:
    """The checkout's commit, "-dirty" behind it where files differ; "" outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=HOUSE, capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def code(name: str) -> dict[str, Any]:
    """The fields of `verdict.Code`."""
    return {"version": __version__, "commit": commit(), "digests": digests(name)}


def file_digest(text: str) -> str:
    """Of a file's source without comments, docstrings and the words of a claim."""
    return _digest(ast.parse(text).body)


def _digest(nodes: list[ast.stmt]) -> str:
    return hashlib.sha256(repr([_plain(n) for n in nodes if not _words(n)]).encode()).hexdigest()[:16]


def _plain(node: Any) -> Any:
    """A syntax tree as nested tuples: without places, empty fields and docstrings, alike for all Python versions."""
    if isinstance(node, list):
        return [_plain(n) for n in node if not _docstring(n)]
    if not isinstance(node, ast.AST):
        return node
    fields = [(f, v) for f, v in ast.iter_fields(node) if v not in (None, []) and f not in NOTHING]
    return type(node).__name__, [(f, _plain(v)) for f, v in fields]


def _docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _words(node: ast.stmt) -> bool:
    return _docstring(node) or (isinstance(node, ast.Assign) and any(t in WORDS for t in _targets(node)))


def _targets(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]


def _imported(tree: ast.Module) -> dict[str, set[str]]:
    """Module of `claims` -> the names that a claim's file uses of it."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "tokenmill.claims":
            for alias in node.names:
                used = {
                    n.attr
                    for n in ast.walk(tree)
                    if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
                    and n.value.id == (alias.asname or alias.name)
                }  # fmt: skip
                found.setdefault(alias.name, set()).update(used)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tokenmill.claims."):
            module = str(node.module).removeprefix("tokenmill.claims.")
            found.setdefault(module, set()).update(alias.name for alias in node.names)
    return {module: names for module, names in found.items() if module not in JUDGES}


def _reached(tree: ast.Module, names: set[str]) -> str:
    """The digest of a module's definitions of these names and of all that they use of it."""
    defined = {name: node for node in tree.body for name in _targets(node)}
    reached: set[str] = set()
    waiting = names & set(defined)
    while waiting:
        reached |= waiting
        used = {n.id for name in waiting for n in ast.walk(defined[name]) if isinstance(n, ast.Name)}
        waiting = (used & set(defined)) - reached
    return _digest([node for node in tree.body if reached & set(_targets(node))])
