"""What every skip method promises, and what each of them computes."""

from itertools import pairwise

import pytest

from tokenmill import catalog
from tokenmill.method import get, parse
from tokenmill.methods.skip import d3
from tokenmill.types import Step

# Models of their own, trained from scratch, are no schedule for another model: tests/methods/test_small.py.
METHODS = [name for name in catalog.methods("skip") if not catalog.find(name).card.get("trains")]


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
