"""compare from end to end: on a fake engine for what is around the measuring, on a tiny model for the measuring."""

import io
import json
import tomllib

import pytest
import torch
from rich.console import Console

from bench import fakes
from tiny import tiny
from tokenmill.bench import compare as bench
from tokenmill.bench import measure, sweep, tasks
from tokenmill.bench.compare import compare
from tokenmill.bench.figures import Results
from tokenmill.errors import InputError, ModelError, SpecError, StoreError, TokenmillError
from tokenmill.method import recipe

LONG = "adaptive(score=expected_attention)"  # longer than what a narrow terminal gives a name
METHODS = ["knorm", "recent_window", "zip_cache"]


@pytest.fixture
def fake(monkeypatch):
    fakes.install(monkeypatch.setattr)


def run(tmp_path, width=200, **options):
    console = Console(file=io.StringIO(), width=width)
    folder = compare("cache", out=tmp_path / "run", console=console, **options)
    return folder, console.file.getvalue()


def test_what_a_run_leaves(fake, tmp_path):
    folder, said = run(tmp_path, methods=METHODS)
    results = json.loads((folder / "results.json").read_text())
    assert list(results) == ["schema", "track", "model", "environment", "rows"]
    assert (results["schema"], results["track"], results["model"]) == (2, "cache", "smollm2")
    assert results["environment"]["chat_format"] is False
    assert all(list(row) == ["method", "spec", "budget", "metrics"] for row in results["rows"])
    assert results["rows"][0]["method"] == "full"
    specs = {row["spec"]: row["budget"] for row in results["rows"]}
    assert specs == {
        "full": None, "knorm(budget=0.5)": 0.5, "knorm(budget=0.25)": 0.25,
        "recent_window(budget=0.5)": 0.5, "recent_window(budget=0.25)": 0.25, "zip_cache": None,
    }  # fmt: skip
    Results.model_validate(results)
    full = results["rows"][0]["metrics"]
    assert full["quality"]["mean"] == 1
    assert full["tasks"]["drift"]["mean"] == pytest.approx(0, abs=1e-6)
    half = next(row["metrics"] for row in results["rows"] if row["spec"] == "knorm(budget=0.5)")
    assert half["bytes_share"] == pytest.approx(0.5, abs=0.02)
    assert half["tasks"]["drift"]["mean"] > 0
    cost = results["environment"]["cost"]
    assert 0 < cost["share_of_this_run"] < 1
    best = tomllib.loads((folder / "recipe.toml").read_text())
    assert best["recipe"] in specs
    assert best["model"] == "smollm2"
    assert 0 < best["measured"]["bytes_share"] < 0.56
    page = (folder / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    lines = said.splitlines()
    assert next(i for i, line in enumerate(lines) if "untouched" in line) < next(
        i for i, line in enumerate(lines) if "knorm" in line
    )
    assert "One more method and budget costs" in said
    assert "no timed figure" in said
    assert "the untouched model against itself measures decode " in said
    assert "n=4 texts" in said  # of the six, those whose task the fake model can do
    assert results["environment"]["corpus"] == tasks.SHA256
    choice = results["environment"]["winner"]
    assert (choice["spec"], choice["n"]) == (best["recipe"], 4)
    assert best["measured"]["distinguishable"] is False  # four texts tell nothing apart
    assert best["measured"]["not_distinguishable_from"] == choice["rivals"] != []
    assert "Winner (" in said
    assert "): none; " in said
    assert "n = 4 texts, too few to tell them apart" in said
    assert "others may be as good" in (folder / "recipe.toml").read_text()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_table_fits_its_terminal_with_every_name_whole(fake, tmp_path, width):
    _, said = run(tmp_path, width=width, methods=[*METHODS, LONG])
    lines = table_lines(said)
    assert max(map(len, lines)) <= width
    assert set(names_in(lines)) == {"untouched", *METHODS, LONG}
    assert "--wide" in said
    head = " ".join(lines[:5])
    assert all(word in head for word in ("quality", "n=4 texts", "bytes", "decode", "n=8"))


def test_wide_shows_every_column(fake, tmp_path):
    _, said = run(tmp_path, width=80, methods=METHODS, wide=True)
    lines = table_lines(said)
    assert max(map(len, lines)) > 80
    head = " ".join(lines[:5])
    assert all(word in head for word in ("quality", "decode", "prefill", "budget", "nll", "drift", "needle,"))
    assert "--wide" not in said


def names_in(lines):
    """The names of a table's rows, folded ones put together."""
    names = []
    for line in lines[3:]:
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if line.startswith("│") and any(cells[1:]):
            names.append(cells[0])
        elif line.startswith("│"):
            names[-1] += ("" if names[-1][-1] in "(=_" or names[-1][-1].isalnum() else " ") + cells[0]
    return names


def table_lines(said):
    """The table's own lines and its caption, its title left out."""
    lines = said.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("┏"))
    after = next(i for i, line in enumerate(lines) if line.startswith(("decode: tokens a second", "a pass behind")))
    return lines[first:after]


