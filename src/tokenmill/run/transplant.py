"""Give a model another model's vocabulary without training.

    model, report = transplant(base, base_tokenizer, donor, donor_tokenizer, "omp_transplant(anchors=64)")
    donor_tokenizer now belongs to `model`; the base model is untouched
    print(report)

Tokens both vocabularies have, by exact string, keep the base model's rows. Every other token of the donor's is written
by the method as a sum of shared tokens in the donor's space, and that same sum is taken of the base model's rows; input
and output embeddings each in their own space. Vocabularies that spell words differently ('▁the' and 'Ġthe') share
little as they stand: pass mappings {spelling: id} that agree instead of tokenizers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenmill.errors import InputError, ModelError, SpecError
from tokenmill.method import Method, parse
from tokenmill.ops.match import combine
from tokenmill.types import Transplant


@dataclass(frozen=True)
class TransplantReport:
    """What became of every token of the new vocabulary."""

    method: str
    tokens: int  # ids of the new vocabulary
    copied: int  # shared with the base model: rows copied as they are
    rebuilt: int  # written by the method
    averaged: int  # neither model has a row (an unused id, or one beyond the donor's matrix): mean of the copied rows
    residual: float  # mean over rebuilt tokens of |donor row - its sum| / |donor row|, input embeddings
    output_residual: float | None  # the same for output embeddings; None when they are tied to the input's

    @property
    def shared_share(self) -> float:
        """Share of the new vocabulary that the base model had."""
        return self.copied / self.tokens

    def __str__(self) -> str:
        out = "tied" if self.output_residual is None else f"{self.output_residual:.3f}"
        return (
            f"{self.method}: {self.tokens} tokens, {self.copied} copied ({self.shared_share:.1%}), "
            f"{self.rebuilt} rebuilt, {self.averaged} averaged; "
            f"relative residual in the donor: input {self.residual:.3f}, output {out}"
        )


@torch.no_grad()
def transplant(
    model: Any,
    tokenizer: Any,
    donor: Any,
    donor_tokenizer: Any,
    method: str | Method = "omp_transplant",
) -> tuple[Any, TransplantReport]:
    """A copy of `model` that speaks the donor's vocabulary, and a report.

    `donor` is a model, or a matrix of embeddings (V, E) that then stands for both of its sides. Tokenizers may be
    mappings from token string to id.
    """
    chosen = parse(method) if isinstance(method, str) else method
    if not isinstance(chosen, Method) or chosen.verb != "form":
        raise SpecError(f"{chosen!r} does not make tokens; `tokenmill ls form` lists the methods that do")
    base_in, base_out, bias = _sides(model)
    donor_in, donor_out, _ = (donor, None, None) if isinstance(donor, Tensor) else _sides(donor)
    old = {token: i for token, i in _vocabulary(tokenizer).items() if i < len(base_in)}
    new = _vocabulary(donor_tokenizer)
    size = max(new.values()) + 1
    plan = _plan(old, new, size, len(donor_in))

    made, residual = _rows(chosen, plan, donor_in, base_in)
    copied = copy.deepcopy(model)
    copied.resize_token_embeddings(size, mean_resizing=False)
    copied.get_input_embeddings().weight.copy_(made)
    output_residual = None
    if base_out is not None:
        made, output_residual = _rows(chosen, plan, donor_in if donor_out is None else donor_out, base_out)
        copied.get_output_embeddings().weight.copy_(made)
    if bias is not None:
        space = donor_in if donor_out is None else donor_out
        copied.get_output_embeddings().bias.copy_(_rows(chosen, plan, space, bias[:, None])[0][:, 0])
    _adopt_special_tokens(copied, donor_tokenizer)
    report = TransplantReport(
        repr(chosen), size, len(plan.copied), len(plan.rebuilt), len(plan.averaged), residual, output_residual
    )
    return copied, report


@dataclass(frozen=True)
class _Plan:
    size: int
    copied: Tensor  # (S,) new ids of shared tokens
    source: Tensor  # (S,) their ids in the base model
    anchors: Tensor  # (A,) places in `copied` of those the donor has a row for: what new tokens are built of
    rebuilt: Tensor  # (N,) new ids the method writes
    averaged: Tensor  # new ids nobody has a row for


def _plan(old: Mapping[str, int], new: Mapping[str, int], size: int, donor_rows: int) -> _Plan:
    copied = {i: old[token] for token, i in new.items() if token in old}
    rebuilt = sorted({i for i in new.values() if i not in copied and i < donor_rows})
    places = [place for place, i in enumerate(copied) if i < donor_rows]
    if not places:
        raise InputError(
            "the two vocabularies share no token, so nothing can be built of what both have; "
            "if they spell words differently, pass mappings {spelling: id} that agree"
        )
    averaged = sorted(set(range(size)) - set(copied) - set(rebuilt))
    lists = (list(copied), list(copied.values()), places, rebuilt, averaged)
    return _Plan(size, *(torch.tensor(x, dtype=torch.long) for x in lists))


def _rows(method: Method, plan: _Plan, donor: Tensor, base: Tensor) -> tuple[Tensor, float]:
    """The new matrix (size, E), and the mean relative residual in the donor."""
    device = base.device
    donor, base_rows = donor.to(device, torch.float32), base.float()
    shared = base_rows[plan.source.to(device)]  # (S, E)
    made = shared.mean(0).expand(plan.size, -1).clone()
    made[plan.copied.to(device)] = shared
    if not len(plan.rebuilt):
        return made.to(base), 0.0
    wanted = donor[plan.rebuilt.to(device)]  # (N, donor's E)
    known = donor[plan.copied[plan.anchors].to(device)]  # (A, donor's E)
    if not (torch.isfinite(wanted).all() and torch.isfinite(known).all()):
        raise ModelError("the donor's embeddings hold numbers that are not finite; load it in another dtype")
    decision: Transplant = method(wanted, known)
    made[plan.rebuilt.to(device)] = combine(shared[plan.anchors.to(device)], decision.anchors, decision.coefficients)
    missed = wanted - combine(known, decision.anchors, decision.coefficients)
    residual = missed.norm(dim=-1) / wanted.norm(dim=-1).clamp(min=torch.finfo(wanted.dtype).tiny)
    return made.to(base), float(residual.mean())


def _sides(model: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Input embeddings, output embeddings (None when tied to them), and the output's bias if it has one."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if table is None:
        raise ModelError(f"{type(model).__name__} has no input embeddings to write into")
    if head is None:
        return table.weight, None, None
    tied = head.weight is table.weight
    return table.weight, None if tied else head.weight, getattr(head, "bias", None)


def _vocabulary(tokenizer: Any) -> Mapping[str, int]:
    known = tokenizer if isinstance(tokenizer, Mapping) else tokenizer.get_vocab()
    if not known:
        raise InputError("a vocabulary is empty; pass a tokenizer, or a mapping from token string to id")
    return known


def _adopt_special_tokens(model: Any, tokenizer: Any) -> None:
    """Where a text begins and ends is said in the new ids; otherwise generation would wait for an old one."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if hasattr(tokenizer, name):
            for config in (model.config, getattr(model, "generation_config", None)):
                if config is not None:
                    setattr(config, name, getattr(tokenizer, name))
