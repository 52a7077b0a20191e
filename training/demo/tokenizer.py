"""The demo's tokenizer: byte-level BPE learnt from the questions and answers, and its ChatML template.

Words become one token each; capitals and digits that stand for themselves are never merged, so that a read text is
spelt character by character. Any other text still encodes, as bytes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from conversations import NO_PICTURE, SYSTEM_PROMPTS, converse
from model import TokenIds
from scenes import make_scene

PAD, START, END, IMAGE = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"
VOCABULARY = 768
# A word with its space and, for the role names, its line end; lone capitals and digits; the rest by kind.
_PIECES = r" ?[A-Z]?[a-z]+\n?|[A-Z0-9]| ?[^\sA-Za-z0-9]+|\s+"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}{{- '<image>' -}}{%- elif item['type'] == 'text' -%}{{- item['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def build_tokenizer(seed: int = 0, conversations: int = 6_000) -> PreTrainedTokenizerFast:
    """Learn the merges from the seed's conversations."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END, IMAGE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed, conversations), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE},
        additional_special_tokens=[START, END],
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def kept_tokenizer(folder: Path, seed: int = 0) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`, built there the first time: ids must not change once training has begun."""
    if not folder.exists():
        build_tokenizer(seed).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def token_ids(tokenizer: PreTrainedTokenizerFast) -> TokenIds:
    """The ids that the model's config names."""
    pad, end, image = tokenizer.convert_tokens_to_ids([PAD, END, IMAGE])
    return TokenIds(size=len(tokenizer), pad=pad, end=end, image=image)


def _corpus(seed: int, conversations: int) -> Iterator[str]:
    rng = random.Random(f"tokenizer {seed}")
    for number in range(conversations):
        scenes = [make_scene(4 * number + offset) for offset in ((2, 3) if number % 3 == 0 else (0,))]
        for exchange in converse(scenes, rng, 10).exchanges:
            yield "user\n" + exchange.turn.question
            yield "assistant\n" + exchange.turn.answer
    for prompt in SYSTEM_PROMPTS:
        yield from ["system\n" + prompt] * 200
    yield from [NO_PICTURE] * 50
