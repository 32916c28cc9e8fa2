"""ICN: what was answered goes into the context and the model is asked for something else, again and again.

a_1 = answer to x;   a_i = answer to  x a_1 … "another, different from a_1, …, a_(i-1)";   the answers are pooled

Tokens near the likely ones in the space of output embeddings rank high whether or not they are right, so drawing again
finds little; a new query that leaves what was found finds more.

Peng et al., "Correlation and Navigation in the Vocabulary Key Representation Space of Language Models", 2024.

Differs: in the authors' code what was found is a numbered list, and the likeliest first token behind it that began no
answer yet begins the next one, which goes on greedily without the list. Here all of an answer is written with what was
found in view, and may begin as another did. The wording of the request is chosen here. It follows the answer in the
same text, as a turn of its own where the prompt is a chat, so that nothing is read twice. An answer is a line; one that
came before is not pooled again.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokenmill.method import method
from tokenmill.types import Writing


@method(
    title="Correlation and Navigation in the Vocabulary Key Representation Space of Language Models",
    paper="arXiv:2410.02284",
    year=2024,
    role="search",
    needs=("chooses", "tokenizer"),
)
def icn(writing: Writing, *, answers: int = 4, length: int = 32) -> Iterator[list[int]]:
    found: dict[str, None] = {}
    newline = list(writing.spelled(("\n",)))
    for asked in range(answers):
        others = f", different from: {'; '.join(found)}" if found else ""
        if asked and not writing.request(f"Give another answer{others}."):
            return
        answer: list[int] = []
        while len(answer) < length:
            token = int(writing.choose(writing.logits))
            if token in writing.ends or "\n" in writing.text([*answer, token]).lstrip():
                break
            writing.read([token])
            answer.append(token)
        text = writing.text(answer).strip()
        if text and text not in found:
            if found:
                yield newline
            found[text] = None
            yield answer
