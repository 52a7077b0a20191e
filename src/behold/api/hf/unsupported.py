"""Options of transformers' `generate` that behold does not have, and the values of each that ask for nothing.

Any other value is refused by name: an option is honoured or an error, never accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

_ONLY_NONE = (
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "begin_suppress_tokens",
    "cache_config",
    "compile_config",
    "constraints",
    "continuous_batching_config",
    "dola_layers",
    "exponential_decay_length_penalty",
    "force_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "max_time",
    "penalty_alpha",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "sequence_bias",
    "speculation_type",
    "top_h",
    "watermarking_config",
)
_ONLY_FALSE = (
    "is_assistant",
    "low_memory",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "remove_invalid_values",
    "renormalize_logits",
    "token_healing",
    "use_mtp",
)
_ONLY_0 = ("diversity_penalty", "encoder_no_repeat_ngram_size", "epsilon_cutoff", "eta_cutoff")
_ONLY_1 = ("encoder_repetition_penalty", "guidance_scale", "num_beam_groups", "typical_p")

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(_ONLY_NONE, (None,)),
    **dict.fromkeys(_ONLY_FALSE, (None, False)),
    **dict.fromkeys(_ONLY_0, (None, 0)),
    **dict.fromkeys(_ONLY_1, (None, 1)),
    "cache_implementation": (None, "dynamic", "static", "hybrid"),
}
"""Options of GenerationConfig."""

INERT = frozenset(
    {
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "bos_token_id",
        "decoder_start_token_id",
        "disable_compile",
        "max_cache_len",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "target_lookbehind",
        "transformers_version",
        "use_cache",
        "_from_model_config",
        "_commit_hash",
    }
)
"""Options of GenerationConfig that say how, not what, or refine one that is refused: any value, the same answer."""

FOREIGN = (
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "assistant_model",
    "assistant_tokenizer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "custom_generate",
    "inputs_embeds",
    "past_key_values",
    "position_ids",
    "cache_position",
    "encoder_outputs",
    "mm_encoder_outputs",
    "synced_gpus",
)
"""Further arguments of `generate` and `forward`; None, False and an empty list ask for nothing."""
