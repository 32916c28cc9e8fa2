"""What every skip method promises, and what each of them computes."""

from itertools import pairwise
from statistics import fmean

import pytest
import torch

from tokenmill import catalog
from tokenmill.method import get, parse
from tokenmill.methods.skip import constant_skip, d3, early_exit, random_depth, skip_decode
from tokenmill.types import Midway, Step

# Models of their own, trained from scratch, are no schedule for another model: tests/methods/test_small.py.
HERE = [name for name in catalog.methods("skip") if not get(name).card.trains]
METHODS = [name for name in HERE if get(name).card.acts != "exit"]
EXITS = [name for name in HERE if get(name).card.acts == "exit"]


@pytest.mark.parametrize("name", METHODS)
class TestEvery:
    def test_repr_is_a_spec(self, name):
        assert parse(repr(get(name))) == get(name)

    @pytest.mark.parametrize("layers", [1, 2, 3, 4, 30])
    @pytest.mark.parametrize("generated", [0, 1, 7, 100, 10_000])
    def test_layers_are_in_order_and_there_is_one(self, name, layers, generated):
        depth = get(name)(Step(position=50 + generated, generated=generated, layers=layers))
        assert depth.layers == tuple(sorted({*depth.layers}))
        assert {*depth.layers} <= {*range(layers)}
        assert depth.layers
        assert depth.layers[0] == 0
        assert depth.fill in ("carry", "missing")

    def test_the_prompt_runs_through_every_layer(self, name):
        assert get(name)(Step(0, 0, 30)).layers == tuple(range(30))


class TestD3:
    def test_the_number_of_layers_decays_with_the_position(self):
        counts = [len(d3(alpha=0.95)(Step(9 + i, i, 30)).layers) for i in range(60)]
        assert counts == [max(18, int(30 * 0.95**i + 1e-9)) for i in range(60)]

    def test_one_block_goes_and_the_core_stays(self):
        assert d3(alpha=0.9)(Step(1, 3, 10)).layers == (0, 1, 2, 3, 7, 8, 9)  # floor(10 * 0.729) = 7, core 6
        assert d3(alpha=0.1)(Step(1, 3, 10)).layers == (0, 1, 2, 7, 8, 9)

    @pytest.mark.parametrize("layers", [1, 2, 3])
    def test_small_models_keep_their_first_layer(self, layers):
        assert d3(alpha=0.5, core=0.1)(Step(1, 50, layers)).layers == (0,)

    def test_alpha_one_skips_nothing(self):
        assert d3(alpha=1.0)(Step(1, 500, 30)).layers == tuple(range(30))

    def test_a_layer_skipped_once_is_not_run_again(self):
        runs = [{*d3(alpha=0.97, core=0.2)(Step(9 + i, i, 30)).layers} for i in range(100)]
        assert all(later <= earlier for earlier, later in pairwise(runs))
        assert len(runs[-1]) == 6


def midway(layer: int = 3, rows: int = 5, layers: int = 6, generated: int = 1) -> Midway:
    draw = torch.Generator().manual_seed(layer)
    hidden, before = torch.randn(2, rows, 8, generator=draw)
    logits = 3 * torch.randn(rows, 11, generator=draw)
    return Midway(Step(9, generated, layers), layer, hidden, before, lambda: logits)


@pytest.mark.parametrize("name", EXITS)
class TestEveryExit:
    def test_repr_is_a_spec(self, name):
        assert parse(repr(get(name))) == get(name)

    @pytest.mark.parametrize("layer", range(5))
    def test_a_row_decides_for_itself(self, name, layer):
        seen = midway(layer)
        out = get(name)(seen)
        for row in range(5):
            one = slice(row, row + 1)
            alone = Midway(seen.step, layer, seen.hidden[one], seen.before[one], lambda at=one: seen.logits()[at])
            own = get(name)(alone)
            assert (out is None) == (own is None)
            if out is not None:
                assert out.rows.dtype == torch.bool
                assert out.rows[one].tolist() == own.rows.tolist()
                assert out.fill in ("carry", "missing")


class TestEarlyExit:
    def test_it_asks_after_every_stride_th_layer_from_the_start_on(self):
        asked = [layer for layer in range(30) if early_exit(stride=4, start=0.5)(midway(layer, layers=30)) is not None]
        assert asked == [14, 18, 22, 26]

    @pytest.mark.parametrize("measure", ["top", "margin", "saturation"])
    def test_a_higher_threshold_lets_fewer_rows_go(self, measure):
        steps = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        gone = [early_exit(measure=measure, threshold=t, stride=1)(midway()).rows for t in steps]
        assert all(bool((later <= earlier).all()) for earlier, later in pairwise(gone))
        assert not gone[-1].any()

    def test_the_threshold_falls_while_generating(self):
        m = early_exit(measure="top", threshold=0.5, decay=4.0, length=10, stride=1)
        for generated in (1, 5, 100):
            seen = midway(generated=generated)
            level = 0.9 * 0.5 + 0.1 * 2.718281828459045 ** (-4.0 * generated / 10)
            assert m(seen).rows.tolist() == [float(row.softmax(-1).max()) > level for row in seen.logits()]


class TestSkipDecode:
    def test_the_budget_falls_evenly_and_then_stays(self):
        m = skip_decode(least=0.4, length=12)
        counts = [len(m(Step(9 + i, i, 30)).layers) for i in range(20)]
        assert counts == [round(30 - 18 * min(i, 12) / 12) for i in range(20)]
        assert fmean(counts[:13]) == pytest.approx(21, abs=0.5)  # half way between 30 and 12

    def test_warm_up_layers_and_top_layers_run(self):
        assert skip_decode(least=0.5, length=1, warmup=2)(Step(9, 5, 10)).layers == (0, 1, 7, 8, 9)

    def test_what_a_token_runs_all_tokens_before_it_ran(self):
        runs = [{*skip_decode(least=0.1, length=50)(Step(9 + i, i, 30)).layers} for i in range(80)]
        assert all(later <= earlier for earlier, later in pairwise(runs))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("m", [constant_skip, random_depth])
def test_a_share_of_the_layers_runs(m, share):
    assert {len(m(share=share)(Step(9 + i, i, 30)).layers) for i in range(1, 50)} == {max(1, round(share * 30))}


def test_random_depth_draws_anew_for_each_token_and_repeats_itself():
    drawn = [random_depth(share=0.5)(Step(9, i, 30)).layers for i in range(1, 40)]
    assert len({*drawn}) == 39
    assert drawn == [random_depth(share=0.5)(Step(99, i, 30)).layers for i in range(1, 40)]
    assert drawn != [random_depth(share=0.5, seed=1)(Step(9, i, 30)).layers for i in range(1, 40)]
    assert random_depth(share=0.5)(Step(9, 7, 30, prompt=True)).layers == tuple(range(30))
