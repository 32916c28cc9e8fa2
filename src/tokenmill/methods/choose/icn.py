"""ICN: what was found is shown to the model as a list, and the likeliest beginnings behind it make the next answers.

found so far a_1 … a_n;   q = what follows  x  1. "a_1"  …  n. "a_n"  n+1. "
v_1 … v_each = the likeliest tokens under q that began no answer yet
a_(n+i) = v_i and what goes on greedily from  x  1. "v_i,  the list not in view, to the closing quotation mark

Tokens near the likely ones in the space of output embeddings rank high whether or not they are right, so the next ranks
find little; a query that turns away from what was found finds more. With `each` as large as `answers` there is no list,
and the answers begin with the ranks of the plain distribution.

Peng et al., "Correlation and Navigation in the Vocabulary Key Representation Space of Language Models", 2024.

Differs: where the prompt ends a line, as chat formats do, the list begins there, and else behind `Answer:`, which the
authors' code always writes; it gives chat models no chat format. An answer also ends with its line, and one that is not
closed counts as far as it came, where theirs is called "nothing". Chains of thought, which they list under headings and
let vote, are not made here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from tokenmill.method import method
from tokenmill.types import Writing

LEAD = "\n\nAnswer:\n"
OPENING = '1. "'


@method(
    title="Correlation and Navigation in the Vocabulary Key Representation Space of Language Models",
    paper="arXiv:2410.02284",
    year=2024,
    role="search",
    needs=("chooses", "tokenizer"),
)
def icn(writing: Writing, *, answers: int = 100, each: int = 10, length: int = 64) -> Iterator[list[int]]:
    lead = "" if writing.text(writing.prompt[-1:]).endswith("\n") else LEAD
    if not writing.append(lead + OPENING):
        return
    newline = list(writing.spelled(("\n",)))
    begun = list(writing.ends)
    answers = min(answers, writing.logits.shape[-1] - len(begun))
    alone, items = writing.saved(0), ""
    for asked in range(0, answers, each):
        if asked and not writing.append(items):
            return
        first = _beginnings(writing, begun, min(each, answers - asked))
        listed = writing.saved(0)
        writing.restore(alone)
        alone = writing.saved(0)
        found = _answered(writing, first, min(length, writing.room))
        for n, answer in enumerate(found, asked):
            yield [*newline, *answer] if n else answer
        writing.restore(listed)
        items = "".join(f'{writing.text(answer)}"\n{n}. "' for n, answer in enumerate(found, asked + 2))


def _beginnings(writing: Writing, begun: list[int], count: int) -> list[int]:
    """So many tokens that may come next and are not in `begun`; they are put there."""
    logits = writing.logits.clone()  # (1, V)
    for _ in range(count):
        logits[:, begun] = -math.inf
        begun.append(int(writing.choose(logits)))
    return begun[-count:]


def _answered(writing: Writing, first: Sequence[int], length: int) -> list[list[int]]:
    """The answers that begin with these tokens, as rows of one batch that leave it when they are closed."""
    answers: list[list[int]] = [[] for _ in first]
    rows, tokens = list(range(len(first))), list(first)
    writing.rows([0] * len(first))
    while True:
        left = [at for at, token in enumerate(tokens) if not _closes(writing, token)]
        rows, tokens = [rows[at] for at in left], [tokens[at] for at in left]
        for row, token in zip(rows, tokens, strict=True):
            answers[row].append(token)
        if not rows or len(answers[rows[0]]) == length:
            return answers
        writing.rows(left)
        writing.read(tokens)
        tokens = writing.choose(writing.logits).tolist()


def _closes(writing: Writing, token: int) -> bool:
    return token in writing.ends or not {'"', "\n"}.isdisjoint(writing.text([token]))
