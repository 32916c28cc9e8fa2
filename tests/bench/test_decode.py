"""compare decode on a tiny model: what a run leaves, what a row's figures are, and prompts of the user's own."""

import copy
import io
import json
import tomllib

import pytest
from rich.console import Console

from bench.test_report_browser import CHROMIUM, open_in_browser
from tiny import tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill.bench import compare as bench
from tokenmill.bench import decode
from tokenmill.bench.compare import compare
from tokenmill.bench.decode import COST, FULL, LIBRARY, LOOKUP, TASK, DecodeResults, row_of
from tokenmill.bench.prompts import Prompt, default_prompts, read_prompts, spread
from tokenmill.errors import InputError, SpecError, StoreError

METHODS = ["token_recycling", "prompt_lookup(nodes=4) + typical_acceptance", "auto"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"prompt": "the cat and the dog and the cat", "category": "animals"}\n\n'
        '{"turns": ["a b c a b c a b", "never asked"], "category": "letters"}\n{"text": "the dog"}\n'
    )
    return path


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "_load", lambda model, weights, device: (tiny("llama"), tiny_tokenizer()))
    monkeypatch.setattr(decode, "pass_cost", lambda model, widths, context: {w: 0.01 + 0.001 * w for w in widths})


def run(tmp_path, file, **options):
    console = Console(file=io.StringIO(), width=200)
    folder = compare(
        "decode", out=tmp_path / "run", input=file, methods=METHODS, quick=True, console=console, **options
    )
    return folder, console.file.getvalue()


def test_what_a_run_leaves(small, file, tmp_path):
    folder, said = run(tmp_path, file)
    results = json.loads((folder / "results.json").read_text())
    assert list(results) == ["schema", "track", "model", "environment", "rows"]
    assert (results["schema"], results["track"]) == (1, "decode")
    assert all(list(row) == ["method", "spec", "budget", "metrics"] for row in results["rows"])
    DecodeResults.model_validate(results)
    rows = {row["spec"]: row["metrics"] for row in results["rows"]}
    assert [*rows][:3] == [FULL, LIBRARY, LOOKUP]
    assert rows["token_recycling"]["identical"] == rows[LIBRARY]["identical"] == rows["auto"]["identical"] == 1
    lossy = rows["prompt_lookup(nodes=4) + typical_acceptance"]
    assert not lossy["lossless"]
    assert lossy["nats"] > 0
    assert rows["token_recycling"]["lossless"]
    assert rows["token_recycling"]["tokens_a_pass"]["mean"] >= 1
    assert len(rows["token_recycling"]["by_position"]) >= 1
    assert {*rows[FULL]["by_category"]} == {"animals", "letters", "input"}
    assert rows["token_recycling"]["bytes"] > rows[FULL]["bytes"] == 0
    best = tomllib.loads((folder / "recipe.toml").read_text()) if (folder / "recipe.toml").exists() else None
    assert best is None or best["recipe"] in rows
    page = (folder / "report.html").read_text()
    assert "https://" not in page
    assert page.count("<svg") == 2
    assert "greedy, our loop" in said
    assert "a pass behind" in said


def test_identical_means_the_librarys_own_call(monkeypatch):
    """Under a generation_config that changes greedy text, both sides are under it."""
    asks = {"repetition_penalty": 1.3, "eos_token_id": [2, 5], "num_beams": 3, "do_sample": True}
    model, ids = copy.deepcopy(tiny("llama")), [5, 6, 7, 8] * 5
    made = decode.Decoding(model, tiny_tokenizer(), [], [ids], [], store=None, new=24)
    plain = made._cell(LIBRARY, ids, {})["ids"]
    model.generation_config.update(**asks)
    library = made._cell(LIBRARY, ids, {})["ids"]
    assert library != plain
    for row in (FULL, LOOKUP, "token_recycling", "prompt_lookup"):
        assert made._cell(row, ids, {})["ids"] == library, row


def test_nothing_is_measured_twice(small, file, tmp_path, monkeypatch):
    folder, _ = run(tmp_path, file)
    before = (folder / "results.json").read_text()
    with pytest.raises(StoreError, match="--resume"):
        run(tmp_path, file)
    monkeypatch.setattr(decode.Decoding, "_cell", lambda *_: pytest.fail("measured again"))
    folder, _ = run(tmp_path, file, resume=True)
    assert json.loads((folder / "results.json").read_text())["rows"] == json.loads(before)["rows"]
    with pytest.raises(StoreError, match="other settings"):
        run(tmp_path, file, resume=True, seed=3)


