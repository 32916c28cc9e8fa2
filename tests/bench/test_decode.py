"""compare decode on a tiny model: what a run leaves, what a row's figures are, and prompts of the user's own."""

import copy
import io
import json
import math
import random
import tomllib
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from bench.test_compare import names_in, table_lines
from bench.test_report_browser import CHROMIUM, open_in_browser
from tiny import tiny
from tiny_tokenizer import tiny_tokenizer
from tokenmill.bench import compare as bench
from tokenmill.bench import decode
from tokenmill.bench.compare import compare
from tokenmill.bench.decode import COST, FULL, LIBRARY, LOOKUP, TASK, DecodeResults, row_of
from tokenmill.bench.prompts import Prompt, default_prompts, encoded, read_prompts, spread
from tokenmill.bench.store import Store
from tokenmill.errors import SpecError, StoreError
from tokenmill.ops.text import MOST_CHARACTERS
from tokenmill.run.generate import generate
from tokenmill.run.session import Session

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


def test_results_say_whether_the_chat_format_was_used(small, file, tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }} w9"
    monkeypatch.setattr(bench, "_load", lambda model, weights, device: (tiny("llama"), tokenizer))
    folder, _ = run(tmp_path, file)
    assert json.loads((folder / "results.json").read_text())["environment"]["chat_format"] is True
    assert "chat format, seed 0" in (folder / "report.html").read_text()


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
    assert (results["schema"], results["track"]) == (2, "decode")
    assert results["environment"]["chat_format"] is False
    assert "chat format, seed" not in (folder / "report.html").read_text()
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
    assert "our greedy loop against itself measures " in said
    assert "n too small: under 8" in said
    assert "n = 3 prompts, too few to tell them apart" in said
    assert "in no timed figure" in said
    assert rows[FULL]["speed"]["n"] == 3
    assert rows[FULL]["speed"]["low"] < rows[FULL]["speed"]["mean"] < rows[FULL]["speed"]["high"]


def test_identical_means_the_librarys_own_call():
    """Under a generation_config that changes greedy text, both sides are under it."""
    asks = {"repetition_penalty": 1.3, "eos_token_id": [2, 5], "num_beams": 3, "do_sample": True}
    model, ids = copy.deepcopy(tiny("llama")), [5, 6, 7, 8] * 5
    made = decode.Decoding(model, tiny_tokenizer(), [], [ids], [], store=SimpleNamespace(cells=dict), new=24)
    plain = made._cell(LIBRARY, 0, {})["ids"]
    model.generation_config.update(**asks)
    library = made._cell(LIBRARY, 0, {})["ids"]
    assert library != plain
    for row in (FULL, LOOKUP, "token_recycling", "prompt_lookup"):
        assert made._cell(row, 0, {})["ids"] == library, row
    tied, (first, second) = copy.deepcopy(tiny("llama")), Session(model).read(torch.tensor(made.ids))[0].topk(2)[1]
    logits = Session(tied).read(torch.tensor(made.ids))[0]
    full = {"ids": [int(first)]}, 0.0
    made.model = tied
    assert not made._tie(made.ids[0], [int(second)], full)
    bias = [[[int(first)], float(logits[second] - logits[first])]]  # the config makes the two equal
    tied.generation_config.update(sequence_bias=bias)
    assert made._tie(made.ids[0], [int(second)], full)


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
        "tie": False,
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
    m = row_of("token_recycling", _cells([1.0, 4.0], [0.5, 4.0]), asked).metrics
    assert m.speed.mean == pytest.approx((2 * 1) ** 0.5)  # not 5 / 4.5: every prompt counts alike
    assert m.speed.low < m.speed.mean < m.speed.high
    assert m.decoding.mean == pytest.approx((0.75 / 0.25) ** 0.5)
    assert m.bound == pytest.approx(3 / (1 + 6 / 7))  # six drafted tokens and the root, three tokens a pass
    assert m.against_library.mean == pytest.approx((2 * 2 * 1 * 2) ** 0.5)
    assert m.tokens_a_pass.mean == 3
    assert m.accepted == pytest.approx(1 / 3)
    assert m.by_position == [0.5, 1.0]
    assert m.by_category == {"a": {"speed": 2.0, "tokens_a_pass": 3.0}, "b": {"speed": 1.0, "tokens_a_pass": 3.0}}
    assert (m.identical, m.agreement) == (0, 0.75)
    assert not m.lossless  # the method promises greedy's text; this run did not give it


def test_the_greedy_row_shows_the_noise():
    """It is held against its own last turns, not against a mean that it is itself part of."""
    cells = _cells([1.0, 4.0], [0.5, 4.0])
    for i, seconds in enumerate((1.5, 4.0)):
        value, _ = cells[TASK, i, f"{FULL} again"]
        cells[TASK, i, f"{FULL} again"] = value | {"seconds": seconds}, seconds
    m = row_of(FULL, cells, [Prompt("a", "x"), Prompt("b", "y")]).metrics
    assert m.speed.mean == pytest.approx(1.5**0.5)
    assert m.speed.high > 1.5


