"""The command's function, on a tiny random model."""

import importlib
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from tiny import tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill import catalog
from tokenmill.bench.tasks import paragraphs
from tokenmill.claims import papers, reproduce, source
from tokenmill.claims.checkpoint import Checkpoint
from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.reproduce import PAPERS, run_claim
from tokenmill.claims.verdict import Check, overall
from tokenmill.errors import InputError, SpecError, StoreError
from tokenmill.view.terminal import Terminal

FIELDS = [
    "method", "title", "claim", "paper_figure", "measured", "baseline", "verdict", "why", "missing", "beyond", "stale",
    "rerun", "environment", "seeds", "code",
]  # fmt: skip
CLAIMS = sorted(path.stem for path in Path(papers.__file__).parent.glob("[!_]*.py"))


@pytest.fixture
def lab():
    return Lab(tiny(), tiny_tokenizer(), seeds=[0, 1, 2], quick=True)


@pytest.fixture
def tiny_model(monkeypatch):
    module = importlib.import_module("tokenmill.claims.reproduce")
    monkeypatch.setattr(module, "load", lambda name, **_: (tiny(), tiny_tokenizer()))


def quiet():
    return Terminal(file=open("/dev/null", "w"), width=200)


def test_one_claim_end_to_end(tiny_model, tmp_path):
    before = {name: p.clone() for name, p in tiny().named_parameters()}
    (path,) = reproduce(["h2o"], out=tmp_path / "made", quick=True, console=quiet())
    assert path == tmp_path / "made" / "h2o.json"
    made = json.loads(path.read_text())
    assert list(made) == FIELDS
    assert made["title"] == catalog.find("h2o").title
    assert made["seeds"] == [0, 1, 2]
    assert made["baseline"]["full"]
    assert made["environment"]["quick"] is True
    assert overall([Check(**c) for c in made["measured"]["checks"]]) == made["verdict"]
    assert all(len(c["method_samples"]) == c["samples"] == 3 for c in made["measured"]["checks"])
    assert made["code"]["digests"] == source.digests("h2o")
    assert list((tmp_path / "made").iterdir()) == [path]
    assert all(torch.equal(p, before[name]) for name, p in tiny().named_parameters())


def test_the_same_seeds_give_the_same_numbers():
    runs = [run_claim("tova", Lab(tiny(), tiny_tokenizer(), [0, 1, 2], quick=True)) for _ in range(2)]
    assert runs[0].measured == runs[1].measured
    assert runs[0].baseline == runs[1].baseline


def test_text_that_does_not_fit_the_context_is_not_testable(lab):
    made = run_claim("snapkv", lab)  # its needles want 512 tokens and room; the tiny model reads 512
    assert made.verdict == "not testable here"
    assert "context of 512 tokens is too short" in made.why


def test_a_method_that_cannot_run_on_the_model_is_not_testable():
    made = run_claim("streaming_llm", Lab(tiny("gpt2"), tiny_tokenizer(), [0], quick=True))
    assert made.verdict == "not testable here"
    assert "rotary" in made.why


