"""Find methods by reading their sources, never by importing them: listing three hundred papers needs no torch."""

from __future__ import annotations

import ast
import inspect
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenmill.errors import SpecError, did_you_mean

HOUSE = Path(__file__).parent / "methods"

# What each folder does to tokens; the order of the tables.
VERBS = {
    "form": "what becomes a token",
    "score": "how much each token matters",
    "keep": "which tokens stay",
    "merge": "several tokens into fewer, across tokens or layers",
    "quantize": "how many bits each token gets",
    "skip": "how deep each token goes",
    "draft": "what may come next, and how it is checked",
    "choose": "which token is emitted",
    "learn": "what each token teaches",
    "credit": "how much reward each token gets",
    "explain": "why this token came out",
    "probe": "what tokens, vocabularies and layers are like",
}


@dataclass(frozen=True)
class Entry:
    """One method as its source file describes it."""

    name: str
    verb: str
    title: str
    paper: str | None
    year: int | None
    differs: str | None
    needs: tuple[str, ...]
    summary: str
    doc: str
    knobs: dict[str, str]  # name -> default as written
    card: dict[str, Any]  # everything literal on the card
    path: Path
    line: int

    def row(self) -> dict[str, Any]:
        """What `tokenmill ls --json` promises."""
        keys = ("name", "verb", "title", "paper", "year", "differs", "needs", "summary")
        return {key: (list(v) if isinstance(v := getattr(self, key), tuple) else v) for key in keys}


@cache
def entries() -> dict[str, Entry]:
    """Every method, by name, verbs in the order of VERBS."""
    found: dict[str, Entry] = {}
    for verb in VERBS:
        for path in sorted((HOUSE / verb).glob("[!_]*.py")):
            found[path.stem] = _read(path, verb)
    return found


def find(name: str, verb: str | None = None) -> Entry:
    """The entry of one method, or a SpecError that says what exists."""
    known = {n: e for n, e in entries().items() if verb is None or e.verb == verb}
    if name not in known:
        what = f"{verb} method" if verb else "method"
        raise SpecError(f"no {what} '{name}'; {did_you_mean(name, known)}")
    return known[name]


def methods(verb: str | None = None) -> list[str]:
    """Names of all methods, or of one verb's."""
    if verb is not None and verb not in VERBS:
        raise SpecError(f"no verb '{verb}'; {did_you_mean(verb, VERBS)}")
    return [name for name, entry in entries().items() if verb in (None, entry.verb)]


def as_json(verb: str | None = None) -> str:
    """What `tokenmill ls --json` prints: a list of `Entry.row`, one a method."""
    return json.dumps([find(name).row() for name in methods(verb)], indent=1, ensure_ascii=False)


def _read(path: Path, verb: str) -> Entry:
    return read_source(_head(path.read_text(encoding="utf-8"), path.stem), path, path.stem, verb)


def read_source(source: str, path: Path, name: str, verb: str | None = None) -> Entry:
    """One method of a file, whose source this is. The verb is the one that its card names if none is given.

    Raises SpecError for a file that is no Python, or that defines no such method.
    """
    try:
        tree = ast.parse(source, filename=str(path))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise SpecError(f"{path} is no Python: {error}") from None
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if name not in functions:
        raise SpecError(f"{path} defines no function '{name}'; {did_you_mean(name, functions)}")
    function = functions[name]
    of_function, of_file = ast.get_docstring(function), ast.get_docstring(tree)
    doc = (of_file or of_function if verb else of_function or of_file) or ""  # a user's file may define several methods
    card: dict[str, Any] = {}
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).rpartition(".")[2] == "method":
            card = {k.arg: ast.literal_eval(k.value) for k in decorator.keywords if k.arg and _literal(k.value)}
    verb = verb or card.get("verb")
    if verb not in VERBS:
        raise SpecError(f"{path}: {name} is no method; write @tokenmill.method(verb=..., title=...) above it")
    knobs = {
        arg.arg: ast.unparse(default) if default is not None else ""
        for arg, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    }
    first = doc.split("\n", 1)[0]
    return Entry(
        name=name,
        verb=verb,
        title=card.get("title", ""),
        paper=card.get("paper"),
        year=card.get("year"),
        differs=_paragraph(doc, "Differs:"),
        needs=tuple(card.get("needs", ())),
        summary=first.split(": ", 1)[-1].rstrip("."),
        doc=doc,
        knobs=knobs,
        card=card,
        path=path,
        line=function.lineno,
    )


def _literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def _head(source: str, name: str) -> str:
    """The file's docstring and its method's signature on their own lines, all else blank: a fifth of the parsing."""
    lines = source.split("\n")
    starts = [i for i, line in enumerate(lines) if line.startswith("@method(")]
    opens = next((i for i, line in enumerate(lines) if line.startswith(f"def {name}(")), None)
    text = next((i for i, line in enumerate(lines) if line.startswith("from __future__")), None)
    if len(starts) != 1 or opens is None or text is None or not starts[0] < opens:
        return source
    closes = next(i for i, line in enumerate(lines[opens:], opens) if line.split("#")[0].rstrip().endswith(":"))
    blank = [""] * (starts[0] - text)  # line numbers stay
    return "\n".join([*lines[:text], *blank, *lines[starts[0] : closes + 1], "    ..."])


def _paragraph(doc: str, marker: str) -> str | None:
    for block in inspect.cleandoc(doc).split("\n\n"):
        if block.startswith(marker):
            return " ".join(block[len(marker) :].split())
    return None