def many(speeds, noise):
    """Cells of 12 prompts: rows by name, each so many times as fast, give or take."""
    cells, draw = _cells([1.0] * 12, [1.0] * 12), random.Random(4)
    for name, speed in speeds.items():
        for i in range(12):
            value, seconds = cells[TASK, i, FULL]
            cells[TASK, i, name] = value | {"seconds": seconds / speed * math.exp(noise * draw.gauss(0, 1))}, 1.0
    asked = [Prompt("a", str(i)) for i in range(12)]
    rows = [row_of(name, cells, asked) for name in (FULL, LIBRARY, *speeds)]
    return decode.winner(rows, cells), rows


def test_the_fastest_row_is_named_only_if_it_can_be_told_apart():
    speeds = {"token_recycling": 1.5, "prompt_lookup": 1.45, "jacobi": 1.0}
    found, _ = many(speeds, noise=0.01)
    assert (found.spec, found.decided, found.n, found.unit) == ("token_recycling", True, 12, "prompts")
    found, rows = many(speeds, noise=0.1)
    assert not found.decided
    assert {found.spec, *found.rivals} == {"token_recycling", "prompt_lookup"}
    assert "is not distinguishable from" in found.text()
    assert {r.spec for r in rows if r.metrics.within_noise} == {"token_recycling", "prompt_lookup"}


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_table_fits_its_terminal_with_every_name_whole(small, file, tmp_path, width):
    console = Console(file=io.StringIO(), width=width)
    compare("decode", out=tmp_path / "run", input=file, methods=METHODS, quick=True, console=console)
    lines = table_lines(console.file.getvalue())
    assert max(map(len, lines)) <= width
    names = {"greedy, our loop", LIBRARY, "model.generate (prompt lookup)", *METHODS}
    assert {name.replace(" ", "") for name in names_in(lines)} == {name.replace(" ", "") for name in names}
    assert all(word in " ".join(lines[:5]) for word in ("speed", "n=3", "identical", "tokens"))


def test_a_killed_run_carries_what_an_uninterrupted_one_does(small, file, tmp_path, monkeypatch):
    """token_recycling learns from one prompt for the next: a resumed run has it read the earlier prompts again."""
    learns = ["token_recycling(nodes=8)"]

    def figures_of(folder):
        with Store(folder, json.loads((folder / "settings.json").read_text()), resume=True) as store:
            cells = store.cells()
        keys = ("ids", "passes", "drafted", "accepted", "accepted_by_depth")
        return [{k: cells[TASK, i, learns[0]][0][k] for k in keys} for i in range(3)]

    def go(name, **options):
        opened = Store.__init__

        def noted(self, folder, settings, **more):
            opened(self, folder, settings, **more)
            (folder / "settings.json").write_text(json.dumps(settings))

        monkeypatch.setattr(Store, "__init__", noted)
        try:
            compare("decode", out=tmp_path / name, input=file, methods=learns, quick=True,
                    console=Console(file=io.StringIO()), **options)  # fmt: skip
        finally:
            monkeypatch.setattr(Store, "__init__", opened)
        return tmp_path / name

    whole = figures_of(go("whole"))
    added, count = Store.add, 0

    def dies(self, *values):
        nonlocal count
        added(self, *values)
        count += values[0] == TASK
        if count == 2 * 5 - 1:  # in the second prompt, after its last draft row
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        go("cut")
    monkeypatch.setattr(Store, "add", added)
    assert figures_of(go("cut", resume=True)) == whole


def test_a_text_that_leaves_greedys_at_a_tie_is_counted_as_one(small):
    model, ids = copy.deepcopy(tiny("llama")), [5, 6, 7, 8]
    work = decode.Decoding(model, None, [], [ids], [], None, 8)
    greedy = generate(model, None, [ids], max_new_tokens=8, ignore_eos=True)[0].ids
    full = {"ids": greedy}, 1.0
    other = [*greedy[:3], (greedy[3] + 1) % 97, *greedy[4:]]
    assert not work._tie(ids, greedy, full)
    assert not work._tie(ids, other, full)  # another token, far from it
    with torch.no_grad():  # two tokens with one and the same logit
        model.lm_head.weight[other[3]] = model.lm_head.weight[greedy[3]]
    assert work._tie(ids, other, full)


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
    chat = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    chat.write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"turns": ["first", "second"]}) + "\n")
    one, two = read_prompts(chat)
    assert (one.messages, one.text, two.text) == ((turns[0],), "Hi", "first")  # the answer is not in the prompt


def test_a_huge_prompt_is_cut_before_it_is_tokenized():
    seen = []

    class Tokenizer:
        chat_template = None

        def __call__(self, text, add_special_tokens=True):
            seen.append(len(text))
            return {"input_ids": [ord(c) for c in text]}

    assert encoded(Tokenizer(), Prompt("a", "x" * 50_000_000 + "yz"), 2) == [ord("y"), ord("z")]
    assert seen == [MOST_CHARACTERS]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_report_opens_offline(small, file, tmp_path):
    folder, _ = run(tmp_path, file)
    dom, console = open_in_browser(folder / "report.html", tmp_path / "profile")
    assert console == []
    assert "Where drafts are accepted" in dom
    assert dom.count("<polyline") >= 3
    assert COST not in dom
