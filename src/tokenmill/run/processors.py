"""What a model's generation_config does to logits, as the library's `generate` does it.

Repetition penalties, n-grams that may not come again, suppressed and forced tokens, bad words, a least length: the
library's own logits processors, one list a row, each given the ids of that row alone. How a token is chosen from the
logits (temperature, top_k, top_p, do_sample, num_beams) is the recipe's matter and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from tokenmill.errors import RecipeError
from tokenmill.models.architectures import device_of

ELSEWHERE = ("guidance_scale", "watermarking_config")  # they run the model again, or mark how tokens are drawn


class Processors:
    """The library's logits processors for each of some prompts. False if there are none."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], new: int, generation_config: Any = None):
        """`new`: tokens that may come. `generation_config`: what it leaves open, the model's own says."""
        if getattr(model, "generation_config", None) is None:
            self.config = generation_config or GenerationConfig()
        else:
            self.config, _ = model._prepare_generation_config(generation_config)
        for name in ELSEWHERE:
            if getattr(self.config, name, None) not in (None, 1, 1.0):
                raise RecipeError(
                    f"generation_config has {name}, which tokenmill.generate does not apply; set it to None, "
                    "or use the library's generate inside tokenmill.applied"
                )
        self.rows = [self._of(model, len(ids), new) for ids in prompts]

    def _of(self, model: Any, length: int, new: int) -> Any:
        config = deepcopy(self.config)
        config.do_sample, config.num_beams, config.max_length = False, 1, length + new
        if config.min_new_tokens is not None:
            config.min_length = length + config.min_new_tokens
        device = device_of(model)
        model._prepare_special_tokens(config, True, device=device, batch_size=1)
        return model._get_logits_processor(config, input_ids_seq_length=length, device=device, model_kwargs={})

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a text."""
        found = self.config.eos_token_id
        found = found.tolist() if isinstance(found, Tensor) else found
        return frozenset(e for e in (found if isinstance(found, list | tuple) else [found]) if e is not None)

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end a text."""
        found = self.config.stop_strings or ()
        return (found,) if isinstance(found, str) else tuple(found)

    def __bool__(self) -> bool:
        return any(map(len, self.rows))

    def __call__(self, row: int, logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        """logits (N, V), each after one of `texts`, ids that all continue the row's prompt: (N, V) in float32."""
        processors, out = self.rows[row], []
        for scores, ids in zip(logits.float().split(1), texts, strict=True):
            out.append(processors(torch.tensor([list(ids)], device=scores.device), scores.clone()))
        return torch.cat(out)