def test_a_part_that_nobody_trained_is_not_testable(lab, monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    made = run_claim("chimera", lab)
    assert made.verdict == "not testable here"
    assert "run: tokenmill train" in made.why


def test_embeddings_are_put_back_after_a_transplant():
    common = [w for w, _ in Counter(" ".join(paragraphs()).split()).most_common(93)]
    lab = Lab(tiny(), tiny_tokenizer(common), seeds=[0, 1, 2], quick=True)
    before = lab.model.get_input_embeddings().weight.clone()
    made = run_claim("omp_transplant", lab)
    assert len(made.measured.checks) == 6
    assert torch.equal(lab.model.get_input_embeddings().weight, before)


def test_recycling_writes_what_greedy_writes(lab):
    made = run_claim("token_recycling", lab)
    same = made.measured.checks[0]
    assert (same.what, same.value, same.identity) == ("share of texts equal to greedy's", 1.0, True)


def test_icn_counts_a_right_answer_once_and_in_the_iteration_that_found_it():
    claim = importlib.import_module(f"{PAPERS}.icn")
    answers = ["The cherries", "a fig, not a date", "cherry.", "", "rosemary", "Peaches!", *[""] * 4, "dates", "FIG"]
    assert claim._new(answers, {"cherry", "date", "fig", "mary", "peach"}) == [3, 1, 0]


def test_a_task_the_untouched_model_cannot_do_decides_nothing(lab):
    assert lab.unable({"full": [0.1, 0.2]}) == ""
    assert "untouched model itself" in lab.unable({"full": [5.0, 6.0]})


def test_reasons_are_chosen_by_numbers(lab):
    lab.because(False, "not so")
    lab.because(1 > 0, "so")
    assert lab.reasons == ["so"]


def test_a_figure_that_is_not_a_number_is_left_out(lab):
    lab.note("h2o", "loss", [1.0, math.nan])
    assert lab.figures == {}


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_is_complete_and_a_papers(name):
    assert catalog.find(name).title
    claim = importlib.import_module(f"{PAPERS}.{name}")
    assert claim.CLAIM.endswith(".")
    assert claim.PAPER
    assert isinstance(claim.BEYOND, str)
    assert callable(claim.measure)


def test_a_typo_is_answered_with_what_exists():
    with pytest.raises(SpecError, match="no method or verb 'h20'; did you mean h2o"):
        reproduce("h20")


def test_a_baseline_claims_nothing():
    with pytest.raises(InputError, match="random_tokens has no paper"):
        reproduce("random_tokens")


def test_figures_of_drafts_are_found_by_the_spec_that_was_asked(lab):
    """Also where it names what is the default anyway, and so prints shorter."""
    spec = "dyspec(source=token_recycling)"
    out = drafted(lab, [spec], prompts=[[5, 6, 7, 5, 6, n] for n in range(8, 16)])
    assert out.equal(spec).outcome == "supported"
    assert out.more(spec, GREEDY).value >= 1


def test_a_method_without_a_claim_is_said(tiny_model, tmp_path, monkeypatch):
    module = importlib.import_module("tokenmill.claims.reproduce")
    found = importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda n: None if n.endswith("tova") else found(n))
    with pytest.raises(InputError, match=r"no claim is written yet for tova; add claims/papers/tova\.py"):
        reproduce("tova")
    console = Terminal(record=True, file=open("/dev/null", "w"), width=200)  # noqa: SIM115
    made = reproduce(["tova", "keyformer"], out=tmp_path, quick=True, seeds=1, console=console)
    assert [path.stem for path in made] == ["keyformer"]
    assert "no claim is written yet for tova" in console.export_text()


def test_a_verb_without_methods_is_said():
    with pytest.raises(InputError, match="no methods yet"):
        reproduce("credit")


def test_no_seeds_are_refused():
    with pytest.raises(InputError, match="seeds must be at least 1"):
        reproduce("h2o", seeds=0)


