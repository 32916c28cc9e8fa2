"""Folder, import lines and catalogue agree; listing stays light; cards say what is true."""

import ast
import contextlib
import copy
import difflib
import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tokenmill as tm
from tiny import ids, tiny
from tokenmill import catalog
from tokenmill.errors import RecipeError, SpecError
from tokenmill.method import NEEDS, Method, get, method, recipe
from tokenmill.run.session import Session

ENTRIES = catalog.entries()
PAPERS = next((p for d in Path(__file__).parents if (p := d / "shared" / "catalogue.jsonl").exists()), None)
every_method = pytest.mark.parametrize("name", ENTRIES)


@pytest.mark.parametrize("verb", sorted({e.verb for e in ENTRIES.values()}))
def test_folder_import_lines_and_catalogue_agree(verb):
    folder = catalog.HOUSE / verb
    files = {p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")}
    lines = ast.parse((folder / "__init__.py").read_text()).body
    imported = {
        alias.asname
        for line in lines
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
        if line.module == f"tokenmill.methods.{verb}.{alias.name}" and alias.asname == alias.name
    }
    assert files == imported == set(catalog.methods(verb))
    module = importlib.import_module(f"tokenmill.methods.{verb}")
    for name in files:
        assert getattr(module, name) == get(name)


@every_method
def test_the_catalogue_reads_what_importing_finds(name):
    entry, m = ENTRIES[name], get(name)
    assert isinstance(m, Method)
    assert (m.name, m.verb) == (name, entry.verb)
    assert (m.card.title, m.card.paper, m.card.year, m.card.needs) == (
        entry.title,
        entry.paper,
        entry.year,
        entry.needs,
    )
    own = [k for k in m.defaults if k not in m.extra]
    assert list(entry.knobs) == own
    assert set(entry.needs) <= set(NEEDS)
    assert m.card.same_as == "" or m.card.same_as in ENTRIES


@every_method
def test_docstring_is_a_page(name):
    entry = ENTRIES[name]
    first = entry.doc.split("\n")[0]
    assert ": " in first, f"{name}: line 1 is 'Name: what it does in plain words'"
    assert entry.summary
    assert entry.differs is None or entry.differs.strip()
    if entry.title:
        assert entry.paper
        assert entry.year


@every_method
@pytest.mark.skipif(PAPERS is None, reason="the list of papers is not here")
def test_titles_are_the_papers_titles(name):
    """A title the list has must be spelled as there; one that is nearly in the list is misspelled."""
    titles = [json.loads(line)["title"] for line in PAPERS.read_text().splitlines() if line.strip()]
    title = ENTRIES[name].title
    if title and title not in titles:
        near = difflib.get_close_matches(title.lower(), [t.lower() for t in titles], n=1, cutoff=0.85)
        assert not near, f"{name}: {title!r} should be {near}"


def test_listing_imports_neither_torch_nor_transformers():
    code = (
        "import sys, tokenmill as tm; from tokenmill import catalog\n"
        "assert [e.row() for e in catalog.entries().values()] and tm.methods('score')\n"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_ls_imports_no_torch():
    pytest.importorskip("tokenmill.cli")
    code = (
        "import sys; sys.argv = ['tokenmill', 'ls', '--json']\n"
        "from tokenmill.__main__ import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules], file=sys.stderr)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stderr.strip().endswith("[]")
    assert {r["name"] for r in json.loads(out.stdout)} == set(ENTRIES)


def test_unknown_names_say_what_exists():
    with pytest.raises(SpecError, match="did you mean snapkv"):
        catalog.find("snapk")
    with pytest.raises(SpecError, match="no verb 'scores'; did you mean score"):
        catalog.methods("scores")
    with pytest.raises(SpecError, match="no keep method 'snapkv'"):
        catalog.find("snapkv", "keep")


def test_reading_the_head_alone_finds_what_the_whole_file_says(monkeypatch):
    found = dict(catalog.entries())
    monkeypatch.setattr(catalog, "_head", lambda source, name: source)
    catalog.entries.cache_clear()
    try:
        assert dict(catalog.entries()) == found
    finally:
        catalog.entries.cache_clear()


@every_method
def test_a_method_pickles_as_what_it_says(name):
    for m in (get(name), *(get(name)(**{knob: value}) for knob, value in other_knobs(get(name)))):
        again = pickle.loads(pickle.dumps(m))
        assert again == m
        assert (repr(again), again.card, again.verb, again.fn is m.fn) == (repr(m), m.card, m.verb, True)
        assert copy.deepcopy(m) is m


def other_knobs(m: Method):
    """A knob at a time with a value that is not its default."""
    for knob in m.defaults:
        for value in (0.5, 2, 1):
            with contextlib.suppress(SpecError, RecipeError):
                if m(**{knob: value}).given:
                    yield knob, value
                    break


def test_recipes_and_what_they_gave_pickle():
    made = recipe("adaptive(score=snapkv(window=16), budget=0.25) + token_recycling + min_p")
    assert pickle.loads(pickle.dumps(made)) == made == copy.deepcopy(made)
    model, prompt = tiny(), ids(1, 30)
    kept = tm.decide(model, prompt, "h2o(budget=0.5)")
    assert pickle.loads(pickle.dumps(kept)) == kept
    out = tm.generate(model, None, prompt.tolist(), "h2o(budget=0.5)", max_new_tokens=3)[0]
    assert pickle.loads(pickle.dumps(out)) == out
    pickle.loads(pickle.dumps(tm.processors("min_p")))
    session = Session(model, "h2o(budget=0.5)")
    session.read(prompt)
    session.cache = pickle.loads(pickle.dumps(session.cache))
    other = Session(model, "h2o(budget=0.5)")
    other.read(prompt)
    assert torch.equal(session.read(prompt[:, :1]), other.read(prompt[:, :1]))


def test_a_method_of_the_users_pickles_from_its_module(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import tokenmill as tm\n"
        "@tm.method(title='', verb='score')\n"
        "def peak(trace, *, width: int = 3):\n    return trace.keys.norm(dim=-1)\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", "import pickle, sys, mine; sys.stdout.buffer.write(pickle.dumps(mine.peak(width=5)))"],
        cwd=tmp_path, capture_output=True, check=True,
    )  # fmt: skip
    here = subprocess.run(
        [sys.executable, "-c", "import pickle, sys; print(pickle.load(sys.stdin.buffer)(budget=0.5))"],
        cwd=tmp_path, input=there.stdout, capture_output=True, check=True,
    )  # fmt: skip
    assert here.stdout.decode().strip() == "peak(width=5, budget=0.5)"

    @method(title="", verb="score")
    def local(trace):
        return trace.keys

    with pytest.raises(SpecError, match="at the top of a module"):
        pickle.dumps(local)
    assert copy.deepcopy(local) is local
