"""Methods in the user's files: `mine.py:peak` names the method `peak` of `mine.py`, wherever a person names a method.

A file named this way is run, so only what a person writes is read this way: the command line and `tm.compare`. A spec
that comes from elsewhere, as in a recipe file, goes to `parse`, which runs nothing.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmill import catalog
from tokenmill.catalog import Entry
from tokenmill.errors import InputError, SpecError, did_you_mean
from tokenmill.paths import expanded

if TYPE_CHECKING:
    from tokenmill.method import Method, Recipe

# A file and a name, in quotes where the path has spaces or other signs; or any other piece of text in quotes.
_NAMED = re.compile(
    r"""(?P<quote>["'])(?P<quoted>[^"'\n]+\.py)(?P=quote):(?P<name>[A-Za-z_]\w*)"""
    r"""|(?P<text>"[^"\n]*"|'[^'\n]*')"""
    r"""|(?P<path>[^\s,()\[\]+=:"']+\.py):(?P<bare>[A-Za-z_]\w*)"""
)


def with_files(spec: str) -> str:
    """A spec in which every `FILE.py:NAME` is replaced by NAME, its file having been run.

    Raises InputError for a file that cannot be read or run, SpecError for a name that it does not define.
    """
    return _NAMED.sub(_name_of, spec)


def _name_of(found: re.Match[str]) -> str:
    path, name = found["quoted"] or found["path"], found["name"] or found["bare"]
    if path is None:
        return found[0]
    load_file(expanded(path), name)
    return name


def load_file(path: Path, name: str) -> None:
    """Run a file, so that its method `name` is known to `parse`. A file that has not changed is run once."""
    from tokenmill.method import REGISTERED, Method

    source = _source(path)
    module_name = "tokenmill_file_" + hashlib.sha256(f"{path.resolve()}\0{source}".encode()).hexdigest()[:16]
    module = sys.modules.get(module_name)
    if module is None:
        made = importlib.util.spec_from_file_location(module_name, path)
        assert made is not None
        assert made.loader is not None
        module = importlib.util.module_from_spec(made)
        sys.modules[module_name] = module
        folder = str(path.resolve().parent)
        if folder not in sys.path:
            sys.path.append(folder)  # its neighbours can be imported, and shadow nothing
        try:
            exec(compile(source, str(path), "exec"), module.__dict__)
        except Exception as error:
            del sys.modules[module_name]
            raise InputError(f"{path} cannot be run: {type(error).__name__}: {error}{_line(error, path)}") from error
    known = {key: value for key, value in vars(module).items() if isinstance(value, Method)}
    if name not in known:
        raise SpecError(f"{path} defines no method '{name}'; {did_you_mean(name, known)}")
    if name in catalog.entries():
        raise SpecError(f"{path}: the name {name} is taken by a method of Tokenmill; give yours another one")
    if known[name].name != name:
        raise SpecError(f"{path}: {name} is the method {known[name].name}; name that one")
    REGISTERED[name] = known[name]


def entry(path: Path, name: str) -> Entry:
    """What `catalog.find` gives, for a method of a file, which is read and not run."""
    return catalog.read_source(_source(path), path, name)


def split(text: str) -> tuple[Path, str] | None:
    """'mine.py:peak' as its two parts; None for anything else."""
    found = _NAMED.fullmatch(text.strip())
    path = found and (found["quoted"] or found["path"])
    return (expanded(path), found["name"] or found["bare"]) if found and path else None


def split_specs(text: str) -> list[str]:
    """'adaptive(score=h2o, sinks=4), tova' -> two specs: commas inside parentheses belong to a spec."""
    files: list[str] = []

    def placeholder(found: re.Match[str]) -> str:
        if found["text"] is not None:
            return found[0]
        files.append(found[0])
        return f"_file_{len(files) - 1}_"

    try:
        body = ast.parse(f"[{_NAMED.sub(placeholder, text)}]", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        body = None
    if not isinstance(body, ast.List) or not body.elts:
        raise SpecError(f"cannot read '{text}'; specs look like 'snapkv(window=16), tova'")
    return [re.sub(r"_file_(\d+)_", lambda n: files[int(n[1])], ast.unparse(spec)) for spec in body.elts]


def registered(what: Recipe | Method) -> dict[str, Method]:
    """The methods of a recipe, and those that they name, which are not of this package: by name."""
    from tokenmill.method import REGISTERED, Method

    found: dict[str, Method] = {}
    todo: list[Any] = list(what) if not isinstance(what, Method) else [what]
    while todo:
        m = todo.pop()
        if isinstance(m, tuple):
            todo += m
        elif isinstance(m, Method):
            todo += m.knobs.values()
            if m.name in REGISTERED:
                found[m.name] = m
    return dict(sorted(found.items()))


def digests(recipes: Iterable[Recipe]) -> dict[str, str]:
    """What the registered methods of these recipes are, by name: a resumed run must not go on with other ones."""
    found = {name: m for made in recipes for name, m in registered(made).items()}
    return {name: hashlib.sha256(_code(m)).hexdigest()[:16] for name, m in sorted(found.items())}


def file_of(m: Method) -> str:
    """The file that a method was defined in."""
    return m.fn.__code__.co_filename


def _code(m: Method) -> bytes:
    try:
        return Path(file_of(m)).read_bytes()
    except OSError:  # a cell of a notebook
        return m.fn.__code__.co_code


def _source(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8") from None


def _line(error: BaseException, path: Path) -> str:
    """', line 3', where the file itself is to blame."""
    if isinstance(error, SyntaxError):
        return ""  # which says so itself
    at, line = error.__traceback__, 0
    while at is not None:
        if at.tb_frame.f_code.co_filename == str(path):
            line = at.tb_lineno
        at = at.tb_next
    return f", line {line}" if line else ""
