"""The command's function, on a tiny random model."""

import importlib
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tiny import tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill import catalog
from tokenmill.bench.tasks import paragraphs
from tokenmill.claims import papers, reproduce
from tokenmill.claims.drafting import GREEDY, drafted
from tokenmill.claims.lab import Lab
from tokenmill.claims.reproduce import PAPERS, run_claim
from tokenmill.claims.verdict import Check, overall
from tokenmill.errors import InputError, SpecError, StoreError

FIELDS = [
    "method", "title", "claim", "paper_figure", "measured", "baseline", "verdict", "why", "environment", "seeds",
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
    return Console(file=open("/dev/null", "w"), width=200)


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
    assert list((tmp_path / "made").iterdir()) == [path]
    assert all(torch.equal(p, before[name]) for name, p in tiny().named_parameters())


def test_the_same_seeds_give_the_same_numbers():
    runs = [run_claim("tova", Lab(tiny(), tiny_tokenizer(), [0, 1, 2], quick=True)) for _ in range(2)]
    assert runs[0].measured == runs[1].measured
    assert runs[0].baseline == runs[1].baseline


def test_text_that_does_not_fit_the_context_is_out_of_reach(lab):
    made = run_claim("snapkv", lab)  # its needles want 512 tokens and room; the tiny model reads 512
    assert made.verdict == "out-of-reach"
    assert "context of 512 tokens is too short" in made.why


def test_a_method_that_cannot_run_on_the_model_is_out_of_reach():
    made = run_claim("streaming_llm", Lab(tiny("gpt2"), tiny_tokenizer(), [0], quick=True))
    assert made.verdict == "out-of-reach"
    assert "rotary" in made.why


def test_a_part_that_nobody_trained_is_out_of_reach(lab, monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    made = run_claim("chimera", lab)
    assert made.verdict == "out-of-reach"
    assert "run: tokenmill train" in made.why


def test_embeddings_are_put_back_after_a_transplant():
    common = [w for w, _ in Counter(" ".join(paragraphs()).split()).most_common(93)]
    lab = Lab(tiny(), tiny_tokenizer(common), seeds=[0, 1, 2], quick=True)
    before = lab.model.get_input_embeddings().weight.clone()
    made = run_claim("omp_transplant", lab)
    assert len(made.measured["checks"]) == 6
    assert torch.equal(lab.model.get_input_embeddings().weight, before)


def test_recycling_writes_what_greedy_writes(lab):
    made = run_claim("token_recycling", lab)
    same = made.measured["checks"][0]
    assert (same["what"], same["outcome"]) == ("share of texts equal to greedy's", "holds")


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
    out = drafted(lab, [spec], prompts=[[5, 6, 7, 5, 6, n] for n in range(8, 14)])
    assert out.equal(spec).outcome == "holds"
    assert out.more(spec, GREEDY).value >= 1


def test_a_method_without_a_claim_is_said(tiny_model, tmp_path, monkeypatch):
    module = importlib.import_module("tokenmill.claims.reproduce")
    found = importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda n: None if n.endswith("tova") else found(n))
    with pytest.raises(InputError, match=r"no claim is written yet for tova; add claims/papers/tova\.py"):
        reproduce("tova")
    console = Console(record=True, file=open("/dev/null", "w"), width=200)  # noqa: SIM115
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
