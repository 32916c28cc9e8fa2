"""D3: the later a token comes, the fewer layers it needs."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from tokenmill.bench.tasks import Sample
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import NEAR, Check
from tokenmill.method import get, method
from tokenmill.models.architectures import decoder_of
from tokenmill.types import Depth, Step

CLAIM = (
    "Running later tokens through fewer middle layers costs almost nothing, and less than skipping as many layers at "
    "every token alike, or than giving early tokens the fewest."
)
PAPER = "Llama models of 7 to 70 billion parameters: 1.5x fewer operations with under 1 % loss on GSM8K and BBH"
BEYOND = "7 billion parameters and more, whose middle layers change a token less"
ALPHA = 0.99  # 1.4 times fewer layers over 64 tokens, near the paper's 1.5
GENTLE = 0.998


def layers_of(alpha: float, layers: int, tokens: int) -> list[int]:
    """How many layers d3 runs for each of the tokens."""
    return [len(get("d3")(Step(0, i, layers), alpha=alpha).layers) for i in range(tokens)]


def _of_size(step: Step, count: int) -> Depth:
    """`count` layers, those left out that d3 leaves out."""
    schedule = {len(d.layers): d for d in (get("d3")(Step(0, i, step.layers), alpha=0.995) for i in range(400))}
    return schedule[min(schedule, key=lambda n: abs(n - count))]


@method(verb="skip", title="")
def same_for_all(step: Step, *, alpha: float = ALPHA, tokens: int = 64) -> Depth:
    """As many layers on average as d3, spread evenly over the tokens."""
    if not step.generated:
        return Depth(tuple(range(step.layers)))
    counts = layers_of(alpha, step.layers, tokens)[1:]
    before, now = (round(fmean(counts) * n) for n in (step.generated - 1, step.generated))
    return _of_size(step, now - before)


@method(verb="skip", title="")
def early_fewest(step: Step, *, alpha: float = ALPHA, tokens: int = 64) -> Depth:
    """d3's schedule backwards."""
    if not step.generated:
        return Depth(tuple(range(step.layers)))
    return _of_size(step, layers_of(alpha, step.layers, tokens)[max(0, tokens - step.generated)])


def measure(lab: Lab) -> list[Check]:
    samples = lab.text(length=128, tail=64, block=1, each=2)
    tokens = len(samples[0].tail) - 1 if samples else 64
    mine, gentle = get("d3")(alpha=ALPHA), get("d3")(alpha=GENTLE)
    rivals = [same_for_all(tokens=tokens), early_fewest(tokens=tokens)]
    nats = lab.columns(samples, [mine, gentle, *rivals], "nats a token of real text")
    layers = len(decoder_of(lab.model).layers)
    means = {spec: fmean(layers_of(spec.knobs["alpha"], layers, tokens)) for spec in (mine, gentle)}
    for spec, average in means.items():
        lab.note(repr(spec), "mean layers a token", [average])
    loss = lab.compare("", nats, gentle, None)[0].difference
    lab.because(
        loss is not None and (loss.low or 0) > NEAR,
        f"already at {gentle!r}, {means[gentle]:.1f} of {layers} layers a token, text costs "
        f"{loss.mean if loss else 0:.2f} nats a token more: this model has no layers to spare without training",
    )
    early, late = (_half(lab, samples, late) for late in (False, True))
    lab.because(
        bool(early) and fmean(late) > fmean(early),
        f"the paper's premise does not hold here: later tokens are not easier, {fmean(late or [0]):.2f} nats a token "
        f"in the second half against {fmean(early or [0]):.2f} in the first",
    )
    what = f"{means[mine]:.1f} of {layers} layers on average, nats a token"
    return [
        *lab.compare(what, nats, mine, rivals),
        *lab.compare(f"{what}, against all layers", nats, mine, None, margin=NEAR),
    ]


def _half(lab: Lab, samples: list[Sample], late: bool) -> list[float]:
    """What the untouched model needs for the first or second half of each continuation, in nats a token."""
    halves = []
    for s in samples:
        middle = len(s.scored) // 2
        scored = s.scored[middle:] if late else s.scored[:middle]
        halves.append(replace(s, task=replace(s.task, block=64), scored=scored))
    return lab.columns(halves, [], f"nats a token, {'second' if late else 'first'} half").get("full", [])