def test_a_folder_that_cannot_be_written_is_said(tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another --out"):
        reproduce("keyformer", out=tmp_path / "file", quick=True, seeds=1, console=quiet())


# ---- going on after a stop ----


def stop_after(monkeypatch, count):
    """Ctrl-C once so many parts have been measured."""
    get, done = Checkpoint.get, []

    def counted(self, key, measure):
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(key)
        return get(self, key, measure)

    monkeypatch.setattr(Checkpoint, "get", counted)
    return done


def without_times(record):
    record["environment"] = record["baseline"] = record["measured"]["figures"] = None
    return record


@pytest.mark.parametrize("name", ["d3", "token_recycling", "typical"])
def test_a_run_that_was_stopped_goes_on_where_it_was(tiny_model, tmp_path, monkeypatch, name):
    (path,) = reproduce(name, out=tmp_path / "whole", quick=True, console=quiet())
    with monkeypatch.context() as patched:
        stop_after(patched, 1)
        with pytest.raises(KeyboardInterrupt):
            reproduce(name, out=tmp_path / "stopped", quick=True, console=quiet())
    assert [p.name for p in (tmp_path / "stopped").iterdir()] == [f".{name}.checkpoint"]
    values = []
    with monkeypatch.context() as patched:
        get = Checkpoint.get
        patched.setattr(
            Checkpoint, "get", lambda self, key, measure: get(self, key, lambda: values.append(key) or measure())
        )
        (again,) = reproduce(name, out=tmp_path / "stopped", quick=True, resume=True, console=quiet())
        assert len(values) > 0
        resumed = len(values)
        values.clear()
        reproduce(name, out=tmp_path / "anew", quick=True, console=quiet())
    assert resumed == len(values) - 1  # one part was there
    assert without_times(json.loads(again.read_text())) == without_times(json.loads(path.read_text()))
    assert [p.name for p in (tmp_path / "stopped").iterdir()] == [f"{name}.json"]


def test_a_complete_record_is_not_measured_twice(tiny_model, tmp_path, monkeypatch):
    knobs = {"out": tmp_path, "quick": True, "console": quiet()}
    (path,) = reproduce("tova", **knobs)
    before = path.stat().st_mtime_ns
    module = importlib.import_module("tokenmill.claims.reproduce")
    monkeypatch.setattr(module, "run_claim", lambda *_: pytest.fail("measured twice"))
    assert reproduce("tova", resume=True, **knobs) == [path]
    assert path.stat().st_mtime_ns == before
    with pytest.raises(pytest.fail.Exception):  # other settings
        reproduce("tova", resume=True, seeds=2, **knobs)
    monkeypatch.setattr(module, "changed", lambda *_: "changed")
    with pytest.raises(pytest.fail.Exception):  # other code
        reproduce("tova", resume=True, **knobs)


def test_ctrl_c_names_the_command_that_goes_on(tiny_model, tmp_path, monkeypatch):
    stop_after(monkeypatch, 1)
    console = Terminal(record=True, file=open("/dev/null", "w"), width=400)  # noqa: SIM115
    folder = tmp_path / "a[/b] c"
    with pytest.raises(KeyboardInterrupt):
        reproduce("tova", out=folder, quick=True, seeds=2, weights="int8", console=console)
    told = console.export_text()
    assert f"tokenmill reproduce tova --out '{folder}' --resume --weights int8 --seeds 2 --quick" in told


def test_a_folder_named_like_markup_is_printed_as_it_is(tiny_model, tmp_path):
    console = Terminal(record=True, file=open("/dev/null", "w"), width=400)  # noqa: SIM115
    folder = tmp_path / "a[" / "b]"
    reproduce("tova", out=folder, quick=True, seeds=1, console=console)
    assert str(folder) in console.export_text()


def test_an_unwritable_folder_is_found_before_anything_is_loaded(tmp_path, monkeypatch):
    module = importlib.import_module("tokenmill.claims.reproduce")
    monkeypatch.setattr(module, "load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another --out"):
        reproduce("tova", out=tmp_path / "file" / "below", quick=True, console=quiet())


def test_a_torn_line_is_measured_again(tmp_path):
    path = tmp_path / ".h2o.checkpoint"
    checkpoint = Checkpoint(path, {"seeds": [0]})
    assert [checkpoint.get(key, lambda key=key: [key]) for key in "ab"] == [["a"], ["b"]]
    whole = path.read_text()
    for cut in range(len(whole)):
        path.write_text(whole[:cut])
        again = Checkpoint(path, {"seeds": [0]}, resume=True)
        kept = whole[:cut].count("\n") - 1  # lines behind the head that are whole
        assert list(again.values) == list("ab")[: max(0, kept)]
        assert [again.get(key, lambda key=key: [key]) for key in "ab"] == [["a"], ["b"]]
        assert [line[:4] for line in path.read_text().splitlines()[1:]] == ['["a"', '["b"']


def test_parts_of_other_settings_are_not_taken(tmp_path):
    path = tmp_path / ".h2o.checkpoint"
    Checkpoint(path, {"seeds": [0]}).get("a", lambda: 1)
    assert Checkpoint(path, {"seeds": [0]}, resume=True).get("a", lambda: 2) == 1
    assert Checkpoint(path, {"seeds": [1]}, resume=True).get("a", lambda: 2) == 2
    assert Checkpoint(path, {"seeds": [1]}).get("a", lambda: 3) == 3  # without --resume it begins anew


def test_time_left_follows_the_pace_of_this_run():
    module = importlib.import_module("tokenmill.claims.reproduce")
    with module.Progress(console=quiet()) as progress:
        bar = module._Bar(progress, {"a": 100.0, "b": 100.0, "c": 300.0})
        assert bar.seconds_left() == 500
        bar.begin("a")
        bar.began -= 50
        assert bar.seconds_left() == pytest.approx(450, abs=1)
        bar.end("a", known=False)
        assert bar.seconds_left() == pytest.approx(200, abs=1)  # twice as fast as foreseen
        bar.end("b", known=True)
        assert bar.seconds_left() == pytest.approx(150, abs=1)
