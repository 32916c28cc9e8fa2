"""ADED: a table of trigrams that begins with those of a corpus and learns while it drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from tokenmill.claims.drafting import GREEDY, drafted, requests
from tokenmill.claims.lab import Lab
from tokenmill.claims.verdict import Check
from tokenmill.method import Method, get, method
from tokenmill.run.corpus import corpus
from tokenmill.types import Guess, Tree, Verified

CLAIM = (
    "With the trigrams of a corpus, text comes out exactly as greedy decoding writes it, in fewer passes; learning "
    "while it drafts accepts more than a table that stays as the corpus left it, and the search more than looking "
    "drafts up in the same corpus, at as many drafted tokens, and than lookahead decoding."
)
PAPER = (
    "Vicuna and others on MT-Bench, Alpaca, Human-Eval: up to 2.5x faster than plain decoding, above REST and "
    "lookahead decoding (paper's summary; the abstract has no figure)"
)
BEYOND = "a corpus of 253 MB of conversations: here the standard library's text and code, as far as it is trained on"
# As the authors' code has it: lines of four tokens, 24 drafted, 150 runs, 12 tokens a pair; before each draft the
# trigrams of the newest 16 tokens gain 0.04.
NODES, DEPTH, STEPS, WIDTH, NEWEST, USE, MOST = 24, 4, 150, 12, 16, 0.04, 3.0
TOKENS, QUICK_TOKENS = 300_000, 2_000
LOOKAHEAD = "lookahead(window=7, ngram=5, width=7)"

Table = dict[tuple[int, int], dict[int, float]]


def table(ids: Sequence[int]) -> Table:
    """For each two tokens in a row, the WIDTH that followed them most often, and their shares."""
    counts: dict[tuple[int, int], dict[int, int]] = {}
    for pair, token in zip(pairwise(ids), ids[2:], strict=False):
        row = counts.setdefault(pair, {})
        row[token] = row.get(token, 0) + 1
    out: Table = {}
    for pair, row in counts.items():
        best, total = sorted(row.items(), key=lambda item: -item[1])[:WIDTH], sum(row.values())
        out[pair] = {token: count / total for token, count in best}
    return out


def corpus_trigrams(base: Table, learns: bool) -> Method:
    """The authors' table as a source: what a use adds stands beside the corpus's share, as in their code."""

    def source(seen: Verified, state: Table | None, *, width: int = WIDTH) -> tuple[object, Table]:
        text, added = seen.context.tolist(), {} if state is None else state
        newest = text[-NEWEST:] if learns else []
        for pair, token in zip(pairwise(newest), newest[2:], strict=False):
            row = added.setdefault(pair, {})
            row[token] = min(MOST, row.get(token, 0.0) + USE)

        def look(tree: Tree, at: Sequence[int]) -> Guess:
            rows = []
            for end in tree.ends(text, at, 2):
                pair = (end[0], end[-1]) if len(end) == 2 else (-1, -1)
                weights = dict(base.get(pair, {}))
                for token, weight in added.get(pair, {}).items():
                    weights[token] = min(MOST, weights.get(token, 0.0) + weight)
                best, total = sorted(weights.items(), key=lambda item: -item[1])[:width], sum(weights.values())
                rows.append({token: weight / total for token, weight in best})
            return Guess(rows)

        return look, added

    source.__name__ = "learning_trigram" if learns else "corpus_trigram"
    made: Method = method(verb="draft", title="", role="source", tree="fixed", lossless=True, carries=learns)(source)
    return made


def corpus_lookup_source(ids: list[int]) -> Method:
    """prompt_lookup in the corpus and the text behind it."""
    before = torch.tensor(ids)
    indexed: Any = None

    @method(verb="draft", title="", role="source", tree="chain", lossless=True)
    def corpus_lookup(seen: Verified, state: Any, *, ngram: int = 3) -> tuple[object, Any]:
        nonlocal indexed
        whole = replace(seen, context=torch.cat([before.to(seen.context), seen.context]))
        if indexed is None:
            _, indexed = get("prompt_lookup")(ngram=ngram)(replace(seen, context=before.to(seen.context)), None)
        if state is None:
            state = list(indexed[0]), dict(indexed[1])
        return get("prompt_lookup")(ngram=ngram)(whole, state)

    return corpus_lookup


def measure(lab: Lab) -> list[Check]:
    lab.tick("the corpus's trigrams")
    ids = corpus(None, lab.reader.ids, 64).train[: QUICK_TOKENS if lab.quick else TOKENS].tolist()
    base = table(ids)
    search = get("aded")(nodes=NODES, depth=DEPTH, steps=STEPS, width=WIDTH)
    mine, still = (search(source=corpus_trigrams(base, learns)) for learns in (True, False))
    lookup = get("chain")(source=corpus_lookup_source(ids), nodes=NODES)
    out = drafted(lab, [mine, still, lookup, LOOKAHEAD], prompts=requests(lab, each=2), carried=(repr(mine),))
    return [
        out.equal(repr(mine)),
        out.more(repr(mine), GREEDY),
        out.more(repr(mine), repr(still), "tokens a pass, against the table of the corpus alone"),
        out.more(repr(mine), repr(lookup), "tokens a pass, against looking up in the same corpus"),
        out.more(repr(mine), LOOKAHEAD),
    ]
