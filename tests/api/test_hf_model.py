"""`AutoModelForImageTextToText` by itself: loading options, the module's behaviour, streaming, threads, refusals."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from behold import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, QuantoConfig, TextIteratorStreamer
from behold.api.hf.model import ImageTextToTextModel
from behold.errors import ChatError, OptionError
from behold.types import Delta
from tests import toys
from tests.naming import plainly

NAME = "llava-siglip-qwen2"


def load(**options: Any) -> ImageTextToTextModel:
    return AutoModelForImageTextToText.from_pretrained(toys.checkpoint(NAME), **options)


@functools.cache
def shared() -> tuple[ImageTextToTextModel, Any]:
    return load(dtype=torch.float32), AutoProcessor.from_pretrained(toys.checkpoint(NAME))


def inputs(text: str = "USER: <image> What? ASSISTANT:", seed: int = 0) -> Any:
    return shared()[1](text=text, images=toys.picture(40, 30, seed), return_tensors="pt")


# --- the module ------------------------------------------------------------------------------------------------------


def test_it_is_a_torch_module() -> None:
    model = load(dtype=torch.float32)
    assert isinstance(model, torch.nn.Module)
    assert model.eval() is model and not model.training
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert model.num_parameters() > 50_000 and model.get_memory_footprint() >= 4 * model.num_parameters()
    assert not any(weight.requires_grad for weight in model.parameters())
    assert model.can_generate()


def test_the_config_reads_as_transformers_does() -> None:
    model = shared()[0]
    theirs = toys.reference(toys.checkpoint(NAME))[0].config
    for name in ("image_token_id", "image_token_index", "model_type", "vision_feature_layer"):
        assert getattr(model.config, name) == getattr(theirs, name), name
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "num_key_value_heads", "model_type"):
        assert getattr(model.config.text_config, name) == getattr(theirs.text_config, name), name
    assert model.config.vision_config.patch_size == theirs.vision_config.patch_size
    assert model.config.get_text_config().hidden_size == 64
    assert model.config.to_dict()["text_config"]["hidden_size"] == 64
    with pytest.raises(AttributeError, match="no 'colour'"):
        _ = model.config.colour
    model.config.use_cache = False
    with pytest.raises(OptionError, match=r"config\.image_token_id cannot be set"):
        model.config.image_token_id = 5


def test_moving_it_makes_a_new_engine() -> None:
    model = load(dtype=torch.float32)
    batch = inputs()
    before, engine = model.generate(**batch, max_new_tokens=4), model.engine
    assert model.to(torch.float64) is model and model.dtype == torch.float64
    assert model.engine is not engine
    assert torch.equal(model.generate(**batch, max_new_tokens=4), before)


def test_a_copy_works_by_itself() -> None:
    model = load(dtype=torch.float32)
    expected = model.generate(**inputs(), max_new_tokens=4)
    other = copy.deepcopy(model)
    assert other.engine is not model.engine
    assert torch.equal(other.generate(**inputs(), max_new_tokens=4), expected)


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"torch_dtype": "float16"}, {"dtype": "auto"}, {}])
def test_dtypes(options: dict[str, Any]) -> None:
    wanted = next(iter(options.values()), "auto")
    expected = (
        torch.float32 if wanted == "auto" else wanted if isinstance(wanted, torch.dtype) else getattr(torch, wanted)
    )
    model = load(**options)
    assert model.dtype == expected
    assert model(**inputs()).logits.isfinite().all(), "inputs are cast to what the model computes in"


@pytest.mark.parametrize("device_map", [None, "cpu", torch.device("cpu"), {"": "cpu"}])
def test_devices(device_map: Any) -> None:
    assert load(device_map=device_map).device == torch.device("cpu")


@pytest.mark.parametrize("name", ["eager", "sdpa", "flash_attention_2"])
def test_attention_paths_agree(name: str) -> None:
    model = load(attn_implementation=name, dtype=torch.float32)
    torch.testing.assert_close(model(**inputs()).logits, shared()[0](**inputs()).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"quantization_config": QuantoConfig(weights="int8")},
        {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"load_in_8bit": True},
    ],
    ids=str,
)
def test_eight_bits(options: dict[str, Any]) -> None:
    model = load(dtype=torch.float32, **options)
    assert model.get_memory_footprint() < 0.6 * shared()[0].get_memory_footprint()
    assert model.generate(**inputs(), max_new_tokens=3).shape[0] == 1


def test_options_that_ask_for_what_is_done_anyway() -> None:
    load(low_cpu_mem_usage=True, trust_remote_code=True, use_safetensors=True, local_files_only=True, revision=None,
         quantization_config=BitsAndBytesConfig())  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": 1}, "colour=1"),
        ({"attn_implementation": "flash_attention_3"}, "attn_implementation='flash_attention_3' is not one of 'eager'"),
        ({"dtype": torch.float32, "torch_dtype": torch.float16}, "disagree"),
        ({"device_map": {"a": 0, "b": "cpu"}}, "one device"),
        ({"use_safetensors": False}, "use_safetensors=False"),
        ({"variant": "fp16"}, "variant='fp16'"),
        ({"quantization_config": object()}, "quantization_config="),
        ({"load_in_8bit": True, "quantization_config": QuantoConfig()}, "both given"),
    ],
    ids=plainly,
)
def test_refused_when_loaded(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantoConfig(weights="int7"), "weights='int7'"),
        (lambda: QuantoConfig(weights="int8", activations="int8"), "activations='int8'"),
        (lambda: QuantoConfig(modules_to_not_convert=["lm_head"]), "modules_to_not_convert"),
        (lambda: QuantoConfig(modules_to_not_convert="lm_head"), "'lm_head'"),
        (lambda: BitsAndBytesConfig(load_in_8bit="false"), "'false' is neither"),  # type: ignore[arg-type]
        (lambda: BitsAndBytesConfig(load_in_8bit=True, load_in_4bit=True), "choose one"),
        (lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="int4"), "bnb_4bit_quant_type"),
        (lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=True), "offload"),
        (lambda: QuantoConfig(weights="int2").scheme, "int2"),
    ],
)
def test_refused_quantizations(make: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


def test_it_is_not_made_directly() -> None:
    with pytest.raises(OptionError, match="use from_pretrained"):
        AutoModelForImageTextToText()
    with pytest.raises(OptionError, match="by name"):
        AutoModelForImageTextToText.from_pretrained(toys.checkpoint(NAME), "cpu")


# --- calls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logits_processor": [object()]}, "logits_processor"),
        ({"stopping_criteria": [object()]}, "stopping_criteria"),
        ({"inputs_embeds": torch.zeros(1, 2, 64)}, "inputs_embeds"),
        ({"assistant_model": object()}, "assistant_model"),
        ({"max_new_token": 3}, "Did you mean 'max_new_tokens'"),
        ({"pixel_value": torch.zeros(1)}, "pixel_value is not an input"),
        ({"inputs": torch.ones(1, 2, dtype=torch.long)}, "inputs and input_ids are both given"),
        ({"attention_mask": torch.ones(1, 2)}, "attention_mask is"),
        ({"attention_mask": torch.zeros(1, 27)}, "hides every token"),
        ({"generation_config": 5}, "generation_config=5"),
        ({"output_scores": True}, "output_scores=True"),
    ],
    ids=plainly,
)
def test_refused_by_generate(options: dict[str, Any], message: str) -> None:
    batch = inputs()
    if "attention_mask" in options and not options["attention_mask"].any():
        options = {"attention_mask": torch.zeros_like(batch.attention_mask)}
    with pytest.raises(OptionError, match=message):
        shared()[0].generate(**{**batch, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_cache": True}, "use_cache"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"past_key_values": [1]}, "past_key_values"),
        ({"position_ids": torch.arange(3)}, "position_ids"),
        ({"labels": torch.zeros(1, 2, dtype=torch.long)}, "labels is"),
        ({"input_ids": None}, "input_ids is missing"),
        ({"input_ids": torch.zeros(3)}, "input_ids is"),
    ],
    ids=str,
)
def test_refused_by_forward(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        shared()[0](**{**inputs(), **options})


def test_pictures_and_places_must_match() -> None:
    model, processor = shared()
    batch = inputs()
    two = processor(text="<image><image>", images=[toys.picture(), toys.picture()], return_tensors="pt")
    for pixels, message in ((None, "no pixel_values"), (two.pixel_values, "image tokens")):
        with pytest.raises(ChatError, match=message):
            model.generate(input_ids=batch.input_ids, pixel_values=pixels, max_new_tokens=2)
    with pytest.raises(ChatError):
        model(input_ids=batch.input_ids[:, :-12], pixel_values=batch.pixel_values)


def test_labels_at_padding_are_refused() -> None:
    model, processor = shared()
    batch = processor(text=["a", "a b c d e"], padding=True, return_tensors="pt")
    with pytest.raises(OptionError, match="labels count tokens behind padding"):
        model(**batch, labels=batch.input_ids)


def test_no_limit_is_a_warning_at_the_callers_line() -> None:
    with pytest.warns(UserWarning, match="answers end after 20 tokens") as found:
        ids = shared()[0].generate(**inputs(), eos_token_id=None)
    assert ids.shape[1] == inputs().input_ids.shape[1] + 20
    assert found[0].filename == __file__


def test_outputs() -> None:
    model, batch = shared()[0], inputs()
    ids = model.generate(**batch, max_new_tokens=3)
    found = model.generate(**batch, max_new_tokens=3, return_dict_in_generate=True)
    assert torch.equal(found.sequences, ids) and torch.equal(found["sequences"], ids)
    (logits,) = model(**batch, return_dict=False)
    assert torch.equal(logits, model(**batch)["logits"]) and list(model(**batch)) == ["logits"]


def test_sampling_follows_torchs_seed_and_gives_several_answers() -> None:
    model, batch = shared()[0], inputs()
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": True, "num_return_sequences": 4, "top_k": 0}
    rows = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        rows.append(model.generate(**batch, **options))
    assert rows[0].shape[0] == 4 and len({tuple(row) for row in rows[0].tolist()}) > 1
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


# --- streaming -------------------------------------------------------------------------------------------------------


class Recorder:
    """A streamer of the simplest kind."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.seen.append(value.clone())

    def end(self) -> None:
        self.seen.append("end")