def test_rows():
    rows = sweep.expand(["knorm", "knorm(budget=0.3)", "full", "zip_cache", "snapkv(slots=64)"], [0.5, 0.25])
    assert [(r.spec, r.budget) for r in rows] == [
        ("full", None), ("knorm(budget=0.5)", 0.5), ("knorm(budget=0.25)", 0.25), ("knorm(budget=0.3)", 0.3),
        ("zip_cache", None), ("snapkv(slots=64)", None),
    ]  # fmt: skip
    every = sweep.expand(sweep.CACHE_METHODS, [0.5, 0.25, 0.1])
    without = 2  # mini_cache and zip_cache have a size of their own
    assert len(every) == 1 + (len(sweep.CACHE_METHODS) - 1 - without) * 3 + without
    assert len({r.spec for r in every}) == len(every)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"methods": ["snapk"]}, SpecError, "did you mean snapkv"),
        ({"methods": ["snapkv(windo=3)"]}, SpecError, "did you mean window"),
        ({"budgets": [0.0]}, SpecError, r"budget must be in \(0, 1\]"),
        ({"budgets": [1.5]}, SpecError, r"budget must be in \(0, 1\]"),
        ({"budgets": []}, SpecError, "no budgets"),
        ({"input": "nowhere.txt"}, InputError, "cannot read nowhere.txt"),
        ({"prompt": "  "}, InputError, "prompt for the report is empty"),
        ({"prompt": "a\ud83d"}, InputError, "prompt for the report has half of a surrogate pair"),
    ],
)
def test_mistakes_cost_no_run(tmp_path, monkeypatch, options, error, said):
    monkeypatch.setattr(bench, "_load", lambda model, weights, device: pytest.fail("the model was loaded first"))
    with pytest.raises(error, match=said):
        compare("cache", out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("track", "options", "error", "said"),
    [
        ("cache", {"methods": ["token_recycling"]}, SpecError, r"does not measure token_recycling, a draft method; "
         r"it takes adaptive, expected_attention, .* zip_cache; use compare decode"),
        ("cache", {"methods": ["snapkv(budget=0.5) + top_p"]}, SpecError, "does not measure top_p, a choose method"),
        ("cache", {"methods": ["constant_skip"]}, SpecError, "use compare depth"),
        ("depth", {"methods": ["snapkv"]}, SpecError, "does not measure snapkv, a score method; .* use compare cache"),
        ("depth", {"prompt": "text"}, InputError, "--prompt has no effect"),
        ("decode", {"prompt": "text"}, InputError, "--prompt has no effect"),
        ("decode", {"budgets": [0.5]}, InputError, "--budgets has no effect"),
        ("cache", {"budgets": [0.5], "methods": ["snapkv(budget=0.3)", "zip_cache"]}, InputError, "has no effect"),
    ],
)  # fmt: skip
def test_options_without_effect_are_refused(tmp_path, monkeypatch, track, options, error, said):
    monkeypatch.setattr(bench, "_load", lambda model, weights, device: pytest.fail("the model was loaded first"))
    with pytest.raises(error, match=said) as caught:
        compare(track, out=tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_unknown_tracks_name_what_exists(tmp_path):
    with pytest.raises(TokenmillError, match="no track 'vision'; there is cache, decode, depth"):
        compare("vision", out=tmp_path)


def test_resume_with_other_settings_weights_or_without_being_asked(fake, tmp_path, monkeypatch):
    run(tmp_path, methods=["knorm"])
    with pytest.raises(StoreError, match="holds a run already"):
        run(tmp_path, methods=["knorm"])
    with pytest.raises(StoreError, match="seed was 0, is now 3"):
        run(tmp_path, methods=["knorm"], seed=3, resume=True)
    with pytest.raises(StoreError, match=r"with recent_window\(budget=0.5\), recent_window\(budget=0.25\) added"):
        run(tmp_path, methods=["knorm", "recent_window"], resume=True)
    run(tmp_path, methods=["knorm"], resume=True, prompt="Another text to draw on.")  # only the picture is made anew
    other = fakes.Network()
    with torch.no_grad():
        other.weight[3] += 1
    monkeypatch.setattr(bench, "_load", lambda model, weights, device: (other, fakes.Characters()))
    with pytest.raises(StoreError, match="other weights of smollm2"):
        run(tmp_path, methods=["knorm"], resume=True)


def test_resume_without_a_folder_takes_the_newest_run(fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="nothing to resume"):
        compare("cache", resume=True, methods=["knorm"])
    quiet = Console(file=io.StringIO())
    first = compare("cache", methods=["knorm"], console=quiet)
    assert first.parent.name == "tokenmill-runs"
    assert compare("cache", methods=["knorm"], resume=True, console=quiet) == first


def test_own_text(fake, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 8)
    folder, said = run(tmp_path, methods=["knorm"], input=path)
    names = json.loads((folder / "results.json").read_text())["rows"][0]["metrics"]["tasks"]
    assert {"own_continuation", "own_drift"} <= set(names)
    assert "continuation" not in names
    assert "cut into pieces" in said


def test_a_broken_method_costs_only_its_row(fake, tmp_path, monkeypatch):
    honest = fakes.Session.read

    def read(self, ids, **options):
        if "recent_window" in repr(self.recipe):
            raise IndexError("index 7 is out of bounds")
        return honest(self, ids, **options)

    monkeypatch.setattr(fakes.Session, "read", read)
    folder, said = run(tmp_path, methods=["knorm", "recent_window(budget=0.5)"])
    assert "left out recent_window(budget=0.5): failed with IndexError: index 7 is out of bounds" in said
    results = json.loads((folder / "results.json").read_text())
    assert [row["method"] for row in results["rows"]] == ["full", "knorm", "knorm"]
    assert "recent_window(budget=0.5)" in results["environment"]["left_out"]


def test_logits_that_are_not_numbers_are_a_row_without_quality(fake, tmp_path, monkeypatch):
    honest = fakes.Session.read

    def read(self, ids, *, all_logits=False):
        out = honest(self, ids, all_logits=all_logits)
        return out * float("nan") if "recent_window" in repr(self.recipe) and all_logits else out

    monkeypatch.setattr(fakes.Session, "read", read)
    folder, said = run(tmp_path, methods=["knorm", "recent_window(budget=0.5)"])
    text = (folder / "results.json").read_text()
    assert "NaN" not in text
    last = json.loads(text)["rows"][-1]
    assert last["method"] == "recent_window"
    assert last["metrics"]["quality"] is None
    assert "–" in said


def test_a_model_whose_context_is_too_short_is_refused(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "_load", lambda model, weights, device: (fakes.Network(context=24), fakes.Characters()))
    with pytest.raises(ModelError, match="reads 24 tokens at most"):
        run(tmp_path, methods=["knorm"])


def test_the_report_escapes_everything(fake, tmp_path):
    evil = "</script><script>alert(1)</script><!-- & \" ' <b>bold</b>"
    folder, _ = run(tmp_path, methods=["knorm"], prompt=evil, model="<img src=x>")
    page = (folder / "report.html").read_text()
    assert "<img" not in page
    assert "alert(1)</script>" not in page
    assert page.count("<script") == 2
    assert tomllib.loads((folder / "recipe.toml").read_text())["model"] == "<img src=x>"


# ---- the measuring itself, on a real engine


def engine():
    from tokenmill.run import session

    return session


def sample(kind, measured, tail=12, length=64):
    task = tasks.Task("t", "f", kind, 1, length, tail=tail, block=5, measure=measured)
    return tasks.build(task, 0, 0, tasks.Reader(fakes.Characters()))


def test_teacher_forcing_agrees_with_the_model_itself():
    model, made = tiny(), sample("continuation", "nll")
    trial = measure.Trial(engine(), model, made, [])
    with torch.no_grad():
        whole = model(torch.tensor([made.prompt + made.tail])).logits[0].log_softmax(-1)
    first = len(made.prompt)
    expected = -sum(float(whole[first + i - 1, made.tail[i]]) for i in made.scored) / len(made.scored)
    assert trial.cell(recipe(None))["score"] == pytest.approx(expected, rel=1e-4)


def test_exact_is_what_greedy_decoding_writes():
    model, made = tiny(), sample("drift", "kl")
    trial = measure.Trial(engine(), model, made, [])
    assert trial.cell(recipe(None))["score"] == pytest.approx(0, abs=1e-6)
    written = trial.tail[0].tolist()
    with torch.no_grad():
        out = model.generate(
            torch.tensor([made.prompt + made.tail]), max_new_tokens=12, min_new_tokens=12, do_sample=False
        )
    if 2 not in written:  # generate stops at the end-of-text token, the measurement goes on
        assert out[0, len(made.prompt) + 1 :].tolist() == written[1:]
    task = tasks.Task("t", "f", "needle", 1, 64, block=5)
    right = tasks.Sample(task, 0, made.prompt, written, list(range(1, 13)))
    assert measure.Trial(engine(), model, right, []).cell(recipe(None))["score"] == 1.0
    wrong = tasks.Sample(task, 0, made.prompt, [*written[:-1], (written[-1] + 1) % 97], list(range(1, 13)))
    assert measure.Trial(engine(), model, wrong, []).cell(recipe(None))["score"] == 0.0


@pytest.mark.parametrize("spec", ["lazy_llm(budget=0.5)", "knorm(budget=0.5)"])
def test_reading_in_blocks_and_singly_agree(spec):
    model, made, what = tiny(), sample("continuation", "nll"), recipe(spec)
    tail = torch.tensor([made.tail])

    def fresh():
        session = engine().Session(model, what)
        session.read(torch.tensor([made.prompt]))
        return session

    singly = measure.follow_singly(fresh(), tail, 1)
    assert singly.shape == (len(made.tail) - 1, 97)
    if not what.acts("walk"):
        torch.testing.assert_close(measure.follow(fresh(), tail, 1), singly)


def test_every_cache_method_runs_through_compare(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "_load", lambda model, weights, device: (tiny(), fakes.Characters()))
    monkeypatch.setattr(tasks, "plan", fakes.small_plan)
    console = Console(file=io.StringIO(), width=200)
    folder = compare("cache", out=tmp_path / "run", budgets=[0.25], console=console)
    results = json.loads((folder / "results.json").read_text())
    assert results["environment"]["left_out"] == {}
    rows = {row["method"]: row["metrics"] for row in results["rows"]}
    assert len(rows) == len(sweep.CACHE_METHODS)
    assert all(m["quality"] is not None for m in rows.values())
    for m in rows.values():
        assert (m["decode"]["n"], m["prefill"]["n"], m["quality"]["n"]) == (8, 8, 4)
        assert 0 < m["decode"]["low"] < m["decode"]["ratio"] < m["decode"]["high"]
    assert rows["full"]["tasks"]["drift"]["mean"] == pytest.approx(0, abs=1e-6)
    assert rows["random_tokens"]["tasks"]["drift"]["mean"] > 1e-4
