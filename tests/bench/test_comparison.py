"""tm.compare: what the command measures, as a value."""

import inspect
import json

import pytest

import tokenmill as tm
from bench import fakes
from tokenmill.bench.compare import compare as command
from tokenmill.errors import InputError, StoreError
from tokenmill.method import REGISTERED

FILE = """
import tokenmill as tm

@tm.method(title="", verb="score")
def peak(trace):
    return trace.keys.norm(dim=-1)
"""


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    fakes.install(monkeypatch.setattr)
    yield
    for name in ("peak", "near"):
        REGISTERED.pop(name, None)


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def test_a_comparison_is_what_the_command_writes(tmp_path, capsys):
    found = tm.compare("cache", methods="knorm, recent_window", budgets=[0.5], out=tmp_path / "run")
    assert capsys.readouterr().out == ""
    assert found.to_dict() == json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["spec"] for row in found.rows if row["method"] != "full"]
    assert len(found) == len(found.rows) == 3
    assert found.report.read_text().startswith("<!")
    assert tm.load_recipe(found.recipe).model == "smollm2"
    assert repr(found) == f"Comparison(cache on smollm2: 3 rows, {found.report})"
    page = found._repr_html_()
    assert page.count("<tr>") == 4
    assert "knorm(budget=0.5)" in page
    assert len(page) < 3000
    assert tm.compare("cache", methods=["knorm"], out=tmp_path / "shown", progress=True)
    assert "Winner" in capsys.readouterr().out


def test_it_takes_the_commands_options():
    given = inspect.signature(command).parameters
    with pytest.raises(tm.TokenmillError):
        tm.compare("vision", **{name: given[name].default for name in given if name not in ("track", "console")})


def test_methods_of_a_file_and_of_this_process(mine, tmp_path):
    @tm.method(title="", verb="score")
    def near(trace):
        return trace.keys.norm(dim=-1)

    found = tm.compare("cache", methods=[f"{mine}:peak", near, "knorm"], budgets=[0.5], out=tmp_path / "run")
    assert {row["spec"] for row in found.rows} == {"full", *(f"{m}(budget=0.5)" for m in ("peak", "near", "knorm"))}
    whole = tm.compare("cache", methods=f"{mine}:peak, adaptive(score={mine}:peak)", budgets=[0.5], out=tmp_path / "b")
    assert [row["method"] for row in whole.rows if row["method"] != "full"] in (
        ["peak", "adaptive"],
        ["adaptive", "peak"],
    )


def test_a_resumed_run_must_have_the_same_file(mine, tmp_path):
    given = {"methods": f"{mine}:peak", "budgets": [0.5], "out": tmp_path / "run"}
    tm.compare("cache", **given)
    tm.compare("cache", **given, resume=True)
    mine.write_text(FILE.replace("keys", "values"))
    with pytest.raises(StoreError, match="files"):
        tm.compare("cache", **given, resume=True)


def test_a_method_that_its_name_does_not_mean_is_refused(tmp_path):
    @tm.method(title="", verb="score")
    def knorm(trace):
        return trace.keys.norm(dim=-1)

    with pytest.raises(InputError, match="knorm is also the name of another method"):
        tm.compare("cache", methods=[knorm], out=tmp_path)


def test_a_folder_without_results(tmp_path):
    from tokenmill.bench.comparison import Comparison

    with pytest.raises(StoreError, match="cannot read"):
        Comparison(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(StoreError, match="is not JSON"):
        Comparison(tmp_path)
