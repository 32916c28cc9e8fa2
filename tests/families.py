"""A tiny random model of every causal language model class that the installed transformers has."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 128
LAYERS = 4
LARGEST = 15_000_000  # parameters; a class that stays larger has sizes that BASE does not name

CLASSES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))
TYPES = {name: kind for kind, name in reversed(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items())}  # class -> model type

# What configurations call their sizes. A configuration is given those that its signature has.
BASE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_positions": 512, "rotary_dim": 8, "n_ctx": 512, "n_inner": 96,
    "d_model": 64, "n_heads": 4, "n_layers": LAYERS, "d_ff": 96, "dff": 96, "d_inner": 96, "emb_dim": 64,
    "num_layers": LAYERS, "num_heads": 4, "ffn_dim": 96, "attention_heads": 4, "max_seq_len": 512,
    "decoder_layers": LAYERS, "decoder_attention_heads": 4, "decoder_ffn_dim": 96,
    "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 96, "word_embed_proj_dim": 64,
    "embedding_size": 32, "input_embedding_size": 32, "output_embedding_size": 32,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 2, "top_k_experts": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "shared_intermediate_size": 32,
    "expert_intermediate_size": 32, "intermediate_size_mlp": 96, "expert_ffn_hidden_size": 32, "ffn_hidden_size": 96,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1, "num_shared_experts": 1,
    "moe_num_shared_experts": 1, "zero_expert_num": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "qk_head_dim": 16,
    "mamba_d_state": 4, "mamba_d_conv": 4, "mamba_expand": 2, "use_mamba_kernels": False, "mamba_chunk_size": 16,
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_ssm": 128, "mamba_headdim": 16,
    "n_mamba_heads": 2, "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 8, "state_size": 8,
    "lru_width": 64, "attention_window_size": 8, "chunk_size": 16,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "sliding_window": 8, "attention_chunk_size": 16, "window_size": 8,
    "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
}  # fmt: skip

MIXED = ["sliding_attention", "full_attention"] * 2
# Only what BASE cannot say.
MLA = {"num_key_value_heads": 4}
VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
EXTRA: dict[str, dict[str, Any]] = {
    "AXK2ForCausalLM": MLA,
    "DeepseekV2ForCausalLM": MLA,
    "DeepseekV3ForCausalLM": MLA,
    "DeepseekV32ForCausalLM": MLA,
    "Glm4MoeLiteForCausalLM": MLA,
    "GlmMoeDsaForCausalLM": MLA,
    "Dots3NoteForCausalLM": MLA,
    "LongcatFlashForCausalLM": {**MLA, "head_dim": 8},
    "BambaForCausalLM": {"attn_layer_indices": [1, 3]},
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "GraniteMoeHybridForCausalLM": {"layer_types": ["mamba", "attention"] * 2},
    "BailingHybridForCausalLM": {"layer_group_size": 2},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 2]]},
    "Gemma3nForCausalLM": {"layer_types": MIXED, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * 4},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 16, "expand": 2, "n_groups": 1},
    "Qwen3NextForCausalLM": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "Zamba2ForCausalLM": {"layers_block_type": ["mamba", "hybrid"] * 2, "num_mem_blocks": 1},
    "Gemma3ForConditionalGeneration": {"vision_config": VISION, "mm_tokens_per_image": 4},
    "ReformerModelWithLMHead": {"is_decoder": True, "axial_pos_shape": (16, 32), "axial_pos_embds_dim": (32, 32)},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
    "DbrxForCausalLM": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4},
    },
    "CohereCompassForCausalLM": {"layer_types": ["full_attention"] * 4},
    "Qwen4ExpForCausalLM": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "MusicgenForCausalLM": {"num_codebooks": 1},
    "MusicgenMelodyForCausalLM": {"num_codebooks": 1},
    "XmodForCausalLM": {"default_language": "en_XX"},
    "MoshiForCausalLM": {"audio_vocab_size": VOCAB},
}


class NotConstructible(Exception):
    """This class cannot be made from a configuration of its own at this size; the message says why."""


def tiny(name: str, **more: Any) -> Any:
    """A model of the class `name`, in eval mode; raises NotConstructible."""
    try:
        model_class = getattr(transformers, name)
        config_class = model_class.config_class
        config = config_class(**{**_sizes(config_class), **EXTRA.get(name, {}), **more})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.device("meta"):
                size = sum(p.numel() for p in model_class(config).parameters())
            if size > LARGEST:
                raise NotConstructible(f"{size} parameters")
            torch.manual_seed(0)
            model = model_class(config).eval()
    except NotConstructible:
        raise
    except Exception as error:
        raise NotConstructible(f"{type(error).__name__}: {error}") from error
    with torch.no_grad():  # wider than the default initialisation, so that attention is not flat
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(3)
    return model


def _sizes(config_class: Any) -> dict[str, Any]:
    """BASE for this configuration and for those that it is made of."""
    names = set(inspect.signature(config_class.__init__).parameters) | set(getattr(config_class, "attribute_map", {}))
    for parent in config_class.__mro__:
        names |= set(getattr(parent, "__annotations__", {}))
    out = {key: value for key, value in BASE.items() if key in names}
    for key, part in getattr(config_class, "sub_configs", {}).items():
        if isinstance(part, type) and issubclass(part, transformers.PretrainedConfig):
            out[key] = _sizes(part)
    return out
