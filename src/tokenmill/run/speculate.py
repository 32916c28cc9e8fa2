"""Draft a tree, check it in one pass, keep what the rule accepts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenmill.method import Method, get, grown, lineage
from tokenmill.models.trained import learned, watched
from tokenmill.ops.trees import chain, depths, from_root
from tokenmill.run import drafter as reading
from tokenmill.run.choose import Chooser
from tokenmill.run.machine import clock
from tokenmill.run.session import Session
from tokenmill.types import Draft, Growth, Guess, Said, Tree, Verified

# Newest prompt tokens whose logits a drafter is shown. The head over 256 of them costs as much as a dozen tokens and
# gave no token more a pass; only a method that reads the prompt's states is shown so many.
SHOWN, PROMPT = 16, 256
FADE = 0.95  # of what asking took, what still counts an ask later
COUNTED = 32  # entries of a table that a state's size is taken from


def speculate(
    session: Session,
    prompt: list[int],
    draft: Method,
    chooser: Chooser,
    *,
    row: int = 0,
    rule: Method | None = None,
    cost: Callable[[int], float] | None = None,
    tokenizer: Any = None,
    assistant: Any = None,
    memory: dict[str, Any] | None = None,
    chunk: int | None = None,
    left: Callable[[], float] = lambda: math.inf,
    ends: frozenset[int] = frozenset(),
    processed: Callable[[Tensor, Sequence[Sequence[int]]], Tensor] | None = None,
) -> Generator[list[int]]:
    """Tokens of one row, a list for each pass. `chooser` says how tokens are chosen, its `row` who draws.
    `processed` is what is done to logits (N, V) before, given the ids that each of them follows.

    Under a lossless rule what comes out is what the chooser says after exactly the text that precedes it, so greedy
    output equals plain greedy decoding and drawn output has the model's distribution. The recipe's cache methods see
    only tokens that were accepted, and no draft reaches beyond the token after which one of them decides: what follows
    is read behind that decision, as without a draft. `cost` is a pass's time by width, for trees that ask. `memory` is
    where a method that learns from one text for the next (`carries` on its card) finds and leaves what it learned.
    `chunk` reads the prompt in pieces of so many tokens; `left` counts the tokens that may still come, and nothing is
    accepted behind one of `ends`.
    """
    rule = rule or get("exact")
    generator = None if chooser.greedy else chooser.generator(row)
    with ExitStack() as stack:
        engine = stack.enter_context(session.engaged())
        drawn_from = taught(grown(draft))
        if drawn_from is not None and "above" in drawn_from.card.needs:
            engine.watched = watched(drawn_from, session.model)
        ids = torch.tensor([prompt], device=session.device)
        shown = PROMPT if any("prompt" in m.card.needs for m in lineage(draft)) else SHOWN
        shown = min(shown, 1 + (len(prompt) - 1) % (chunk or len(prompt)))  # tokens of the last piece
        logits = session.read(ids, last=shown, chunk=chunk)
        logits = logits if logits.ndim == 3 else logits[:, None]
        newest = logits[0, -1:] if processed is None else processed(logits[0, -1:], [prompt])
        text = [*prompt, int(chooser(newest, row))]
        context = ids.new_tensor(text)
        hidden = session.hidden()[0, -shown:]
        seen = Verified(
            context, ids[0, -shown:], logits[0], torch.ones(shown, dtype=torch.bool, device=ids.device),
            hidden=hidden, before=F.pad(ids[0], (1, 0), value=-1)[-shown - 1 : -1],
            states={layer: states[0, -shown:] for layer, states in session.states().items()},
        )  # fmt: skip
        judging = [learned(rule, session.model)] if rule.card.trains else []
        drafters = [
            stack.enter_context(reading.engaged(m, session, prompt, tokenizer, assistant))
            for m in reading.drafters(draft)
        ]
        propose = Proposer(draft, chooser.probabilities, generator, drafters, cost or (lambda width: 1.0), session)
        stack.callback(lambda: setattr(session._stats, "draft_bytes", propose.nbytes()))
        if memory is not None:
            propose.recall(memory)
            stack.callback(propose.remember, memory)
        yield text[-1:]
        while True:
            room = session.positions_left() - 1
            guess = propose(seen, min(room, session.before_decision() - 1, left() - 1))
            read, parents = [text[-1], *guess.tokens.tolist()], guess.parents.tolist()
            tokens, nodes = context.new_tensor(read), len(parents)
            levels, line = from_root(parents, tokens.device)
            blanks, beyond = propose.blanks, None
            if len(blanks) and room > nodes + len(blanks):
                behind = levels[-1] + 1 + torch.arange(len(blanks), device=levels.device)
                logits = session.verify(tokens, torch.cat([levels, behind]), _behind(line, len(blanks)), blanks)
                logits, beyond = logits.split((nodes + 1, len(blanks)))
            else:
                logits = session.verify(tokens, levels, line)
            if processed is not None:
                logits = processed(logits, _texts(text, guess.tokens.tolist(), parents))
            hidden = session.hidden()[0, : nodes + 1]
            said = Said(
                probabilities=partial(_row, chooser, logits),
                likeliest=chooser(logits, row).tolist() if generator is None else [],
                generator=generator,
                logits=logits,
                hidden=hidden,
            )
            path, token = rule(guess, said, *judging)
            if (end := next((i for i, node in enumerate(path) if read[node + 1] in ends), None)) is not None:
                path, token = path[:end], read[path[end] + 1]
            kept = [0, *(node + 1 for node in path)]
            session.accept(kept)
            session.drafted(levels.tolist()[1:], len(path))
            before = [text[-2], *(read[parent + 1] for parent in parents)]
            new = [*(read[node] for node in kept[1:]), token]
            text += new
            context = torch.cat([context, context.new_tensor(new)])
            taken = torch.tensor([node in kept for node in range(nodes + 1)], device=tokens.device)
            states = {layer: states[0, : nodes + 1] for layer, states in session.states().items()}
            seen = Verified(
                context, tokens, logits, taken, levels, hidden, context.new_tensor(before), states, beyond
            )  # fmt: skip
            yield new


def _behind(line: Tensor, count: int) -> Tensor:
    """What sees what, with `count` placeholders in a row behind the last node."""
    out = F.pad(line, (0, count, 0, count))
    out[-count:, : len(line)] = line[-1]
    out[-count:, len(line) :] = torch.ones(count, count, dtype=torch.bool, device=line.device).tril()
    return out


def _texts(text: list[int], tokens: list[int], parents: list[int]) -> list[list[int]]:
    """The ids up to the newest token, then up to each node of a tree below it."""
    out = [text]
    for token, parent in zip(tokens, parents, strict=True):
        out.append([*out[parent + 1], token])
    return out


def _row(chooser: Chooser, logits: Tensor, row: int) -> Tensor:
    """What is drawn from after one row of logits: (V,)."""
    return chooser.probabilities(logits[row : row + 1])[0]


class Proposer:
    """A draft method with its state: asked once a pass for the next draft."""

    def __init__(
        self,
        draft: Method,
        probabilities: Callable[[Tensor], Tensor],
        generator: torch.Generator | None,
        drafters: list[reading.Drafter],
        cost: Callable[[int], float],
        session: Session | None = None,
    ):
        self.draft, self.drafters = grown(draft), drafters
        self.source = self.draft.knobs.get("source")
        self.given: list[Any] = [*drafters]  # what the source is handed besides text and state
        self.ladder: reading.Ladder | None = None
        self.blanks = torch.empty(0)  # (M, E) placeholders behind every draft
        if (pupil := taught(self.draft)) is not None:
            assert session is not None
            if "climb" in pupil.card.needs:
                self.ladder = reading.Ladder(session, watched(pupil, session.model))
            self.given.append(replace(learned(pupil, session.model), above=session.above, climb=self.ladder))
            if "blanks" in pupil.card.needs:
                self.blanks = self.given[-1].parts.blanks
        self.state: Any = None
        self.tree_state: Any = None
        self._growth = partial(Growth, generator=generator, probabilities=probabilities, cost=cost)
        self._a_token = getattr(cost, "a_token", math.inf)  # seconds
        self._spent, self._asked = 0.0, 0.0  # seconds of asking the source, and how often: the newest counts most

    @torch.no_grad()
    def __call__(self, seen: Verified, room: float) -> Draft:
        room = min([room, *(drafter.limit - len(seen.context) for drafter in self.drafters)])
        if room < 0:  # the text is longer than what a drafter can read
            return chain(seen.context[:0])
        for drafter in self.drafters:
            drafter.follow(seen.context.tolist())
        if self.source is None:
            guess, self.state = self.draft(replace(seen, room=room), self.state)
            return _within(guess, room)
        look, self.state = self.source(seen, self.state, *self.given)
        if room < 1:
            return chain(seen.context[:0])
        if self.ladder is None:
            return self._grown(seen, look, room)
        with self.ladder.below(int(seen.context[-1])):
            return self._grown(seen, look, room)

    def _grown(self, seen: Verified, look: Callable[..., Any], room: float) -> Draft:
        def timed(tree: Tree, at: Sequence[int]) -> Guess:
            began = clock(seen.context.device)
            guess = look(tree, at)
            self._spent = FADE * self._spent + clock(seen.context.device) - began
            self._asked = FADE * self._asked + 1
            return guess

        asking = self._spent / self._a_token / self._asked if self._asked else 0.0
        grow = self._growth(look=timed, room=room, asking=asking)
        if not self.draft.stateful:
            return self.draft(seen, grow)
        guess, self.tree_state = self.draft(seen, grow, self.tree_state)
        return guess

    def recall(self, memory: dict[str, Any]) -> None:
        """Begin with what was learned from earlier texts."""
        self.tree_state, self.state = memory.get(repr(self.draft), (None, None))

    def remember(self, memory: dict[str, Any]) -> None:
        """Leave what may serve the next text; what belongs to this one (an index of its words) is dropped."""
        tree = self.tree_state if self.draft.card.carries else None
        memory[repr(self.draft)] = tree, None if self.source is None else _carried(self.source, self.state)

    def nbytes(self) -> int:
        """Bytes that drafting holds besides the model's own cache."""
        return _size((self.state, self.tree_state)) + sum(d.session.stats.cache_bytes for d in self.drafters)


def taught(draft: Method) -> Method | None:
    """The source behind a draft that has a trained part."""
    return next((m for m in lineage(draft) if m.card.trains), None)


def _carried(source: Method, state: Any) -> Any:
    if "other" in source.knobs:  # two sources, two states
        parts = zip((source.knobs["source"], source.knobs["other"]), state or (None, None), strict=True)
        return tuple(_carried(*part) for part in parts)
    return state if source.card.carries else None


def _size(value: Any) -> int:
    """Bytes of a state. Of a long table as of its first entries: counting all would take longer than a pass."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if not isinstance(value, Mapping | list | tuple):
        return sys.getsizeof(value)
    first = list(islice(value.items() if isinstance(value, Mapping) else value, COUNTED))
    return sys.getsizeof(value) + sum(map(_size, first)) * len(value) // max(1, len(first))


def _within(guess: Draft, room: float) -> Draft:
    """Without the nodes that lie deeper than `room`: learned positions have an end, and a method decides on the way."""
    near = depths(guess.parents) <= room
    if bool(near.all()):
        return guess
    number = near.cumsum(0) - 1
    parents = guess.parents[near]
    return Draft(guess.tokens[near], torch.where(parents >= 0, number[parents.clamp(min=0)], -1))
