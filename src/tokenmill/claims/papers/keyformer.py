"""Keyformer: noise and a rising temperature choose key tokens better than attention alone."""

from __future__ import annotations

from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import NEAR, Check

CLAIM = (
    "At an equal share of the cache, counting attention with Gumbel noise and a rising temperature keeps better tokens "
    "than H2O and than a recent window, and half of the cache serves as well as all of it."
)
PAPER = (
    "GPT-J, Cerebras-GPT, MPT: accuracy kept at half to 70 % of the cache, above H2O; latency 2.1x lower. The "
    "temperature rises from 1 at the prompt to 2 at the end of the text that is generated"
)
BEYOND = "latency and throughput on a GPU"
TAIL = 48  # tokens that follow the prompt, read one by one as if generated


def measure(lab: Lab) -> list[Check]:
    samples = lab.text(tail=TAIL, block=1, each=4)
    tokens = len(samples[0].tail) - 1 if samples else TAIL
    tight, half = (f"keyformer(rise={1 / tokens:.5f}, budget={share})" for share in (0.2, 0.5))
    # h2o(recent=0.3) is Keyformer without noise and temperature.
    rivals = ["h2o(budget=0.2)", "h2o(recent=0.3, budget=0.2)", "recent_window(budget=0.2)"]
    nats = lab.columns(samples, [tight, half, *rivals], "nats a token of real text")
    lab.copied(nats, half)
    checks = [
        *lab.compare("20 % of the cache, nats a token", nats, tight, rivals),
        *lab.compare("half against the whole cache, nats a token", nats, half, None, margin=NEAR),
    ]
    against_h2o = checks[:2]
    lab.because(
        any(c.outcome != "supported" for c in against_h2o)
        and all(c.difference is not None and abs(c.difference.mean) < NEAR for c in against_h2o),
        f"noise and temperature change the text's loss by less than {NEAR} nats either way: the tokens that H2O keeps "
        "already lie close to the whole cache here, so little is left to gain",
    )
    return checks
