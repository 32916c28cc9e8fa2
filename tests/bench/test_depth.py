"""compare depth: what a run leaves, on a tiny model, and the figures that only this track has."""

import io
import json
import tomllib
from dataclasses import replace

import pytest
from rich.console import Console

from bench import fakes
from bench.test_compare import names_in, table_lines
from bench.test_report_browser import CHROMIUM, open_in_browser
from tiny import tiny
from tokenmill.bench import compare as bench
from tokenmill.bench import figures, sweep, tasks
from tokenmill.bench.compare import compare
from tokenmill.bench.figures import Metrics, Quality, Results, Row, Stratum
from tokenmill.bench.statistics import Interval
from tokenmill.errors import StoreError

METHODS = ["constant_skip", "random_depth(share=0.5)", "skip_decode(least=0.4, length=8)", "early_exit(threshold=0.0)"]


def small_plan(quick=False, own_text=False):
    made = (*tasks._needles({(48, 1): 1}), *tasks._text(40, continuation=(1, 12), drift=(1, 10)))
    speed = tasks.Speed(1, decode_context=32, decode_steps=2, prefill_batch=1, prefill_context=32, turns=1)
    return tasks.Plan(
        tuple(replace(t, block=1) for t in made if not t.question_seen), speed, budgets=(0.75, 0.5), picture_tokens=0
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, and the place where others would go."""
    patch = pytest.MonkeyPatch()
    patch.setattr(bench, "_load", lambda model, weights, device: (tiny("llama"), fakes.Characters()))
    patch.setattr(tasks, "depth_plan", small_plan)
    yield tmp_path_factory.mktemp("depth") / "run"
    patch.undo()


@pytest.fixture(scope="module")
def ran(folder):
    return run(folder)


def run(folder, **options):
    console = Console(file=io.StringIO(), width=200)
    return compare("depth", out=folder, methods=METHODS, console=console, **options), console.file.getvalue()


def test_what_a_run_leaves(ran):
    folder, said = ran
    results = json.loads((folder / "results.json").read_text())
    assert list(results) == ["schema", "track", "model", "environment", "rows"]
    assert results["environment"]["left_out"] == {}
    Results.model_validate(results)
    rows = {row["spec"]: row["metrics"] for row in results["rows"]}
    assert {row["spec"]: row["budget"] for row in results["rows"]} == {
        "full": None, "constant_skip(share=0.75)": 0.75, "constant_skip(share=0.5)": 0.5,
        "random_depth(share=0.5)": 0.5, "skip_decode(least=0.4, length=8)": None, "early_exit(threshold=0.0)": None,
    }  # fmt: skip
    full = rows["full"]
    assert full["layers_share"] == full["operations_share"] == full["quality"]["mean"] == 1
    assert full["tasks"]["drift"]["mean"] == pytest.approx(0, abs=1e-6)
    assert rows["constant_skip(share=0.75)"]["layers_share"] == 0.75  # 3 of 4 layers
    assert rows["constant_skip(share=0.5)"]["layers_share"] == rows["random_depth(share=0.5)"]["layers_share"] == 0.5
    assert 0.5 < rows["skip_decode(least=0.4, length=8)"]["layers_share"] < 0.75
    assert rows["constant_skip(share=0.5)"]["tasks"]["drift"]["mean"] > 1e-4
    # Products: what is left out are two layers of four, and the head stays.
    size = results["environment"]["products"]
    model = tiny("llama")
    assert size["layers"] == 4
    assert size["head"] == model.lm_head.weight.numel()
    assert size["layer"] == sum(p.numel() for p in model.model.layers[0].parameters() if p.ndim == 2)
    half = (2 * size["layer"] + size["head"]) / (4 * size["layer"] + size["head"])
    assert rows["constant_skip(share=0.5)"]["operations_share"] == pytest.approx(half)
    # Sure at once: two layers run, and the head is asked once more than for the untouched model.
    early = rows["early_exit(threshold=0.0)"]
    assert early["layers_share"] == 0.5
    assert early["operations_share"] > half
    assert rows["constant_skip(share=0.5)"]["against_constant"] is None
    assert early["against_constant"] is not None
    best = tomllib.loads((folder / "recipe.toml").read_text())
    assert best["recipe"] in rows
    assert best["measured"]["layers_share"] <= figures.SHALLOW
    page = (folder / "report.html").read_text()
    assert "https://" not in page
    assert page.count("<svg") == 2
    assert page.count("<th") >= 10
    for heading in ("operations", "vs constant", "layers", "drift"):
        assert heading in said
        assert f">{heading}</th>" in page
    assert "untouched" in said


def test_nothing_is_measured_twice(ran, monkeypatch):
    folder, _ = ran
    before = json.loads((folder / "results.json").read_text())
    with pytest.raises(StoreError, match="--resume"):
        run(folder)
    monkeypatch.setattr(sweep.Sweep, "_cell", lambda *_: pytest.fail("measured again"))
    run(folder, resume=True)
    assert json.loads((folder / "results.json").read_text())["rows"] == before["rows"]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_table_fits_its_terminal_with_every_name_whole(ran, monkeypatch, width):
    console = Console(file=io.StringIO(), width=width)
    compare("depth", out=ran[0], methods=METHODS, console=console, resume=True)
    lines = table_lines(console.file.getvalue())
    assert max(map(len, lines)) <= width
    names = {"constant_skip(share=0.75)", "constant_skip(share=0.5)", *METHODS[1:], "untouched"}
    assert {name.replace(" ", "") for name in names_in(lines)} == {name.replace(" ", "") for name in names}
    assert all(word in " ".join(lines[:5]) for word in ("quality", "layers", "budget"))


def test_the_plain_rival_is_read_off_between_its_points():
    qualities = {}

    def row(method, layers, quality):
        spread = Interval(mean=quality, low=quality, high=quality, n=12, method="t")
        spec = f"{method}({layers})"
        noise = 0.0 if method == "full" else 0.01
        parts = {str(n): (noise if n % 2 else -noise) / 12 for n in range(12)}
        qualities[spec] = Quality(quality, {}, {"s": Stratum(parts, 0.0)})
        return Row(method=method, spec=spec, budget=None, metrics=Metrics(quality=spread, layers_share=layers))

    rows = [
        row("full", 1.0, 1.0), row("constant_skip", 0.5, 0.2), row("constant_skip", 0.8, 0.8),
        row("d3", 0.9, 0.95), row("d3", 0.65, 0.3), row("d3", 0.4, 0.1), row("d3", 0.8, 0.8),
    ]  # fmt: skip
    figures.set_against_constant(rows, qualities)
    found = [r.metrics.against_constant for r in rows]
    assert found[:3] == [None] * 3
    assert [i.mean for i in found[3:5]] == pytest.approx([0.95 - 0.9, 0.3 - 0.5])
    assert found[5] is None  # the rival has no point at so few layers
    assert found[6].mean == pytest.approx(0)
    # Paired text by text: what moves both alike is no noise of the difference. Halfway to the untouched model, half of
    # the rival's part is left.
    assert found[4].high - found[4].low < 1e-9 < found[3].high - found[3].low < 0.01


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_report_opens_offline(ran, tmp_path):
    dom, console = open_in_browser(ran[0] / "report.html", tmp_path / "profile")
    assert console == []
    assert dom.count('class="point') == 2 * 6
