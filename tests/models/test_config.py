"""Configs: transformers' own defaults where a file is silent, refusals where it asks for what is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, Idefics2Config, LlavaConfig

from behold.checkpoint.files import CheckpointFiles
from behold.errors import UnsupportedModelError
from behold.models.config import TextConfig, VisionConfig, read_text_config, read_vision_config
from behold.models.families import idefics2, llava
from behold.models.registry import find_family
from behold.nn.rotary import RopeConfig

SHARED = Path(__file__).parents[3] / "shared" / "checkpoints"
TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
    "max_position_embeddings",
)
VISION_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)


def assert_text(ours: TextConfig, theirs: Any) -> None:
    assert {key: getattr(ours, key) for key in TEXT_FIELDS} == {key: getattr(theirs, key) for key in TEXT_FIELDS}
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.head_dim == head_dim
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.rope.kind == theirs.rope_parameters["rope_type"]
    # Llama keeps a window it is given, and never uses it
    window = None if theirs.model_type == "llama" else getattr(theirs, "sliding_window", None)
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * theirs.num_hidden_layers
    assert ours.windows == tuple(window if kind == "sliding_attention" else None for kind in kinds)


def assert_vision(ours: VisionConfig, theirs: Any) -> None:
    assert {key: getattr(ours, key) for key in VISION_FIELDS} == {key: getattr(theirs, key) for key in VISION_FIELDS}


TEXTS: list[dict[str, Any]] = [
    {},
    {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 96},
    {"num_key_value_heads": 8, "sliding_window": 128},
    {"rope_theta": 5e5, "num_hidden_layers": 5},
    {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 1e6},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 7e5}},
    {"use_sliding_window": True, "max_window_layers": 2, "num_hidden_layers": 4, "sliding_window": 64},
]


@pytest.mark.parametrize("given", TEXTS)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
def test_text_defaults_are_those_of_transformers(model_type: str, given: dict[str, Any]) -> None:
    theirs = AutoConfig.for_model(model_type, **given)
    assert_text(read_text_config(given | {"model_type": model_type}, default_type="llama", tied=False), theirs)


@pytest.mark.parametrize("model_type", ["clip_vision_model", "siglip_vision_model", "idefics2_vision"])
def test_vision_defaults_are_those_of_transformers(model_type: str) -> None:
    theirs = Idefics2Config().vision_config if model_type == "idefics2_vision" else AutoConfig.for_model(model_type)
    assert_vision(read_vision_config({}, model_type=model_type), theirs)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"text_config": {"model_type": "qwen2"}, "vision_config": {"model_type": "siglip_vision_model"}},
        {"text_config": {"tie_word_embeddings": True}, "image_token_index": 5, "multimodal_projector_bias": False},
        {"vision_feature_select_strategy": "full", "vision_feature_layer": -3, "projector_hidden_act": "gelu_new"},
    ],
)
def test_llava_defaults_are_those_of_transformers(given: dict[str, Any]) -> None:
    theirs = LlavaConfig(**{key: dict(value) if isinstance(value, dict) else value for key, value in given.items()})
    renamed = {"image_token_id" if key == "image_token_index" else key: value for key, value in given.items()}
    ours = llava.read_config(renamed)
    assert_text(ours.text, theirs.text_config)
    assert_vision(ours.vision, theirs.vision_config)
    assert ours.text.tied == theirs.tie_word_embeddings
    assert ours.image_token_id == theirs.image_token_index
    assert ours.projector_bias == theirs.multimodal_projector_bias
    assert ours.projector_act == theirs.projector_hidden_act
    assert ours.drops_class_token == (theirs.vision_feature_select_strategy == "default")
    assert ours.feature_layers == (ours.vision.num_hidden_layers + 1 + theirs.vision_feature_layer,)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"text_config": {}, "vision_config": {"image_size": 980, "patch_size": 14}, "perceiver_config": {}},
        {"text_config": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-3}},
        {"image_token_id": 5, "tie_word_embeddings": True, "perceiver_config": {"resampler_depth": 1}},
    ],
)
def test_idefics2_defaults_are_those_of_transformers(given: dict[str, Any]) -> None:
    theirs = Idefics2Config(**{key: dict(value) if isinstance(value, dict) else value for key, value in given.items()})
    ours = idefics2.read_config(given)
    assert_text(ours.text, theirs.text_config)
    assert_vision(ours.vision, theirs.vision_config)
    assert ours.text.tied == theirs.tie_word_embeddings
    assert ours.image_token_id == theirs.image_token_id
    perceiver, resampler = theirs.perceiver_config, ours.resampler
    assert (resampler.hidden_size, resampler.rms_norm_eps) == (perceiver.hidden_size, perceiver.rms_norm_eps)
    assert (resampler.n_latents, resampler.depth) == (perceiver.resampler_n_latents, perceiver.resampler_depth)
    assert (resampler.n_heads, resampler.n_kv_heads) == (perceiver.resampler_n_heads, perceiver.num_key_value_heads)
    assert (resampler.head_dim, resampler.hidden_act) == (perceiver.resampler_head_dim, perceiver.hidden_act)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("null", ["rms_norm_eps", "hidden_act", "rope_parameters", "max_position_embeddings"])
def test_null_is_the_default(model_type: str, null: str) -> None:
    plain = read_text_config({"model_type": model_type}, default_type="llama", tied=False)
    assert read_text_config({"model_type": model_type, null: None}, default_type="llama", tied=False) == plain


def test_null_that_means_something() -> None:
    """As in the files of Mistral 7B v0.2: no window. And as many key heads as query heads."""
    config = {"model_type": "mistral", "sliding_window": None, "num_key_value_heads": None}
    text = read_text_config(config, default_type="llama", tied=False)
    assert set(text.windows) == {None}
    assert text.num_key_value_heads == 32


def test_biases_belong_to_the_architecture() -> None:
    def biases(model_type: str, **given: Any) -> tuple[bool, bool, bool]:
        text = read_text_config({"model_type": model_type, **given}, default_type="llama", tied=False)
        return text.qkv_bias, text.output_bias, text.mlp_bias

    asked = {"attention_bias": True, "mlp_bias": True}
    assert biases("llama") == (False, False, False)
    assert biases("llama", **asked) == (True, True, True)
    assert biases("mistral", **asked) == (False, False, False)
    assert biases("qwen2", **asked) == (True, False, False)


def test_llama3_positions() -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = {"rope_scaling": scaling, "rope_theta": 5e5, "max_position_embeddings": 4096}
    rope = read_text_config(config, default_type="llama", tied=False).rope
    assert rope == RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 4096)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"text_config": {"model_type": "gemma2"}}, r"text_config.model_type='gemma2'.*llama, mistral, qwen2"),
        ({"vision_config": {"model_type": "pixtral"}}, r"vision_config.model_type='pixtral'.*clip_vision_model"),
        ({"text_config": {"hidden_act": "xielu"}}, r"activation 'xielu'.*silu"),
        ({"vision_config": {"hidden_act": "laplace"}}, r"activation 'laplace'"),
        ({"projector_hidden_act": "mish"}, r"activation 'mish'"),
        ({"text_config": {"rope_scaling": {"rope_type": "yarn", "factor": 2}}}, r"rope_type='yarn'.*linear"),
        ({"text_config": {"rope_scaling": {"rope_type": "linear"}}}, r"needs factor"),
        ({"text_config": {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor=0.5"),
        ({"text_config": {"num_key_value_heads": 5}}, r"32 attention heads, 5 key heads"),
        ({"vision_config": {"num_attention_heads": 7}}, r"hidden_size=768 is no multiple"),
        ({"vision_config": {"image_size": [224, 336]}}, r"not square"),
        ({"vision_feature_layer": -26}, r"vision_feature_layer=-26 must be"),
        ({"vision_feature_layer": []}, r"vision_feature_layer=\[\]"),
        ({"vision_feature_select_strategy": "cls"}, r"select_strategy='cls'"),
        (
            {"text_config": {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["odd"] * 32}},
            r"layer_types=",
        ),
    ],
)
def test_what_is_not_supported_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedModelError, match=says):
        llava.read_config(given)


def test_an_unknown_model_type_lists_the_known_ones() -> None:
    with pytest.raises(UnsupportedModelError, match=r"model_type='fuyu'.*llava, idefics2"):
        find_family({"model_type": "fuyu", "auto_map": {"AutoModel": "evil.Model"}})


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published configuration files are not beside the repository")
@pytest.mark.parametrize(
    "name", ["llava-hf--llava-interleave-qwen-0.5b-hf", "llava-hf--llava-1.5-7b-hf", "HuggingFaceM4--idefics2-8b"]
)
def test_published_configs(name: str) -> None:
    files = CheckpointFiles.read(SHARED / name)
    ours, theirs = find_family(files.config).read_config(files.config), AutoConfig.from_pretrained(SHARED / name)
    assert_text(ours.text, theirs.text_config)
    assert_vision(ours.vision, theirs.vision_config)
    assert ours.text.tied == theirs.tie_word_embeddings
