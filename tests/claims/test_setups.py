"""Each claim's set-up has what its paper has: tests that fail on set-ups that do not test their paper."""

import importlib
import inspect

import pytest
import torch

from tiny import tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill.claims import drafting
from tokenmill.claims.drafting import MEDUSA, drafted, less_trained
from tokenmill.claims.lab import Lab
from tokenmill.claims.papers import cntp, contrastive, jacobi, medusa, mini_cache, rho1, token_recycling, typical
from tokenmill.claims.reproduce import PAPERS, run_claim
from tokenmill.claims.writing import PEOPLE, Written
from tokenmill.method import get, parse
from tokenmill.run.corpus import Corpus
from tokenmill.run.fit import fit


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
    assert made.measured["checks"]
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
