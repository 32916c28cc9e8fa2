"""D3: the later a token comes, the fewer layers it needs."""

from __future__ import annotations

from statistics import fmean

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import NEAR, Check
from tokenmill.method import get, method
from tokenmill.run.session import Session
from tokenmill.types import Depth, Step

CLAIM = (
    "Running later tokens through fewer middle layers costs almost nothing, and less than skipping as many layers at "
    "every token alike, or than giving early tokens the fewest."
)
PAPER = "Llama models of 7 to 70 billion parameters: 1.5x fewer operations with under 1 % loss on GSM8K and BBH"
BEYOND = "7 billion parameters and more, whose middle layers change a token less"
TOKENS = 48


def layers_of(alpha: float, layers: int) -> list[int]:
    """How many layers d3 runs for each of the tokens."""
    return [len(get("d3")(Step(0, i, layers), alpha=alpha).layers) for i in range(TOKENS)]


def _of_size(step: Step, count: int) -> Depth:
    """`count` layers, left out where d3 leaves them out."""
    schedule = {len(d.layers): d for d in (get("d3")(Step(0, i, step.layers), alpha=0.995) for i in range(400))}
    return schedule[min(schedule, key=lambda n: abs(n - count))]


@method(verb="skip", title="")
def same_for_all(step: Step, *, alpha: float = 0.99) -> Depth:
    """As many layers on average as d3, spread evenly over the tokens."""
    if not step.generated:
        return Depth(tuple(range(step.layers)))
    counts = layers_of(alpha, step.layers)[1:]
    before, now = (round(fmean(counts) * n) for n in (step.generated - 1, step.generated))
    return _of_size(step, now - before)


@method(verb="skip", title="")
def early_fewest(step: Step, *, alpha: float = 0.99) -> Depth:
    """d3's schedule backwards."""
    if not step.generated:
        return Depth(tuple(range(step.layers)))
    return _of_size(step, layers_of(alpha, step.layers)[max(0, TOKENS - step.generated)])


def measure(lab: Lab) -> list[Check]:
    alphas = (0.998, 0.995, 0.99)
    mine = {a: f"d3(alpha={a})" if a != 0.99 else "d3" for a in alphas}
    middle = 0.995
    specs = [*mine.values(), same_for_all(alpha=middle), early_fewest(alpha=middle)]
    samples = lab.text(length=128, tail=TOKENS, block=1, each=2)
    nats = lab.columns(samples, specs, "nats a token of real text")
    layers = len(Session(lab.model).model.get_decoder().layers)
    for alpha, spec in mine.items():
        lab.note(spec, "mean layers a token", layers_of(alpha, layers))
    gentlest = lab.compare("", nats, mine[0.998], None)[0]
    lost = gentlest.difference.mean if gentlest.difference else 0.0
    lab.because(
        lost > NEAR,
        f"already at alpha=0.998, {fmean(layers_of(0.998, layers)):.1f} of {layers} layers a token, text costs "
        f"{lost:.2f} nats a token more: this model has no layers to spare without training",
    )
    depth = f"{fmean(layers_of(middle, layers)):.1f} of {layers} layers on average, nats a token"
    return [
        *lab.compare(depth, nats, mine[middle], [same_for_all(alpha=middle), early_fewest(alpha=middle)]),
        *lab.compare("alpha=0.99 against all layers, nats a token", nats, mine[0.99], None, margin=NEAR),
    ]