def test_a_row_that_cannot_run_is_left_out_with_the_reason(small, file, tmp_path):
    console = Console(file=io.StringIO(), width=200)
    compare(
        "decode", out=tmp_path / "r", input=file, methods=["draft_model", "prompt_lookup"], quick=True, console=console
    )
    assert "left out draft_model: draft_model needs a model to draft with" in console.file.getvalue()
    with pytest.raises(SpecError, match="did you mean prompt_lookup"):
        compare("decode", out=tmp_path / "s", input=file, methods=["prompt_lookups"], console=console)


def _cells(base, mine, ids=(1, 2, 3, 4)):
    blank = {
        "passes": 3,
        "drafted": 0,
        "accepted": 0,
        "drafted_by_depth": [],
        "accepted_by_depth": [],
        "bytes": 0,
        "nats": None,
    }
    fast = blank | {"drafted": 6, "accepted": 2, "passes": 1, "drafted_by_depth": [2, 1], "accepted_by_depth": [1, 1]}
    out = {(COST, 0, FULL): ({"context": 9, "seconds": {"1": 0.1, "8": 0.2, "16": 0.4}}, 1.0)}
    for i, (b, m) in enumerate(zip(base, mine, strict=True)):
        out[TASK, i, FULL] = out[TASK, i, f"{FULL} again"] = (
            blank | {"ids": [*ids], "seconds": b, "decode": b - 0.25},
            b,
        )
        out[TASK, i, LIBRARY] = (blank | {"ids": [*ids], "seconds": 2 * b, "decode": None}, b)
        out[TASK, i, "token_recycling"] = (fast | {"ids": [*ids[:3], 9 + i], "seconds": m, "decode": m - 0.25}, m)
    return out


def test_figures_are_ratios_prompt_by_prompt():
    asked = [Prompt("a", "x"), Prompt("b", "y")]
    m = row_of("token_recycling", _cells([1.0, 4.0], [0.5, 4.0]), asked, 0).metrics
    assert m.speed.mean == pytest.approx((2 + 1) / 2)  # not 5 / 4.5: every prompt counts alike
    assert m.decoding.mean == pytest.approx((0.75 / 0.25 + 1) / 2)
    assert m.bound == pytest.approx(3 / (1 + 6 / 7))  # six drafted tokens and the root, three tokens a pass
    assert m.against_library.mean == pytest.approx(3)
    assert m.tokens_a_pass.mean == 3
    assert m.accepted == pytest.approx(1 / 3)
    assert m.by_position == [0.5, 1.0]
    assert m.by_category == {"a": {"speed": 2.0, "tokens_a_pass": 3.0}, "b": {"speed": 1.0, "tokens_a_pass": 3.0}}
    assert (m.identical, m.agreement) == (0, 0.75)


def test_default_prompts_have_categories_and_follow_the_seed():
    found = default_prompts(3, 0)
    assert [p.category for p in found] == ["summary"] * 3 + ["question"] * 3 + ["code"] * 3 + ["free"] * 3
    assert found == default_prompts(3, 0) != default_prompts(3, 1)
    assert len({p.text for p in found}) == 12
    assert all("def " in p.text for p in found if p.category == "code")


def test_prompts_of_the_users_own(file, tmp_path):
    assert [(p.category, p.text[:7]) for p in read_prompts(file)] == [
        ("animals", "the cat"), ("letters", "a b c a"), ("input", "the dog"),
    ]  # fmt: skip
    text = tmp_path / "mine.txt"
    text.write_text("one\ntwo\n\nthree\n")
    assert [p.text for p in read_prompts(text)] == ["one\ntwo", "three"]
    many = [Prompt("a", str(i)) for i in range(9)] + [Prompt("b", "z")]
    assert len(spread(many, 4, 0)) == 5
    assert spread(many, 4, 0) != spread(many, 4, 1)
    for content, message in (
        ("", "holds no prompt"), ('{"a": 1}', "line 1 has no prompt"), ("[1]", "not a JSON object"), ("{", "not JSON"),
    ):  # fmt: skip
        (tmp_path / "bad.jsonl").write_text(content)
        with pytest.raises(InputError, match=message):
            read_prompts(tmp_path / "bad.jsonl")
    with pytest.raises(InputError, match="cannot read"):
        read_prompts(tmp_path / "none.jsonl")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_report_opens_offline(small, file, tmp_path):
    folder, _ = run(tmp_path, file)
    dom, console = open_in_browser(folder / "report.html", tmp_path / "profile")
    assert console == []
    assert "Where drafts are accepted" in dom
    assert dom.count("<polyline") >= 3
    assert COST not in dom