def test_any_object_with_put_and_end_is_a_streamer() -> None:
    model, batch, recorder = shared()[0], inputs(), Recorder()
    ids = model.generate(**batch, max_new_tokens=5, streamer=recorder)
    prompt, *new, end = recorder.seen
    assert end == "end" and torch.equal(prompt, batch.input_ids)
    assert [tuple(value.shape) for value in new] == [(1,)] * len(new)
    assert torch.equal(torch.cat([prompt[0], *new]), ids[0])


def test_streamed_is_not_streamed() -> None:
    model, processor = shared()
    streamer = TextIteratorStreamer(processor, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = threading.Thread(target=model.generate, kwargs=dict(inputs(), streamer=streamer, max_new_tokens=20))
    thread.start()
    text = "".join(streamer)
    thread.join()
    plain = model.generate(**inputs(), max_new_tokens=20)[0, inputs().input_ids.shape[1] :]
    assert text == processor.decode(plain, skip_special_tokens=True)


@pytest.mark.parametrize("when", ["before the first word", "in the middle"])
def test_an_error_in_the_generating_thread_is_raised_in_the_consumer(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = shared()
    streamer = TextIteratorStreamer(processor, skip_prompt=True, timeout=60)
    options: dict[str, Any] = {"max_new_tokens": 5}
    if when == "in the middle":

        def stream(*_: object) -> Iterator[Delta]:
            yield Delta(ids=tuple(processor.tokenizer.encode("one two ")))
            raise RuntimeError("out of ink")

        monkeypatch.setattr(model.engine, "stream", stream)
    else:
        options["typo"] = 1
    raised: list[BaseException] = []

    def work() -> None:
        try:
            model.generate(**inputs(), streamer=streamer, **options)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    words: list[str] = []
    with pytest.raises(RuntimeError if when == "in the middle" else OptionError) as found:
        words.extend(streamer)
    thread.join()
    assert raised == [found.value], "and in the thread that generates"
    assert words == ([] if when == "before the first word" else words)


def test_closing_the_streamer_stops_the_work() -> None:
    model, processor = shared()
    streamer = TextIteratorStreamer(processor, skip_prompt=True, timeout=60)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(model.generate, **inputs(), streamer=streamer, max_new_tokens=400, eos_token_id=None)
        next(streamer)
        streamer.close()
        ids = future.result(timeout=60)
    assert ids.shape[1] < inputs().input_ids.shape[1] + 400
    assert list(streamer) == []
    model.engine.check()


def test_a_streamer_that_raises_stops_the_work() -> None:
    class Broken(Recorder):
        def put(self, value: torch.Tensor) -> None:
            super().put(value)
            if len(self.seen) == 3:
                raise BrokenPipeError

    broken = Broken()
    with pytest.raises(BrokenPipeError):
        shared()[0].generate(**inputs(), streamer=broken, max_new_tokens=50)
    assert len(broken.seen) == 3
    shared()[0].engine.check()


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_only_one_sequence_can_be_streamed(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="one sequence can be streamed"):
        shared()[0].generate(**inputs(), streamer=Recorder(), max_new_tokens=3, **options)


# --- threads ---------------------------------------------------------------------------------------------------------


def test_threads_share_a_model() -> None:
    model = shared()[0]
    batches = [inputs(f"USER: <image> Question {number}? ASSISTANT:", seed=number) for number in range(6)]
    alone = [model.generate(**batch, max_new_tokens=10) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda batch: model.generate(**batch, max_new_tokens=10), batches))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_generation_defaults_are_this_models_own() -> None:
    model, other = load(dtype=torch.float32), shared()[0]
    model.generation_config.max_new_tokens = 2
    assert model.generate(**inputs()).shape[1] == inputs().input_ids.shape[1] + 2
    assert other.generation_config.max_new_tokens is None
    theirs = pytest.importorskip("transformers").GenerationConfig(max_new_tokens=3)
    model.generation_config = theirs
    assert model.generate(**inputs()).shape[1] == inputs().input_ids.shape[1] + 3
    config = copy.deepcopy(other.generation_config)
    config.max_new_tokens = 4
    assert other.generate(**inputs(), generation_config=config).shape[1] == inputs().input_ids.shape[1] + 4
